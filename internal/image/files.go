package image

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/ext4"
)

// Walk calls f with every file of the image of a digest, parents before what is in them; its error ends it.
func (s *Store) Walk(ctx context.Context, digest string, f func(api.ImageFile) error) error {
	files, err := s.Files(ctx, digest)
	if err != nil {
		return err
	}
	r, err := ext4.Open(files.Rootfs)
	if err != nil {
		return fmt.Errorf("read image %s: %w", digest, err)
	}
	defer r.Close()
	return r.Walk(ctx, func(path string, i ext4.Info) error {
		return f(api.ImageFile{Path: path, Type: fileType(i.Mode), Mode: i.Mode & 0o7777, UID: i.UID, GID: i.GID, Size: i.Size, Links: i.Links,
			ModTime: i.ModTime.UTC(), Target: i.Target})
	})
}

// fileType is the type in a mode as the API has it.
func fileType(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "dir"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFCHR:
		return "char"
	case unix.S_IFBLK:
		return "block"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	}
	return "unknown"
}

// PruneCache removes what was fetched for images and not used since a time, and returns how many bytes that was, or with dryRun would be. No
// pull may run meanwhile.
func (s *Store) PruneCache(before time.Time, dryRun bool) (int64, error) {
	var sum int64
	for _, dir := range []string{s.OCICache(), filepath.Join(s.cfg.CacheDir, "image"), filepath.Join(s.cfg.CacheDir, "bundles")} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if os.IsNotExist(err) {
				return nil
			}
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil || !info.Mode().IsRegular() || info.ModTime().After(before) {
				return ignoreGone(err)
			}
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				sum += st.Blocks * 512
			} else {
				sum += info.Size()
			}
			if dryRun {
				return nil
			}
			return ignoreGone(os.Remove(path))
		})
		if err != nil {
			return sum, fmt.Errorf("prune %q: %w", dir, err)
		}
	}
	return sum, nil
}

func ignoreGone(err error) error {
	if os.IsNotExist(err) {
		return nil
	}
	return err
}
