package session

import (
	"io"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// FuzzAttach lets a client say anything to a session it is attached to: the stream ends, and the session goes on.
func FuzzAttach(f *testing.F) {
	seed := func(fill func(w *wire.FrameWriter)) {
		var b strings.Builder
		w := wire.NewFrameWriter(&b)
		fill(w)
		_ = w.Flush()
		f.Add([]byte(b.String()), true)
		f.Add([]byte(b.String()), false)
	}
	seed(func(w *wire.FrameWriter) {
		copy(w.Chunk(wire.FrameStdin, 0, 3), "in\n")
		w.Ack(1, 3)
		w.Size(24, 80)
		_ = w.Bytes(wire.FrameSignal, []byte("CONT"))
		w.Offset(wire.FrameStdinEOF, 3)
		_ = w.Bytes(wire.FrameDetach, nil)
	})
	seed(func(w *wire.FrameWriter) { w.Ack(2, 1<<62) })
	seed(func(w *wire.FrameWriter) { _ = w.Bytes(wire.FrameCollect, nil) })
	f.Fuzz(func(t *testing.T, said []byte, write bool) {
		w := newWorld(t)
		w.start("s", wire.SessionPipe, "sh", "-c", "trap '' INT HUP TERM QUIT; cat")
		conn := w.m.Connect()
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		go func() { _, _ = io.Copy(io.Discard, conn) }()
		fw := wire.NewFrameWriter(conn)
		if err := fw.JSON(wire.FrameAttach, wire.ExecAttach{Version: wire.Version, ID: exec.NewID(), Session: &wire.SessionAttach{Name: "s", Write: write, Tail: wire.TailAll}}); err != nil {
			t.Fatal(err)
		}
		if fw.Flush() == nil {
			_, _ = conn.Write(said)
		}
		if n := len(w.all.List().Sessions); n != 1 {
			t.Errorf("%d sessions", n)
		}
	})
}
