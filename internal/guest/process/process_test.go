package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

func newManager(t *testing.T, cfg Config) *Manager {
	t.Helper()
	m := NewManager(cfg)
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// request is a start of a shell script with id n.
func request(n int, script string) wire.ExecStart {
	return wire.ExecStart{Version: wire.Version, ID: fmt.Sprintf("%032x", n), Argv: []string{"sh", "-c", script}}
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// peer is a client made of bare frames.
type peer struct {
	t    *testing.T
	conn net.Conn
	fr   *wire.FrameReader
}

func dial(t *testing.T, m *Manager) *peer {
	t.Helper()
	c := m.Connect()
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return &peer{t, c, wire.NewFrameReader(c)}
}

// send writes what fill appends; the agent may have hung up already.
func (p *peer) send(fill func(w *wire.FrameWriter)) {
	w := wire.NewFrameWriter(p.conn)
	fill(w)
	_ = w.Flush()
}

func (p *peer) start(req wire.ExecStart) *peer {
	p.send(func(w *wire.FrameWriter) { _ = w.JSON(wire.FrameStart, req) })
	return p
}

func (p *peer) attach(n int, stdout, stderr uint64) *peer {
	p.send(func(w *wire.FrameWriter) {
		_ = w.JSON(wire.FrameAttach, wire.ExecAttach{Version: wire.Version, ID: fmt.Sprintf("%032x", n), Stdout: stdout, Stderr: stderr})
	})
	return p
}

// next reads a frame that must be of a type, and decodes it into v unless that is nil.
func (p *peer) next(want wire.FrameType, v any) wire.Frame {
	p.t.Helper()
	f, err := p.fr.ReadFrame()
	if err != nil || f.Type != want {
		p.t.Fatalf("frame %d %q, %v; want %d", f.Type, f.Payload, err, want)
	}
	if v != nil {
		if err := f.JSON(v); err != nil {
			p.t.Fatal(err)
		}
	}
	return f
}

func TestHostileClient(t *testing.T) {
	m := newManager(t, Config{})
	for i, tc := range []struct {
		name string
		fill func(w *wire.FrameWriter)
		code string
	}{
		{"unknown frame", func(w *wire.FrameWriter) { _ = w.Bytes(77, nil) }, wire.ExecInvalid},
		{"agent's frame", func(w *wire.FrameWriter) { w.Chunk(wire.FrameStdout, 0, 1) }, wire.ExecInvalid},
		{"second start", func(w *wire.FrameWriter) { _ = w.JSON(wire.FrameStart, request(1, "true")) }, wire.ExecInvalid},
		{"stdin gap", func(w *wire.FrameWriter) { w.Chunk(wire.FrameStdin, 10, 1) }, wire.ExecInvalid},
		{"stdin flood", func(w *wire.FrameWriter) {
			for off := range uint64(10) {
				w.Chunk(wire.FrameStdin, off*wire.MaxChunk, wire.MaxChunk)
			}
		}, wire.ExecInvalid},
		{"wrong end", func(w *wire.FrameWriter) { w.Offset(wire.FrameStdinEOF, 5) }, wire.ExecInvalid},
		{"more after the end", func(w *wire.FrameWriter) {
			w.Chunk(wire.FrameStdin, 0, 60000)
			w.Chunk(wire.FrameStdin, 60000, 60000)
			w.Offset(wire.FrameStdinEOF, 120000)
			w.Chunk(wire.FrameStdin, 120000, 1)
		}, wire.ExecInvalid},
		{"ack of nothing", func(w *wire.FrameWriter) { w.Ack(1, 1) }, wire.ExecInvalid},
		{"early collect", func(w *wire.FrameWriter) { _ = w.Bytes(wire.FrameCollect, nil) }, wire.ExecInvalid},
		{"signal", func(w *wire.FrameWriter) { _ = w.Bytes(wire.FrameSignal, []byte("NOPE")) }, wire.ExecInvalid},
		{"long signal", func(w *wire.FrameWriter) { _ = w.Bytes(wire.FrameSignal, make([]byte, 100)) }, wire.ExecInvalid},
		{"bad size", func(w *wire.FrameWriter) { _ = w.Bytes(wire.FrameResize, []byte{1}) }, wire.ExecInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := dial(t, m).start(request(100+i, "exec sleep 100"))
			p.next(wire.FrameStarted, nil)
			go p.send(tc.fill)
			var x wire.ExecError
			for {
				f, err := p.fr.ReadFrame()
				if err != nil {
					t.Fatal(err)
				}
				if f.Type == wire.FrameStdinAck {
					continue
				}
				if err := f.JSON(&x); err != nil || f.Type != wire.FrameError || x.Code != tc.code {
					t.Fatalf("frame %d %+v, %v", f.Type, x, err)
				}
				break
			}
			if _, err := p.fr.ReadFrame(); err == nil {
				t.Error("the stream goes on")
			}
		})
	}
	for _, st := range m.List() {
		if st.Exit != nil {
			t.Errorf("a client's mistake has ended %+v", st)
		}
	}
}

func TestFirstFrames(t *testing.T) {
	m := newManager(t, Config{})
	old := request(1, "true")
	old.Version = 99
	for name, fill := range map[string]func(w *wire.FrameWriter){
		"stdin":       func(w *wire.FrameWriter) { w.Chunk(wire.FrameStdin, 0, 1) },
		"no json":     func(w *wire.FrameWriter) { _ = w.Bytes(wire.FrameStart, []byte("{")) },
		"other agent": func(w *wire.FrameWriter) { _ = w.JSON(wire.FrameStart, old) },
		"old attach":  func(w *wire.FrameWriter) { _ = w.JSON(wire.FrameAttach, wire.ExecAttach{}) },
	} {
		var x wire.ExecError
		p := dial(t, m)
		p.send(fill)
		if p.next(wire.FrameError, &x); x.Code != wire.ExecInvalid {
			t.Errorf("%s: %+v", name, x)
		}
	}
	var x wire.ExecError
	if dial(t, m).attach(5, 0, 0).next(wire.FrameError, &x); x.Code != wire.ExecNoProcess {
		t.Errorf("%+v", x)
	}
	dial(t, m).start(request(9, "exec sleep 100")).next(wire.FrameStarted, nil)
	if dial(t, m).start(request(9, "true")).next(wire.FrameError, &x); x.Code != wire.ExecExists {
		t.Errorf("%+v", x)
	}
	if dial(t, m).attach(9, 7, 0).next(wire.FrameError, &x); x.Code != wire.ExecInvalid {
		t.Errorf("attach beyond what was written: %+v", x)
	}
}

// TestLostClientBlocksTheProcess: without a client nothing is lost and nothing grows.
func TestLostClientBlocksTheProcess(t *testing.T) {
	m := newManager(t, Config{})
	const total = 4 << 20
	p := dial(t, m).start(request(1, fmt.Sprintf("head -c %d /dev/zero; exit 3", total)))
	p.next(wire.FrameStarted, nil)
	_ = p.conn.Close()
	ring := func() int {
		pr, err := m.find(request(1, "").ID)
		if err != nil {
			t.Fatal(err)
		}
		pr.mu.Lock()
		defer pr.mu.Unlock()
		return int(pr.out[0].ring.End())
	}
	waitFor(t, func() bool { return ring() == wire.RingBytes })
	p = dial(t, m).attach(1, 0, 0)
	p.next(wire.FrameStarted, nil)
	var got uint64
	for got < total {
		off, data, err := p.next(wire.FrameStdout, nil).Data()
		if err != nil || off != got {
			t.Fatalf("offset %d after %d bytes, %v", off, got, err)
		}
		got += uint64(len(data))
		p.send(func(w *wire.FrameWriter) { w.Ack(1, got) })
	}
	var exit wire.ExecExit
	p.next(wire.FrameExit, &exit)
	if diff := cmp.Diff(wire.ExecExit{Status: 3}, exit); diff != "" {
		t.Error(diff)
	}
	// Not collected: another client gets the exit as well, but not what was acknowledged.
	_ = p.conn.Close()
	p = dial(t, m).attach(1, total, 0)
	p.next(wire.FrameStarted, nil)
	p.next(wire.FrameExit, &exit)
	p.send(func(w *wire.FrameWriter) { _ = w.Bytes(wire.FrameCollect, nil) })
	waitFor(t, func() bool { return len(m.List()) == 0 })
}

// waitFor polls for what a real process does.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	ctx := testContext(t)
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("it never happened")
		}
	}
}

