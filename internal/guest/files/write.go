package files

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

const (
	// copyBuffer is the size of the buffers between stream and files in bytes.
	copyBuffer = 256 << 10
	// holeSize is the least run of zeros that becomes a hole, in bytes.
	holeSize = 32 << 10
)

// zeros is what a hole reads as.
var zeros [holeSize]byte

// place is a name in an open directory that something is made under: its own, or with Merge one beside it until it is
// whole, where something is there.
type place struct {
	parent   int
	base, at string
}

// make has do make what is not there yet under p.at.
func (u *unpacker) make(name string, do func(p place) error) (place, error) {
	parent, base, err := u.parent(name)
	if err != nil {
		return place{}, err
	}
	p := place{parent, base, base}
	if !u.opt.Merge {
		return p, u.replacing(name, func() error { return do(p) })
	}
	if err := do(p); !errors.Is(err, unix.EEXIST) {
		return p, err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return p, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return p, errFileOverDir
	case unix.S_IFREG, unix.S_IFLNK:
	default:
		return p, errSpecial
	}
	p.at = ".banger-cp-" + rand.Text()
	return p, do(p)
}

// settle ends what make began: what is whole gets its name, what is not goes.
func (p place) settle(err error) error {
	if err == nil && p.at == p.base {
		return nil
	}
	if err == nil {
		err = unix.Renameat(p.parent, p.at, p.parent, p.base)
	}
	_ = unix.Unlinkat(p.parent, p.at, 0) // it is still there where the rename failed, or both were one file
	return err
}

func (u *unpacker) file(name string, h *tar.Header, tr *tar.Reader) error {
	mode := u.mode(h)
	fd := -1
	p, err := u.make(name, func(p place) (err error) {
		fd, err = unix.Openat(p.parent, p.at, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode&0o777)
		return err
	})
	if err != nil {
		return err
	}
	err = u.fill(fd, h, mode, tr)
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	if err == nil {
		err = u.setTime(p.parent, p.at, h)
	}
	return p.settle(err)
}

// fill gives a new file its bytes, owner and mode.
func (u *unpacker) fill(fd int, h *tar.Header, mode uint32, r io.Reader) error {
	if u.opt.Strict {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		u.made[inode{uint64(st.Dev), st.Ino}] = struct{}{} //nolint:unconvert // 32 bits on some architectures
	}
	err := u.write(fd, r)
	if uid, gid, ok := u.owner(h); err == nil && ok {
		err = u.mayChown(unix.Fchown(fd, uid, gid))
	}
	if err == nil && (mode&u.umask != 0 || mode&^0o777 != 0) {
		err = unix.Fchmod(fd, mode)
	}
	return err
}

// write copies an entry's bytes to a file; long runs of zeros become holes.
func (u *unpacker) write(fd int, r io.Reader) error {
	w := fileWriter{fd: fd}
	for {
		n, err := r.Read(u.buf)
		u.result.Bytes += int64(n)
		if werr := u.put(&w, u.buf[:n]); werr != nil {
			return werr
		}
		if n > 0 && u.opt.Progress != nil {
			u.opt.Progress(int64(n))
		}
		switch {
		case errors.Is(err, io.EOF):
			return w.end()
		case err != nil:
			return err
		case u.ctx.Err() != nil:
			return context.Cause(u.ctx)
		}
	}
}

// put writes what is next in a file, but for zeros.
func (u *unpacker) put(w *fileWriter, p []byte) error {
	for len(p) > 0 {
		n := 0 // bytes until the next run of zeros
		for n < len(p) && !bytes.Equal(p[n:min(n+holeSize, len(p))], zeros[:min(holeSize, len(p)-n)]) {
			n += min(holeSize, len(p)-n)
		}
		if n == 0 && len(p) < holeSize {
			n = len(p)
		}
		if n == 0 {
			n = min(holeSize, len(p))
			w.skip(n)
			p = p[n:]
			continue
		}
		if u.opt.MaxBytes > 0 && u.stored+int64(n) > u.opt.MaxBytes {
			return fmt.Errorf("%w: more than %d bytes in all", ErrTooBig, u.opt.MaxBytes)
		}
		u.stored += int64(n)
		if err := w.write(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// fileWriter writes a new file from its beginning.
type fileWriter struct {
	fd   int
	size int64
	hole bool // the end is a hole
}

func (w *fileWriter) skip(n int) {
	w.size += int64(n)
	w.hole = true
}

func (w *fileWriter) write(p []byte) error {
	for len(p) > 0 {
		var (
			n   int
			err error
		)
		if w.hole {
			if _, err = unix.Seek(w.fd, w.size, io.SeekStart); err != nil {
				return err
			}
		}
		n, err = unix.Write(w.fd, p)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		w.hole = false
		w.size += int64(n)
		p = p[n:]
	}
	return nil
}

func (w *fileWriter) end() error {
	if !w.hole {
		return nil
	}
	return unix.Ftruncate(w.fd, w.size)
}

func (u *unpacker) symlink(name string, h *tar.Header) error {
	p, err := u.make(name, func(p place) error { return unix.Symlinkat(h.Linkname, p.parent, p.at) })
	if err != nil {
		return err
	}
	if uid, gid, ok := u.owner(h); ok {
		err = u.mayChown(unix.Fchownat(p.parent, p.at, uid, gid, unix.AT_SYMLINK_NOFOLLOW))
	}
	if err == nil {
		err = u.setTime(p.parent, p.at, h)
	}
	return p.settle(err)
}

// hardLink links to a file that was unpacked before, which must be in the directory.
func (u *unpacker) hardLink(name string, h *tar.Header) error {
	to, err := local(h.Linkname, u.opt.Strict)
	if err == nil {
		to, err = u.renamed(to)
	}
	if err != nil {
		return err
	}
	if to == name {
		return nil
	}
	fd, target, err := u.parent(to)
	if err != nil {
		return err
	}
	if u.opt.Strict && !u.wasMade(fd, target) {
		return errors.New("a hard link to what was not copied")
	}
	at, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) // the next parent may close this one
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(at) }()
	p, err := u.make(name, func(p place) error { return unix.Linkat(at, target, p.parent, p.at, 0) })
	if err != nil {
		return err
	}
	return p.settle(nil)
}

// inode is a file of this host.
type inode struct{ dev, ino uint64 }

// wasMade tells whether a name is a file that came with this stream.
func (u *unpacker) wasMade(parent int, base string) bool {
	var st unix.Stat_t
	if unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return false
	}
	_, ok := u.made[inode{uint64(st.Dev), st.Ino}] //nolint:unconvert // as above
	return ok
}
