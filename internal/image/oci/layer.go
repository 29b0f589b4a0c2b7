package oci

import (
	"archive/tar"
	"bufio"
	"bytes"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Limits of a layer: what is beyond them is refused, for it is made to fill memory.
const (
	maxEntries  = 4 << 20 // of all layers
	maxName     = 4095    // Linux: PATH_MAX without its end
	maxDepth    = 1024
	zstdWindow  = 128 << 20
	readAhead   = 256 << 10
	maxXattrLen = 64 << 10
)

// Whiteouts, as the image specification's layer.md has them.
const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	reservedPrefix = ".wh..wh." // of AUFS's own
)

// decompress reads a layer: gzip, zstd, or neither, whatever its media type says. Close ends what it needs.
func decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, readAhead)
	magic, err := b.Peek(4)
	switch {
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		return gzip.NewReader(b)
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case err != nil && len(magic) == 0 && err != io.EOF:
		return nil, err
	}
	return io.NopCloser(b), nil
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

// walk calls f with each entry of a layer, and the reader of its content.
func walk(r io.Reader, f func(n int, h *tar.Header, content io.Reader) error) error {
	z, err := decompress(r)
	if err != nil {
		return err
	}
	defer z.Close()
	tr := tar.NewReader(z)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			// What follows the end mark is of no use; that the compressed stream is whole is.
			_, err = io.Copy(io.Discard, z)
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
