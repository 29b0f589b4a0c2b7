package files

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bounds of what an image is made of.
const (
	maxXattrs   = 64 << 10 // bytes, of all names or one value: the kernel's limit
	maxRewrite  = 1 << 20  // bytes of a file that is rewritten
	xattrRecord = "SCHILY.xattr."
)

// Root says what of a guest's root file system becomes an image.
type Root struct {
	// Tree is the root without what is mounted in it.
	Tree *os.Root
	// Homes are directories that are mounted in it and packed in place of what Tree has there, by their path: "root", "home".
	Homes map[string]*os.Root
	// Drop are paths that are left out, also by a pattern as path.Match has them; Empty are directories whose content is.
	Drop, Empty []string
	// Rewrite are small files whose content is changed, by their path.
	Rewrite map[string]func([]byte) []byte
}

// PackRoot writes a root file system as a tar stream: names, owners, modes, times to the nanosecond, hard links, devices, pipes and extended
// attributes. Sockets are left out, and what goes away or cannot be read meanwhile, which Skipped says.
func PackRoot(ctx context.Context, w io.Writer, r Root) (Result, error) {
	buffered := bufio.NewWriterSize(w, copyBuffer)
	p := &rootPacker{ctx: ctx, Root: r, tar: tar.NewWriter(buffered), buf: make([]byte, copyBuffer), links: map[identity]string{}}
	st, err := r.Tree.Lstat(".")
	if err != nil {
		return p.result, err
	}
	if err := p.entry(r.Tree, ".", "", st); err != nil {
		return p.result, err
	}
	if err := errors.Join(p.tar.Close(), buffered.Flush()); err != nil {
		return p.result, fmt.Errorf("pack: %w", err)
	}
	return p.result, nil
}

// identity is a file, by whatever name.
type identity struct{ dev, ino uint64 }

type rootPacker struct {
	Root
	ctx    context.Context
	tar    *tar.Writer
	buf    []byte
	links  map[identity]string // the first names of files that have more than one
	result Result
}

// dropped tells whether a path is left out.
func (p *rootPacker) dropped(as string) bool {
	return slices.ContainsFunc(p.Drop, func(pattern string) bool {
		ok, _ := path.Match(pattern, as) // patterns are banger's own
		return ok
	})
}

// entry packs name in tree, as the path as of the image.
func (p *rootPacker) entry(tree *os.Root, name, as string, st fs.FileInfo) error {
	if p.ctx.Err() != nil {
		return context.Cause(p.ctx)
	}
	if home := p.Homes[as]; home != nil && tree != home {
		if own, err := home.Lstat("."); err == nil {
			return p.entry(home, ".", as, own)
		}
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || p.dropped(as) {
		return nil
	}
	h := &tar.Header{Name: as, Mode: int64(sys.Mode & 0o7777), Uid: int(sys.Uid), Gid: int(sys.Gid), ModTime: st.ModTime(), Format: tar.FormatPAX}
	if st.IsDir() {
		return p.directory(tree, name, h)
	}
	if sys.Nlink > 1 {
		id := identity{sys.Dev, sys.Ino}
		if first, seen := p.links[id]; seen {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return p.header(h)
		}
		defer func(before int) {
			if p.result.Entries > before {
				p.links[id] = as
			}
		}(p.result.Entries)
	}
	switch st.Mode().Type() {
	case 0:
		return p.file(tree, name, h)
	case fs.ModeSymlink:
		target, err := tree.Readlink(name)
		if err != nil {
			return p.gone(as, err)
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case fs.ModeNamedPipe:
		h.Typeflag = tar.TypeFifo
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		h.Typeflag = tar.TypeBlock
		if st.Mode()&fs.ModeCharDevice != 0 {
			h.Typeflag = tar.TypeChar
		}
		h.Devmajor, h.Devminor = int64(unix.Major(sys.Rdev)), int64(unix.Minor(sys.Rdev))
	default: // a socket, whose server will make it again
		return nil
	}
	return p.header(h)
}

// directory packs a directory and what is in it.
func (p *rootPacker) directory(tree *os.Root, name string, h *tar.Header) error {
	as := h.Name
	dir, err := tree.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return p.gone(as, err)
	}
	defer dir.Close()
	h.Typeflag, h.Name, h.PAXRecords = tar.TypeDir, as+"/", attributes(dir)
	if as == "" {
		h.Name = "./"
	}
	if err := p.header(h); err != nil {
		return err
	}
	if slices.Contains(p.Empty, as) {
		return nil
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return p.gone(as, err)
	}
	slices.Sort(names)
	for _, n := range names {
		child := path.Join(name, n)
		st, err := tree.Lstat(child)
		if err == nil {
			err = p.entry(tree, child, path.Join(as, n), st)
		} else {
			err = p.gone(path.Join(as, n), err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// file packs a regular file as long as it is when it is opened.
func (p *rootPacker) file(tree *os.Root, name string, h *tar.Header) error {
	f, err := tree.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return p.gone(h.Name, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return p.gone(h.Name, fs.ErrNotExist)
	}
	h.Typeflag, h.Size, h.PAXRecords = tar.TypeReg, st.Size(), attributes(f)
	var in io.Reader = f
	if change := p.Rewrite[h.Name]; change != nil && st.Size() <= maxRewrite {
		b, err := io.ReadAll(io.LimitReader(f, maxRewrite))
		if err != nil {
			return p.gone(h.Name, err)
		}
		b = change(b)
		in, h.Size = bytes.NewReader(b), int64(len(b))
	}
	if err := p.header(h); err != nil {
		return err
	}
	return p.content(in, h)
}

// content packs what is in a file. What it has become shorter by since its header was written is zeros.
func (p *rootPacker) content(in io.Reader, h *tar.Header) error {
	for left := h.Size; left > 0; {
		if p.ctx.Err() != nil {
			return context.Cause(p.ctx)
		}
		b := p.buf[:min(left, int64(len(p.buf)))]
		n, err := in.Read(b)
		if n == 0 && err != nil {
			p.result.skip(h.Name, "it changed while it was read: its end is zeros")
			clear(b)
			n = len(b)
		}
		if _, err := p.tar.Write(b[:n]); err != nil {
			return err
		}
		left -= int64(n)
		p.result.Bytes += int64(n)
	}
	return nil
}

func (p *rootPacker) header(h *tar.Header) error {
	if err := p.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("pack %q: %w", h.Name, err)
	}
	p.result.Entries++
	return nil
}

// gone forgives what went away or cannot be read; a tar that lost its reader is none of it.
func (p *rootPacker) gone(as string, err error) error {
	why := "it went away while it was packed"
	if !errors.Is(err, fs.ErrNotExist) {
		why = bare(err).Error()
	}
	p.result.skip(as, why)
	return nil
}

// attributes are the extended attributes of an open file, as PAX records. What cannot be read is left out: the file system has none.
func attributes(f *os.File) map[string]string {
	if n, err := unix.Flistxattr(int(f.Fd()), nil); n == 0 || err != nil { // as nearly always
		return nil
	}
	names := make([]byte, maxXattrs)
	n, err := unix.Flistxattr(int(f.Fd()), names)
	if n == 0 || err != nil {
		return nil
	}
	out := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		value := make([]byte, maxXattrs)
		n, err := unix.Fgetxattr(int(f.Fd()), name, value)
		if err == nil && !strings.HasPrefix(name, "trusted.overlay.") {
			out[xattrRecord+name] = string(value[:n])
		}
	}
	return out
}
