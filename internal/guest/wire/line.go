package wire

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// LineReader reads the JSON lines of the call.
type LineReader struct{ r *bufio.Reader }

// NewLineReader returns a reader of the lines of r. It buffers, so nothing else may read r.
func NewLineReader(r io.Reader) *LineReader {
	return &LineReader{r: bufio.NewReaderSize(r, MaxCallLine)}
}

// Read decodes the next line into v. The error is io.EOF at the end, io.ErrUnexpectedEOF inside a
// line, a violation where a line is longer than MaxCallLine or is not one JSON value.
func (lr *LineReader) Read(v any) error {
	line, err := lr.r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return Violation("line of more than %d bytes", MaxCallLine)
	case errors.Is(err, io.EOF) && len(line) > 0:
		return io.ErrUnexpectedEOF
	case err != nil:
		return err
	}
	if err := json.Unmarshal(line, v); err != nil {
		return Violation("line: %v", err)
	}
	return nil
}

// ReadLine reads one line of r as LineReader does, and nothing of what follows it.
func ReadLine(r io.Reader, v any) error { return NewLineReader(oneByte{r}).Read(v) }

// oneByte reads single bytes.
type oneByte struct{ r io.Reader }

// Read implements io.Reader.
func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:1]) }

// WriteLine writes v as one line, with one Write.
func WriteLine(w io.Writer, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode line: %w", err)
	}
	if len(line) >= MaxCallLine {
		return fmt.Errorf("line of %d bytes is longer than %d", len(line)+1, MaxCallLine)
	}
	_, err = w.Write(append(line, '\n'))
	return err
}