func TestOwnerGone(t *testing.T) {
	m := newManager(t, Config{})
	// One that ignores the signal goes on and is not blocked by output nobody reads.
	if _, err := m.Start(request(1, `trap "" HUP; head -c 3000000 /dev/zero; exit 4`)); err != nil {
		t.Fatal(err)
	}
	if err := m.OwnerGone(request(1, "").ID); err != nil {
		t.Fatal(err)
	}
	exit, err := m.Wait(testContext(t), request(1, "").ID)
	if err != nil || (exit.Signal != "HUP" && (exit.Status != 4 || exit.Dropped == 0)) {
		t.Errorf("%+v, %v", exit, err)
	}
	// An ended one is forgotten.
	if err := m.OwnerGone(request(1, "").ID); err != nil {
		t.Error(err)
	}
	if err := m.OwnerGone(request(1, "").ID); err == nil {
		t.Error("still known")
	}
	// A stopped one is woken; a terminal is hung up.
	for n, req := range map[int]wire.ExecStart{2: request(2, "kill -STOP $$; sleep 100"), 3: request(3, "exec sleep 100")} {
		req.PTY = n == 3
		if _, err := m.Start(req); err != nil {
			t.Fatal(err)
		}
		if err := m.OwnerGone(req.ID); err != nil {
			t.Error(err)
		}
		if exit, err := m.Wait(testContext(t), req.ID); err != nil || exit.Signal != "HUP" {
			t.Errorf("%d: %+v, %v", n, exit, err)
		}
	}
}

