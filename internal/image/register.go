package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/disk"
	"git.thaloco.com/thaloco/banger/internal/ext4"
	"git.thaloco.com/thaloco/banger/internal/hostfile"
	"git.thaloco.com/thaloco/banger/internal/image/bundle"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// zstdWindow is how much memory a zstd stream may ask for, in bytes.
const zstdWindow = 128 << 20

// Register makes an image of a file of the host: an ext4 file system, or a tar stream, also compressed by gzip, zstd or xz. The
// file is copied: what becomes of it later changes nothing. img has what is not in it: name, kernel, environment and so on.
//
// Errors: api.KindInvalid for what is no such file, a file system that is damaged or was not unmounted, and a tar that leads out of its
// directory; api.KindNotFound; api.KindUnavailable for a full disk; api.KindCancelled.
func (s *Store) Register(ctx context.Context, img api.Image, path string, rep progress.Reporter) (api.Image, error) {
	out, err := s.register(ctx, img, path, rep)
	if err != nil {
		return api.Image{}, s.explainAs(ctx, fmt.Sprintf("register image %q", img.Name), s.cfg.Dir, err)
	}
	return out, nil
}

func (s *Store) register(ctx context.Context, img api.Image, path string, rep progress.Reporter) (api.Image, error) {
	f, err := openRegular(path)
	if err != nil {
		return api.Image{}, err
	}
	defer f.Close()
	img.Source = path
	switch err := ext4.Check(path); {
	case errors.Is(err, ext4.ErrNotExt4):
		return s.registerTar(ctx, img, f, err, rep)
	case err != nil:
		return api.Image{}, invalidRootfs(path, err)
	}
	before, err := f.Stat()
	if err != nil {
		return api.Image{}, err
	}
	rep.Step("copy " + filepath.Base(path))
	return s.build(ctx, img, rep, func(ctx context.Context, _, out string) error {
		err := disk.Copy(ctx, path, out)
		if after, serr := os.Stat(path); ctx.Err() == nil && serr == nil && (after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime())) {
			return api.Errorf(api.KindInvalid, "%q changed while it was copied", path).WithHint("end what writes to it, and try again")
		}
		if err != nil {
			return err
		}
		if err := wholeBlocks(out); err != nil {
			return err
		}
		if err := ext4.Check(out); err != nil { // what was copied is what counts
			return invalidRootfs(path, err)
		}
		return os.Chmod(out, 0o444)
	})
}

// wholeBlocks makes a file as long as a drive can be: Linux's disks are in sectors, and all of them must be there.
func wholeBlocks(path string) error {
	st, err := os.Stat(path)
	if err != nil || st.Size()%ext4.BlockSize == 0 {
		return err
	}
	return os.Truncate(path, (st.Size()/ext4.BlockSize+1)*ext4.BlockSize)
}

func invalidRootfs(path string, err error) error {
	if errors.Is(err, ext4.ErrDirty) {
		return api.Errorf(api.KindInvalid, "%q: %w", path, err).WithHint("unmount it where it is mounted; else e2fsck -f %s", path)
	}
	return api.Errorf(api.KindInvalid, "%q: %w", path, err)
}

// openRegular opens a file of the user's.
func openRegular(path string) (*os.File, error) {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, api.Errorf(api.KindNotFound, "%q: there is no such file", path)
	case err != nil:
		return nil, api.Errorf(api.KindInvalid, "%w", err)
	case st.IsDir():
		return nil, api.Errorf(api.KindInvalid, "%q is a directory", path).WithHint("make a tar of it: tar -C %s -czf rootfs.tar.gz .", path)
	case !st.Mode().IsRegular():
		return nil, api.Errorf(api.KindInvalid, "%q is no regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, api.Errorf(api.KindInvalid, "%w", err)
	}
	return f, nil
}

