package deb

import (
	"archive/tar"
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"git.thaloco.com/thaloco/banger/internal/hostfile"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// maxWindow bounds the memory that unpacking takes, in bytes; dpkg's own packages need 64 MiB at most.
const maxWindow = 128 << 20

// Visit is called for every entry of a tar archive; r reads a file's content. Names are relative and clean ("etc/passwd"),
// and never lead out of the root; "." is the root itself.
type Visit func(hdr *tar.Header, r io.Reader) error

// Unpack calls visit for the entries of the package's data, in their order. Nothing is
// written. An error of visit is returned as it is.
func Unpack(ctx context.Context, file string, rep progress.Reporter, visit Visit) error {
	return unpackFile(ctx, file, "data.tar", rep, visit)
}

// Control returns the package's own description of itself.
func Control(ctx context.Context, file string) (Paragraph, error) {
	var p Paragraph
	err := unpackFile(ctx, file, "control.tar", progress.Discard, func(hdr *tar.Header, r io.Reader) error {
		if hdr.Name != "control" {
			return nil
		}
		var err error
		p, err = NewControlReader(r).Next()
		return err
	})
	if err == nil && p == nil {
		err = fmt.Errorf("unpack %q: no control file: %w", file, ErrFormat)
	}
	return p, err
}

func unpackFile(ctx context.Context, file, member string, rep progress.Reporter, visit Visit) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("unpack package: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("unpack package: %w", err)
	}
	return unpack(progress.Reader(hostfile.Reader(ctx, f), rep, info.Size()), path.Base(file), member, visit)
}

// unpack visits the tar archive in the member whose name begins with member.
func unpack(r io.Reader, file, member string, visit Visit) error {
	a := &arReader{r: bufio.NewReaderSize(r, 256<<10)}
	for {
		name, _, err := a.next()
		if err == io.EOF {
			return fmt.Errorf("unpack %q: no %s: %w", file, member, ErrFormat)
		}
		if err != nil {
			return fmt.Errorf("unpack %q: %w", file, err)
		}
		ext, ok := strings.CutPrefix(name, member)
		if !ok {
			continue
		}
		return unpackMember(a, ext, file, name, visit)
	}
}

// unpackMember visits the tar archive that r, the member called name, holds with the compression of ext.
func unpackMember(r io.Reader, ext, file, name string, visit Visit) error {
	plain, err := decompress(r, ext)
	if err != nil {
		return fmt.Errorf("unpack %q: %s: %w", file, name, err)
	}
	defer plain.Close()
	return visitTar(plain, file, visit)
}

func visitTar(r io.Reader, file string, visit Visit) error {
	tr := tar.NewReader(r)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unpack %q: %w", file, err)
		}
		name := path.Clean(strings.TrimPrefix(hdr.Name, "/"))
		if name == ".." || strings.HasPrefix(name, "../") {
			return fmt.Errorf("unpack %q: entry %q leads out of the root: %w", file, hdr.Name, ErrFormat)
		}
		hdr.Name = name
		if err := visit(hdr, tr); err != nil {
			return err
		}
	}
}

// decompress returns a reader of what r holds, compressed as the ending of its name says.
func decompress(r io.Reader, ext string) (io.ReadCloser, error) {
	switch ext {
	case "":
		return io.NopCloser(r), nil
	case ".gz":
		return gzip.NewReader(r)
	case ".zst":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case ".xz":
		z, err := xz.NewReader(bufio.NewReaderSize(r, 64<<10)) // it reads byte by byte
		if err != nil {
			return nil, err
		}
		return io.NopCloser(z), nil
	}
	return nil, fmt.Errorf("compression %q: %w", ext, ErrFormat)
}
