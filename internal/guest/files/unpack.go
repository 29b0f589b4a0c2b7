package files

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// copyBuffer is the size of the buffers between stream and files in bytes.
const copyBuffer = 256 << 10

// maxOpenDirs bounds how many directories an Unpack holds open.
const maxOpenDirs = 64

// Unpack reads a tar stream into dir, which is made where it is missing. What is there under the name of an
// entry is replaced, but a directory is kept where a directory comes; everything else stays. Modes and times are
// the stream's, so are owners unless Options say otherwise or the caller may not change them. It does not sync.
// After an error what was unpacked remains.
func Unpack(ctx context.Context, dir string, r io.Reader, opt Options) (Result, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Result{}, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Result{}, err
	}
	defer root.Close()
	u := &unpacker{ctx: ctx, root: root, opt: opt, umask: umask(), uid: os.Geteuid(), gid: os.Getegid(),
		dirs: map[string]*os.File{}, buf: make([]byte, copyBuffer)}
	defer u.closeDirs()
	err = u.all(tar.NewReader(bufio.NewReaderSize(r, copyBuffer)))
	return u.result, err
}

// unpacker is one run of Unpack. Files are made relative to open directories, with names of one
// part, so that no link can lead a write elsewhere and a file costs four system calls.
type unpacker struct {
	ctx      context.Context
	root     *os.Root
	opt      Options
	umask    uint32
	uid, gid int
	dirs     map[string]*os.File // open, by name
	later    []dirMode           // modes and times of directories, set at the end
	result   Result
	buf      []byte
}

// dirMode is what a directory is to be like once everything is in it.
type dirMode struct {
	name  string
	mode  fs.FileMode
	mtime time.Time
}

func (u *unpacker) all(tr *tar.Reader) error {
	for {
		if u.ctx.Err() != nil {
			return context.Cause(u.ctx)
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return u.finishDirs()
		}
		if err != nil {
			return fmt.Errorf("unpack: %w", err)
		}
		if u.result.Entries++; u.opt.MaxEntries > 0 && u.result.Entries > u.opt.MaxEntries {
			return fmt.Errorf("unpack: more than %d entries", u.opt.MaxEntries)
		}
		name, err := local(h.Name)
		if err != nil {
			return err
		}
		if err := u.entry(name, h, tr); err != nil {
			return fmt.Errorf("unpack %q: %w", name, bare(err))
		}
	}
}

// entry makes one file, link or directory.
func (u *unpacker) entry(name string, h *tar.Header, tr *tar.Reader) error {
	if h.Typeflag == tar.TypeDir {
		return u.directory(name, h)
	}
	if name == "." {
		return errors.New("the directory itself cannot be replaced by a file")
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeRegA, tar.TypeGNUSparse, tar.TypeCont: //nolint:staticcheck // old streams have TypeRegA
		return u.file(name, h, tr)
	case tar.TypeSymlink:
		return u.symlink(name, h)
	case tar.TypeLink:
		return u.hardLink(name, h)
	case tar.TypeXGlobalHeader:
		return nil
	}
	u.result.skip(name, "neither file, directory nor link")
	return nil
}

func (u *unpacker) file(name string, h *tar.Header, tr *tar.Reader) error {
	if u.opt.MaxBytes > 0 && h.Size > u.opt.MaxBytes-u.result.Bytes {
		return fmt.Errorf("more than %d bytes in all", u.opt.MaxBytes)
	}
	parent, base, err := u.parent(name)
	if err != nil {
		return err
	}
	mode := u.mode(h)
	fd := -1
	err = u.replacing(name, func() (err error) {
		fd, err = unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		return err
	})
	if err != nil {
		return err
	}
	err = u.write(fd, tr)
	if err == nil && u.chowns(h) {
		err = u.mayChown(unix.Fchown(fd, h.Uid, h.Gid))
	}
	if err == nil && (mode&u.umask != 0 || mode&^0o777 != 0) {
		err = unix.Fchmod(fd, mode)
	}
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return u.setTime(parent, base, h)
}

// write copies an entry's bytes to a file.
func (u *unpacker) write(fd int, r io.Reader) error {
	for {
		n, err := r.Read(u.buf)
		u.result.Bytes += int64(n)
		for rest := u.buf[:n]; len(rest) > 0; {
			k, werr := unix.Write(fd, rest)
			if errors.Is(werr, unix.EINTR) {
				continue
			}
			if werr != nil {
				return werr
			}
			rest = rest[k:]
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case u.ctx.Err() != nil:
			return context.Cause(u.ctx)
		}
	}
}

func (u *unpacker) symlink(name string, h *tar.Header) error {
	parent, base, err := u.parent(name)
	if err != nil {
		return err
	}
	if err := u.replacing(name, func() error { return unix.Symlinkat(h.Linkname, parent, base) }); err != nil {
		return err
	}
	if u.chowns(h) {
		if err := u.mayChown(unix.Fchownat(parent, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW)); err != nil {
			return err
		}
	}
	return u.setTime(parent, base, h)
}

