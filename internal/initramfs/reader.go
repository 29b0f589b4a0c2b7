package initramfs

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// ErrFormat says that what is read is no newc archive.
var ErrFormat = errors.New("not a newc cpio archive")

// Header describes an entry.
type Header struct {
	// Name is as it stands in the archive; banger's have no leading slash.
	Name string
	// Mode is type and permissions as in stat(2).
	Mode uint32
	// Size is the length of the body in bytes: a file's content or a link's target.
	Size int64
	// Major and Minor are of a device.
	Major, Minor uint32
	// Archive counts the archives before this entry's, from 0.
	Archive int
}

// IsDir and IsFile tell the type of the entry, as do IsSymlink and IsCharDevice.
func (h *Header) IsDir() bool { return h.Mode&typeMask == typeDir }

// IsFile reports whether it is a regular file.
func (h *Header) IsFile() bool { return h.Mode&typeMask == typeFile }

// IsSymlink reports whether it is a symbolic link.
func (h *Header) IsSymlink() bool { return h.Mode&typeMask == typeSymlink }

// IsCharDevice reports whether it is a character device.
func (h *Header) IsCharDevice() bool { return h.Mode&typeMask == typeChar }

// Perm returns the permission bits.
func (h *Header) Perm() fs.FileMode { return fs.FileMode(h.Mode & 0o777) }

// Reader reads archives that follow one another as the kernel does. Next goes to the
// next entry, Read reads its body.
type Reader struct {
	r       *bufio.Reader
	n       int64 // bytes consumed
	left    int64 // of the current body
	archive int
	ended   bool // the trailer of the current archive was read
	begun   bool
}

// NewReader returns a Reader of r.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReader(r)} }

// Next returns the next entry, io.EOF after the last archive. Malformed input gives an error that wraps ErrFormat or
// io.ErrUnexpectedEOF.
func (r *Reader) Next() (*Header, error) {
	if err := r.skip(r.left); err != nil {
		return nil, err
	}
	r.left = 0
	for {
		if err := r.align(); err != nil {
			return nil, err
		}
		if !r.begun || r.ended {
			if err := r.nextArchive(); err != nil {
				return nil, err
			}
		}
		h, err := r.header()
		if err != nil {
			return nil, err
		}
		if h.Name == trailer {
			if err := r.skip(h.Size); err != nil {
				return nil, err
			}
			r.ended = true
			continue
		}
		r.left = h.Size
		return h, nil
	}
}

// Read reads the body of the current entry.
func (r *Reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.r.Read(p)
	r.n += int64(n)
	r.left -= int64(n)
	if err == io.EOF && r.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// nextArchive skips the zeros between archives.
func (r *Reader) nextArchive() error {
	for {
		b, err := r.r.ReadByte()
		if err != nil {
			return err // io.EOF: that was the last archive
		}
		if b == 0 {
			r.n++
			continue
		}
		if err := r.r.UnreadByte(); err != nil {
			return err
		}
		if r.n%4 != 0 {
			return fmt.Errorf("archive at offset %d: %w: not at a multiple of 4", r.n, ErrFormat)
		}
		if r.ended {
			r.archive++
		}
		r.begun, r.ended = true, false
		return nil
	}
}

// header reads a header and the name behind it.
func (r *Reader) header() (*Header, error) {
	at := r.n
	var raw [headerLen]byte
	if err := r.full(raw[:]); err != nil {
		return nil, err
	}
	if string(raw[:6]) != magic {
		return nil, fmt.Errorf("header at offset %d: %w", at, ErrFormat)
	}
	var b [13 * 4]byte
	if _, err := hex.Decode(b[:], raw[6:]); err != nil {
		return nil, fmt.Errorf("header at offset %d: %w", at, ErrFormat)
	}
	field := func(i int) uint32 { return binary.BigEndian.Uint32(b[4*i:]) }
	nameLen := field(11)
	if nameLen < 2 || nameLen > maxNameLen {
		return nil, fmt.Errorf("header at offset %d: name of %d bytes: %w", at, nameLen, ErrFormat)
	}
	name := make([]byte, nameLen)
	if err := r.full(name); err != nil {
		return nil, err
	}
	if i := bytes.IndexByte(name, 0); i != len(name)-1 {
		return nil, fmt.Errorf("name at offset %d: %w", at+headerLen, ErrFormat)
	}
	if err := r.align(); err != nil {
		return nil, err
	}
	return &Header{Name: string(name[:len(name)-1]), Mode: field(1), Size: int64(field(6)),
		Major: field(9), Minor: field(10), Archive: r.archive}, nil
}

// align skips to a multiple of 4; the end of the input is fine.
func (r *Reader) align() error {
	if over := r.n % 4; over != 0 {
		err := r.skip(4 - over)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		return err
	}
	return nil
}

func (r *Reader) skip(n int64) error {
	m, err := io.CopyN(io.Discard, r.r, n)
	r.n += m
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (r *Reader) full(p []byte) error {
	n, err := io.ReadFull(r.r, p)
	r.n += int64(n)
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
