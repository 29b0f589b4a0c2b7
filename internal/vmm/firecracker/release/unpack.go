package release

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"git.thaloco.com/thaloco/banger/internal/hostfile"
)

// What an archive may hold. The releases' debug symbols are some tens of MiB.
const (
	maxEntries  = 1000
	maxProgram  = 128 << 20 // bytes of one program
	maxUnpacked = 2 << 30   // bytes of all, read on the way to the programs
)

// unpack writes the files of a gzipped tar archive that it is asked for, by their names in it, to paths that are not there yet, as
// programs. Nothing else in the archive is looked at, and all must be plain files.
func unpack(ctx context.Context, archive string, want map[string]string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	bad := func(err error) error { return fmt.Errorf("unpack %s: %w", archive, err) }
	zr, err := gzip.NewReader(hostfile.Reader(ctx, f))
	if err != nil {
		return bad(err)
	}
	tr := tar.NewReader(&bounded{r: zr, left: maxUnpacked})
	found := map[string]bool{}
	for n := 0; len(found) < len(want); n++ {
		h, err := tr.Next()
		switch {
		case errors.Is(err, io.EOF):
			return bad(fmt.Errorf("it has %d of the %d programs", len(found), len(want)))
		case err != nil:
			return bad(err)
		case n >= maxEntries:
			return bad(fmt.Errorf("more than %d files", maxEntries))
		}
		path, wanted := want[h.Name]
		switch {
		case !wanted:
			continue
		case h.Typeflag != tar.TypeReg:
			return bad(fmt.Errorf("%q is no plain file", h.Name))
		case h.Size > maxProgram:
			return bad(fmt.Errorf("%q has %d bytes, more than %d", h.Name, h.Size, maxProgram))
		case found[h.Name]:
			return bad(fmt.Errorf("%q is there twice", h.Name))
		}
		if err := program(path, tr); err != nil {
			return bad(fmt.Errorf("%q: %w", h.Name, err))
		}
		found[h.Name] = true
	}
	return nil
}

// program writes a file that may be executed, and puts it on the disk.
func program(path string, r io.Reader) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	if err := f.Chmod(0o755); err != nil {
		return err
	}
	return f.Sync()
}

// bounded fails where more is read than may be.
type bounded struct {
	r    io.Reader
	left int64
}

// Read implements io.Reader.
func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("it unpacks to more than %d bytes", int64(maxUnpacked))
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}
