package cli

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
)

// asBanger makes this test binary the banger command, for tests that need a process of its own.
const asBanger = "BANGER_TEST_AS_BANGER"

func TestMain(m *testing.M) {
	if os.Getenv(asBanger) != "" {
		os.Exit(Main())
	}
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP) // the tests may run under nohup; the programs they start must not
	os.Exit(m.Run())
}

// banger is the command with these arguments in a's environment.
func (a *testApp) banger(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, args...)
	cmd.Env = []string{asBanger + "=1", "PATH=" + os.Getenv("PATH"), "GOCOVERDIR=" + os.Getenv("GOCOVERDIR")}
	for k, v := range a.env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	return cmd
}

// onTerminal starts cmd on a terminal of its own and returns the keyboard's end, what the screen shows,
// and the terminal's settings before.
func onTerminal(t *testing.T, cmd *exec.Cmd) (keys, tty *os.File, screen *gateWriter, before unix.Termios) {
	t.Helper()
	keys, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keys.Close(); tty.Close() })
	if err := pty.Setsize(keys, &pty.Winsize{Rows: 30, Cols: 100}); err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	before = termios(t, tty)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	screen = &gateWriter{on: make(chan struct{}, 1)}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := keys.Read(buf)
			screen.Write(buf[:n])
			if err != nil {
				return
			}
		}
	}()
	return keys, tty, screen, before
}

func termios(t *testing.T, f *os.File) unix.Termios {
	t.Helper()
	v, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *v
}

// status waits for cmd and returns its exit status.
func status(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	err := cmd.Wait()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode()
}

// nowAndThen is f no more often than ten times a second: a terminal holds 4 KiB of what nobody has read yet, and drops the rest.
func nowAndThen(f func()) func() {
	var last time.Time
	return func() {
		if now := time.Now(); now.Sub(last) > 100*time.Millisecond {
			last = now
			f()
		}
	}
}

func TestShellOnARealTerminal(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	cmd := a.banger(t, "vm", "run", "--name", "web")
	keys, tty, screen, before := onTerminal(t, cmd)
	keys.WriteString("stty size; tty && echo $TERM-$((40+2))\n")
	waitFor(t, func() bool { return strings.Contains(screen.String(), "xterm-42") })
	if s := screen.String(); !strings.Contains(s, "30 100\r\n") {
		t.Errorf("the size did not arrive: %q", s)
	}
	if now := termios(t, tty); now == before {
		t.Error("the terminal is not raw")
	}
	if err := pty.Setsize(keys, &pty.Winsize{Rows: 12, Cols: 34}); err != nil {
		t.Fatal(err)
	}
	look := nowAndThen(func() { keys.WriteString("stty size\n") })
	waitFor(t, func() bool {
		look()
		return strings.Contains(screen.String(), "12 34\r\n")
	})
	keys.WriteString("echo sleep-$((40+2)); sleep 1000\n")
	waitFor(t, func() bool { return strings.Contains(screen.String(), "sleep-42") })
	interrupt := nowAndThen(func() {
		keys.Write([]byte{interruptKey})
		keys.WriteString("echo back-$((40+2))\n")
	})
	waitFor(t, func() bool { // Ctrl-C ends the sleep, not banger; what is typed meanwhile may be thrown away
		interrupt()
		return strings.Contains(screen.String(), "back-42")
	})
	keys.WriteString("exit 6\n")
	if code := status(t, cmd); code != 6 {
		t.Errorf("status %d: %q", code, screen.String())
	}
	if now := termios(t, tty); now != before {
		t.Error("the terminal was not restored")
	}
	waitFor(t, func() bool { return strings.Contains(screen.String(), "banger vm delete --force web") })
	if d.String() != "web running" {
		t.Errorf("left %s", d)
	}
}

