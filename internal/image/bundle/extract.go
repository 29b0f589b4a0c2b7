package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"

	"git.thaloco.com/thaloco/banger/internal/hostfile"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// errTooMuch ends a bundle that holds more than it may.
var errTooMuch = errors.New("more than its manifest says is in it")

// Extract writes the drive of the bundle r to rootfs.ext4 in dir, with holes where it has blocks of zeros, while r is read, and
// returns when the drive is synced and known to be the one of the manifest. It reads r to its end. Where it fails, nothing is left in dir.
//
// Errors: api.KindInvalid for what is wrong with the bundle; else what r or the host's file system said, and the cause of ctx.
func Extract(ctx context.Context, r io.Reader, dir string, rep progress.Reporter) (Manifest, error) {
	rep.Step("unpack the bundle")
	u, end, err := newUnpacker(ctx, r, 2)
	if err != nil {
		return Manifest{}, err
	}
	defer end()
	u.rep = rep
	return u.unpack(ctx, dir)
}

// ReadManifest reads the beginning of the bundle r: what it says of itself, of which nothing is known to be true yet. Errors are those of Extract.
func ReadManifest(ctx context.Context, r io.Reader) (Manifest, error) {
	u, end, err := newUnpacker(ctx, r, 1)
	if err != nil {
		return Manifest{}, err
	}
	defer end()
	return u.manifest()
}

// newUnpacker begins to read a bundle, with as many goroutines that decompress; end ends them.
func newUnpacker(ctx context.Context, r io.Reader, workers int) (u *unpacker, end func(), err error) {
	z, err := zstd.NewReader(source{hostfile.Reader(ctx, r)}, zstd.WithDecoderConcurrency(workers), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, nil, fmt.Errorf("read bundle: %w", err)
	}
	u = &unpacker{plain: &budget{r: z, left: maxHeaders + maxManifest}}
	u.tar = tar.NewReader(u.plain)
	return u, z.Close, nil
}

// sourceError is a failure of the reader the bundle comes from, as against one of what is in it.
type sourceError struct{ error }

func (e *sourceError) Unwrap() error { return e.error }

// source marks the errors of r.
type source struct{ r io.Reader }

func (s source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		err = &sourceError{err}
	}
	return n, err
}

// budget bounds what is decompressed, and counts it.
type budget struct {
	r          io.Reader
	done, left int64
	err        error // of the decoder
}

func (b *budget) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooMuch
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.done += int64(n)
	b.left -= int64(n)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

// unpacker is one run of Extract.
type unpacker struct {
	plain *budget
	tar   *tar.Reader
	rep   progress.Reporter
}

// manifest reads the first member.
func (u *unpacker) manifest() (Manifest, error) {
	h, err := u.next(memberManifest)
	if err != nil {
		return Manifest{}, err
	}
	if h.Size > maxManifest {
		return Manifest{}, invalid("%s is larger than %d bytes", memberManifest, maxManifest)
	}
	data, err := io.ReadAll(u.tar)
	if err != nil {
		return Manifest{}, u.bad(err)
	}
	return parseManifest(data)
}

func (u *unpacker) unpack(ctx context.Context, dir string) (m Manifest, err error) {
	if m, err = u.manifest(); err != nil {
		return Manifest{}, err
	}
	u.plain.left = maxHeaders + m.Rootfs.Size
	h, err := u.next(memberRootfs)
	if err != nil {
		return Manifest{}, err
	}
	if h.Size != m.Rootfs.Size {
		return Manifest{}, invalid("%s has %d bytes, and %s says %d", memberRootfs, h.Size, memberManifest, m.Rootfs.Size)
	}
	f, err := os.OpenFile(filepath.Join(dir, memberRootfs), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return Manifest{}, fmt.Errorf("unpack bundle: %w", err)
	}
	defer func() {
		if err != nil {
			_ = removeFile(f)
		}
	}()
	if err := u.drive(f, m.Rootfs); err != nil {
		return Manifest{}, err
	}
	if err := u.end(); err != nil {
		return Manifest{}, err
	}
	if ctx.Err() != nil {
		return Manifest{}, context.Cause(ctx)
	}
	if err := errors.Join(f.Chmod(0o444), f.Sync(), f.Close()); err != nil { // nothing writes to it again
		return Manifest{}, fmt.Errorf("unpack bundle: %w", err)
	}
	return m, hostfile.SyncDir(dir)
}

