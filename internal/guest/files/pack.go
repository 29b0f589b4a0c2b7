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
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
)

// notCopied is why devices, sockets and pipes are left out.
const notCopied = "neither file, directory nor link"

// smallFile is the size up to which a file is read before its header is written, in bytes: what its entry says is then what
// it holds, also for files of /proc and /sys, whose sizes say nothing.
const smallFile = 64 << 10

// PackOptions say how a tree is packed.
type PackOptions struct {
	// Name is the first part of all names in the stream; empty for the last part of the path.
	Name string
	// Follow packs what the path leads to where it is a link. So do a slash and "/." at its end.
	Follow bool
	// Progress is called with the number of bytes of files that were packed since the last call; may be nil.
	Progress func(n int64)
}

// Pack writes a file, link or directory with all that is in it as a tar stream. Links in it are packed as links. A file that
// changes meanwhile gets a consistent entry and a line in Skipped, as has what is neither file, directory nor link.
func Pack(ctx context.Context, w io.Writer, name string, opt PackOptions) (Result, error) {
	buffered := bufio.NewWriterSize(w, copyBuffer)
	p := &packer{ctx: ctx, opt: opt, tar: tar.NewWriter(buffered), buf: make([]byte, copyBuffer)}
	if err := p.top(name); err != nil {
		return p.result, err
	}
	if err := errors.Join(p.tar.Close(), buffered.Flush()); err != nil {
		return p.result, fmt.Errorf("pack: %w", err)
	}
	return p.result, nil
}

// Measure adds up the sizes of the files Pack would pack. Errors are left to Pack.
func Measure(ctx context.Context, name string, follow bool) int64 {
	if follow || asDirectory(name) {
		if real, err := filepath.EvalSymlinks(name); err == nil {
			name = real
		}
	}
	var sum int64
	_ = filepath.WalkDir(name, func(_ string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return filepath.SkipAll
		}
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // what cannot be read is Pack's to say
		}
		if st, err := d.Info(); err == nil {
			sum += st.Size()
		}
		return nil
	})
	return sum
}

// asDirectory tells whether a path is written as one that must be a directory.
func asDirectory(name string) bool {
	base := path.Base(name)
	return strings.HasSuffix(name, "/") || base == "." || base == ".."
}

type packer struct {
	ctx    context.Context
	opt    PackOptions
	root   *os.Root
	base   string // what is packed, in root
	tar    *tar.Writer
	result Result
	buf    []byte
}

// top packs one path and what is below it.
func (p *packer) top(name string) error {
	fail := func(err error) error { return &EntryError{Op: "copy", Path: name, Err: bare(err)} }
	abs, err := filepath.Abs(name)
	if err != nil {
		return fail(err)
	}
	given := filepath.Base(abs)
	if p.opt.Follow || asDirectory(name) {
		if abs, err = filepath.EvalSymlinks(abs); err != nil {
			return fail(err)
		}
	}
	if abs == "/" {
		return api.Errorf(api.KindInvalid, "the root directory cannot be copied as a whole").WithHint("name the directories below it")
	}
	if given == "/" {
		given = filepath.Base(abs)
	}
	if p.opt.Name == "" {
		p.opt.Name = given
	}
	if p.root, err = os.OpenRoot(filepath.Dir(abs)); err != nil {
		return fail(err)
	}
	defer p.root.Close()
	p.base = filepath.Base(abs)
	st, err := p.root.Lstat(p.base)
	if err != nil {
		return fail(err)
	}
	if asDirectory(name) && !st.IsDir() {
		return api.Errorf(api.KindInvalid, "%q is not a directory", filepath.Clean(name))
	}
	if k := st.Mode().Type(); k != 0 && k != fs.ModeDir && k != fs.ModeSymlink {
		return api.Errorf(api.KindInvalid, "copy %q: it is %s", name, notCopied)
	}
	return p.tree(p.base, st)
}

// named is the name an entry has in the stream.
func (p *packer) named(name string) string { return p.opt.Name + strings.TrimPrefix(name, p.base) }