// TestTerminalIsKnownInTheGuest: what it is and the locale go along where there is a terminal, and only there.
func TestTerminalIsKnownInTheGuest(t *testing.T) {
	a := newTestApp(t)
	startFake(t, a.env).add(api.VM{Name: "web", State: api.StateRunning})
	a.env["COLORTERM"], a.env["LANG"], a.env["LC_TIME"], a.env["LC_SECRET"] = "truecolor", "C.UTF-8", "C", "no locale category"
	const show = `echo "$TERM,$COLORTERM,$LANG,$LC_TIME,$LC_SECRET"`
	cmd := a.banger(t, "vm", "exec", "-it", "web", "--", "sh", "-c", show)
	_, _, screen, _ := onTerminal(t, cmd)
	if code := status(t, cmd); code != 0 {
		t.Errorf("status %d", code)
	}
	waitFor(t, func() bool { return strings.Contains(screen.String(), "xterm,truecolor,C.UTF-8,C,\r\n") })
	cmd = a.banger(t, "vm", "exec", "-e", "LANG=x", "web", "--", "sh", "-c", "echo $LANG,$COLORTERM")
	if out, err := cmd.Output(); err != nil || string(out) != "x,\n" {
		t.Errorf("without a terminal: %q, %v", out, err)
	}
	cmd = a.banger(t, "vm", "exec", "-it", "web", "--", "true")
	if out, err := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != exitUsage || !strings.Contains(string(out), "-t needs a terminal") {
		t.Errorf("-t without a terminal: %q, %v", out, err)
	}
}

// TestQuitGoesToTheCommand: Ctrl-\ on a terminal that is not raw.
func TestQuitGoesToTheCommand(t *testing.T) {
	a := newTestApp(t)
	startFake(t, a.env).add(api.VM{Name: "web", State: api.StateRunning})
	cmd := a.banger(t, "vm", "exec", "-t=false", "web", "--", "sh", "-c", "trap 'echo quit; exit 5' QUIT; echo up; while :; do sleep 0.1; done")
	keys, _, screen, _ := onTerminal(t, cmd)
	waitFor(t, func() bool { return strings.Contains(screen.String(), "up\r\n") })
	keys.Write([]byte{0x1c})
	if code := status(t, cmd); code != 5 {
		t.Errorf("status %d: %q", code, screen.String())
	}
	waitFor(t, func() bool { return strings.Contains(screen.String(), "quit\r\n") })
}

// TestOfferStartOnARealTerminal: the question is answered before the terminal is the guest's, and nothing typed is lost.
func TestOfferStartOnARealTerminal(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	d.add(api.VM{Name: "web", State: api.StateStopped})
	cmd := a.banger(t, "vm", "exec", "web")
	keys, tty, screen, before := onTerminal(t, cmd)
	waitFor(t, func() bool { return strings.Contains(screen.String(), "Start it? [Y/n] ") })
	keys.WriteString("y\nexit 4\n")
	if code := status(t, cmd); code != 4 || d.String() != "web running" {
		t.Errorf("status %d, %s: %q", code, d, screen.String())
	}
	if now := termios(t, tty); now != before {
		t.Error("the terminal was not restored")
	}
}

func TestTerminalIsRestoredAfterSignals(t *testing.T) {
	for _, c := range []struct {
		sig  syscall.Signal
		code int
	}{{syscall.SIGHUP, 129}, {syscall.SIGTERM, 143}} {
		a := newTestApp(t)
		d := startFake(t, a.env)
		d.add(api.VM{Name: "web", State: api.StateRunning})
		cmd := a.banger(t, "vm", "exec", "web", "--", "sh", "-c", "trap '' TERM HUP; echo up; while :; do sleep 1; done")
		_, tty, screen, before := onTerminal(t, cmd)
		waitFor(t, func() bool { return strings.Contains(screen.String(), "up\r\n") })
		cmd.Process.Signal(c.sig)
		if c.sig != syscall.SIGHUP { // the command ignores the first
			cmd.Process.Signal(c.sig)
			tick := time.NewTicker(50 * time.Millisecond) // two of them at once may arrive as one
			defer tick.Stop()
			ended, end := context.WithCancel(t.Context())
			defer end()
			go func() {
				for cmd.Process.Signal(c.sig) == nil {
					select {
					case <-tick.C:
					case <-ended.Done():
						return
					}
				}
			}()
		}
		if code := status(t, cmd); code != c.code {
			t.Errorf("%s: status %d: %q", c.sig, code, screen.String())
		}
		if now := termios(t, tty); now != before {
			t.Errorf("%s: the terminal was not restored", c.sig)
		}
		for _, p := range d.procs.List() {
			d.procs.Signal(p.ID, "KILL")
		}
	}
}

