package exec_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/process"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// cutter dials a guest and cuts every connection after a random number of bytes, also inside a frame.
type cutter struct {
	g    *guest
	most int64 // bytes a connection lives for, at most

	mu   sync.Mutex
	rnd  *rand.Rand
	cuts int
}

func (c *cutter) dial(context.Context) (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cuts++
	cc := &cutConn{Conn: c.g.Connect()}
	cc.left.Store(c.rnd.Int64N(c.most))
	if c.rnd.IntN(8) == 0 {
		cc.left.Store(c.rnd.Int64N(300)) // inside the greeting
	}
	return cc, nil
}

// cutConn breaks once left is used up by both directions together.
type cutConn struct {
	net.Conn
	left atomic.Int64
}

func (c *cutConn) Write(p []byte) (int, error) {
	if left := c.left.Add(-int64(len(p))); left < 0 {
		n, _ := c.Conn.Write(p[:max(0, int64(len(p))+left)])
		_ = c.Conn.Close()
		return n, io.ErrClosedPipe
	}
	return c.Conn.Write(p)
}

func (c *cutConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if left := c.left.Add(-int64(n)); left < 0 {
		_ = c.Conn.Close()
		return int(max(0, int64(n)+left)), io.ErrUnexpectedEOF
	}
	return n, err
}

// TestResume sends megabytes both ways, and to stderr, through connections that break, and expects every byte once.
func TestResume(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	for _, tc := range []struct {
		most  int64
		bytes int
	}{{400 << 10, 12 << 20}, {3 << 20, 30 << 20}} {
		t.Run(fmt.Sprint(tc.most), func(t *testing.T) {
			g := newGuest(t, process.Config{})
			c := &cutter{g: g, most: tc.most, rnd: rand.New(rand.NewPCG(seed, uint64(tc.most)))}
			out, errs := sha256.New(), sha256.New()
			runs := filepath.Join(g.dir, "runs")
			exit, err := exec.Run(testContext(t), exec.Options{
				Dial: c.dial, Stdin: &pattern{n: tc.bytes}, Stdout: out, Stderr: errs,
				Start: wire.ExecStart{Argv: []string{"sh", "-c", `echo run >>"$1"; tee /dev/stderr; exit 42`, "sh", runs}},
			})
			if err != nil || exit != (wire.ExecExit{Status: 42}) {
				t.Fatalf("seed %d: %+v, %v", seed, exit, err)
			}
			if want := sum(t, tc.bytes); [32]byte(out.Sum(nil)) != want || [32]byte(errs.Sum(nil)) != want {
				t.Errorf("seed %d: bytes were lost, came twice or changed", seed)
			}
			if b, _ := os.ReadFile(runs); string(b) != "run\n" {
				t.Errorf("seed %d: it was started more than once: %q", seed, b)
			}
			if c.cuts < 10 {
				t.Errorf("only %d connections", c.cuts)
			}
			t.Logf("%d connections", c.cuts)
		})
	}
}

func TestResumePTY(t *testing.T) {
	g := newGuest(t, process.Config{})
	c := &cutter{g: g, most: 300 << 10, rnd: rand.New(rand.NewPCG(1, 2))}
	var out bytes.Buffer
	exit, err := exec.Run(testContext(t), exec.Options{Dial: c.dial, Stdout: &out,
		Start: wire.ExecStart{PTY: true, Argv: []string{"sh", "-c", `stty -opost; seq 200000; exit 3`}}})
	var want bytes.Buffer
	for i := range 200000 {
		fmt.Fprintln(&want, i+1)
	}
	if err != nil || exit.Status != 3 || !bytes.Equal(out.Bytes(), want.Bytes()) {
		t.Errorf("%+v, %v, %d bytes of %d", exit, err, out.Len(), want.Len())
	}
}

// agent is a dial whose other end is a hostile agent: it reads the first frame, then does as it likes.
func agent(do func(conn net.Conn, start wire.ExecStart)) func(context.Context) (net.Conn, error) {
	return func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			fr := wire.NewFrameReader(theirs)
			f, err := fr.ReadFrame()
			if err != nil {
				return
			}
			var start wire.ExecStart
			if f.JSON(&start) != nil {
				return
			}
			go func() {
				for {
					if _, err := fr.ReadFrame(); err != nil {
						return
					}
				}
			}()
			do(theirs, start)
		}()
		return ours, nil
	}
}

// frames writes what fill appends.
func frames(conn net.Conn, fill func(w *wire.FrameWriter)) error {
	w := wire.NewFrameWriter(conn)
	fill(w)
	return w.Flush()
}

