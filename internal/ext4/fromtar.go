package ext4

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"git.thaloco.com/thaloco/banger/internal/hostfile"
)

// Options say how FromTar makes a file system; the zero value will do.
type Options struct {
	// Label is the volume name, at most 16 bytes.
	Label string
	// UUID of the file system; the zero value derives it from the contents, so that equal streams make equal files.
	UUID UUID
	// Seed goes into the UUID that is derived from the contents: files that are to differ although their contents do not have different ones.
	Seed []byte
	// MaxBytes is the largest size the result may have, in bytes; 0 for 1 TiB. It reserves 32 bytes per 128 MiB.
	MaxBytes int64
	// Check looks at each entry before it is taken; its error ends FromTar, and is in the chain of its. May be nil.
	Check func(*tar.Header) error
}

const defaultMaxBytes = 1 << 40

// fileMode of the result: nothing ever writes to it again.
const fileMode = 0o444

// FromTar writes the files of the tar stream r as a read-only ext4 file system
// to path, which it replaces; path appears complete and synced or not at all.
// The result is as small as its contents, has no journal and mounts read-only
// only, also as the lower layer of an overlay.
//
// Kept are ownership, modes, times to the nanosecond, hard links, devices,
// FIFOs, extended attributes with file capabilities, and access control lists. A parent
// missing in the stream is made like its parent. A path may come twice only if
// both are directories. Whiteouts are not interpreted. Equal streams and options
// make equal files.
//
// r is read to its end, or to the first error. When ctx ends, so does
// FromTar, as soon as r's Read returns.
func FromTar(ctx context.Context, r io.Reader, path string, o Options) error {
	if err := fromTar(ctx, r, path, o); err != nil {
		return fmt.Errorf("make ext4 %q: %w", path, err)
	}
	return nil
}

func fromTar(ctx context.Context, r io.Reader, path string, o Options) (err error) {
	if len(o.Label) > labelSize {
		return fmt.Errorf("label %q is longer than %d bytes", o.Label, labelSize)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-ext4-*")
	if err != nil {
		return err
	}
	defer func() {
		f.Close() // closed already where all went well
		if err != nil {
			os.Remove(f.Name())
		}
	}()

	n := newNormalizer(hostfile.Reader(ctx, r))
	n.check = o.Check
	n.hash.Write(o.Seed)
	w := &sparseWriter{f: f}
	err = tar2ext4.ConvertTarToExt4(n, w, tar2ext4.MaximumDiskSize(cmp.Or(o.MaxBytes, defaultMaxBytes)))
	if err == nil {
		// tar2ext4 stops at the end mark; the writer of the stream may have more to say.
		_, err = io.Copy(io.Discard, n.src)
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	if err != nil {
		return err
	}
	if err := f.Truncate(w.size); err != nil {
		return err
	}
	uuid := o.UUID
	if uuid.IsZero() {
		uuid = uuidFrom(n.sum())
	}
	if err := repair(f, uuid, o.Label); err != nil {
		return err
	}
	return publish(f, path)
}

// publish gives the finished temporary file f its name, durably.
func publish(f *os.File, path string) error {
	if err := f.Chmod(fileMode); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return hostfile.SyncDir(filepath.Dir(path))
}

// sparseWriter leaves holes where whole blocks of zeros are written beyond
// what has been written so far.
type sparseWriter struct {
	f    *os.File
	pos  int64
	size int64 // where the highest write ended; the file may still be shorter
}

var zeroBlock [BlockSize]byte

func (w *sparseWriter) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		n, hole := w.run(p[written:])
		if !hole {
			m, err := w.f.WriteAt(p[written:written+n], w.pos)
			w.advance(m)
			written += m
			if err != nil {
				return written, err
			}
			continue
		}
		w.advance(n)
		written += n
	}
	return written, nil
}

// run returns how many bytes at the start of p are alike: to be skipped, or to be written.
func (w *sparseWriter) run(p []byte) (n int, hole bool) {
	if w.pos < w.size || w.pos%BlockSize != 0 {
		// Up to the next place where a hole may start.
		next := max(w.size, w.pos+(BlockSize-w.pos%BlockSize)%BlockSize) - w.pos
		return int(min(int64(len(p)), max(next, 1))), false
	}
	isZero := func(at int) bool {
		return len(p)-at >= BlockSize && bytes.Equal(p[at:at+BlockSize], zeroBlock[:])
	}
	hole = isZero(0)
	for n < len(p) && isZero(n) == hole {
		n = min(n+BlockSize, len(p))
	}
	return n, hole
}

func (w *sparseWriter) advance(n int) {
	w.pos += int64(n)
	w.size = max(w.size, w.pos)
}

func (w *sparseWriter) Read(p []byte) (int, error) {
	n, err := w.f.ReadAt(p, w.pos)
	w.pos += int64(n)
	return n, err
}

func (w *sparseWriter) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
		w.pos = offset
	case io.SeekCurrent:
		w.pos += offset
	case io.SeekEnd:
		w.pos = w.size + offset
	}
	return w.pos, nil
}
