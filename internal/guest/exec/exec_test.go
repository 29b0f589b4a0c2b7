package exec_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/process"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// guest is a Manager that commands of one test run on.
type guest struct {
	*process.Manager
	dir string
}

func newGuest(t testing.TB, cfg process.Config) *guest {
	t.Helper()
	g := &guest{dir: t.TempDir()}
	if cfg.Defaults == nil {
		cfg.Defaults = func() process.Defaults {
			return process.Defaults{Env: []string{"HOME=" + g.dir}, WorkDir: g.dir}
		}
	}
	g.Manager = process.NewManager(cfg)
	t.Cleanup(func() { _ = g.Close() })
	return g
}

func (g *guest) dial(context.Context) (net.Conn, error) { return g.Connect(), nil }

// testContext ends before the test's own deadline would.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// sh runs a shell script and returns what it wrote.
func (g *guest) sh(t *testing.T, stdin io.Reader, script string, args ...string) (stdout, stderr string, exit wire.ExecExit) {
	t.Helper()
	var out, errs bytes.Buffer
	exit, err := exec.Run(testContext(t), exec.Options{
		Dial: g.dial, Start: wire.ExecStart{Argv: append([]string{"sh", "-c", script, "sh"}, args...)},
		Stdin: stdin, Stdout: &out, Stderr: &errs,
	})
	if err != nil {
		t.Fatalf("run %q: %v", script, err)
	}
	return out.String(), errs.String(), exit
}

func TestExitStatus(t *testing.T) {
	g := newGuest(t, process.Config{})
	for _, tc := range []struct {
		script string
		want   wire.ExecExit
	}{
		{"true", wire.ExecExit{}},
		{"exit 7", wire.ExecExit{Status: 7}},
		{"exit 255", wire.ExecExit{Status: 255}},
		{"nosuchcommand", wire.ExecExit{Status: 127}},
		{"kill -TERM $$", wire.ExecExit{Status: 143, Signal: "TERM"}},
		{"kill -KILL $$", wire.ExecExit{Status: 137, Signal: "KILL"}},
		{"kill -SEGV $$", wire.ExecExit{Status: 139, Signal: "SEGV"}},
	} {
		if _, _, exit := g.sh(t, nil, tc.script); exit != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.script, exit, tc.want)
		}
	}
	waitFor(t, func() bool { return len(g.List()) == 0 }) // once the guest hears that each exit arrived
}

func TestStreamsApart(t *testing.T) {
	g := newGuest(t, process.Config{})
	out, errs, exit := g.sh(t, strings.NewReader("in"), `cat; echo out; echo err >&2; pwd; exit 3`)
	if exit.Status != 3 || out != "inout\n"+g.dir+"\n" || errs != "err\n" {
		t.Errorf("exit %+v, stdout %q, stderr %q", exit, out, errs)
	}
}

func TestNoStdinIsEmpty(t *testing.T) {
	g := newGuest(t, process.Config{})
	if out, _, _ := g.sh(t, nil, `wc -c`); strings.TrimSpace(out) != "0" {
		t.Errorf("read %q from no stdin", out)
	}
}

