package ext4

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// What one call may read, in bytes: a damaged or hostile file system can name
// the same blocks over and over. maxLookup is for the directories on a path,
// maxWalk for a whole tree.
const (
	maxLookup = 1 << 30
	maxWalk   = 16 << 30
)

// errTooMuch says that a call read more than any file system in its senses makes it.
var errTooMuch = errors.New("its directories are larger than can be read")

// Reader reads a file system that nobody changes meanwhile. Its methods may be
// called from several goroutines.
//
// It reads what its maker wants it to: every number of the file system is
// checked before it is used, and what a call reads, holds and follows is
// bounded. A journal is not replayed, checksums are not verified. What is
// encrypted stays so: such a file has no content and no target, such a directory
// nothing in it. Names are compared byte by byte, in casefold directories too.
//
// The layout of everything is in the kernel's Documentation/filesystems/ext4.
type Reader struct {
	src  io.ReaderAt
	file *os.File // src, where Open opened it
	s    Super
}

// Info describes a file.
type Info struct {
	Inode uint32
	// Mode is st_mode: permissions and type (inode(7)).
	Mode     uint32
	UID, GID uint32
	// Size is in bytes, of a symbolic link its target's.
	Size  int64
	Links int
	// ModTime is in UTC.
	ModTime time.Time
	// Target is what a symbolic link names.
	Target string
	// Major and Minor are a device's numbers.
	Major, Minor uint32
	// Encrypted says that the content, target or names can be read with a key only.
	Encrypted bool
}

// Open opens the file system in the file or device at path. The error is
// ErrNotExt4 where there is none; one with features that Linux 6.12 does not
// know is refused as well.
func Open(path string) (*Reader, error) {
	f, err := openImage(path)
	if err != nil {
		return nil, err
	}
	r, err := newReader(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open ext4 %q: %w", path, err)
	}
	r.file = f
	return r, nil
}

func newReader(src io.ReaderAt) (*Reader, error) {
	s, err := readSuper(src)
	if err != nil {
		return nil, explain(err, src)
	}
	if err := s.known(); err != nil {
		return nil, err
	}
	return &Reader{src: src, s: s}, nil
}

// Close closes the file that Open opened.
func (r *Reader) Close() error {
	if r.file == nil {
		return nil
	}
	return r.file.Close()
}

// Super is what the superblock said when the Reader was opened.
func (r *Reader) Super() Super { return r.s }

// Stat describes the file at path and follows symbolic links, also the last,
// within the file system. The error is an fs.PathError: fs.ErrNotExist where
// there is no such file, ENOTDIR below a file that is no directory, ELOOP after
// 40 links.
func (r *Reader) Stat(path string) (Info, error) { return r.stat("stat", path, true) }

// Lstat is Stat without following the last symbolic link.
func (r *Reader) Lstat(path string) (Info, error) { return r.stat("lstat", path, false) }

func (r *Reader) stat(op, path string, follow bool) (Info, error) {
	i, err := r.call(context.Background(), maxLookup).lookup(path, follow)
	if err != nil {
		return Info{}, &fs.PathError{Op: op, Path: path, Err: err}
	}
	return i.Info, nil
}

// ReadFile returns the content of the regular file at path, as Stat finds it. A
// file of more than limit bytes is an error, an fs.PathError as all.
func (r *Reader) ReadFile(path string, limit int64) ([]byte, error) {
	b, err := r.readFile(path, limit)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return b, nil
}

func (r *Reader) readFile(path string, limit int64) ([]byte, error) {
	c := r.call(context.Background(), maxLookup)
	i, err := c.lookup(path, true)
	switch {
	case err != nil:
		return nil, err
	case i.isType(typeDir):
		return nil, syscall.EISDIR
	case !i.isType(typeRegular):
		return nil, errors.New("not a regular file")
	case i.Encrypted:
		return nil, errEncrypted
	case i.Size > limit:
		return nil, fmt.Errorf("%d bytes are more than %d", i.Size, limit)
	}
	return c.content(i)
}

// call is one call of a Reader's method.
type call struct {
	*Reader
	ctx  context.Context
	left int64 // bytes it may still read
}

func (r *Reader) call(ctx context.Context, limit int64) *call {
	return &call{Reader: r, ctx: ctx, left: limit}
}

// take accounts for n bytes of work.
func (c *call) take(n int64) error {
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	if c.left -= n; c.left < 0 {
		return errTooMuch
	}
	return nil
}

// read fills b from the blocks at block on, all of which have to be in the file system.
func (c *call) read(b []byte, block uint64) error {
	if err := c.take(int64(len(b))); err != nil {
		return err
	}
	return c.readBlocks(b, block)
}

// readBlocks is read without the account: of the content of a file, which its size bounds.
func (r *Reader) readBlocks(b []byte, block uint64) error {
	count := (uint64(len(b)) + uint64(r.s.BlockSize) - 1) / uint64(r.s.BlockSize)
	if block == 0 || block >= r.s.Blocks || count > r.s.Blocks-block {
		return fmt.Errorf("block %d is outside the file system", block)
	}
	if err := readFull(r.src, b, int64(block)*r.s.BlockSize); err != nil {
		return fmt.Errorf("block %d: %w", block, err)
	}
	return nil
}

// readFull fills b from off on.
func readFull(src io.ReaderAt, b []byte, off int64) error {
	_, err := src.ReadAt(b, off)
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
