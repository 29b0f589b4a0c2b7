package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// script appends one frame of every form.
func script(w *FrameWriter) {
	_ = w.JSON(FrameStart, ExecStart{Version: Version, ID: "x"})
	copy(w.Chunk(FrameStdin, 7, 5), "hello")
	w.Offset(FrameStdinEOF, 12)
	w.Ack(2, 99)
	w.Size(24, 80)
	_ = w.Bytes(FrameSignal, []byte("INT"))
	_ = w.Bytes(FrameCollect, nil)
	copy(w.Chunk(FrameStdout, 1<<40, MaxChunk), bytes.Repeat([]byte{1, 2, 3, 4}, MaxChunk/4))
}

func TestFrames(t *testing.T) {
	var stream bytes.Buffer
	w := NewFrameWriter(&stream)
	script(w)
	if stream.Len() > 0 || w.Buffered() == 0 {
		t.Fatal("written before Flush")
	}
	if err := w.Flush(); err != nil || w.Buffered() != 0 {
		t.Fatal(err)
	}
	for name, r := range map[string]io.Reader{
		"whole": bytes.NewReader(stream.Bytes()), "bytes": iotest.OneByteReader(bytes.NewReader(stream.Bytes())),
		"halves": iotest.HalfReader(bytes.NewReader(stream.Bytes())), "data with error": iotest.DataErrReader(bytes.NewReader(stream.Bytes())),
	} {
		t.Run(name, func(t *testing.T) {
			fr := NewFrameReader(r)
			var types []FrameType
			for {
				f, err := fr.ReadFrame()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				types = append(types, f.Type)
				check(t, f)
			}
			if diff := cmp.Diff([]FrameType{FrameStart, FrameStdin, FrameStdinEOF, FrameAck, FrameResize, FrameSignal, FrameCollect, FrameStdout}, types); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// check compares a frame of script.
func check(t *testing.T, f Frame) {
	t.Helper()
	switch f.Type {
	case FrameStdin:
		if off, data, err := f.Data(); err != nil || off != 7 || string(data) != "hello" {
			t.Errorf("stdin %d %q %v", off, data, err)
		}
	case FrameStdout:
		if off, data, err := f.Data(); err != nil || off != 1<<40 || len(data) != MaxChunk || data[MaxChunk-1] != 4 {
			t.Errorf("stdout %d, %d bytes, %v", off, len(data), err)
		}
	case FrameStdinEOF:
		if off, err := f.Offset(); err != nil || off != 12 {
			t.Errorf("eof %d %v", off, err)
		}
	case FrameAck:
		if s, off, err := f.Ack(); err != nil || s != 2 || off != 99 {
			t.Errorf("ack %d %d %v", s, off, err)
		}
	case FrameResize:
		if r, c, err := f.Size(); err != nil || r != 24 || c != 80 {
			t.Errorf("size %d %d %v", r, c, err)
		}
	case FrameStart:
		var s ExecStart
		if err := f.JSON(&s); err != nil || s.ID != "x" {
			t.Errorf("start %+v %v", s, err)
		}
	}
}

func TestFrameEnds(t *testing.T) {
	long := binary.BigEndian.AppendUint32([]byte{17}, MaxFrame+1)
	for _, tc := range []struct {
		name   string
		stream string
		want   error
	}{
		{"empty", "", io.EOF},
		{"in the header", "\x11\x00", io.ErrUnexpectedEOF},
		{"in the payload", "\x11\x00\x00\x00\x09abc", io.ErrUnexpectedEOF},
		{"after the header", "\x11\x00\x00\x00\x09", io.ErrUnexpectedEOF},
		{"too long", string(long), ErrProtocol},
		{"absurdly long", "\x11\xff\xff\xff\xff", ErrProtocol},
	} {
		if _, err := NewFrameReader(strings.NewReader(tc.stream)).ReadFrame(); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
	if err := WriteFrame(io.Discard, 1, make([]byte, MaxFrame+1)); err == nil {
		t.Error("a frame beyond MaxFrame was written")
	}
}

func TestBadPayloads(t *testing.T) {
	big := bytes.Repeat([]byte{0xff}, 8)
	for name, err := range map[string]error{
		"no data":       third(Frame{Payload: make([]byte, 8)}.Data()),
		"long data":     third(Frame{Payload: make([]byte, 9+MaxChunk)}.Data()),
		"data offset":   third(Frame{Payload: append(bytes.Clone(big), 1)}.Data()),
		"short offset":  second(Frame{Payload: make([]byte, 7)}.Offset()),
		"offset":        second(Frame{Payload: big}.Offset()),
		"ack stream":    third(Frame{Payload: make([]byte, 9)}.Ack()),
		"ack offset":    third(Frame{Payload: append([]byte{1}, big...)}.Ack()),
		"short ack":     third(Frame{Payload: []byte{1}}.Ack()),
		"size":          third(Frame{Payload: make([]byte, 3)}.Size()),
		"json":          Frame{Payload: []byte("{}{}")}.JSON(&ExecStart{}),
		"json of a key": Frame{Payload: []byte(`{"rows":70000}`)}.JSON(&ExecStart{}),
	} {
		if !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func third[A, B any](_ A, _ B, err error) error { return err }

func second[A any](_ A, err error) error { return err }

// TestFrameAllocations: data costs no memory per frame, on neither side.
func TestFrameAllocations(t *testing.T) {
	var stream bytes.Buffer
	w := NewFrameWriter(&stream)
	src := bytes.NewReader(nil)
	fr := NewFrameReader(src)
	allocs := testing.AllocsPerRun(100, func() {
		stream.Reset()
		w.Chunk(FrameStdout, 1, MaxChunk)
		_ = w.Flush()
		src.Reset(stream.Bytes())
		if f, err := fr.ReadFrame(); err != nil || len(f.Payload) != MaxChunk+8 {
			t.Fatal(err)
		}
	})
	if allocs > 0 {
		t.Errorf("%v allocations per frame", allocs)
	}
	if fr.Buffered() {
		t.Error("a frame is left")
	}
}

func FuzzFrameReader(f *testing.F) {
	var stream bytes.Buffer
	w := NewFrameWriter(&stream)
	script(w)
	_ = w.Flush()
	f.Add(stream.Bytes()[:200])
	f.Add([]byte("\x11\x00\x00\x00\x09\x00\x00\x00\x00\x00\x00\x00\x00a"))
	f.Add([]byte{17, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		fr := NewFrameReader(bytes.NewReader(in))
		var again bytes.Buffer
		w := NewFrameWriter(&again)
		for {
			fm, err := fr.ReadFrame()
			if err != nil {
				break
			}
			if off, data, err := fm.Data(); err == nil && (len(data) == 0 || off+uint64(len(data)) > 1<<63) {
				t.Fatalf("data %d+%d", off, len(data))
			}
			_, _ = fm.Offset()
			_, _, _ = fm.Ack()
			_, _, _ = fm.Size()
			_ = fm.JSON(&ExecStarted{})
			if err := w.Bytes(fm.Type, fm.Payload); err != nil {
				t.Fatal(err)
			}
		}
		_ = w.Flush()
		if !bytes.HasPrefix(in, again.Bytes()) {
			t.Fatal("frames are not what was read")
		}
		if cap(fr.buf) > frameHeader+MaxFrame {
			t.Fatalf("%d bytes of memory", cap(fr.buf))
		}
	})
}
