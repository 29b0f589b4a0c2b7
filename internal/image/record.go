package image

import (
	"path/filepath"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/content"
)

// The files of an image's directory.
const (
	fileRootfs = "rootfs.ext4"
	fileJSON   = "image.json"
)

const recordVersion = 1

// record is image.json.
type record struct {
	Version int       `json:"version"`
	Image   api.Image `json:"image"`
	// RootfsSize is in bytes, RootfsModTime in nanoseconds since 1970: they tell cheaply that the file was not touched.
	RootfsSize    int64 `json:"rootfs_size"`
	RootfsModTime int64 `json:"rootfs_mod_time_ns"`
}

// rootfs is what is recorded of the base drive, whose hash is the image's digest.
func (r record) rootfs() content.File {
	return content.File{Name: fileRootfs, SHA256: strings.TrimPrefix(r.Image.Digest, "sha256:"), Size: r.RootfsSize, ModTime: r.RootfsModTime}
}

func readRecord(dir string) (record, error) {
	return content.ReadRecord[record](filepath.Join(dir, fileJSON), recordVersion)
}

func (r record) write(dir string) error {
	return content.WriteRecord(filepath.Join(dir, fileJSON), r)
}
