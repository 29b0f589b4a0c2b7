package oci

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"git.thaloco.com/thaloco/banger/internal/hostfile"
)

// Limits of a layer: what is beyond them is refused, for it is made to fill memory.
const (
	maxName    = 4095 // Linux: PATH_MAX without its end
	maxDepth   = 1024
	zstdWindow = 128 << 20
	readAhead  = 256 << 10
)

// Whiteouts, as the image specification's layer.md has them.
const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	reservedPrefix = ".wh..wh." // of AUFS's own
)

const xattrRecord = "SCHILY.xattr."

// item is an entry of a layer without its content. Items are not written to once they are made: several images may share them.
type item struct {
	dir, base string // its path; both are "" for the root
	n         int32  // of the layer's entries
	typ       byte   // tar's; TypeReg for all that are regular files
	meta      *meta  // nil for a regular file, which is read again with its content
}

func (i *item) path() string { return path.Join(i.dir, i.base) }

// meta is what a header says of an inode besides its type.
type meta struct {
	link         string // where a link leads
	mode         int64
	uid, gid     int
	mtime        time.Time
	major, minor int64
	xattrs       map[string]string // as PAX records; nil for none
}

func metaOf(h *tar.Header) *meta {
	return &meta{link: h.Linkname, mode: h.Mode & 0o7777, uid: h.Uid, gid: h.Gid, mtime: h.ModTime, major: h.Devmajor, minor: h.Devminor, xattrs: xattrs(h)}
}

// implicit is what a directory has that no layer has: as one is made on the way.
var implicit = &meta{mode: 0o755, mtime: time.Unix(0, 0)}

// xattrs are the extended attributes of an entry, as PAX records. Those of overlay file systems are left out: they would mean something to the
// one that the tree becomes a layer of.
func xattrs(h *tar.Header) map[string]string {
	var out map[string]string
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, xattrRecord)
		if !ok || strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			continue
		}
		if out == nil {
			out = map[string]string{}
		}
		out[strings.Clone(k)] = strings.Clone(v)
	}
	return out
}

// decompress reads a layer: gzip, zstd, or neither, whatever its media type says. Close ends what it needs.
func decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, readAhead)
	magic, err := b.Peek(4)
	switch {
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		return gzip.NewReader(b)
	case isZstd(magic):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case err != nil && err != io.EOF:
		return nil, err
	}
	return io.NopCloser(b), nil
}

// isZstd knows a frame, and one that is to be skipped, with which a stream may begin, too (RFC 8878, 3.1).
func isZstd(magic []byte) bool {
	return bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18})
}

// clean is a name of a layer as a path without a leading slash; "" for the root. A name that leads outside is an error.
func clean(name string) (string, error) {
	if len(name) > maxName {
		return "", fmt.Errorf("a name of %d bytes", len(name))
	}
	if strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("%q has a zero in it", name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", fmt.Errorf("%q leads out of the image", name)
		}
	}
	p := strings.TrimPrefix(path.Clean("/"+name), "/")
	if strings.Count(p, "/") >= maxDepth {
		return "", fmt.Errorf("%q is deeper than %d directories", p[:64]+"…", maxDepth)
	}
	return p, nil
}

// walk calls f with each entry of a layer that is decompressed already, and the reader of its content.
func walk(r io.Reader, f func(n int, h *tar.Header, content io.Reader) error) error {
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			// What follows the end mark is of no use; that the compressed stream is whole is.
			_, err = io.Copy(io.Discard, r)
			return err
		}
		if err != nil {
			return err
		}
		if err := f(n, h, tr); err != nil {
			return err
		}
	}
}

// list are the entries of a layer as it was served. They cost b.
func list(ctx context.Context, r io.Reader, b *budget) ([]item, error) {
	z, err := decompress(hostfile.Reader(ctx, r))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	var out []item
	dirs := map[string]string{} // so that each is there once
	err = walk(hostfile.Reader(ctx, z), func(n int, h *tar.Header, _ io.Reader) error {
		if h.Typeflag == tar.TypeXGlobalHeader {
			return nil
		}
		name, err := clean(h.Name)
		if err != nil {
			return err
		}
		dir, base := path.Split(name)
		dir = strings.TrimSuffix(dir, "/")
		it := item{n: int32(n), base: strings.Clone(base), typ: h.Typeflag}
		cost := int64(itemCost + len(base))
		if known, ok := dirs[dir]; ok {
			it.dir = known
		} else {
			it.dir = strings.Clone(dir)
			dirs[it.dir] = it.dir
			cost += nameCost + int64(len(dir))
		}
		if isFile(h.Typeflag) {
			it.typ = tar.TypeReg
		} else {
			it.meta = metaOf(h)
			cost += it.meta.cost()
		}
		out = append(out, it)
		return b.take(0, cost)
	})
	return out, err
}

func isFile(typ byte) bool {
	switch typ {
	case tar.TypeReg, tar.TypeRegA, tar.TypeGNUSparse, tar.TypeCont: //nolint:staticcheck // TypeRegA is what old tars have
		return true
	}
	return false
}