func TestHostileAgent(t *testing.T) {
	ok := func(w *wire.FrameWriter, s wire.ExecStart) {
		_ = w.JSON(wire.FrameStarted, wire.ExecStarted{ID: s.ID, PID: 1})
	}
	for name, fill := range map[string]func(w *wire.FrameWriter, s wire.ExecStart){
		"unknown first": func(w *wire.FrameWriter, _ wire.ExecStart) { _ = w.Bytes(99, nil) },
		"data first":    func(w *wire.FrameWriter, _ wire.ExecStart) { w.Chunk(wire.FrameStdout, 0, 5) },
		"bad json":      func(w *wire.FrameWriter, _ wire.ExecStart) { _ = w.Bytes(wire.FrameStarted, []byte("{")) },
		"another id":    func(w *wire.FrameWriter, _ wire.ExecStart) { _ = w.JSON(wire.FrameStarted, wire.ExecStarted{ID: "x"}) },
		"stdin not sent": func(w *wire.FrameWriter, s wire.ExecStart) {
			_ = w.JSON(wire.FrameStarted, wire.ExecStarted{ID: s.ID, Received: 9, Stdin: 9})
		},
		"no error code": func(w *wire.FrameWriter, _ wire.ExecStart) { _ = w.JSON(wire.FrameError, wire.ExecError{Message: "x"}) },
		"started twice": func(w *wire.FrameWriter, s wire.ExecStart) { ok(w, s); ok(w, s) },
		"absurd offset": func(w *wire.FrameWriter, s wire.ExecStart) { ok(w, s); w.Chunk(wire.FrameStdout, 1<<63, 1) },
		"gap": func(w *wire.FrameWriter, s wire.ExecStart) {
			ok(w, s)
			w.Chunk(wire.FrameStderr, 0, 1)
			w.Chunk(wire.FrameStderr, 7, 1)
		},
		"twice": func(w *wire.FrameWriter, s wire.ExecStart) {
			ok(w, s)
			w.Chunk(wire.FrameStdout, 0, 9)
			w.Chunk(wire.FrameStdout, 0, 9)
		},
		"empty data":     func(w *wire.FrameWriter, s wire.ExecStart) { ok(w, s); w.Chunk(wire.FrameStdout, 0, 0) },
		"ack of nothing": func(w *wire.FrameWriter, s wire.ExecStart) { ok(w, s); w.Offset(wire.FrameStdinAck, 100) },
		"short ack":      func(w *wire.FrameWriter, s wire.ExecStart) { ok(w, s); _ = w.Bytes(wire.FrameStdinAck, []byte{1}) },
		"absurd status": func(w *wire.FrameWriter, s wire.ExecStart) {
			ok(w, s)
			_ = w.JSON(wire.FrameExit, wire.ExecExit{Status: 256})
		},
		"client's frame":  func(w *wire.FrameWriter, s wire.ExecStart) { ok(w, s); _ = w.Bytes(wire.FrameCollect, nil) },
		"exit is no json": func(w *wire.FrameWriter, s wire.ExecStart) { ok(w, s); _ = w.Bytes(wire.FrameExit, []byte("[")) },
	} {
		t.Run(name, func(t *testing.T) {
			_, err := exec.Run(testContext(t), exec.Options{Start: wire.ExecStart{Argv: []string{"x"}},
				Dial: agent(func(conn net.Conn, s wire.ExecStart) {
					_ = frames(conn, func(w *wire.FrameWriter) { fill(w, s) })
				})})
			if !errors.Is(err, wire.ErrProtocol) {
				t.Errorf("error %v", err)
			}
		})
	}
	t.Run("long frame", func(t *testing.T) {
		_, err := exec.Run(testContext(t), exec.Options{Start: wire.ExecStart{Argv: []string{"x"}},
			Dial: agent(func(conn net.Conn, _ wire.ExecStart) { _, _ = conn.Write([]byte{17, 0xff, 0xff, 0xff, 0xff}) })})
		if !errors.Is(err, wire.ErrProtocol) {
			t.Errorf("error %v", err)
		}
	})
}

// TestAgentThatNeverStops floods its client, which must not keep what it cannot write.
func TestAgentThatNeverStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	pr, pw := io.Pipe()
	var sent atomic.Int64
	go func() {
		_, _ = io.CopyN(io.Discard, pr, 1<<20)
		cancel() // and never reads again
	}()
	_, err := exec.Run(ctx, exec.Options{Stdout: pw, Start: wire.ExecStart{Argv: []string{"x"}},
		Dial: agent(func(conn net.Conn, s wire.ExecStart) {
			_ = frames(conn, func(w *wire.FrameWriter) { _ = w.JSON(wire.FrameStarted, wire.ExecStarted{ID: s.ID}) })
			for off := uint64(0); ; off += wire.MaxChunk {
				if frames(conn, func(w *wire.FrameWriter) { w.Chunk(wire.FrameStdout, off, wire.MaxChunk) }) != nil {
					return
				}
				sent.Add(wire.MaxChunk)
			}
		})})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if ahead := sent.Load() - 1<<20; ahead > 1<<20 {
		t.Errorf("the client took %d bytes nobody read", ahead)
	}
	_ = pr.Close()
}

// TestMuteAgent hangs up without a word; the start is never confirmed.
func TestMuteAgent(t *testing.T) {
	id := exec.NewID()
	_, err := exec.Run(testContext(t), exec.Options{Start: wire.ExecStart{ID: id, Argv: []string{"x"}}, ReconnectFor: 100 * time.Millisecond,
		Dial: agent(func(net.Conn, wire.ExecStart) {})})
	var lost *exec.LostError
	if !errors.As(err, &lost) || lost.Started || lost.ID != id {
		t.Errorf("error %v", err)
	}
}