func TestRefusedStarts(t *testing.T) {
	g := newGuest(t, process.Config{})
	write := func(name, content string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(g.dir, name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("plain", "echo hi\n", 0o644)
	write("badshebang", "#!/no/such/interpreter\n", 0o755)
	write("binary", "\x00\x01\x02", 0o755)
	write("noshebang", "echo shell $1\n", 0o755)
	for _, tc := range []struct {
		name   string
		start  wire.ExecStart
		code   string
		status int
	}{
		{"unknown", wire.ExecStart{Argv: []string{"nosuchcommand"}}, wire.ExecNotFound, 127},
		{"no file", wire.ExecStart{Argv: []string{"./nothere"}}, wire.ExecNotFound, 127},
		{"not a directory", wire.ExecStart{Argv: []string{"./plain/x"}}, wire.ExecNotFound, 127},
		{"no x", wire.ExecStart{Argv: []string{"./plain"}}, wire.ExecNotExecutable, 126},
		{"no x in PATH", wire.ExecStart{Argv: []string{"plain"}, Env: []string{"PATH=/nowhere:."}}, wire.ExecNotExecutable, 126},
		{"directory", wire.ExecStart{Argv: []string{"/etc"}}, wire.ExecNotExecutable, 126},
		{"interpreter", wire.ExecStart{Argv: []string{"./badshebang"}}, wire.ExecNotExecutable, 126},
		{"format", wire.ExecStart{Argv: []string{"./binary"}}, wire.ExecNotExecutable, 126},
		{"dir", wire.ExecStart{Argv: []string{"true"}, Dir: "/no/such"}, wire.ExecBadDir, 0},
		{"dir is a file", wire.ExecStart{Argv: []string{"true"}, Dir: "plain"}, wire.ExecBadDir, 0},
		{"user", wire.ExecStart{Argv: []string{"true"}, User: "nosuchuser"}, wire.ExecBadUser, 0},
		{"group", wire.ExecStart{Argv: []string{"true"}, User: "0:nosuchgroup"}, wire.ExecBadUser, 0},
		{"id", wire.ExecStart{Argv: []string{"true"}, ID: "../x"}, wire.ExecInvalid, 0},
		{"env", wire.ExecStart{Argv: []string{"true"}, Env: []string{"X"}}, wire.ExecInvalid, 0},
		{"nul", wire.ExecStart{Argv: []string{"true", "a\x00b"}}, wire.ExecInvalid, 0},
		{"empty", wire.ExecStart{Argv: []string{""}}, wire.ExecInvalid, 0},
		{"long", wire.ExecStart{Argv: []string{"true", strings.Repeat("x", 61<<10)}}, wire.ExecInvalid, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := exec.Run(testContext(t), exec.Options{Dial: g.dial, Start: tc.start})
			var x *wire.ExecError
			if !errors.As(err, &x) || x.Code != tc.code || x.Status() != tc.status || x.Message == "" {
				t.Errorf("error %v (%+v), want %s", err, x, tc.code)
			}
		})
	}
	var out bytes.Buffer
	if _, err := exec.Run(testContext(t), exec.Options{Dial: g.dial, Stdout: &out,
		Start: wire.ExecStart{Argv: []string{"./noshebang", "arg"}}}); err != nil || out.String() != "shell arg\n" {
		t.Errorf("script without interpreter: %q, %v", out.String(), err)
	}
	waitFor(t, func() bool { return len(g.List()) == 0 })
}

// pattern is a reader of n bytes that differ at every offset, and slow is up to where it hands out small pieces.
type pattern struct{ off, n int }

func (p *pattern) Read(b []byte) (int, error) {
	if p.off == p.n {
		return 0, io.EOF
	}
	k := min(len(b), p.n-p.off)
	for i := range b[:k] {
		at := p.off + i
		b[i] = byte(at ^ at>>8 ^ at>>16*7)
	}
	p.off += k
	return k, nil
}

// sum is the hash of a whole pattern.
func sum(t *testing.T, n int) [32]byte {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, &pattern{n: n}); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

func TestHundredMegabytes(t *testing.T) {
	const n = 100 << 20
	g := newGuest(t, process.Config{})
	h := sha256.New()
	began := time.Now()
	exit, err := exec.Run(testContext(t), exec.Options{Dial: g.dial, Start: wire.ExecStart{Argv: []string{"cat"}},
		Stdin: &pattern{n: n}, Stdout: h})
	if err != nil || exit.Status != 0 {
		t.Fatalf("%+v, %v", exit, err)
	}
	if [32]byte(h.Sum(nil)) != sum(t, n) {
		t.Error("what came back is not what was sent")
	}
	t.Logf("%.0f MB/s both ways", n/1e6/time.Since(began).Seconds())
}

// blocked is a reader that never returns until it is closed.
type blocked chan struct{}

func (b blocked) Read([]byte) (int, error) { <-b; return 0, io.EOF }

func TestBlockedStdinDoesNotHoldUpTheEnd(t *testing.T) {
	g := newGuest(t, process.Config{})
	never := make(blocked)
	defer close(never)
	exit, err := exec.Run(testContext(t), exec.Options{Dial: g.dial, Stdin: never, Start: wire.ExecStart{Argv: []string{"sh", "-c", "exit 4"}}})
	if err != nil || exit.Status != 4 {
		t.Errorf("%+v, %v", exit, err)
	}
}

func TestSignals(t *testing.T) {
	g := newGuest(t, process.Config{})
	signals := make(chan string)
	pr, pw := io.Pipe()
	go func() {
		buf := make([]byte, 6)
		_, _ = io.ReadFull(pr, buf)
		signals <- "INT"
		_, _ = io.Copy(io.Discard, pr)
	}()
	exit, err := exec.Run(testContext(t), exec.Options{Dial: g.dial, Stdout: pw, Signals: signals,
		Start: wire.ExecStart{Argv: []string{"sh", "-c", `trap 'echo got; exit 9' INT; echo ready; while :; do read x <&- || sleep 0.05; done`}}})
	if err != nil || exit.Status != 9 {
		t.Errorf("%+v, %v", exit, err)
	}
}

// brokenAfter takes n bytes.
type brokenAfter struct{ n int }

func (b *brokenAfter) Write(p []byte) (int, error) {
	if b.n -= len(p); b.n < 0 {
		return 0, os.ErrClosed
	}
	return len(p), nil
}

func TestBrokenStdoutEndsTheCommand(t *testing.T) {
	g := newGuest(t, process.Config{})
	exit, err := exec.Run(testContext(t), exec.Options{Dial: g.dial, Stdout: &brokenAfter{1 << 20}, Start: wire.ExecStart{Argv: []string{"yes"}}})
	var o *exec.OutputError
	if !errors.As(err, &o) || exit.Signal != "PIPE" {
		t.Errorf("%+v, %v", exit, err)
	}
	// One that ignores the signals is left alone.
	id := exec.NewID()
	_, err = exec.Run(testContext(t), exec.Options{Dial: g.dial, Stdout: &brokenAfter{}, Start: wire.ExecStart{ID: id,
		Argv: []string{"sh", "-c", `trap "" PIPE HUP; echo x; exec sleep 100`}}})
	if !errors.As(err, &o) {
		t.Errorf("error %v", err)
	}
	if err := g.Signal(id, "KILL"); err != nil {
		t.Errorf("it should still run: %v", err)
	}
}

func TestPTY(t *testing.T) {
	g := newGuest(t, process.Config{})
	var out bytes.Buffer
	exit, err := exec.Run(testContext(t), exec.Options{Dial: g.dial, Stdout: &out, Stdin: strings.NewReader("hello\n"),
		Start: wire.ExecStart{PTY: true, Rows: 33, Cols: 77, Argv: []string{"sh", "-c",
			`stty -echo; test -t 0 && test -t 1 && test -t 2 && stty size; echo $TERM; cat; ps -o pgid= -p $$ >/dev/null; exit 5`}}})
	if err != nil || exit.Status != 5 {
		t.Fatalf("%+v, %v: %q", exit, err, out.String())
	}
	// The echo of what came before stty -echo may be there or not.
	got := strings.TrimPrefix(strings.ReplaceAll(out.String(), "\r\n", "\n"), "hello\n")
	if diff := cmp.Diff("33 77\nxterm-256color\nhello\n", strings.ReplaceAll(got, "^D\b\b", "")); diff != "" {
		t.Error(diff)
	}
}

func TestPTYInterruptAndResize(t *testing.T) {
	g := newGuest(t, process.Config{})
	pr, pw := io.Pipe()
	in, typed := io.Pipe()
	resize := make(chan exec.Size, 1)
	var seen strings.Builder
	await := func(s string) {
		buf := make([]byte, 256)
		for !strings.Contains(seen.String(), s) {
			n, err := pr.Read(buf)
			if err != nil {
				return
			}
			seen.Write(buf[:n])
		}
	}
	go func() {
		await("ready")
		resize <- exec.Size{Rows: 50, Cols: 132}
		await("50 132")
		_, _ = typed.Write([]byte{3})
		_, _ = io.Copy(io.Discard, pr)
	}()
	exit, err := exec.Run(testContext(t), exec.Options{Dial: g.dial, Stdin: in, Stdout: pw, Resize: resize,
		Start: wire.ExecStart{PTY: true, Argv: []string{"sh", "-c", `trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done`}}})
	if err != nil || exit.Signal != "INT" {
		t.Errorf("%+v, %v; saw %q", exit, err, seen.String())
	}
}

func TestGrandchildHoldsStdout(t *testing.T) {
	g := newGuest(t, process.Config{})
	began := time.Now()
	out, _, exit := g.sh(t, nil, `(sleep 30; echo late) & echo done; exit 2`)
	if out != "done\n" || exit.Status != 2 || time.Since(began) > 25*time.Second {
		t.Errorf("%q, %+v after %v", out, exit, time.Since(began))
	}
	// It goes on writing without harm.
	file := filepath.Join(g.dir, "survived")
	g.sh(t, nil, `(sleep 0.5; echo x; echo y; echo fine >"$1") & :`, file)
	waitFor(t, func() bool { b, _ := os.ReadFile(file); return string(b) == "fine\n" })
}

func TestGrandchildThatNeverStops(t *testing.T) {
	g := newGuest(t, process.Config{})
	out, _, exit := g.sh(t, nil, `echo first; yes & echo $! >pid; exit 6`)
	if exit.Status != 6 || !strings.HasPrefix(out, "first\n") {
		t.Errorf("%+v after %d bytes", exit, len(out))
	}
	g.sh(t, nil, `kill $(cat pid)`)
}

// waitFor polls for what a real process does.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
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

func TestCancel(t *testing.T) {
	g := newGuest(t, process.Config{})
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	id := exec.NewID()
	_, err := exec.Run(ctx, exec.Options{Dial: g.dial, Start: wire.ExecStart{ID: id, Argv: []string{"sleep", "100"}},
		OnStarted: func(wire.ExecStarted) { cancel(why) }})
	if !errors.Is(err, why) {
		t.Errorf("error %v", err)
	}
	if err := g.OwnerGone(id); err != nil {
		t.Errorf("owner gone: %v", err)
	}
	exit, err := g.Wait(testContext(t), id)
	if err != nil || exit.Signal != "HUP" {
		t.Errorf("%+v, %v", exit, err)
	}
}

func TestCancelWhileStdoutBlocks(t *testing.T) {
	g := newGuest(t, process.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	pr, pw := io.Pipe()
	defer pr.Close()
	go func() {
		_, _ = pr.Read(make([]byte, 1))
		cancel()
	}()
	if _, err := exec.Run(ctx, exec.Options{Dial: g.dial, Stdout: pw, Start: wire.ExecStart{Argv: []string{"yes"}}}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestDetach(t *testing.T) {
	g := newGuest(t, process.Config{})
	id := exec.NewID()
	if _, err := exec.Run(testContext(t), exec.Options{Dial: g.dial, Start: wire.ExecStart{ID: id, Detach: true,
		Argv: []string{"sh", "-c", `head -c 3000000 /dev/zero; echo end; exit 11`}}}); err != nil {
		t.Fatal(err)
	}
	if exit, err := g.Wait(testContext(t), id); err != nil || exit.Status != 11 || exit.Dropped == 0 {
		t.Fatalf("%+v, %v", exit, err)
	}
	var out bytes.Buffer
	exit, err := exec.Run(testContext(t), exec.Options{Dial: g.dial, AttachID: id, Stdout: &out})
	if err != nil || exit.Status != 11 || int(exit.Dropped)+out.Len() != 3000004 || !strings.HasSuffix(out.String(), "end\n") {
		t.Errorf("%+v, %v, %d bytes", exit, err, out.Len())
	}
}

func TestTakenOver(t *testing.T) {
	g := newGuest(t, process.Config{})
	id := exec.NewID()
	started := make(chan struct{})
	errs := make(chan error, 1)
	go func() {
		_, err := exec.Run(testContext(t), exec.Options{Dial: g.dial, Start: wire.ExecStart{ID: id, Argv: []string{"cat"}}, Stdin: make(blocked),
			OnStarted: func(wire.ExecStarted) { close(started) }})
		errs <- err
	}()
	<-started
	var out bytes.Buffer
	exit, err := exec.Run(testContext(t), exec.Options{Dial: g.dial, AttachID: id, Stdin: strings.NewReader("second"), Stdout: &out})
	if err != nil || exit.Status != 0 || out.String() != "second" {
		t.Errorf("%+v, %v, %q", exit, err, out.String())
	}
	var x *wire.ExecError
	if err := <-errs; !errors.As(err, &x) || x.Code != wire.ExecTakenOver {
		t.Errorf("first client: %v", err)
	}
}

func TestLost(t *testing.T) {
	t.Parallel()
	g := newGuest(t, process.Config{})
	down := errors.New("daemon is down")
	var mu sync.Mutex
	var dials int
	var conn net.Conn
	dial := func(context.Context) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if dials++; dials > 1 {
			return nil, down
		}
		conn = g.Connect()
		return conn, nil
	}
	id := exec.NewID()
	var states []exec.State
	_, err := exec.Run(testContext(t), exec.Options{Dial: dial, Start: wire.ExecStart{ID: id, Argv: []string{"sleep", "100"}},
		ReconnectFor: 2 * time.Second,
		OnStarted:    func(wire.ExecStarted) { _ = conn.Close() },
		OnState:      func(s exec.State, _ error) { states = append(states, s) }})
	var lost *exec.LostError
	if !errors.As(err, &lost) || lost.ID != id || !lost.Started || !errors.Is(err, down) || dials < 3 {
		t.Errorf("%v after %d dials", err, dials)
	}
	if diff := cmp.Diff([]exec.State{exec.StateConnected, exec.StateReconnecting}, states); diff != "" {
		t.Error(diff)
	}
	if err := g.Signal(id, "KILL"); err != nil {
		t.Error(err)
	}
	if _, err := exec.Run(testContext(t), exec.Options{Dial: dial, Start: wire.ExecStart{Argv: []string{"true"}}}); !errors.Is(err, down) || errors.As(err, &lost) {
		t.Errorf("first dial fails: %v", err)
	}
}
