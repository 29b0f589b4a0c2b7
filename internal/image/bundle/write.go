package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostfile"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// chunkSize is how much of the drive is compressed at a time, as a frame of its own, in bytes. So the chunks can be
// compressed on several CPUs and the bundle is the same however many there are, and a hole costs next to nothing.
const chunkSize = 4 << 20

// level is zstd's: see docs/BENCHMARKS.md.
const level = zstd.SpeedDefault

// Write writes the bundle of an image to w; equal images make equal bundles. m.Rootfs.SHA256 is that of rootfs, which is
// compared on the way; where it is empty, it is found out before. It moves rootfs's offset.
func Write(ctx context.Context, w io.Writer, m Manifest, rootfs *os.File, rep progress.Reporter) error {
	info, err := rootfs.Stat()
	if err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	m.Version, m.Rootfs.Size, m.CreatedAt = Version, info.Size(), m.CreatedAt.UTC()
	if m.Rootfs.SHA256 == "" {
		rep.Step("read the base drive")
		if m.Rootfs.SHA256, err = digest(ctx, rootfs, m.Rootfs.Size, rep); err != nil {
			return fmt.Errorf("write bundle: %w", err)
		}
	}
	if err := m.check(); err != nil {
		return api.Errorf(api.KindInvalid, "write bundle of image %q: %w", m.Name, err)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
	if err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	defer enc.Close()
	head, tail, err := frame(m)
	if err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	if _, err := w.Write(enc.EncodeAll(head, nil)); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	rep.Step("write the bundle")
	sum := sha256.New()
	p := packer{enc: enc, rootfs: rootfs, size: m.Rootfs.Size, sum: sum, hole: sync.OnceValue(func() []byte { return enc.EncodeAll(zeros[:], nil) })}
	if err := p.pack(ctx, w, rep); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != m.Rootfs.SHA256 {
		return api.Errorf(api.KindUnavailable, "write bundle of image %q: its base drive is damaged: expected sha256 %s, got %s", m.Name, m.Rootfs.SHA256, got)
	}
	if _, err := w.Write(enc.EncodeAll(tail, nil)); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return nil
}

// digest is the SHA-256 of a file of size bytes.
func digest(ctx context.Context, f *os.File, size int64, rep progress.Reporter) (string, error) {
	h := sha256.New()
	in := progress.Reader(hostfile.Reader(ctx, io.NewSectionReader(f, 0, size)), rep, size)
	if _, err := io.CopyBuffer(h, in, make([]byte, 1<<20)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// frame returns what is in the tar before the content of the drive, and after it.
func frame(m Manifest) (head, tail []byte, err error) {
	data, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return nil, nil, err
	}
	data = append(data, '\n')
	if len(data) > maxManifest {
		return nil, nil, api.Errorf(api.KindInvalid, "%s of image %q would be larger than %d bytes", memberManifest, m.Name, maxManifest)
	}
	var buf bytes.Buffer
	t := tar.NewWriter(&buf)
	header := func(name string, size int64) error {
		return t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: m.CreatedAt})
	}
	err = header(memberManifest, int64(len(data)))
	if err == nil {
		_, err = t.Write(data)
	}
	if err == nil {
		err = header(memberRootfs, m.Rootfs.Size)
	}
	// t is left without a Close: the drive, whose size needs no padding, and the end mark are not written through it.
	return buf.Bytes(), make([]byte, endMark), err
}

var zeros [chunkSize]byte

// packer compresses the content of a drive, a chunk at a time, several at once.
type packer struct {
	enc    *zstd.Encoder
	rootfs *os.File
	size   int64
	sum    hash.Hash     // of all that was read; for the reading goroutine while pack runs
	hole   func() []byte // a compressed chunk of zeros
}

// packed is a chunk: data once done is closed, of so many bytes.
type packed struct {
	done chan struct{}
	data []byte
	n    int
	err  error
}

// pack writes the compressed drive to w.
func (p *packer) pack(ctx context.Context, w io.Writer, rep progress.Reporter) error {
	ctx, cancel := context.WithCancelCause(ctx)
	queue := make(chan *packed, runtime.GOMAXPROCS(0)) // in order; its capacity bounds the memory
	go p.read(ctx, queue)
	var failed error
	var done int64
	for c := range queue { // to its end in any case: then nothing runs on
		<-c.done
		if failed == nil {
			failed = c.err
		}
		if failed == nil {
			_, failed = w.Write(c.data)
		}
		if failed != nil {
			cancel(failed)
			continue
		}
		done += int64(c.n)
		rep.Bytes(done, p.size)
	}
	cancel(nil)
	return failed
}

// read reads the drive and starts the compression of its chunks, until it ends or ctx does; then it closes queue.
func (p *packer) read(ctx context.Context, queue chan<- *packed) {
	defer close(queue)
	for at := int64(0); at < p.size; at += chunkSize {
		c := &packed{done: make(chan struct{}), n: int(min(chunkSize, p.size-at))}
		queue <- c
		if c.err = context.Cause(ctx); c.err != nil {
			close(c.done)
			return
		}
		buf := zeros[:c.n]
		if holdsData(p.rootfs, at, c.n) {
			buf = make([]byte, c.n)
			if _, c.err = p.rootfs.ReadAt(buf, at); c.err == io.EOF {
				c.err = fmt.Errorf("it became shorter meanwhile: %w", io.ErrUnexpectedEOF)
			}
		}
		if c.err != nil {
			close(c.done)
			return
		}
		p.sum.Write(buf)
		if c.n == chunkSize && bytes.Equal(buf, zeros[:]) {
			c.data = p.hole()
			close(c.done)
			continue
		}
		go func() {
			defer close(c.done)
			c.data = p.enc.EncodeAll(buf, make([]byte, 0, len(buf)/2))
		}()
	}
}

// holdsData tells whether any of n bytes of f may be other than zeros, where the file system can tell.
func holdsData(f *os.File, at int64, n int) bool {
	start, err := f.Seek(at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) { // nothing but a hole up to the end
		return false
	}
	return err != nil || start < at+int64(n)
}
