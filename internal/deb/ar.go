package deb

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// ErrFormat says that a file is no Debian package.
var ErrFormat = errors.New("not a Debian package")

const (
	arMagic   = "!<arch>\n"
	arHeader  = 60
	arTrailer = "`\n"
)

// arReader reads the members of an ar archive in the common form (ar(5)); the names of a package's members are short, so the
// extensions for long ones are not read.
type arReader struct {
	r     io.Reader
	left  int64 // of the current member
	pad   int64 // behind it
	begun bool
}

// next goes to the next member; io.EOF after the last.
func (a *arReader) next() (name string, size int64, err error) {
	if !a.begun {
		var magic [len(arMagic)]byte
		if _, err := io.ReadFull(a.r, magic[:]); err != nil || string(magic[:]) != arMagic {
			return "", 0, fmt.Errorf("it does not begin as an ar archive: %w", ErrFormat)
		}
		a.begun = true
	}
	if skip := a.left + a.pad; skip > 0 {
		n, err := io.CopyN(io.Discard, a.r, skip)
		if err == io.EOF && n < a.left { // the last member's padding may be missing
			return "", 0, io.ErrUnexpectedEOF
		}
		if err != nil && err != io.EOF {
			return "", 0, err
		}
	}
	var h [arHeader]byte
	if _, err := io.ReadFull(a.r, h[:]); err != nil {
		return "", 0, err // io.EOF at the end of the archive
	}
	if string(h[58:]) != arTrailer {
		return "", 0, fmt.Errorf("malformed ar header: %w", ErrFormat)
	}
	size, err = strconv.ParseInt(strings.TrimRight(string(h[48:58]), " "), 10, 64)
	if err != nil || size < 0 {
		return "", 0, fmt.Errorf("ar member of size %q: %w", h[48:58], ErrFormat)
	}
	a.left, a.pad = size, size%2
	return strings.TrimSuffix(strings.TrimRight(string(h[:16]), " "), "/"), size, nil
}

// Read reads the current member.
func (a *arReader) Read(p []byte) (int, error) {
	if a.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > a.left {
		p = p[:a.left]
	}
	n, err := a.r.Read(p)
	a.left -= int64(n)
	if err == io.EOF && a.left > 0 {
		err = io.ErrUnexpectedEOF
	} else if err == io.EOF {
		err = nil
	}
	return n, err
}
