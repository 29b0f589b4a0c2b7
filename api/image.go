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
	// SizeBytes is the size of the file, DiskBytes what it takes on the host; of what is in the catalog only SizeBytes is about what it will be.
	SizeBytes int64 `json:"size_bytes,omitempty"`
	DiskBytes int64 `json:"disk_bytes,omitempty"`
	// SharedBytes is what of DiskBytes is other images' as well: of names for the same image.
	SharedBytes int64 `json:"shared_bytes,omitempty"`
	// DownloadBytes is about what is fetched for it; of what is in the catalog.
	DownloadBytes int64      `json:"download_bytes,omitempty"`
	Kernel        string     `json:"kernel,omitempty"`
	Env           []string   `json:"env,omitempty"`
	WorkDir       string     `json:"work_dir,omitempty"`
	User          string     `json:"user,omitempty"`
	Entry         []string   `json:"entrypoint,omitempty"`
	Cmd           []string   `json:"cmd,omitempty"`
	Local         bool       `json:"local"`
	Default       bool       `json:"default,omitempty"`
	CreatedAt     *time.Time `json:"created_at,omitempty"`
	// VMs are the names of the VMs pinned to Digest.
	VMs []string `json:"vms,omitempty"`
}

// PullImage asks to make an image local.
type PullImage struct {
	// Name is one of the catalog, or a reference to an image in a registry: "alpine:3.20", "ghcr.io/org/img@sha256:HEX".
	Name string `json:"name"`
	// As is the name it gets here; empty for the catalog's, or for the reference as docker writes it: "alpine:3.20". Only for a reference.
	As string `json:"as,omitempty"`
	// Kernel is the name of the kernel that VMs of it get; empty for the default one. Only for a reference.
	Kernel string `json:"kernel,omitempty"`
	// Platform is "OS/ARCH[/VARIANT]"; empty for this host's. Only for a reference.
	Platform string `json:"platform,omitempty"`
	// Build forces the local recipe and replaces a local image of that name.
	Build bool `json:"build,omitempty"`
}

// RegisterImage asks to make an image of a file of the host.
type RegisterImage struct {
	Name string `json:"name"`
	// Rootfs is an absolute path: an ext4 file system, or a tar, also compressed by gzip or zstd.
	Rootfs string `json:"rootfs"`
	Kernel string `json:"kernel,omitempty"`
}

// PromoteImage asks to make an image of what a running VM's root holds.
type PromoteImage struct {
	VM   string `json:"vm"`
	Name string `json:"name"`
	// Clean leaves out /root and /home.
	Clean bool `json:"clean,omitempty"`
}

// ExportImage asks to write an image to a bundle.
type ExportImage struct {
	// Path is absolute. A file that is there is an error, unless Replace.
	Path    string `json:"path"`
	Replace bool   `json:"replace,omitempty"`
}

// ImportImage asks to make the image of a bundle local.
type ImportImage struct {
	Path string `json:"path"` // absolute
	// Name is empty for the bundle's own.
	Name string `json:"name,omitempty"`
}

// TagImage gives an image another name as well.
type TagImage struct {
	As string `json:"as"`
}

// Prune asks to remove what nothing uses: images without a VM, but for the default one, what was fetched for them.
type Prune struct {
	DryRun bool `json:"dry_run,omitempty"`
	// OlderThanSeconds keeps what was made or used later than that.
	OlderThanSeconds int64 `json:"older_than_seconds,omitempty"`
}

// Pruned is what was removed, or would be.
type Pruned struct {
	Images []Image `json:"images"`
	// CacheBytes is what the files of the cache took, Bytes all together.
	CacheBytes int64 `json:"cache_bytes"`
	Bytes      int64 `json:"bytes"`
	// Busy: a pull was running, so the cache was left alone.
	Busy bool `json:"busy,omitempty"`
}

// ImageFile is a file in an image.
type ImageFile struct {
	Path string `json:"path"` // absolute
	// Type is "file", "dir", "symlink", "char", "block", "fifo" or "socket".
	Type string `json:"type"`
	// Mode has the permissions with setuid, setgid and sticky bits, as stat(2) has them.
	Mode    uint32    `json:"mode"`
	UID     uint32    `json:"uid"`
	GID     uint32    `json:"gid"`
	Size    int64     `json:"size"` // in bytes
	Links   int       `json:"links"`
	ModTime time.Time `json:"mod_time"`
	Target  string    `json:"target,omitempty"` // of a symlink
}

// RegisterKernel asks to make a kernel of files of the host. The paths are absolute.
type RegisterKernel struct {
	Name string `json:"name"`
	// Vmlinux is an uncompressed ELF kernel, or a bzImage with one inside.
	Vmlinux string `json:"vmlinux"`
	// Modules is the directory of its modules, as lib/modules/RELEASE; empty where all that banger needs is built in.
	Modules string `json:"modules,omitempty"`
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