// tree packs name in root.
func (p *packer) tree(name string, st fs.FileInfo) error {
	if p.ctx.Err() != nil {
		return context.Cause(p.ctx)
	}
	h := &tar.Header{Name: p.named(name), Mode: int64(st.Mode().Perm()), ModTime: st.ModTime().Truncate(time.Second)}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		h.Uid, h.Gid, h.Mode = int(sys.Uid), int(sys.Gid), int64(sys.Mode&0o7777)
	}
	switch {
	case st.Mode().IsRegular():
		return p.file(name, h)
	case st.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		if err := p.header(h); err != nil {
			return err
		}
		return p.children(name)
	case st.Mode().Type() == fs.ModeSymlink:
		target, err := p.root.Readlink(name)
		if err != nil {
			return p.vanished(name, err)
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
		return p.header(h)
	}
	p.result.skip(h.Name, notCopied)
	return nil
}

// children packs what is in a directory, by name.
func (p *packer) children(name string) error {
	dir, err := p.root.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return p.vanished(name, err)
	}
	names, err := dir.Readdirnames(-1)
	_ = dir.Close()
	if err != nil {
		return p.vanished(name, err)
	}
	slices.Sort(names)
	for _, n := range names {
		child := path.Join(name, n)
		st, err := p.root.Lstat(child)
		if err == nil {
			err = p.tree(child, st)
		} else {
			err = p.vanished(child, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// file packs a regular file as long as it is when it is opened.
func (p *packer) file(name string, h *tar.Header) error {
	// What has become a link or a pipe since is not followed and not waited for.
	f, err := p.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return p.vanished(name, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return p.vanished(name, fs.ErrNotExist)
	}
	h.Typeflag, h.Size = tar.TypeReg, st.Size()
	n := 0
	if h.Size < smallFile {
		want := p.buf[:h.Size]
		if h.Size == 0 {
			want = p.buf
		}
		n, err = io.ReadFull(f, want)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return p.unreadable(name, err)
		}
		if h.Size == 0 && err == nil {
			p.result.skip(h.Name, "a file without a size: its end is missing")
		}
		h.Size = int64(n)
	}
	if err := p.header(h); err != nil {
		return err
	}
	if err := p.bytes(p.buf[:n]); err != nil {
		return err
	}
	p.result.Bytes += h.Size
	return p.rest(f, name, h.Size-int64(n))
}

// rest packs the left bytes of a file that has more than fits in the buffer.
func (p *packer) rest(f io.Reader, name string, left int64) error {
	for left > 0 {
		if p.ctx.Err() != nil {
			return context.Cause(p.ctx)
		}
		n, err := f.Read(p.buf[:min(left, int64(len(p.buf)))])
		if n == 0 && err != nil && !errors.Is(err, io.EOF) {
			return p.unreadable(name, err)
		}
		if n == 0 && err != nil {
			p.result.skip(p.named(name), "it became shorter while it was read: its end is zeros")
			break
		}
		if err := p.bytes(p.buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return p.pad(left)
}

// bytes writes some of a file.
func (p *packer) bytes(b []byte) error {
	if _, err := p.tar.Write(b); err != nil {
		return err
	}
	if len(b) > 0 && p.opt.Progress != nil {
		p.opt.Progress(int64(len(b)))
	}
	return nil
}

// pad writes n zeros.
func (p *packer) pad(n int64) error {
	clear(p.buf)
	for ; n > 0; n -= min(n, int64(len(p.buf))) {
		if _, err := p.tar.Write(p.buf[:min(n, int64(len(p.buf)))]); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) header(h *tar.Header) error {
	p.result.Entries++
	return p.tar.WriteHeader(h)
}

// vanished forgives what went away or changed its kind after it was listed.
func (p *packer) vanished(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENXIO) {
		p.result.skip(p.named(name), "it went away while it was packed")
		return nil
	}
	return p.unreadable(name, err)
}

// unreadable is a file that is there and cannot be read.
func (p *packer) unreadable(name string, err error) error {
	return &EntryError{Op: "copy", Path: filepath.Join(p.root.Name(), name), Err: bare(err)}
}
