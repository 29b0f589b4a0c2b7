package exec_test

import (
	"io"
	"net"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/process"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// FuzzAgent lets an agent say anything after it has confirmed a start: Run ends, and what it delivered was said.
func FuzzAgent(f *testing.F) {
	seed := func(fill func(w *wire.FrameWriter)) {
		var b strings.Builder
		w := wire.NewFrameWriter(&b)
		fill(w)
		_ = w.Flush()
		f.Add([]byte(b.String()))
	}
	seed(func(w *wire.FrameWriter) {
		copy(w.Chunk(wire.FrameStdout, 0, 3), "out")
		copy(w.Chunk(wire.FrameStderr, 0, 3), "err")
		w.Offset(wire.FrameStdinAck, 2)
		_ = w.JSON(wire.FrameExit, wire.ExecExit{Status: 3})
	})
	seed(func(w *wire.FrameWriter) {
		_ = w.JSON(wire.FrameError, wire.ExecError{Code: wire.ExecTakenOver, Message: "x"})
	})
	seed(func(w *wire.FrameWriter) { w.Chunk(wire.FrameStdout, 1<<62, 1) })
	f.Fuzz(func(t *testing.T, said []byte) {
		var out strings.Builder
		_, _ = exec.Run(testContext(t), exec.Options{
			Start: wire.ExecStart{Argv: []string{"x"}}, Stdin: strings.NewReader("in"), Stdout: &out, ReconnectFor: -1,
			Dial: agent(func(conn net.Conn, s wire.ExecStart) {
				_ = frames(conn, func(w *wire.FrameWriter) { _ = w.JSON(wire.FrameStarted, wire.ExecStarted{ID: s.ID}) })
				_, _ = conn.Write(said)
			}),
		})
		if out.Len() > len(said) {
			t.Fatalf("%d bytes of output", out.Len())
		}
	})
}

// BenchmarkTrue is the way of the shortest command.
func BenchmarkTrue(b *testing.B) {
	g := newGuest(b, process.Config{})
	for b.Loop() {
		if _, err := exec.Run(b.Context(), exec.Options{Dial: g.dial, Start: wire.ExecStart{Argv: []string{"/bin/true"}}}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOutput is 64 MiB of output.
func BenchmarkOutput(b *testing.B) {
	const n = 64 << 20
	g := newGuest(b, process.Config{})
	b.SetBytes(n)
	for b.Loop() {
		if _, err := exec.Run(b.Context(), exec.Options{Dial: g.dial, Stdout: io.Discard,
			Start: wire.ExecStart{Argv: []string{"head", "-c", "67108864", "/dev/zero"}}}); err != nil {
			b.Fatal(err)
		}
	}
}