// hardLink links to a file that was unpacked before, which must be in the directory.
func (u *unpacker) hardLink(name string, h *tar.Header) error {
	to, err := local(h.Linkname)
	if err != nil {
		return err
	}
	if to == name {
		return nil
	}
	if _, _, err := u.parent(name); err != nil {
		return err
	}
	return u.replacing(name, func() error { return u.root.Link(to, name) })
}

// directory makes a directory, writable to us until the end.
func (u *unpacker) directory(name string, h *tar.Header) error {
	u.later = append(u.later, dirMode{name, fs.FileMode(u.mode(h)), h.ModTime})
	if name == "." {
		return u.ownDir(h, ".")
	}
	parent, base, err := u.parent(name)
	if err != nil {
		return err
	}
	err = unix.Mkdirat(parent, base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if serr := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); serr == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return u.ownDir(h, name)
		}
		err = u.replacing(name, func() error { return unix.Mkdirat(parent, base, 0o700) })
	}
	if err != nil {
		return err
	}
	return u.ownDir(h, name)
}

func (u *unpacker) ownDir(h *tar.Header, name string) error {
	if !u.chowns(h) {
		return nil
	}
	return u.mayChown(u.root.Lchown(name, h.Uid, h.Gid))
}

// finishDirs sets modes and times of directories, the deepest first.
func (u *unpacker) finishDirs() error {
	slices.SortStableFunc(u.later, func(a, b dirMode) int { return strings.Count(b.name, "/") - strings.Count(a.name, "/") })
	for _, d := range u.later {
		st, err := u.root.Lstat(d.name)
		if errors.Is(err, fs.ErrNotExist) || (err == nil && !st.IsDir()) {
			continue // a later entry has replaced it
		}
		if err == nil {
			err = u.root.Chmod(d.name, fileMode(uint32(d.mode)))
		}
		if err == nil {
			err = u.root.Chtimes(d.name, d.mtime, d.mtime)
		}
		if err != nil {
			return fmt.Errorf("unpack %q: %w", d.name, bare(err))
		}
	}
	return nil
}

// fileMode turns the bits of a tar header into Go's.
func fileMode(bits uint32) fs.FileMode {
	m := fs.FileMode(bits & 0o777)
	for bit, mode := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if bits&bit != 0 {
			m |= mode
		}
	}
	return m
}

// parent returns the open directory an entry goes into, made where it is missing, and the last part of its name.
// The descriptor is valid until the next call.
func (u *unpacker) parent(name string) (fd int, base string, err error) {
	dir, base := path.Dir(name), path.Base(name)
	if f := u.dirs[dir]; f != nil {
		return int(f.Fd()), base, nil
	}
	if len(u.dirs) >= maxOpenDirs {
		u.closeDirs()
	}
	f, err := u.root.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if err = u.root.MkdirAll(dir, 0o755); err == nil {
			f, err = u.root.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
		}
	}
	if err != nil {
		return -1, "", err
	}
	u.dirs[dir] = f
	return int(f.Fd()), base, nil
}

func (u *unpacker) closeDirs() {
	for _, f := range u.dirs {
		_ = f.Close()
	}
	clear(u.dirs)
}

// replacing does what fails where name exists, after removing what is there.
func (u *unpacker) replacing(name string, do func() error) error {
	err := do()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if u.root.Remove(name) != nil { // a directory with something in it
		if err := u.root.RemoveAll(name); err != nil {
			return err
		}
	}
	// Open directories there are of no use any more; the parent stays valid.
	for dir, f := range u.dirs {
		if dir == name || strings.HasPrefix(dir, name+"/") {
			_ = f.Close()
			delete(u.dirs, dir)
		}
	}
	return do()
}

func (u *unpacker) mode(h *tar.Header) uint32 {
	if u.opt.Special {
		return uint32(h.Mode & 0o7777)
	}
	return uint32(h.Mode & 0o777)
}

// chowns tells whether an entry belongs to somebody else than who makes it.
func (u *unpacker) chowns(h *tar.Header) bool {
	return !u.opt.Own && (h.Uid != u.uid || h.Gid != u.gid)
}

// mayChown forgives an ordinary user what only root can.
func (u *unpacker) mayChown(err error) error {
	if u.uid != 0 && errors.Is(err, unix.EPERM) {
		return nil
	}
	return err
}

func (u *unpacker) setTime(parent int, base string, h *tar.Header) error {
	ts := unix.Timespec{Sec: h.ModTime.Unix(), Nsec: int64(h.ModTime.Nanosecond())}
	return unix.UtimesNanoAt(parent, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// umask returns the umask of this process without changing it; all bits where it cannot be known.
func umask() uint32 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0o777
	}
	_, rest, ok := strings.Cut(string(b), "\nUmask:\t")
	var mask uint32
	if _, err := fmt.Sscanf(rest, "%o", &mask); !ok || err != nil {
		return 0o777
	}
	return mask
}

// bare strips what repeats the name off a file system error.
func bare(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