func TestLimits(t *testing.T) {
	m := newManager(t, Config{MaxProcesses: 2, MaxEnded: 3})
	for n := range 2 {
		if _, err := m.Start(request(n, "exec sleep 100")); err != nil {
			t.Fatal(err)
		}
	}
	var x *wire.ExecError
	if _, err := m.Start(request(5, "true")); !errors.As(err, &x) || x.Code != wire.ExecFailed {
		t.Errorf("error %v", err)
	}
	if err := m.Signal(request(0, "").ID, "KILL"); err != nil {
		t.Error(err)
	}
	for n := 10; n < 20; n++ {
		req := request(n, "exit 1")
		waitFor(t, func() bool { _, err := m.Start(req); return err == nil })
		ctx := testContext(t)
		if exit, err := m.Wait(ctx, req.ID); err != nil || exit.Status != 1 {
			t.Fatalf("%+v, %v", exit, err)
		}
	}
	var ids []string
	waitFor(t, func() bool {
		ids = nil
		for _, st := range m.List() {
			if st.Exit != nil {
				ids = append(ids, strings.TrimLeft(st.ID, "0"))
			}
		}
		return len(ids) == 3
	})
	if diff := cmp.Diff([]string{"11", "12", "13"}, ids); diff != "" {
		t.Error(diff)
	}
}

