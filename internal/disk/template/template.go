// Package template is the form in which an empty file system is embedded: the
// list of its blocks that are not zero, compressed. params.go says which file
// systems there are and how mke2fs makes them; gen makes the files.
package template

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"git.thaloco.com/thaloco/banger/internal/disk/sparse"
	"github.com/klauspost/compress/zstd"
)

// The decompressed form is magic, the size of the file system (8 bytes), and
// extents: offset (8 bytes), length (4 bytes), contents; all little-endian, offsets and
// lengths in bytes, in ascending order without overlap.
const (
	magic     = "banger template 1\n"
	blockSize = 4096
	maxRaw    = 64 << 20 // what Decode unpacks at most
)

var errDamaged = errors.New("damaged template")

// Extent is a run of bytes of a file system that are not all zero.
type Extent struct {
	Offset int64
	Data   []byte
}

// Template is a file system: Extents, and zeros in between up to Size bytes.
type Template struct {
	Size    int64
	Extents []Extent
}

// Read makes a Template of the file system in f, of size bytes.
func Read(f *os.File, size int64) (Template, error) {
	t := Template{Size: size}
	buf := make([]byte, 1<<20)
	for run, err := range sparse.Runs(f, size) {
		if err != nil {
			return Template{}, err
		}
		start, end := run.Offset&^(blockSize-1), run.Offset+run.Len
		for off := start; off < end; off += int64(len(buf)) {
			n := min(int64(len(buf)), end-off)
			if _, err := f.ReadAt(buf[:n], off); err != nil {
				return Template{}, err
			}
			t.addBlocks(off, buf[:n])
		}
	}
	return t, nil
}

// addBlocks adds those blocks of b, which is at off, that are not zero.
func (t *Template) addBlocks(off int64, b []byte) {
	var zero [blockSize]byte
	for at := 0; at < len(b); at += blockSize {
		block := b[at:min(at+blockSize, len(b))]
		if !bytes.Equal(block, zero[:len(block)]) {
			t.add(off+int64(at), block)
		}
	}
}

// add appends a block, to the last extent where it follows it.
func (t *Template) add(off int64, block []byte) {
	if n := len(t.Extents); n > 0 {
		if last := &t.Extents[n-1]; last.Offset+int64(len(last.Data)) == off {
			last.Data = append(last.Data, block...)
			return
		}
	}
	t.Extents = append(t.Extents, Extent{off, bytes.Clone(block)})
}

// Encode returns t as Decode reads it.
func (t Template) Encode() ([]byte, error) {
	raw := binary.LittleEndian.AppendUint64([]byte(magic), uint64(t.Size))
	for _, e := range t.Extents {
		raw = binary.LittleEndian.AppendUint64(raw, uint64(e.Offset))
		raw = binary.LittleEndian.AppendUint32(raw, uint32(len(e.Data)))
		raw = append(raw, e.Data...)
	}
	w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer w.Close()
	return w.EncodeAll(raw, nil), nil
}

// Decode reads what Encode wrote.
func Decode(b []byte) (Template, error) {
	r, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxRaw), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return Template{}, err
	}
	defer r.Close()
	raw, err := r.DecodeAll(b, nil)
	if err != nil {
		return Template{}, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return decode(raw)
}

func decode(raw []byte) (Template, error) {
	le := binary.LittleEndian
	raw, ok := bytes.CutPrefix(raw, []byte(magic))
	if !ok || len(raw) < 8 {
		return Template{}, fmt.Errorf("%w: no header", errDamaged)
	}
	t := Template{Size: int64(le.Uint64(raw))}
	raw = raw[8:]
	end := int64(0)
	for len(raw) > 0 {
		if len(raw) < 12 {
			return Template{}, fmt.Errorf("%w: cut short", errDamaged)
		}
		off, n := int64(le.Uint64(raw)), int64(le.Uint32(raw[8:]))
		raw = raw[12:]
		if off < end || n > int64(len(raw)) || off > t.Size-n {
			return Template{}, fmt.Errorf("%w: extent of %d bytes at %d", errDamaged, n, off)
		}
		t.Extents = append(t.Extents, Extent{off, raw[:n]})
		raw, end = raw[n:], off+n
	}
	return t, nil
}

// WriteTo writes the extents of t to a file of zeros.
func (t Template) WriteTo(w io.WriterAt) error {
	for _, e := range t.Extents {
		if _, err := w.WriteAt(e.Data, e.Offset); err != nil {
			return err
		}
	}
	return nil
}
