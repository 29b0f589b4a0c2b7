package api

import "time"

// Image is a read-only root file system and its configuration, in the store or in the catalog.
type Image struct {
	Name string `json:"name"`
	// Digest is "sha256:<hex>" of rootfs.ext4; empty where the image is in the catalog only.
	Digest      string `json:"digest,omitempty"`
	Description string `json:"description,omitempty"`
	Source      string `json:"source,omitempty"`
	Arch        string `json:"arch"`
	// SizeBytes is the size of the file, DiskBytes what it takes on the host.
	SizeBytes int64      `json:"size_bytes,omitempty"`
	DiskBytes int64      `json:"disk_bytes,omitempty"`
	Kernel    string     `json:"kernel,omitempty"`
	Env       []string   `json:"env,omitempty"`
	WorkDir   string     `json:"work_dir,omitempty"`
	User      string     `json:"user,omitempty"`
	Entry     []string   `json:"entrypoint,omitempty"`
	Cmd       []string   `json:"cmd,omitempty"`
	Local     bool       `json:"local"`
	Default   bool       `json:"default,omitempty"`
	CreatedAt *time.Time `json:"created_at,omitempty"`
	// VMs are the names of the VMs pinned to Digest.
	VMs []string `json:"vms,omitempty"`
}

// PullImage asks to make an image local.
type PullImage struct {
	Name string `json:"name"`
	// Build forces the local recipe and replaces a local image of that name.
	Build bool `json:"build,omitempty"`
}

// Kernel is a kernel with its modules, in the store or in the catalog.
type Kernel struct {
	Name string `json:"name"`
	// Digest is "sha256:<hex>" over the kernel's files; empty where it is in the catalog only.
	Digest      string     `json:"digest,omitempty"`
	Description string     `json:"description,omitempty"`
	Release     string     `json:"release,omitempty"` // uname -r
	Package     string     `json:"package,omitempty"` // name and version of the package it came from
	Source      string     `json:"source,omitempty"`
	Arch        string     `json:"arch"`
	SizeBytes   int64      `json:"size_bytes,omitempty"`
	Local       bool       `json:"local"`
	Default     bool       `json:"default,omitempty"`
	CreatedAt   *time.Time `json:"created_at,omitempty"`
	VMs         []string   `json:"vms,omitempty"`
}

// PullKernel asks to make a kernel local, or to look for a newer one of that name.
type PullKernel struct {
	Name string `json:"name"`
}
