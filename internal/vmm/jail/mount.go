package jail

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ownMounts gives the calling thread a mount namespace of its own. What is mounted there is seen nowhere else; what the host
// unmounts goes there too, so that a VM keeps no disk of the host busy it does not use.
func ownMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("keep mounts to the namespace: %w", err)
	}
	return nil
}

// fdPath is a path to what is open as fd.
func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// bind mounts the file that is open as fd on target, a new file.
func bind(fd int, target string, readOnly bool) error {
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := unix.Mount(fdPath(fd), target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount it on %q: %w", target, err)
	}
	flags := uintptr(unix.MS_REMOUNT | unix.MS_BIND | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount("", target, "", flags, ""); err != nil {
		return fmt.Errorf("restrict the mount on %q: %w", target, err)
	}
	return nil
}

// removeTries is how often something is unmounted, and a directory emptied, until it can be removed.
const removeTries = 64

// removeTree removes path and all below. What the calling thread sees mounted there is unmounted first, and nothing on it
// is touched.
func removeTree(path string) error {
	parent, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	return removeAt(parent, filepath.Base(path))
}

// removeAt removes name in the directory dir.
func removeAt(dir int, name string) error {
	var err error
	for range removeTries {
		if err = unix.Unlinkat(dir, name, 0); errors.Is(err, unix.EISDIR) {
			err = removeDirAt(dir, name)
		}
		switch {
		case err == nil, errors.Is(err, unix.ENOENT):
			return nil
		case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EXDEV):
			if err := unmountAt(dir, name); err != nil {
				return fmt.Errorf("unmount %q: %w", name, err)
			}
		case errors.Is(err, unix.ENOTEMPTY): // somebody was quicker
		default:
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	return fmt.Errorf("%q: %w", name, err)
}

// removeDirAt empties and removes a directory; EXDEV where something is mounted on it.
func removeDirAt(dir int, name string) error {
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := removeAt(fd, n); err != nil {
			return err
		}
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

// unmountAt unmounts what is mounted on name in the directory dir.
func unmountAt(dir int, name string) error {
	return unix.Unmount(fdPath(dir)+"/"+name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
}
