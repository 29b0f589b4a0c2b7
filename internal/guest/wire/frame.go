package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// ErrProtocol is in the chain of every error that says the other side broke the
// protocol. Such a stream is not to be resumed.
var ErrProtocol = errors.New("protocol violated")

// frameHeader is the length of a frame's type and length in bytes.
const frameHeader = 5

// firstBuffer is what a reader or writer starts with, in bytes: enough for a whole
// exchange of a command that prints a few lines.
const firstBuffer = 4 << 10

// Frame is one frame of the exec protocol.
type Frame struct {
	Type FrameType
	// Payload is valid until the next ReadFrame.
	Payload []byte
}

// Violation makes an error with ErrProtocol in its chain.
func Violation(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// Data returns offset and bytes of a data frame (FrameStdin, FrameStdout, FrameStderr).
// An empty one, one with more than MaxChunk bytes, and one that runs beyond 2^63-1 are violations.
func (f Frame) Data() (offset uint64, data []byte, err error) {
	if len(f.Payload) <= 8 || len(f.Payload) > 8+MaxChunk {
		return 0, nil, Violation("data frame of %d bytes", len(f.Payload))
	}
	offset = binary.BigEndian.Uint64(f.Payload)
	data = f.Payload[8:]
	if offset > 1<<63-1-uint64(len(data)) {
		return 0, nil, Violation("data at offset %d", offset)
	}
	return offset, data, nil
}

// Offset returns the offset of a FrameStdinEOF or FrameStdinAck.
func (f Frame) Offset() (uint64, error) {
	if len(f.Payload) != 8 {
		return 0, Violation("offset of %d bytes", len(f.Payload))
	}
	off := binary.BigEndian.Uint64(f.Payload)
	if off > 1<<63-1 {
		return 0, Violation("offset %d", off)
	}
	return off, nil
}

// Ack returns stream (1 stdout, 2 stderr) and offset of a FrameAck or FrameGap.
func (f Frame) Ack() (stream int, offset uint64, err error) {
	if len(f.Payload) != 9 || f.Payload[0] < 1 || f.Payload[0] > 2 {
		return 0, 0, Violation("acknowledgement of %d bytes", len(f.Payload))
	}
	offset, err = Frame{Payload: f.Payload[1:]}.Offset()
	return int(f.Payload[0]), offset, err
}

// Size returns rows and columns of a FrameResize.
func (f Frame) Size() (rows, cols uint16, err error) {
	if len(f.Payload) != 4 {
		return 0, 0, Violation("terminal size of %d bytes", len(f.Payload))
	}
	return binary.BigEndian.Uint16(f.Payload), binary.BigEndian.Uint16(f.Payload[2:]), nil
}

// JSON decodes the payload into v.
func (f Frame) JSON(v any) error {
	if err := json.Unmarshal(f.Payload, v); err != nil {
		return Violation("frame %d: %v", f.Type, err)
	}
	return nil
}

// FrameReader reads frames. It buffers, so nothing else may read its stream.
type FrameReader struct {
	r          io.Reader
	buf        []byte
	start, end int // what of buf was read and not yet returned
}

// NewFrameReader returns a reader of the frames of r. Its memory is at most one frame.
func NewFrameReader(r io.Reader) *FrameReader { return &FrameReader{r: r} }

// ReadFrame returns the next frame, whose payload is valid until the next call. The error
// is io.EOF at the end of a stream, io.ErrUnexpectedEOF inside a frame, a violation where
// a frame is longer than MaxFrame.
func (fr *FrameReader) ReadFrame() (Frame, error) {
	if err := fr.fill(frameHeader); err != nil {
		return Frame{}, err
	}
	n := binary.BigEndian.Uint32(fr.buf[fr.start+1:])
	if n > MaxFrame {
		return Frame{}, Violation("frame of %d bytes", n)
	}
	if err := fr.fill(frameHeader + int(n)); err != nil {
		return Frame{}, err
	}
	f := Frame{Type: FrameType(fr.buf[fr.start])}
	next := fr.start + frameHeader + int(n)
	f.Payload = fr.buf[fr.start+frameHeader : next : next]
	fr.start = next
	return f, nil
}

// Buffered tells whether the next ReadFrame returns without reading from the stream.
func (fr *FrameReader) Buffered() bool {
	have := fr.end - fr.start
	return have >= frameHeader && have-frameHeader >= int(binary.BigEndian.Uint32(fr.buf[fr.start+1:]))
}

// fill reads until n bytes are there.
func (fr *FrameReader) fill(n int) error {
	if fr.end-fr.start >= n {
		return nil
	}
	if fr.start == fr.end {
		fr.start, fr.end = 0, 0
	}
	if fr.start+n > len(fr.buf) {
		fr.makeRoom(n)
	}
	for fr.end-fr.start < n {
		got, err := fr.r.Read(fr.buf[fr.end:])
		fr.end += got
		if fr.end-fr.start >= n {
			return nil // the error, if any, comes again
		}
		if err != nil {
			if errors.Is(err, io.EOF) && fr.end > fr.start {
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// makeRoom moves what is left to the front of a buffer that n bytes fit into.
func (fr *FrameReader) makeRoom(n int) {
	to := fr.buf
	if n > len(to) {
		to = make([]byte, max(n, min(4*len(to), frameHeader+MaxFrame), firstBuffer))
	}
	fr.end = copy(to, fr.buf[fr.start:fr.end])
	fr.start, fr.buf = 0, to
}

// FrameWriter collects frames and writes them with one Write at Flush. It is not for
// concurrent use.
type FrameWriter struct {
	w   io.Writer
	buf []byte
}

// NewFrameWriter returns a writer of frames to w. Its memory is what is appended between two flushes.
func NewFrameWriter(w io.Writer) *FrameWriter { return &FrameWriter{w: w} }

// Buffered returns how many bytes wait for Flush.
func (fw *FrameWriter) Buffered() int { return len(fw.buf) }

// Flush writes the frames appended since the last one.
func (fw *FrameWriter) Flush() error {
	if len(fw.buf) == 0 {
		return nil
	}
	_, err := fw.w.Write(fw.buf)
	fw.buf = fw.buf[:0]
	return err
}

// extend appends a frame's header and room for n bytes of payload, and returns the room.
func (fw *FrameWriter) extend(t FrameType, n int) []byte {
	at := len(fw.buf)
	need := at + frameHeader + n
	if need > cap(fw.buf) {
		grown := make([]byte, at, max(need, min(4*cap(fw.buf), 2*(frameHeader+MaxFrame)), firstBuffer))
		copy(grown, fw.buf)
		fw.buf = grown
	}
	fw.buf = fw.buf[:need]
	fw.buf[at] = byte(t)
	binary.BigEndian.PutUint32(fw.buf[at+1:], uint32(n))
	return fw.buf[at+frameHeader:]
}

// Bytes appends a frame with payload p.
func (fw *FrameWriter) Bytes(t FrameType, p []byte) error {
	if len(p) > MaxFrame {
		return fmt.Errorf("frame %d of %d bytes is longer than %d", t, len(p), MaxFrame)
	}
	copy(fw.extend(t, len(p)), p)
	return nil
}

// JSON appends a frame with v as JSON.
func (fw *FrameWriter) JSON(t FrameType, v any) error {
	p, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame %d: %w", t, err)
	}
	return fw.Bytes(t, p)
}

// Chunk appends a data frame of n bytes (1 to MaxChunk) at offset, and returns where the caller
// puts them before anything else is appended.
func (fw *FrameWriter) Chunk(t FrameType, offset uint64, n int) []byte {
	p := fw.extend(t, 8+n)
	binary.BigEndian.PutUint64(p, offset)
	return p[8:]
}

// Offset appends a FrameStdinEOF or FrameStdinAck.
func (fw *FrameWriter) Offset(t FrameType, offset uint64) {
	binary.BigEndian.PutUint64(fw.extend(t, 8), offset)
}

// Ack appends a FrameAck for stream 1 (stdout) or 2 (stderr).
func (fw *FrameWriter) Ack(stream int, offset uint64) {
	p := fw.extend(FrameAck, 9)
	p[0] = byte(stream)
	binary.BigEndian.PutUint64(p[1:], offset)
}

// Gap appends a FrameGap for stream 1 (stdout) or 2 (stderr).
func (fw *FrameWriter) Gap(stream int, offset uint64) {
	p := fw.extend(FrameGap, 9)
	p[0] = byte(stream)
	binary.BigEndian.PutUint64(p[1:], offset)
}

// Size appends a FrameResize.
func (fw *FrameWriter) Size(rows, cols uint16) {
	p := fw.extend(FrameResize, 4)
	binary.BigEndian.PutUint16(p, rows)
	binary.BigEndian.PutUint16(p[2:], cols)
}

// WriteFrame writes one frame at once.
func WriteFrame(w io.Writer, t FrameType, payload []byte) error {
	fw := NewFrameWriter(w)
	if err := fw.Bytes(t, payload); err != nil {
		return err
	}
	return fw.Flush()
}

// Error implements error, so that an ExecError is one on both sides.
func (e *ExecError) Error() string { return e.Message }

// ExecErrorf makes an ExecError.
func ExecErrorf(code, format string, args ...any) *ExecError {
	return &ExecError{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Status is the exit status a shell reports for e: 127, 126, or 0 where the command was not at fault.
func (e *ExecError) Status() int {
	switch e.Code {
	case ExecNotFound:
		return 127
	case ExecNotExecutable:
		return 126
	}
	return 0
}
