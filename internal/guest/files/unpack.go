package files

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Unpack reads a tar stream into dir, which is made where it is missing. Unless Options say otherwise what is there
// under the name of an entry is replaced, but a directory is kept where a directory comes; everything else stays. Modes and
// times are the stream's, so are owners unless Options say otherwise or the caller may not change them. It does not sync.
// After an error what was unpacked remains, but no part of a file does.
func Unpack(ctx context.Context, dir string, r io.Reader, opt Options) (Result, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Result{}, err
	}
	u, err := newUnpacker(ctx, dir, opt)
	if err != nil {
		return Result{}, err
	}
	defer u.close()
	err = u.all(newStream(r), nil)
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
	// from is the only name at the top of the stream, which becomes to; empty for any, as they are.
	from, to string
	shown    string              // put before names in errors
	dirs     map[string]*os.File // open, by name
	later    []dirMode           // modes and times of directories, set at the end
	made     map[inode]struct{}  // files of this stream, where Strict
	dirNames int                 // bytes of the names in later
	stored   int64               // bytes written
	result   Result
	buf      []byte
}

func newUnpacker(ctx context.Context, dir string, opt Options) (*unpacker, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &unpacker{ctx: ctx, root: root, opt: opt, umask: umask(), uid: os.Geteuid(), gid: os.Getegid(),
		dirs: map[string]*os.File{}, made: map[inode]struct{}{}, buf: make([]byte, copyBuffer)}, nil
}

func (u *unpacker) close() {
	u.closeDirs()
	_ = u.root.Close()
}

// all unpacks a stream; first is its first header where that was read already.
func (u *unpacker) all(s *stream, first *tar.Header) error {
	for h := first; ; h = nil {
		if u.ctx.Err() != nil {
			return context.Cause(u.ctx)
		}
		if h == nil {
			var err error
			if h, err = s.next(); errors.Is(err, io.EOF) {
				return u.finishDirs()
			} else if err != nil {
				return u.cancelled(fmt.Errorf("unpack: %w", err))
			}
		}
		if u.result.Entries++; u.opt.MaxEntries > 0 && u.result.Entries > u.opt.MaxEntries {
			return fmt.Errorf("unpack: more than %d entries", u.opt.MaxEntries)
		}
		if u.opt.Strict && isSparse(h) {
			return u.failed(h.Name, errSparse)
		}
		name, err := local(h.Name, u.opt.Strict)
		if err == nil {
			name, err = u.renamed(name)
		}
		if err != nil {
			return err
		}
		if err := u.entry(name, h, s.tar); err != nil {
			return u.cancelled(u.failed(name, err))
		}
	}
}

// errSparse refuses an entry that says of itself how large its holes are: a few bytes would stand for a file that takes for ever to read.
var errSparse = errors.New("it is written as a sparse file, and those are not taken")

// isSparse tells whether a header has a map of holes, in any form of GNU tar.
func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// cancelled is err, or why the context ended, which broke the stream.
func (u *unpacker) cancelled(err error) error {
	if u.ctx.Err() != nil {
		return context.Cause(u.ctx)
	}
	return err
}

// failed says where something went wrong.
func (u *unpacker) failed(name string, err error) error {
	if u.shown != "" {
		return &EntryError{Op: "copy to", Path: filepath.Join(u.shown, name), Err: bare(err)}
	}
	return &EntryError{Op: "unpack", Path: name, Err: bare(err)}
}

// renamed is the name an entry gets.
func (u *unpacker) renamed(name string) (string, error) {
	if u.from == "" {
		return name, nil
	}
	rest, ok := strings.CutPrefix(name, u.from)
	if !ok || (rest != "" && rest[0] != '/') {
		return "", errWholeStream
	}
	switch {
	case u.to == "." && rest == "":
		return ".", nil
	case u.to == ".":
		return rest[1:], nil
	}
	return u.to + rest, nil
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
	}
	u.result.skip(name, notCopied)
	return nil
}

func (u *unpacker) mode(h *tar.Header) uint32 {
	if u.opt.Special {
		return uint32(h.Mode & 0o7777)
	}
	return uint32(h.Mode & 0o777)
}

// owner is who an entry is to belong to; false where that is who makes it anyway.
func (u *unpacker) owner(h *tar.Header) (uid, gid int, change bool) {
	uid, gid = h.Uid, h.Gid
	switch {
	case u.opt.Own && u.opt.Owner == nil:
		return 0, 0, false
	case u.opt.Own:
		uid, gid = u.opt.Owner.UID, u.opt.Owner.GID
	}
	return uid, gid, uid != u.uid || gid != u.gid
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