func TestIdleProcessIsSmall(t *testing.T) {
	m := newManager(t, Config{})
	heap := func() uint64 {
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapInuse + s.StackInuse
	}
	const n, most = 50, 64 << 10
	least := int64(math.MaxInt64)
	for round := range 3 { // what the runtime holds at the moment is in it
		before := heap()
		for i := range n {
			if _, err := m.Start(request(round*n+i, "exec sleep 100")); err != nil {
				t.Fatal(err)
			}
		}
		if least = min(least, (int64(heap())-int64(before))/n); least <= most {
			return
		}
	}
	t.Errorf("%d bytes for an idle process", least)
}

func TestEnvironment(t *testing.T) {
	etc, home := t.TempDir(), t.TempDir()
	me := os.Getuid()
	passwd := fmt.Sprintf("other:x:4242:1::/nowhere:/bin/false\nme:x:%d:0:Me:%s:/bin/sh\n", me, home)
	if err := os.WriteFile(filepath.Join(etc, "passwd"), []byte(passwd), 0o600); err != nil {
		t.Fatal(err)
	}
	m := newManager(t, Config{EtcDir: etc, Defaults: func() Defaults {
		return Defaults{Env: []string{"A=identity", "B=identity", "PATH=/usr/bin:/bin", "bad"}, WorkDir: "/usr"}
	}})
	run := func(req wire.ExecStart) string {
		t.Helper()
		p := dial(t, m).start(req)
		p.next(wire.FrameStarted, nil)
		p.send(func(w *wire.FrameWriter) { w.Offset(wire.FrameStdinEOF, 0) })
		var out bytes.Buffer
		for {
			f, err := p.fr.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if f.Type == wire.FrameExit {
				return out.String()
			}
			if _, data, err := f.Data(); err == nil {
				out.Write(data)
			}
		}
	}
	req := request(1, "env | grep -v ^_= | sort; pwd")
	req.Env = []string{"B=request", "C=request"}
	want := []string{"A=identity", "B=request", "C=request", "HOME=" + home, "LANG=C.UTF-8", "LOGNAME=me", "PATH=/usr/bin:/bin",
		"PWD=/usr", "SHELL=/bin/sh", "USER=me", "/usr", ""}
	if diff := cmp.Diff(strings.Join(want, "\n"), strings.ReplaceAll(run(req), "OLDPWD=\n", "")); diff != "" {
		t.Error(diff)
	}
	rel := request(2, "pwd")
	if err := os.Mkdir(filepath.Join(home, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	rel.Dir = "sub"
	if got := run(rel); got != filepath.Join(home, "sub")+"\n" {
		t.Errorf("relative directory: %q", got)
	}
	login := wire.ExecStart{Version: wire.Version, ID: request(3, "").ID, PTY: true}
	p := dial(t, m).start(login)
	p.next(wire.FrameStarted, nil)
	p.send(func(w *wire.FrameWriter) {
		line := "stty -echo; PS1=; echo \"<$0>\" $PPID; exit 6\n"
		copy(w.Chunk(wire.FrameStdin, 0, len(line)), line)
	})
	var out bytes.Buffer
	for {
		f, err := p.fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if _, data, err := f.Data(); err == nil && f.Type == wire.FrameStdout {
			out.Write(data)
		}
		if f.Type == wire.FrameExit {
			break
		}
	}
	if want := fmt.Sprintf("<-sh> %d\r\n", os.Getpid()); !strings.Contains(out.String(), want) {
		t.Errorf("login shell: %q, want %q", out.String(), want)
	}
}

func TestOtherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can become another user")
	}
	etc := t.TempDir()
	for name, text := range map[string]string{"passwd": "dev:x:61234:61235::/:/bin/sh\n", "group": "dev:x:61235:\nwheel:x:61236:root,dev\nextra:x:61237:other\n"} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := newManager(t, Config{EtcDir: etc})
	secret := t.TempDir()
	if err := os.Chmod(secret, 0o700); err != nil {
		t.Fatal(err)
	}
	for i, tc := range []struct{ user, want string }{
		{"dev", "61234 61235 61235 61236\n"}, {"61234", "61234 61235 61235 61236\n"}, {"dev:extra", "61234 61237 61237 61236\n"},
		{"61234:9", "61234 9 9 61236\n"}, {"60000", "60000 60000 60000\n"}, {"60000:dev", "60000 61235 61235\n"},
	} {
		req := request(i, `echo $(id -u) $(id -g) $(id -G)`)
		req.User, req.NoStdin = tc.user, true
		p := dial(t, m).start(req)
		p.next(wire.FrameStarted, nil)
		if _, data, err := p.next(wire.FrameStdout, nil).Data(); err != nil || string(data) != tc.want {
			t.Errorf("%s: %q, %v; want %q", tc.user, data, err, tc.want)
		}
	}
	var x *wire.ExecError
	req := request(50, "true")
	req.User, req.Dir = "dev", secret
	if _, err := m.Start(req); !errors.As(err, &x) || x.Code != wire.ExecBadDir {
		t.Errorf("directory of another: %v", err)
	}
	// A terminal belongs to who uses it.
	req = request(51, `stat -c %u $(tty)`)
	req.User, req.PTY = "dev", true
	p := dial(t, m).start(req)
	p.next(wire.FrameStarted, nil)
	if _, data, err := p.next(wire.FrameStdout, nil).Data(); err != nil || string(data) != "61234\r\n" {
		t.Errorf("owner of the terminal: %q, %v", data, err)
	}
}

