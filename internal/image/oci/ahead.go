package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"git.thaloco.com/thaloco/banger/internal/hostfile"
)

// How much of a layer is decompressed ahead of its reader.
const (
	aheadChunk  = 256 << 10
	aheadChunks = 16
)

// checked reads a layer, and knows in the end whether it was what its digest says.
type checked struct {
	r    io.Reader
	hash hash.Hash
	want v1.Hash
}

func newChecked(r io.Reader, want v1.Hash) *checked { return &checked{r, sha256.New(), want} }

// Read implements io.Reader.
func (c *checked) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.hash.Write(p[:n])
	return n, err
}

// rest reads what is left. It is an error of reading, or damaged.
func (c *checked) rest() error {
	if _, err := io.Copy(io.Discard, c); err != nil {
		return err
	}
	if hex.EncodeToString(c.hash.Sum(nil)) != c.want.Hex {
		return damaged{c.want}
	}
	return nil
}

// ahead is the content of a layer, which a goroutine decompresses while the one who reads it does other things.
type ahead struct {
	full, free chan []byte
	err        error // what comes after the last of full; read once that is closed

	enough   chan struct{} // closed when nobody reads any more
	close    sync.Once
	verified chan error // one, in the end

	chunk, left []byte // the reader's
}

// newAhead begins to read a layer; one after the last is empty.
func newAhead(ctx context.Context, layers []source, n int) *ahead {
	a := &ahead{full: make(chan []byte, aheadChunks), free: make(chan []byte, aheadChunks), enough: make(chan struct{}), verified: make(chan error, 1)}
	if n >= len(layers) {
		a.err = io.EOF
		close(a.full)
		a.verified <- nil
		return a
	}
	go func() { a.verified <- a.run(ctx, layers[n]) }()
	return a
}

// run reads a layer to its end, whoever reads what is in it, and how much of that.
func (a *ahead) run(ctx context.Context, s source) error {
	f, err := s.open()
	if err != nil {
		a.err = err
		close(a.full)
		return err
	}
	defer f.Close()
	check := newChecked(hostfile.Reader(ctx, f), s.digest)
	a.err = a.decompress(ctx, check)
	close(a.full)
	return check.rest()
}

// decompress fills chunks, and returns why it ends: io.EOF for the end.
func (a *ahead) decompress(ctx context.Context, r io.Reader) error {
	z, err := decompress(r)
	if err != nil {
		return err
	}
	defer z.Close()
	for made := 0; ; {
		var b []byte
		select {
		case b = <-a.free:
		default:
			if made < aheadChunks {
				made++
				b = make([]byte, aheadChunk)
				break
			}
			select {
			case b = <-a.free:
			case <-a.enough:
				return io.EOF
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		n, err := fill(z, b)
		if n > 0 {
			a.full <- b[:n] // there is room for all chunks
		}
		if err != nil {
			return err
		}
		select {
		case <-a.enough:
			return io.EOF
		default:
		}
	}
}

// fill is io.ReadFull with the reader's own word for its end.
func fill(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	return n, err
}

// Read implements io.Reader.
func (a *ahead) Read(p []byte) (int, error) {
	for len(a.left) == 0 {
		if a.chunk != nil {
			a.free <- a.chunk[:cap(a.chunk)]
			a.chunk = nil
		}
		b, ok := <-a.full
		if !ok {
			return 0, a.err
		}
		a.chunk, a.left = b, b
	}
	n := copy(p, a.left)
	a.left = a.left[n:]
	return n, nil
}

// Close ends the decompression, and waits until the layer is read to its end: it is damaged where that is not what its digest says.
func (a *ahead) Close() error {
	var err error
	a.close.Do(func() {
		close(a.enough)
		err = <-a.verified
	})
	return err
}
