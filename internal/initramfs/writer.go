package initramfs

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
)

// Types of a file, the upper bits of a mode.
const (
	typeMask    = 0o170000
	typeDir     = 0o040000
	typeChar    = 0o020000
	typeFile    = 0o100000
	typeSymlink = 0o120000
)

const (
	magic      = "070701"
	trailer    = "TRAILER!!!"
	headerLen  = 110
	blockLen   = 512
	maxNameLen = 4096 // the kernel's PATH_MAX, the terminating zero included
)

// Writer writes one archive. After the first error every method returns it.
type Writer struct {
	w     io.Writer
	n     int64 // bytes written
	inode uint32
	err   error
}

// NewWriter returns a Writer to w. The caller ends the archive with Close.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Dir adds a directory with the permission bits perm. Parents must have been added before: the kernel
// makes none.
func (w *Writer) Dir(name string, perm uint32) error {
	return w.entry(entry{name: name, mode: typeDir | perm&0o7777, links: 2})
}

// File adds a regular file of size bytes (less than 4 GiB) read from r. It is an error if r holds less;
// more is left in r.
func (w *Writer) File(name string, perm uint32, size int64, r io.Reader) error {
	if size < 0 || size > math.MaxUint32 {
		return w.fail(fmt.Errorf("add %q: a file of %d bytes does not fit a cpio archive", name, size))
	}
	return w.entry(entry{name: name, mode: typeFile | perm&0o7777, links: 1, size: size, body: r})
}

// Bytes adds a regular file that holds data.
func (w *Writer) Bytes(name string, perm uint32, data []byte) error {
	return w.File(name, perm, int64(len(data)), strings.NewReader(string(data)))
}

// Symlink adds a symbolic link to target.
func (w *Writer) Symlink(name, target string) error {
	if target == "" || len(target) >= maxNameLen {
		return w.fail(fmt.Errorf("add %q: bad link target of %d bytes", name, len(target)))
	}
	return w.entry(entry{name: name, mode: typeSymlink | 0o777, links: 1,
		size: int64(len(target)), body: strings.NewReader(target)})
}

// CharDevice adds a character device.
func (w *Writer) CharDevice(name string, perm, major, minor uint32) error {
	return w.entry(entry{name: name, mode: typeChar | perm&0o7777, links: 1, major: major, minor: minor})
}

// Close ends the archive and pads it to 512 bytes. It does not close the underlying writer.
func (w *Writer) Close() error {
	if w.err != nil {
		return w.err
	}
	w.inode = 0
	w.header(entry{name: trailer, links: 1}, 0)
	w.pad(blockLen)
	if w.err != nil {
		return w.err
	}
	w.err = errors.New("write cpio archive: already closed")
	return nil
}

type entry struct {
	name         string
	mode, links  uint32
	major, minor uint32
	size         int64
	body         io.Reader
}

func (w *Writer) entry(e entry) error {
	if w.err != nil {
		return w.err
	}
	e.name = strings.Trim(e.name, "/")
	if e.name == "" || e.name == trailer || len(e.name) >= maxNameLen || strings.ContainsRune(e.name, 0) {
		return w.fail(fmt.Errorf("add %q: bad name for a cpio archive", e.name))
	}
	w.inode++
	w.header(e, w.inode)
	if e.body != nil && w.err == nil {
		n, err := io.CopyN(w.w, e.body, e.size)
		w.n += n
		if err == io.EOF {
			return w.fail(fmt.Errorf("add %q: %d bytes missing of %d: %w", e.name, e.size-n, e.size, io.ErrUnexpectedEOF))
		}
		if err != nil {
			return w.fail(fmt.Errorf("add %q: %w", e.name, err))
		}
	}
	w.pad(4)
	return w.err
}

// header writes a header and the name behind it, both padded to 4 bytes.
func (w *Writer) header(e entry, inode uint32) {
	w.writeString(fmt.Sprintf("%s%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		magic, inode, e.mode, 0, 0, e.links, 0, uint32(e.size), 0, 0, e.major, e.minor, len(e.name)+1, 0, e.name))
	w.pad(4)
}

func (w *Writer) pad(to int64) {
	if over := w.n % to; over != 0 {
		w.writeString(strings.Repeat("\x00", int(to-over)))
	}
}

func (w *Writer) writeString(s string) {
	if w.err != nil {
		return
	}
	n, err := io.WriteString(w.w, s)
	w.n += int64(n)
	if err != nil {
		w.err = fmt.Errorf("write cpio archive: %w", err)
	}
}

func (w *Writer) fail(err error) error {
	if w.err == nil {
		w.err = err
	}
	return w.err
}
