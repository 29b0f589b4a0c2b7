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
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Pack writes files and directories with all that is in them as one tar stream. Each is named by the last part
// of its path. Links are packed as links. A file that changes meanwhile gets a consistent entry and a
// line in Skipped, as has what is neither file, directory nor link.
func Pack(ctx context.Context, w io.Writer, paths ...string) (Result, error) {
	buffered := bufio.NewWriterSize(w, copyBuffer)
	p := &packer{ctx: ctx, tar: tar.NewWriter(buffered), buf: make([]byte, copyBuffer)}
	for _, name := range paths {
		if err := p.top(name); err != nil {
			return p.result, fmt.Errorf("pack %q: %w", name, err)
		}
	}
	if err := errors.Join(p.tar.Close(), buffered.Flush()); err != nil {
		return p.result, fmt.Errorf("pack: %w", err)
	}
	return p.result, nil
}

type packer struct {
	ctx    context.Context
	tar    *tar.Writer
	result Result
	buf    []byte
}

// top packs one path and what is below it.
func (p *packer) top(name string) error {
	abs, err := filepath.Abs(name)
	if err != nil {
		return err
	}
	if abs == "/" {
		return errors.New("the root directory cannot be packed as a whole")
	}
	root, err := os.OpenRoot(filepath.Dir(abs))
	if err != nil {
		return bare(err)
	}
	defer root.Close()
	st, err := root.Lstat(filepath.Base(abs))
	if err != nil {
		return bare(err)
	}
	return p.tree(root, filepath.Base(abs), st)
}

// tree packs name in root.
func (p *packer) tree(root *os.Root, name string, st fs.FileInfo) error {
	if p.ctx.Err() != nil {
		return context.Cause(p.ctx)
	}
	h := &tar.Header{Name: name, Mode: int64(st.Mode().Perm()), ModTime: st.ModTime().Truncate(time.Second)}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		h.Uid, h.Gid, h.Mode = int(sys.Uid), int(sys.Gid), int64(sys.Mode&0o7777)
	}
	switch {
	case st.Mode().IsRegular():
		return p.file(root, name, h)
	case st.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		if err := p.header(h); err != nil {
			return err
		}
		return p.children(root, name)
	case st.Mode().Type() == fs.ModeSymlink:
		target, err := root.Readlink(name)
		if err != nil {
			return p.vanished(name, err)
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
		return p.header(h)
	}
	p.result.skip(name, "neither file, directory nor link")
	return nil
}

// children packs what is in a directory, by name.
func (p *packer) children(root *os.Root, name string) error {
	dir, err := root.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
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
		st, err := root.Lstat(child)
		if err == nil {
			err = p.tree(root, child, st)
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
func (p *packer) file(root *os.Root, name string, h *tar.Header) error {
	// What has become a link or a pipe since is not followed and not waited for.
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return p.vanished(name, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return p.vanished(name, fs.ErrNotExist)
	}
	h.Typeflag, h.Size = tar.TypeReg, st.Size()
	if err := p.header(h); err != nil {
		return err
	}
	left := h.Size
	for left > 0 {
		if p.ctx.Err() != nil {
			return context.Cause(p.ctx)
		}
		n, err := f.Read(p.buf[:min(left, int64(len(p.buf)))])
		if n == 0 && err != nil {
			p.result.skip(name, "it became shorter while it was read: its end is zeros")
			break
		}
		if _, err := p.tar.Write(p.buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	p.result.Bytes += h.Size
	return p.pad(left)
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
		p.result.skip(name, "it went away while it was packed")
		return nil
	}
	return fmt.Errorf("%q: %w", name, bare(err))
}