// registerTar makes an image of a tar; notExt4 is why it is no file system.
func (s *Store) registerTar(ctx context.Context, img api.Image, f *os.File, notExt4 error, rep progress.Reporter) (api.Image, error) {
	st, err := f.Stat()
	if err != nil {
		return api.Image{}, err
	}
	r, err := decompressed(progress.Reader(hostfile.Reader(ctx, f), rep, st.Size()))
	if err != nil {
		return api.Image{}, api.Errorf(api.KindInvalid, "%q: %w", f.Name(), err)
	}
	defer r.Close()
	unpacked := &remembering{r: r}
	head := bufio.NewReaderSize(unpacked, 64<<10)
	if !looksLikeTar(head) {
		if unpacked.err != nil {
			return api.Image{}, tarError(f.Name(), unpacked.err, unpacked.err)
		}
		return api.Image{}, api.Errorf(api.KindInvalid, "%q is neither an ext4 file system nor a tar: %w", f.Name(), notExt4).
			WithHint("make one with tar -C DIRECTORY -czf rootfs.tar.gz . or with mke2fs -t ext4 -d DIRECTORY rootfs.ext4 SIZE; a bundle is for banger image import")
	}
	if first, _ := head.Peek(512); bytes.HasPrefix(first, append([]byte(bundle.FirstMember), 0)) { // it is there, see looksLikeTar
		return api.Image{}, api.Errorf(api.KindInvalid, "%q is a bundle, not a root file system", f.Name()).WithHint("banger image import %s --name %s", f.Name(), img.Name)
	}
	rep.Step("unpack " + filepath.Base(f.Name()))
	return s.build(ctx, img, rep, func(ctx context.Context, _, out string) error {
		err := s.fromTar(ctx, head, out, img, progress.Discard)
		if err == nil || ctx.Err() != nil {
			return err
		}
		return tarError(f.Name(), err, unpacked.err)
	})
}

// AddTar makes an image of a tar stream, which nobody need have made with good intent.
func (s *Store) AddTar(ctx context.Context, img api.Image, r io.Reader, rep progress.Reporter) (api.Image, error) {
	out, err := s.build(ctx, img, rep, func(ctx context.Context, _, out string) error {
		return s.fromTar(ctx, r, out, img, rep)
	})
	if err != nil {
		return api.Image{}, s.explainAs(ctx, fmt.Sprintf("make image %q", img.Name), s.cfg.Dir, err)
	}
	return out, nil
}

// tarError says of what file an error is that came of reading it; read is what its decompression ended with.
func tarError(path string, err, read error) error {
	if bad, ok := errors.AsType[*badTar](err); ok {
		return api.Errorf(api.KindInvalid, "%q: %w", path, bad)
	}
	if _, ofHost := errors.AsType[syscall.Errno](err); ofHost { // which every failure of a file of the host has
		return err
	}
	for _, cause := range []error{read, io.ErrUnexpectedEOF, tar.ErrHeader} {
		if cause != nil && errors.Is(err, cause) {
			return api.Errorf(api.KindInvalid, "%q is damaged or cut short: %w", path, cause)
		}
	}
	// Something in it cannot be: a link to what is not there, say. What file was half made of it says nothing.
	return api.Errorf(api.KindInvalid, "%q: %w", path, cmp.Or(errors.Unwrap(err), err))
}

// remembering keeps the error that r ended with.
type remembering struct {
	r   io.Reader
	err error
}

func (m *remembering) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if err != nil && err != io.EOF {
		m.err = err
	}
	return n, err
}

// fromTar writes the base drive of img. Images with the same files that say different things of themselves are different ones: the
// digest is that of the drive, and what img says is recorded by it.
func (s *Store) fromTar(ctx context.Context, r io.Reader, out string, img api.Image, rep progress.Reporter) error {
	check := &tarCheck{links: map[string]bool{}}
	seed, err := json.Marshal([]any{img.Arch, img.Kernel, img.Env, img.WorkDir, img.User, img.Entry, img.Cmd})
	if err != nil {
		return err
	}
	err = ext4.FromTar(ctx, &counted{r: r, rep: rep}, out, ext4.Options{Label: rootfsLabel, Seed: seed, MaxBytes: rootfsMax, Check: check.entry})
	return cmp.Or(errors.Unwrap(err), err) // it names a file that nobody will see
}

// counted reports how much was read of a stream whose length nobody knows.
type counted struct {
	r    io.Reader
	rep  progress.Reporter
	done int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.done += int64(n)
	c.rep.Bytes(c.done, 0)
	return n, err
}

// decompressed reads a stream that may be compressed.
func decompressed(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 256<<10)
	magic, _ := b.Peek(6) // of a shorter one there is less
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return gzip.NewReader(b)
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b, zstd.WithDecoderMaxWindow(zstdWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		x, err := xz.ReaderConfig{DictCap: zstdWindow}.NewReader(b)
		return io.NopCloser(x), err
	case bytes.HasPrefix(magic, []byte("BZh")):
		return nil, errors.New("compressed by bzip2: use gzip, zstd or xz")
	}
	return io.NopCloser(b), nil
}

// looksLikeTar tells whether a stream begins as a tar does: POSIX's and GNU's have a word in their first header, and of an
// empty one the first block is zeros.
func looksLikeTar(r *bufio.Reader) bool {
	b, err := r.Peek(512)
	if err != nil {
		return false
	}
	return bytes.Equal(b[257:262], []byte("ustar"))
}