// next goes to the next member, which must be the named one; an empty name stands for the end.
func (u *unpacker) next(name string) (*tar.Header, error) {
	h, err := u.tar.Next()
	switch {
	case err == io.EOF && name == "":
		return nil, nil
	case err == io.EOF && u.plain.done == 0:
		return nil, invalid("it is empty").WithHint(hintFormat)
	case err == io.EOF:
		return nil, invalid("there is no %s in it", name).WithHint(hintFormat)
	case err != nil:
		return nil, u.bad(err)
	}
	known := h.Name == memberManifest || h.Name == memberRootfs
	switch {
	case h.Name == "":
		return nil, invalid("a member without a name does not belong in it").WithHint(hintFormat)
	case h.Name == name && h.Typeflag != tar.TypeReg:
		return nil, invalid("%s in it is not a regular file", name)
	case h.Name == name:
		return h, nil
	case known && name == memberManifest:
		return nil, invalid("%s comes before %s in it", h.Name, name).WithHint(hintFormat)
	case known:
		return nil, invalid("%s is there twice", h.Name).WithHint(hintFormat)
	}
	return nil, invalid("%q does not belong in it", shown(h.Name)).WithHint(hintFormat)
}

// bad is what it means that reading the tar failed.
func (u *unpacker) bad(err error) error {
	if failed, ok := errors.AsType[*sourceError](u.plain.err); ok {
		return fmt.Errorf("read bundle: %w", failed.error)
	}
	switch {
	case errors.Is(err, errTooMuch):
		return invalid("%w", errTooMuch).WithHint(hintFormat)
	case u.plain.err != nil && !errors.Is(u.plain.err, io.ErrUnexpectedEOF):
		return unpackError(u.plain.err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return invalid("it is cut short: %w", err).WithHint("fetch or export it again")
	case errors.Is(err, tar.ErrHeader):
		return invalid("what is compressed in it is no tar, or not only one").WithHint(hintFormat)
	}
	return invalid("%w", err).WithHint(hintFormat)
}

// drive writes the member rootfs.ext4 to f and compares it with what the manifest says.
func (u *unpacker) drive(f *os.File, want Rootfs) error {
	sum, buf := sha256.New(), make([]byte, 1<<20)
	for at := int64(0); at < want.Size; {
		n, err := io.ReadFull(u.tar, buf[:min(int64(len(buf)), want.Size-at)])
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return u.bad(err)
		}
		sum.Write(buf[:n])
		if err := writeSparse(f, buf[:n], at); err != nil {
			return fmt.Errorf("unpack bundle: %w", err)
		}
		at += int64(n)
		u.rep.Bytes(at, want.Size)
	}
	if err := f.Truncate(want.Size); err != nil {
		return fmt.Errorf("unpack bundle: %w", err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want.SHA256 {
		return invalid("%s is damaged: %s says sha256 %s, and it has %s", memberRootfs, memberManifest, want.SHA256, got).
			WithHint("fetch or export it again")
	}
	return nil
}

// end checks that nothing follows the drive but the end of the tar, and reads that.
func (u *unpacker) end() error {
	from := u.plain.done
	u.plain.left = maxHeaders + maxTail
	if _, err := u.next(""); err != nil {
		return err
	}
	var rest io.Reader = u.plain
	for buf := make([]byte, 64<<10); ; {
		n, err := rest.Read(buf)
		if !bytes.Equal(buf[:n], zeros[:n]) {
			return invalid("something follows the end of the tar in it").WithHint(hintFormat)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return u.bad(err)
		}
	}
	if u.plain.done-from < endMark {
		return u.bad(io.ErrUnexpectedEOF)
	}
	return nil
}

// hole is the size and alignment of what is left out where it is all zeros, in bytes.
const hole = 4096

// writeSparse writes p to a new file at a multiple of hole, but for blocks of zeros.
func writeSparse(f *os.File, p []byte, at int64) error {
	isZero := func(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }
	block := func(i int) []byte { return p[i:min(i+hole, len(p))] }
	for i := 0; i < len(p); {
		if isZero(block(i)) {
			i += hole
			continue
		}
		start := i
		for i < len(p) && !isZero(block(i)) {
			i += hole
		}
		if _, err := f.WriteAt(p[start:min(i, len(p))], at+int64(start)); err != nil {
			return err
		}
	}
	return nil
}
