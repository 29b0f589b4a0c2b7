package files

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxOpenDirs bounds how many directories an unpacker holds open.
const maxOpenDirs = 64

// Why an entry is refused; the text of the first two is cp's.
var (
	errFileOverDir = errors.New("a directory is there, and a file does not replace it")
	errDirOverFile = errors.New("a file is there, and a directory does not replace it")
	errSpecial     = errors.New("what is there is neither file nor link, and is not replaced")
	errThroughLink = errors.New("a link is in the way, and nothing is written through it")
	errNoParent    = errors.New("the directory it is in did not come before it")
)

// dirMode is what a directory is to be like once everything is in it.
type dirMode struct {
	name  string
	mode  fs.FileMode
	mtime time.Time
}

// directory makes a directory, writable to us until the end.
func (u *unpacker) directory(name string, h *tar.Header) error {
	if name == "." {
		if u.opt.Merge {
			return nil
		}
		return u.newDir(name, h)
	}
	parent, base, err := u.parent(name)
	if err != nil {
		return err
	}
	err = unix.Mkdirat(parent, base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		kept, kerr := u.keepsDir(parent, base, name)
		switch {
		case kerr != nil:
			return kerr
		case kept && u.opt.Merge:
			return nil
		case kept:
			return u.newDir(name, h)
		}
		err = u.replacing(name, func() error { return unix.Mkdirat(parent, base, 0o700) })
	}
	if err != nil {
		return err
	}
	return u.newDir(name, h)
}

// keepsDir tells whether what is there can stay where a directory comes.
func (u *unpacker) keepsDir(parent int, base, name string) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, err
	}
	kind := st.Mode & unix.S_IFMT
	switch {
	case kind == unix.S_IFDIR:
		return true, nil
	case !u.opt.Merge:
		return false, nil
	case kind != unix.S_IFLNK:
		return false, errDirOverFile
	case u.opt.Strict:
		return false, errThroughLink
	}
	// As in /lib → usr/lib: the link stays, and what comes goes where it leads, within the root.
	if to, err := u.root.Stat(name); err != nil || !to.IsDir() {
		return false, errDirOverFile
	}
	return true, nil
}

// newDir gives a directory its owner now, mode and time at the end.
func (u *unpacker) newDir(name string, h *tar.Header) error {
	if u.dirNames += len(name); u.opt.Strict && u.dirNames > maxDirNames {
		return errors.New("too many directories")
	}
	u.later = append(u.later, dirMode{name, fs.FileMode(u.mode(h)), h.ModTime})
	uid, gid, ok := u.owner(h)
	if !ok {
		return nil
	}
	return u.mayChown(u.root.Lchown(name, uid, gid))
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
			return u.failed(d.name, err)
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
	open := u.openDir
	if u.opt.Strict {
		open = u.openDirStrictly
	}
	f, err := open(dir)
	if err != nil {
		return -1, "", err
	}
	u.dirs[dir] = f
	return int(f.Fd()), base, nil
}

// openDir opens a directory below the root, by way of links that stay below it, and makes what is missing.
func (u *unpacker) openDir(dir string) (*os.File, error) {
	f, err := u.root.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if err = u.root.MkdirAll(dir, 0o755); err == nil {
			f, err = u.root.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
		}
	}
	return f, err
}

// openDirStrictly opens a directory that is there, and passes no link.
func (u *unpacker) openDirStrictly(dir string) (*os.File, error) {
	at, err := u.root.OpenFile(".", os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil || dir == "." {
		return at, err
	}
	for part := range strings.SplitSeq(dir, "/") {
		fd, err := unix.Openat(int(at.Fd()), part, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			err = strictly(int(at.Fd()), part, err)
		}
		_ = at.Close()
		if err != nil {
			return nil, err
		}
		at = os.NewFile(uintptr(fd), part)
	}
	return at, nil
}

// strictly says why a part of a path cannot be opened as a directory.
func strictly(at int, part string, err error) error {
	var st unix.Stat_t
	if unix.Fstatat(at, part, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return fmt.Errorf("%q: %w", part, errThroughLink)
	}
	if errors.Is(err, unix.ENOENT) {
		return errNoParent
	}
	return err
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
