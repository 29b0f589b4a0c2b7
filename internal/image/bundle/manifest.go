package bundle

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"git.thaloco.com/thaloco/banger/internal/disk"
)

// Version is the version of manifest.json that this package writes and reads.
const Version = 1

// Manifest is manifest.json. Write sets Version, and what it knows of Rootfs.
type Manifest struct {
	Version     int    `json:"version"`
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	// Arch is as Go names it: "amd64".
	Arch string `json:"arch"`
	// Kernel is the name of the kernel the image is meant for; empty for the default one.
	Kernel string `json:"kernel,omitempty"`
	// Source says where the image came from before it was exported.
	Source     string    `json:"source,omitempty"`
	Env        []string  `json:"env,omitempty"` // NAME=VALUE
	WorkDir    string    `json:"work_dir,omitempty"`
	User       string    `json:"user,omitempty"`
	Entrypoint []string  `json:"entrypoint,omitempty"`
	Cmd        []string  `json:"cmd,omitempty"`
	CreatedAt  time.Time `json:"created_at"`
	Rootfs     Rootfs    `json:"rootfs"`
}

// Rootfs is what a Manifest says of rootfs.ext4.
type Rootfs struct {
	SHA256 string `json:"sha256"` // 64 hexadecimal digits, lower case
	Size   int64  `json:"size"`   // bytes, a multiple of 512
}

// parseManifest reads manifest.json as strictly as it is written.
func parseManifest(data []byte) (Manifest, error) {
	var is struct {
		Version *int `json:"version"`
	}
	if err := json.Unmarshal(data, &is); err != nil {
		return Manifest{}, invalid("%s: %w", memberManifest, err)
	}
	switch {
	case is.Version == nil:
		return Manifest{}, invalid("%s has no version", memberManifest).WithHint(hintFormat)
	case *is.Version != Version:
		return Manifest{}, invalid("%s is of version %d, not %d: another version of banger wrote it", memberManifest, *is.Version, Version).
			WithHint("use the version of banger that exported it, or a newer one")
	}
	var m Manifest
	dec := json.NewDecoder(bytes.NewReader(data)) // nothing follows the end: Unmarshal would have said so
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return Manifest{}, invalid("%s: %w", memberManifest, err)
	}
	if err := m.check(); err != nil {
		return Manifest{}, invalid("%s: %w", memberManifest, err)
	}
	if m.Arch != runtime.GOARCH {
		return Manifest{}, invalid("its image is for %s, and this host is %s", m.Arch, runtime.GOARCH).
			WithHint("export or fetch the image for %s", runtime.GOARCH)
	}
	return m, nil
}

// check says what is wrong with a manifest of this version.
func (m Manifest) check() error {
	if m.Name == "" || m.Arch == "" {
		return fmt.Errorf("the name or the arch of the image is missing")
	}
	words := []struct{ key, value string }{{"name", m.Name}, {"description", m.Description}, {"arch", m.Arch}, {"kernel", m.Kernel},
		{"source", m.Source}, {"work_dir", m.WorkDir}, {"user", m.User}}
	for _, w := range words {
		if !utf8.ValidString(w.value) || strings.ContainsFunc(w.value, unicode.IsControl) {
			return fmt.Errorf("%s: %q has characters that cannot be shown", w.key, shown(w.value))
		}
	}
	for _, e := range m.Env {
		if name, _, ok := strings.Cut(e, "="); !ok || name == "" || strings.ContainsRune(e, 0) {
			return fmt.Errorf("env: %q is not NAME=VALUE", shown(e))
		}
	}
	for _, a := range slices.Concat(m.Entrypoint, m.Cmd) {
		if strings.ContainsRune(a, 0) {
			return fmt.Errorf("entrypoint, cmd: %q has a zero in it", shown(a))
		}
	}
	if m.WorkDir != "" && !path.IsAbs(m.WorkDir) {
		return fmt.Errorf("work_dir: %q is not an absolute path", shown(m.WorkDir))
	}
	if b, err := hex.DecodeString(m.Rootfs.SHA256); err != nil || len(b) != 32 || strings.ToLower(m.Rootfs.SHA256) != m.Rootfs.SHA256 {
		return fmt.Errorf("rootfs.sha256: %q is not 64 hexadecimal digits", shown(m.Rootfs.SHA256))
	}
	switch size := m.Rootfs.Size; {
	case size <= 0 || size%tarBlock != 0:
		return fmt.Errorf("rootfs.size: %d bytes is no size of a drive", size)
	case size > maxRootfs:
		return fmt.Errorf("rootfs.size: %s is more than the %s a drive may have", disk.FormatSize(size), disk.FormatSize(maxRootfs))
	}
	return nil
}
