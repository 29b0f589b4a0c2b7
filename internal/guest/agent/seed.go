package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// bindName is the name of a bound directory on the data drive: var-lib-docker.
func bindName(p string) string {
	return strings.ReplaceAll(strings.Trim(p, "/"), "/", "-")
}

// prepareData makes the layout of a new data drive at data: the overlay's directories, and the bound
// directories with what the image at base holds there. It appears in one step, so that a boot that is cut
// off is as if it had not begun. On a drive that has the layout only missing bound directories are made.
func prepareData(base, data string, bound []boundDir) error {
	layout := path.Join(data, layoutDir)
	if _, err := os.Lstat(layout); err == nil {
		return addBound(layout, bound)
	}
	tmp := layout + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	for _, d := range []string{"upper", "work", "bind"} {
		if err := os.MkdirAll(path.Join(tmp, d), 0o755); err != nil {
			return err
		}
	}
	if err := copyRootAttributes(base, path.Join(tmp, "upper")); err != nil {
		return err
	}
	copied := false
	for _, b := range bound {
		filled, err := seed(base, b, path.Join(tmp, "bind", bindName(b.path)))
		if err != nil {
			return fmt.Errorf("copy %q of the image: %w", b.path, err)
		}
		copied = copied || filled
	}
	if copied {
		if err := syncFS(data); err != nil {
			return err
		}
	}
	return os.Rename(tmp, layout)
}

// copyRootAttributes gives the overlay's upper directory, whose attributes the root has, those of the image's root.
func copyRootAttributes(base, upper string) error {
	var st unix.Stat_t
	if err := unix.Stat(base, &st); err != nil {
		return &os.PathError{Op: "stat", Path: base, Err: err}
	}
	return errors.Join(os.Chown(upper, int(st.Uid), int(st.Gid)), unix.Chmod(upper, st.Mode&0o7777))
}

func addBound(layout string, bound []boundDir) error {
	for _, b := range bound {
		err := makeDir(path.Join(layout, "bind", bindName(b.path)), b.mode)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// makeDir is Mkdir whatever the umask, special bits included.
func makeDir(p string, mode fs.FileMode) error {
	if err := os.Mkdir(p, mode.Perm()); err != nil {
		return err
	}
	return os.Chmod(p, mode)
}

func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync %q: %w", dir, err)
	}
	return nil
}

// seed makes the directory to with what the image has at b.path, or empty. Links of the image lead nowhere
// but into the image. It reports whether anything was copied.
func seed(base string, b boundDir, to string) (bool, error) {
	root, err := unix.Open(base, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, &os.PathError{Op: "open", Path: base, Err: err}
	}
	defer unix.Close(root)
	how := &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	src, err := unix.Openat2(root, strings.TrimPrefix(b.path, "/"), how)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return false, makeDir(to, b.mode)
	}
	if err != nil {
		return false, &os.PathError{Op: "open", Path: b.path, Err: err}
	}
	defer unix.Close(src)
	if err := os.Mkdir(to, 0o700); err != nil {
		return false, err
	}
	dst, err := unix.Open(to, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, &os.PathError{Op: "open", Path: to, Err: err}
	}
	defer unix.Close(dst)
	c := copier{links: map[uint64]string{}, top: dst}
	if err := c.dir(src, dst, ""); err != nil {
		return false, err
	}
	return c.n > 0, nil
}

// copier copies a tree of the image, with owners, modes, times, extended attributes, devices and hard links.
// It works on descriptors and follows no link.
type copier struct {
	top   int               // where the copy begins
	links map[uint64]string // inode to the path of its first copy, for hard links
	n     int               // entries copied
}

// dir copies what is in src to dst, then the attributes of src; at is dst's path below top.
func (c *copier) dir(src, dst int, at string) error {
	names, err := readNames(src)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := c.entry(src, dst, name, path.Join(at, name)); err != nil {
			return fmt.Errorf("%q: %w", path.Join(at, name), err)
		}
		c.n++
	}
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return err
	}
	return copyAttributes(src, dst, &st)
}

func readNames(fd int) ([]string, error) {
	dup, err := unix.Dup(fd)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(dup), "dir")
	defer f.Close()
	return f.Readdirnames(-1)
}

func (c *copier) entry(src, dst int, name, at string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if first, ok := c.links[st.Ino]; ok {
		return unix.Linkat(c.top, first, dst, name, 0)
	}
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		c.links[st.Ino] = at
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := unix.Mkdirat(dst, name, 0o700); err != nil {
			return err
		}
		return c.opened(src, dst, name, unix.O_RDONLY|unix.O_DIRECTORY, unix.O_RDONLY|unix.O_DIRECTORY, func(s, d int) error {
			return c.dir(s, d, at)
		})
	case unix.S_IFREG:
		return c.opened(src, dst, name, unix.O_RDONLY, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, func(s, d int) error {
			if err := copyData(s, d); err != nil {
				return err
			}
			return copyAttributes(s, d, &st)
		})
	case unix.S_IFLNK:
		return copyLink(src, dst, name, &st)
	default:
		if err := unix.Mknodat(dst, name, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
		if err := unix.Fchownat(dst, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		return unix.Fchmodat(dst, name, st.Mode&0o7777, 0)
	}
}

func (c *copier) opened(src, dst int, name string, sflags, dflags int, do func(s, d int) error) error {
	s, err := unix.Openat(src, name, sflags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	d, err := unix.Openat(dst, name, dflags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(d)
	return do(s, d)
}

func copyLink(src, dst int, name string, st *unix.Stat_t) error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(src, name, buf)
	if err != nil {
		return err
	}
	if err := unix.Symlinkat(string(buf[:n]), dst, name); err != nil {
		return err
	}
	return unix.Fchownat(dst, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
}

func copyData(src, dst int) error {
	for {
		switch n, err := unix.CopyFileRange(src, nil, dst, nil, 1<<30, 0); {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP):
			return copyBytes(src, dst)
		case err != nil || n == 0:
			return err
		}
	}
}

func copyBytes(src, dst int) error {
	buf := make([]byte, 128<<10)
	for {
		n, err := unix.Read(src, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return err
		}
		for out := buf[:n]; len(out) > 0; {
			w, err := unix.Write(dst, out)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return err
			}
			if w == 0 {
				return io.ErrShortWrite
			}
			out = out[w:]
		}
	}
}

// copyAttributes gives dst the owner, mode, extended attributes and times of src.
func copyAttributes(src, dst int, st *unix.Stat_t) error {
	if err := unix.Fchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(dst, st.Mode&0o7777); err != nil {
		return err
	}
	if err := copyXattrs(src, dst); err != nil {
		return err
	}
	times := []unix.Timeval{{Sec: st.Atim.Sec, Usec: st.Atim.Nsec / 1000}, {Sec: st.Mtim.Sec, Usec: st.Mtim.Nsec / 1000}}
	return unix.Futimes(dst, times)
}

func copyXattrs(src, dst int) error {
	size, err := unix.Flistxattr(src, nil)
	if err != nil || size == 0 {
		return ignoreUnsupported(err)
	}
	names := make([]byte, size)
	if size, err = unix.Flistxattr(src, names); err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:size]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		n, err := unix.Fgetxattr(src, name, value)
		if err != nil {
			return err
		}
		if err := unix.Fsetxattr(dst, name, value[:n], 0); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

func ignoreUnsupported(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}
