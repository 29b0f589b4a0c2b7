package exec_test

import (
	"context"
	"net"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// FuzzSession lets an agent say anything to who attaches to a session: Run ends, and what it delivered was said.
func FuzzSession(f *testing.F) {
	seed := func(fill func(w *wire.FrameWriter)) {
		var b strings.Builder
		w := wire.NewFrameWriter(&b)
		fill(w)
		_ = w.Flush()
		f.Add([]byte(b.String()), false)
		f.Add([]byte(b.String()), true)
	}
	seed(func(w *wire.FrameWriter) {
		copy(w.Chunk(wire.FrameStdout, 1000, 3), "out")
		w.Gap(1, 2000)
		copy(w.Chunk(wire.FrameStdout, 2000, 3), "out")
		w.Gap(2, 7)
		_ = w.JSON(wire.FrameExit, wire.ExecExit{Status: 3})
	})
	seed(func(w *wire.FrameWriter) { w.Gap(1, 1<<62) })
	f.Fuzz(func(t *testing.T, said []byte, readOnly bool) {
		var out strings.Builder
		_, _ = exec.Run(testContext(t), exec.Options{
			Session: &exec.Session{Name: "s", Write: true, Tail: wire.TailAll}, Stdin: strings.NewReader("in"), Stdout: &out, ReconnectFor: -1,
			Dial: func(context.Context) (net.Conn, error) {
				near, far := net.Pipe()
				go func() {
					defer far.Close()
					fr := wire.NewFrameReader(far)
					first, err := fr.ReadFrame()
					var req wire.ExecAttach
					if err != nil || first.JSON(&req) != nil {
						return
					}
					go func() {
						for err == nil {
							_, err = fr.ReadFrame()
						}
					}()
					fw := wire.NewFrameWriter(far)
					if fw.JSON(wire.FrameStarted, wire.ExecStarted{ID: req.ID, ReadOnly: readOnly}) == nil && fw.Flush() == nil {
						_, _ = far.Write(said)
					}
				}()
				return near, nil
			},
		})
		if out.Len() > len(said) {
			t.Fatalf("%d bytes of output", out.Len())
		}
	})
}