func TestClose(t *testing.T) {
	m := NewManager(Config{})
	p := dial(t, m).start(request(1, "exec sleep 100"))
	p.next(wire.FrameStarted, nil)
	if _, err := m.Start(request(2, "setsid sleep 0.3 & exit 0")); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, p.conn); err == nil {
		if _, err := p.conn.Write([]byte{1}); err == nil {
			t.Error("the stream is open")
		}
	}
	if _, err := m.Start(request(3, "true")); err == nil {
		t.Error("started after Close")
	}
	for _, st := range m.List() {
		if st.Exit == nil {
			t.Errorf("runs: %+v", st)
		}
	}
}

func TestStartedHook(t *testing.T) {
	pids := make(chan int, 1)
	m := newManager(t, Config{Started: func(pid int) { pids <- pid }})
	s, err := m.Start(request(1, "true"))
	if err != nil || <-pids != s.PID {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestStorm starts, kills, attaches and hangs up at random, for the race detector and for leaks.
func TestStorm(t *testing.T) {
	m := newManager(t, Config{})
	done := make(chan struct{})
	for g := range 4 {
		go func() {
			defer func() { done <- struct{}{} }()
			rnd := rand.New(rand.NewPCG(uint64(g), 7))
			for i := range 30 {
				req := request(g*1000+i, []string{"true", "cat", "yes", "sleep 100", "echo a; echo b >&2; sleep 0.01"}[rnd.IntN(5)])
				req.PTY, req.Detach = rnd.IntN(3) == 0, rnd.IntN(4) == 0
				if _, err := m.Start(req); err != nil {
					t.Error(err)
					return
				}
				for range rnd.IntN(3) {
					c := m.Connect()
					_ = c.SetDeadline(time.Now().Add(time.Duration(rnd.IntN(5)) * time.Millisecond))
					w := wire.NewFrameWriter(c)
					_ = w.JSON(wire.FrameAttach, wire.ExecAttach{Version: wire.Version, ID: req.ID})
					w.Chunk(wire.FrameStdin, 0, 100)
					_ = w.Flush()
					_, _ = io.Copy(io.Discard, c)
					_ = c.Close()
				}
				_ = m.Signal(req.ID, "KILL")
				_ = m.OwnerGone(req.ID)
			}
		}()
	}
	for range 4 {
		<-done
	}
	waitFor(t, func() bool {
		for _, st := range m.List() {
			if st.Exit == nil {
				return false
			}
		}
		return true
	})
}
