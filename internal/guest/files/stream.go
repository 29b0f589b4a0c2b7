package files

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
)

const (
	// endMark is how many zero bytes end a tar stream.
	endMark = 1024
	// maxAfterEnd bounds what may follow the end of a stream, in bytes: GNU tar pads to its block size.
	maxAfterEnd = 16 << 20
)

// stream reads the entries of a tar stream. archive/tar takes a stream that was cut between two entries for
// a whole one; this asks for the mark at the end.
type stream struct {
	tar *tar.Reader
	in  *bufio.Reader
	// zeros counts the zero bytes that were read last, while the next header is read.
	zeros   int
	between bool
	scratch [4096]byte
}

func newStream(r io.Reader) *stream {
	s := &stream{in: bufio.NewReaderSize(r, copyBuffer)}
	s.tar = tar.NewReader(s)
	return s
}

// Read is how the tar reader reads.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.in.Read(p)
	if !s.between {
		return n, err
	}
	for i := n - 1; ; i-- {
		if i < 0 {
			s.zeros += n
			break
		}
		if p[i] != 0 {
			s.zeros = n - 1 - i
			break
		}
	}
	return n, err
}

// next returns the next header; io.EOF where the stream has ended as it should.
func (s *stream) next() (*tar.Header, error) {
	for {
		for { // what nobody wanted of the entry before
			if _, err := s.tar.Read(s.scratch[:]); err != nil {
				break
			}
		}
		s.zeros, s.between = 0, true
		h, err := s.tar.Next()
		s.between = false
		switch {
		case errors.Is(err, io.EOF) && s.zeros < endMark:
			return nil, fmt.Errorf("the stream was cut: %w", io.ErrUnexpectedEOF)
		case errors.Is(err, io.EOF):
			return nil, s.rest()
		case err != nil:
			return nil, err
		case h.Typeflag != tar.TypeXGlobalHeader:
			return h, nil
		}
	}
}

// rest reads what follows the end, so that whoever sends it is heard to the end. It returns io.EOF.
func (s *stream) rest() error {
	n, err := io.CopyN(io.Discard, s.in, maxAfterEnd)
	if err == nil && n == maxAfterEnd {
		err = errors.New("the stream goes on after its end")
	}
	return err
}