func TestProgressOnARealTerminal(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	shown := make(chan struct{})
	d.on("image.pull", operationThatSteps(shown))
	cmd := a.banger(t, "image", "pull", "x")
	_, _, screen, _ := onTerminal(t, cmd)
	waitFor(t, func() bool { return strings.Contains(screen.String(), "\rdownload x  10MiB/40MiB 25%") })
	close(shown)
	if code := status(t, cmd); code != 0 {
		t.Errorf("status %d: %q", code, screen.String())
	}
	waitFor(t, func() bool { return strings.HasSuffix(screen.String(), "\r\x1b[Kx sha256:abc\r\n") })
}

func TestPipes(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	d.add(api.VM{Name: "web", State: api.StateRunning})
	cmd := a.banger(t, "vm", "exec", "web", "--", "sh", "-c", "cat; echo err >&2; exit 3")
	var out, errs bytes.Buffer
	data := bytes.Repeat([]byte("banger\x00\xff\r\n"), 200_000)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(data), &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if code := status(t, cmd); code != 3 || !bytes.Equal(out.Bytes(), data) || errs.String() != "err\n" {
		t.Errorf("status %d, %d bytes of %d, stderr %q", code, out.Len(), len(data), errs.String())
	}
	// A reader that leaves: yes | head.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd = a.banger(t, "vm", "exec", "web", "--", "yes")
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := r.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if code := status(t, cmd); code != 141 {
		t.Errorf("with a broken pipe: status %d", code)
	}
	waitFor(t, func() bool {
		for _, p := range d.procs.List() {
			if p.Exit == nil {
				return false
			}
		}
		return true
	})
	// Closed streams.
	cmd = a.banger(t)
	cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", cmd.Args[0] + " vm exec web -- sh -c 'cat; exit 4' <&- 2>&-"}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if code := status(t, cmd); code != 4 {
		t.Errorf("with a closed stdin: status %d", code)
	}
}

// TestBlockedWriteIsInterrupted: a stdout that nobody reads does not keep banger from being interrupted.
func TestBlockedWriteIsInterrupted(t *testing.T) {
	a := newTestApp(t)
	log := filepath.Join(a.env["HOME"], ".local/state/banger/bangerd.log")
	if err := os.MkdirAll(filepath.Dir(log), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(log, bytes.Repeat([]byte("line\n"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	cmd := a.banger(t, "daemon", "logs", "-n", "0")
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	waitFor(t, func() bool {
		cmd.Process.Signal(syscall.SIGINT)
		return len(ended) > 0
	})
	if err := <-ended; cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGINT {
		t.Errorf("it ended with %v", err)
	}
}

func TestHostTerminal(t *testing.T) {
	keys, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	defer tty.Close()
	file, err := os.Create(filepath.Join(t.TempDir(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if h := hostTerminal(tty, file, tty, nil); !h.In || h.Out || !h.Err || h.InBackground {
		t.Errorf("%+v", h)
	}
	h := hostTerminal(file, file, file, nil)
	if rows, cols := h.Size(); h.In || rows != 0 || cols != 0 {
		t.Errorf("no terminal: %+v, %d × %d", h, rows, cols)
	}
	if _, err := h.Raw(); err == nil {
		t.Error("a file was made raw")
	}
}

// TestDeletionIsAskedOnARealTerminal: the answer is read although the command's stdin was waiting for keys, and the terminal is as before.
func TestDeletionIsAskedOnARealTerminal(t *testing.T) {
	for answer, left := range map[string]string{"y\n": "", "n\n": "web running", "\x04": "web running", "\x03": "web running"} {
		a := newTestApp(t)
		d := startFake(t, a.env)
		d.work.lost = map[string][]api.Unpulled{"web": lost("refs/heads/x")}
		cmd := a.banger(t, "vm", "run", "--rm", "--name", "web")
		keys, tty, screen, before := onTerminal(t, cmd)
		keys.WriteString("echo up-$((40+2)); exit 6\n")
		waitFor(t, func() bool { return strings.Contains(screen.String(), "Delete it all the same? [y/N] ") })
		if now := termios(t, tty); now != before {
			t.Errorf("%q: the terminal is not as before when it is asked", answer)
		}
		keys.WriteString(answer)
		if code := status(t, cmd); code != 6 || d.String() != left {
			t.Errorf("%q: status %d, left %q: %q", answer, code, d, screen.String())
		}
	}
}
