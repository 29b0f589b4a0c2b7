// Package disk makes and changes data drives: the sparse files that hold each
// VM's own ext4.
//
// create.go unpacks an embedded empty file system (see template), copy.go copies
// and grows drives, size.go is how sizes are written.
package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"git.thaloco.com/thaloco/banger/api"
	"golang.org/x/sys/unix"
)

// MinBytes is the smallest data drive, DefaultBytes the one whose file system need not grow at first boot.
const (
	MinBytes     = 1 << 30
	DefaultBytes = 20 << 30
)

// blockSize is what the size of a drive is a multiple of, in bytes.
const blockSize = 4096

// Usage returns the size of the file at path and what it takes on the host, in bytes.
func Usage(path string) (apparent, allocated int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Size, st.Blocks * 512, nil
}

// Room returns the size of the file system that holds dir and what an ordinary
// user may still write to it, in bytes.
func Room(dir string) (total, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	unit := st.Frsize
	if unit == 0 {
		unit = st.Bsize
	}
	return int64(st.Blocks) * unit, int64(st.Bavail) * unit, nil
}

// checkSize is the rule for the size of a drive.
func checkSize(bytes int64) error {
	if bytes < MinBytes {
		return api.Errorf(api.KindInvalid, "disk of %s is too small", FormatSize(bytes)).
			WithHint("use %s or more", FormatSize(MinBytes))
	}
	if bytes%blockSize != 0 {
		return api.Errorf(api.KindInvalid, "disk of %d bytes is no multiple of %d bytes", bytes, blockSize).
			WithHint(sizeRule)
	}
	return nil
}

// hostError gives the errors a host's file system has for a drive the kind and the hint they deserve.
func hostError(err error, verb, path string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return api.Errorf(api.KindUnavailable, "%s %q: %w", verb, path, err).
			WithHint("free some space on the file system that holds it, or delete VMs that are not needed: banger vm list")
	case errors.Is(err, unix.EFBIG):
		return api.Errorf(api.KindInvalid, "%s %q: the host's file system does not hold files that large: %w", verb, path, err).
			WithHint("use a smaller disk")
	case errors.Is(err, os.ErrPermission):
		return api.Errorf(api.KindUnavailable, "%s %q: %w", verb, path, err)
	}
	return fmt.Errorf("%s %q: %w", verb, path, err)
}

func shrinkError(path string, old, size int64) error {
	return api.Errorf(api.KindInvalid, "grow disk %q: it has %s already, and a disk cannot shrink to %s",
		path, FormatSize(old), FormatSize(size)).WithHint("use more than %s", FormatSize(old))
}
