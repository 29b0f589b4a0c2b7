package tree

import (
	"bytes"
	"errors"
	"os"
	"path"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
)

// maxLevels bounds the directories dirs keeps open.
const maxLevels = 64

// openTries bounds how often a directory is opened while the kernel says that somebody renames above it.
const openTries = 8

// openRoot opens a root, an absolute path.
func openRoot(root string) (*os.File, error) {
	if !path.IsAbs(root) || strings.ContainsRune(root, 0) {
		return nil, api.Errorf(api.KindInvalid, "directory %q is not an absolute path", root)
	}
	f, err := os.OpenFile(root, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, failure("open", root, err)
	}
	return f, nil
}

// dirs opens the directories paths are in, each as seldom as it can where paths come in the order a walk of the tree has.
type dirs struct {
	root   int
	levels []level // each below the one before
}

type level struct {
	path string
	fd   int
}

// at returns the directory a path is in, which stays open until the next call, and the last part of the path. The path ends with a NUL.
func (d *dirs) at(name []byte) (fd int, base []byte, err error) {
	i := bytes.LastIndexByte(name, '/')
	if i < 0 {
		return d.root, name, nil
	}
	dir, base := name[:i], name[i+1:]
	from, below := d.root, dir
	for len(d.levels) > 0 {
		top := d.levels[len(d.levels)-1]
		if len(dir) >= len(top.path) && string(dir[:len(top.path)]) == top.path {
			if len(dir) == len(top.path) {
				return top.fd, base, nil
			}
			if dir[len(top.path)] == '/' {
				from, below = top.fd, dir[len(top.path)+1:]
				break
			}
		}
		_ = unix.Close(top.fd)
		d.levels = d.levels[:len(d.levels)-1]
	}
	fd, err = openDir(from, string(below), unix.O_PATH)
	if err != nil {
		return -1, nil, err
	}
	if len(d.levels) == maxLevels {
		_ = unix.Close(d.levels[0].fd)
		d.levels = append(d.levels[:0], d.levels[1:]...)
	}
	d.levels = append(d.levels, level{string(dir), fd})
	return fd, base, nil
}

func (d *dirs) close() {
	for _, l := range d.levels {
		_ = unix.Close(l.fd)
	}
	d.levels = nil
}

// dirFlags are how every directory is opened.
const dirFlags = unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// openDir opens a directory below another one, through no link.
func openDir(at int, name string, flags int) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | dirFlags), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(at, name, &how)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN) && try < openTries:
		case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM): // a kernel before 5.6, a filter of system calls
			return walkDir(at, name, flags)
		default:
			return fd, err
		}
	}
}

// walkDir is openDir part by part.
func walkDir(at int, name string, flags int) (int, error) {
	from := at
	for {
		part, rest, more := strings.Cut(name, "/")
		how := flags | dirFlags
		if more {
			how |= unix.O_PATH
		}
		fd, err := unix.Openat(from, part, how, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if from != at {
			_ = unix.Close(from)
		}
		if err != nil || !more {
			return fd, err
		}
		from, name = fd, rest
	}
}

// status is what stat(2) says, as far as anybody here wants to know.
type status struct {
	kind  byte
	perm  uint32
	size  int64
	mtime int64
}

// wanted is what of statx(2) becomes a status.
const wanted = unix.STATX_TYPE | unix.STATX_MODE | unix.STATX_SIZE | unix.STATX_MTIME

// stat fills in what is at a name that ends with a NUL, not following a link; "" is the file fd itself. It and openFile call the kernel
// without the copies of names package unix makes: that is a fifth of the time of a listing.
func (st *status) stat(fd int, name []byte) error {
	var x unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_EMPTY_PATH
	for {
		_, _, errno := unix.Syscall6(unix.SYS_STATX, uintptr(fd), uintptr(unsafe.Pointer(&name[0])), uintptr(flags), wanted, uintptr(unsafe.Pointer(&x)), 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return errno
		}
		break
	}
	*st = status{kind: kindOf(uint32(x.Mode)), perm: uint32(x.Mode) & 0o777, size: int64(min(x.Size, 1<<63-1)), mtime: x.Mtime.Sec}
	if st.kind == kindDir {
		st.size = 0
	}
	return nil
}

// itself is the name of an open file.
var itself = []byte{0}

// openFile opens what is at a name that ends with a NUL for reading. It fails with ELOOP where that is a link, and does not wait for
// a pipe's writer.
func openFile(fd int, name []byte) (int, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC | unix.O_LARGEFILE
	for {
		f, _, errno := unix.Syscall6(unix.SYS_OPENAT, uintptr(fd), uintptr(unsafe.Pointer(&name[0])), flags, 0, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return -1, errno
		}
		return int(f), nil
	}
}

// read reads from a descriptor until b is full or the file ends.
func read(fd int, b []byte) (n int, err error) {
	for n < len(b) {
		m, err := unix.Read(fd, b[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || m <= 0 {
			return n, err
		}
		n += m
	}
	return n, nil
}

// readLink reads a link; the target is part of buf.
func readLink(fd int, name []byte, buf []byte) ([]byte, error) {
	n, err := unix.Readlinkat(fd, string(name[:len(name)-1]), buf)
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}
