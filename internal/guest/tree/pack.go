package tree

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
)

// Pack writes paths below a root as a tar stream: files and links under these names, without owners, and times in whole seconds. What is
// not there, or something else, is left out. A file that becomes shorter while it is read, and does not fit into memory, is an error
// of KindConflict.
func Pack(ctx context.Context, out io.Writer, root string, paths Paths) (api.FilesResult, error) {
	dir, err := openRoot(root)
	if err != nil {
		return api.FilesResult{}, err
	}
	defer dir.Close()
	buffered := bufio.NewWriterSize(out, buffer)
	p := &packer{ctx: ctx, root: root, dirs: dirs{root: int(dir.Fd())}, tar: tar.NewWriter(buffered), buf: make([]byte, buffer)}
	defer p.dirs.close()
	for len(paths) > 0 {
		if ctx.Err() != nil {
			return p.result, context.Cause(ctx)
		}
		var name []byte
		name, paths = paths.next()
		if err := p.path(name); err != nil {
			return p.result, err
		}
	}
	if err := errors.Join(p.tar.Close(), buffered.Flush()); err != nil {
		return p.result, fmt.Errorf("pack: %w", err)
	}
	return p.result, nil
}

type packer struct {
	ctx    context.Context
	root   string // for errors
	dirs   dirs
	tar    *tar.Writer
	buf    []byte
	result api.FilesResult
}

// path packs one path. Failures of the guest's disk are told from those of the stream.
func (p *packer) path(name []byte) error {
	as := string(name[:len(name)-1])
	at, base, err := p.dirs.at(name)
	if err == nil {
		var fd int
		if fd, err = openFile(at, base); err == nil {
			defer unix.Close(fd)
			return p.file(fd, as)
		}
		if errors.Is(err, unix.ELOOP) {
			return p.link(at, base, as)
		}
	}
	if absent(err) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return failure("copy", p.root+"/"+as, err)
}

// file packs an open file. What fits into the buffer is read before its header is written.
func (p *packer) file(fd int, as string) error {
	var st status
	if err := st.stat(fd, itself); err != nil {
		return failure("copy", p.root+"/"+as, err)
	}
	if st.kind != kindFile {
		return nil
	}
	n, err := read(fd, p.buf[:min(st.size, int64(len(p.buf)))])
	if err != nil {
		return failure("copy", p.root+"/"+as, err)
	}
	if st.size <= int64(len(p.buf)) {
		st.size = int64(n)
	}
	if err := p.header(&st, tar.Header{Typeflag: tar.TypeReg, Name: as, Size: st.size}); err != nil {
		return err
	}
	for left := st.size; ; {
		if _, err := p.tar.Write(p.buf[:n]); err != nil {
			return fmt.Errorf("pack %q: %w", as, err)
		}
		if left -= int64(n); left == 0 {
			break
		}
		if p.ctx.Err() != nil {
			return context.Cause(p.ctx)
		}
		n, err = read(fd, p.buf[:min(left, int64(len(p.buf)))])
		if err != nil {
			return failure("copy", p.root+"/"+as, err)
		}
		if n == 0 {
			return api.Errorf(api.KindConflict, "copy %q: it became shorter while it was read", p.root+"/"+as)
		}
	}
	p.result.Bytes += st.size
	return nil
}

// link packs a link; what has become something else again is left out.
func (p *packer) link(at int, base []byte, as string) error {
	var st status
	err := st.stat(at, base)
	var target []byte
	if err == nil {
		target, err = readLink(at, base, p.buf)
	}
	if absent(err) || errors.Is(err, unix.EINVAL) || err == nil && st.kind != kindLink {
		return nil
	}
	if err != nil {
		return failure("copy", p.root+"/"+as, err)
	}
	return p.header(&st, tar.Header{Typeflag: tar.TypeSymlink, Name: as, Linkname: string(target)})
}

func (p *packer) header(st *status, h tar.Header) error {
	h.Mode, h.ModTime = int64(st.perm), time.Unix(st.mtime, 0)
	if err := p.tar.WriteHeader(&h); err != nil {
		return fmt.Errorf("pack %q: %w", h.Name, err)
	}
	p.result.Entries++
	return nil
}
