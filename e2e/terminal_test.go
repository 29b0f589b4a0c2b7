//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// seat is a terminal of the host with somebody at it: the test. A command runs on it in a session of its own.
type seat struct {
	t      *testing.T
	pty    *os.File // the side of the test
	tty    *os.File // the side of the command
	before unix.Termios
	out    lockedBuffer
	read   chan struct{} // closed when nothing more comes
	cmd    *exec.Cmd
	ended  chan struct{} // closed when the command has, with err
	err    error
}

// sit runs a command on a new terminal.
func (h *host) sit(t *testing.T, rows, cols uint16, cmd *exec.Cmd) *seat {
	t.Helper()
	p, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	near, err := unblocked(p)
	if err != nil {
		t.Fatal(err)
	}
	s := &seat{t: t, pty: near, tty: tty, cmd: cmd, read: make(chan struct{}), ended: make(chan struct{})}
	s.resize(rows, cols)
	s.before = s.modes()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	cmd.Env = append(slices.Clip(cmd.Env), "TERM=xterm-256color")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.leave)
	go func() {
		defer close(s.ended)
		s.err = cmd.Wait()
	}()
	go func() { defer close(s.read); _, _ = io.Copy(&s.out, near) }() // until the terminal is closed
	return s
}

// unblocked is f again, which is closed, with a Close that ends a Read: package pty makes a terminal a blocking file, whose
// Close waits for it.
func unblocked(f *os.File) (*os.File, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// terminal runs a banger command line on a new terminal of 30 rows and 100 columns.
func (h *host) terminal(t *testing.T, args ...string) *seat {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	t.Cleanup(cancel)
	return h.sit(t, 30, 100, h.cmd(ctx, args...))
}

// leave closes the terminal, and ends a command that a failed test left on it.
func (s *seat) leave() {
	_ = s.tty.Close()
	_ = s.pty.Close()
	_ = s.cmd.Process.Kill()
	<-s.ended
}

func (s *seat) resize(rows, cols uint16) {
	s.t.Helper()
	if err := pty.Setsize(s.tty, &pty.Winsize{Rows: rows, Cols: cols}); err != nil {
		s.t.Fatal(err)
	}
}

// modes is what stty -a shows.
func (s *seat) modes() unix.Termios {
	s.t.Helper()
	m, err := unix.IoctlGetTermios(int(s.tty.Fd()), unix.TCGETS)
	if err != nil {
		s.t.Fatal(err)
	}
	return *m
}

// restored checks that the terminal is as it was.
func (s *seat) restored(after string) {
	s.t.Helper()
	if diff := cmp.Diff(s.before, s.modes()); diff != "" {
		s.t.Errorf("the terminal after %s: %s", after, diff)
	}
}

func (s *seat) say(text string) {
	s.t.Helper()
	if _, err := io.WriteString(s.pty, text); err != nil {
		s.t.Fatal(err)
	}
}

// await waits until something in the output matches, and returns what the last group of the pattern matched.
func (s *seat) await(pattern string) string {
	s.t.Helper()
	re := regexp.MustCompile(pattern)
	var found []string
	if err := waitFor(time.Minute, func() bool { found = re.FindStringSubmatch(s.out.String()); return found != nil }); err != nil {
		s.t.Fatalf("%v: nothing matches %q in its output:\n%q", s.cmd.Args, pattern, s.out.String())
	}
	return found[len(found)-1]
}

// bracketed is how a shell switches bracketed paste on and off.
var bracketed = regexp.MustCompile(`\x1b\[\?2004[hl]\r?`)

// asks types a command that prints, and waits for what it prints. Only one that has run prints the mark.
func (s *seat) asks(command, pattern string) string {
	s.t.Helper()
	mark := fmt.Sprint(time.Now().UnixNano())
	s.say(fmt.Sprintf("%s; echo M''%s\r", command, mark))
	s.await(`(?s)M` + mark)
	text := s.out.String()
	text = text[strings.LastIndex(text, "M''"+mark):]
	found := regexp.MustCompile(pattern).FindStringSubmatch(bracketed.ReplaceAllString(text, ""))
	if found == nil {
		s.t.Fatalf("%s: nothing matches %q in %q", command, pattern, text)
	}
	return found[len(found)-1]
}

// wait returns the exit status; one that a signal ended is negative.
func (s *seat) wait() int {
	s.t.Helper()
	select {
	case <-s.ended:
		if ee := (*exec.ExitError)(nil); errors.As(s.err, &ee) && ee.Sys().(syscall.WaitStatus).Signaled() {
			return -int(ee.Sys().(syscall.WaitStatus).Signal())
		}
		return s.cmd.ProcessState.ExitCode()
	case <-time.After(time.Minute):
		_ = s.cmd.Process.Signal(syscall.SIGQUIT) // to say where it is
		s.t.Fatalf("%v does not end; its output: %q", s.cmd.Args, s.out.String())
		return 0
	}
}

// settled is all that a command that has ended wrote: the terminal is closed.
func (s *seat) settled() string {
	_ = s.tty.Close() // the last who has it open: then a Read of the other side ends with EIO
	<-s.read
	return s.out.String()
}

// ways are the commands that open a shell in the shared VM.
func ways(u *sshUser) map[string]func() *exec.Cmd {
	return map[string]func() *exec.Cmd{
		"vm exec -it": func() *exec.Cmd { return u.cmd(u.t.Context(), "vm", "exec", "-it", "box", "--", "bash") },
		"vm exec":     func() *exec.Cmd { return u.cmd(u.t.Context(), "vm", "exec", "box") },
		"vm ssh":      func() *exec.Cmd { return u.start(u.t.Context(), "banger", "vm", "ssh", "box") },
	}
}

// TestTerminal works at a shell in a guest: its size, colours, locale, jobs and status.
func TestTerminal(t *testing.T) {
	u := newSSHUser(t)
	for name, way := range ways(u) {
		t.Run(name, func(t *testing.T) {
			s := u.sit(t, 30, 100, way())
			s.await(`root@box`)
			s.asks("stty size", `\n30 100\r`)
			s.resize(41, 123)
			s.asks("for i in $(seq 100); do [ \"$(stty size)\" = '41 123' ] && break; sleep 0.1; done; stty size", `\n41 123\r`)
			s.asks("tty; echo $TERM $(tput colors) $(locale charmap)", `\n/dev/pts/\d+\r\nxterm-256color 256 UTF-8\r`)
			s.asks("ls -d --color=auto /etc", "\x1b\\[01;34m/etc\x1b\\[0m")
			s.asks("printf 'gr\\303\\274n \\342\\224\\200\\n'", `\ngrün ─\r`)

			s.say("echo go''ing; sleep 600\r")
			s.await(`going\r`)
			s.say("\x03")
			s.asks("echo status=$?", `status=130\r`)
			s.say("bash -c 'trap \"echo con\"\"tinued\" CONT; echo star\"\"ting; while :; do sleep 0.1; done'\r")
			s.await(`starting\r`)
			s.say("\x1a")
			s.await(`Stopped +bash -c`)
			s.asks("jobs", `\[1\]\+ +Stopped +bash -c`)
			s.say("fg\r")
			s.await(`continued\r`)
			s.say("\x03")
			s.asks("echo status=$?; jobs", `\nstatus=130\r\nM`)
			s.say("sh -c 'echo quit\"\"ting; exec sleep 601'\r")
			s.await(`quitting\r`)
			s.say("\x1c")
			s.asks("echo status=$?", `\nstatus=131\r`)
			s.say("exit 9\r")
			if code := s.wait(); code != 9 {
				t.Errorf("status %d", code)
			}
			s.restored("exit 9")
		})
	}
}

// TestTerminalKilled: whatever ends banger, the terminal is as before, the VM runs, and what ran in it goes on.
func TestTerminalKilled(t *testing.T) {
	h := box(t)
	running := func(command string) bool {
		return h.run("vm", "exec", "box", "--", "pgrep", "-fx", command).code == 0
	}
	start := func(t *testing.T, sleep string) *seat {
		s := h.terminal(t, "vm", "exec", "-it", "box", "--", "bash", "-c", "trap '' TERM; echo rea''dy; sleep "+sleep+"; true")
		s.await(`ready\r`)
		if cmp.Equal(s.before, s.modes()) {
			t.Fatal("the terminal is not raw")
		}
		t.Cleanup(func() { h.run("vm", "exec", "box", "--", "pkill", "-fx", "sleep "+sleep) })
		return s
	}
	t.Run("SIGTERM", func(t *testing.T) {
		s := h.terminal(t, "vm", "exec", "-it", "box", "--", "sh", "-c", "echo rea''dy; exec sleep 700")
		s.await(`ready\r`)
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		if code := s.wait(); code != 128+15 {
			t.Errorf("status %d", code)
		}
		s.restored("SIGTERM")
	})
	t.Run("SIGTERM twice", func(t *testing.T) {
		s := start(t, "701")
		go func() { // two at once would be one for the kernel
			for s.cmd.Process.Signal(syscall.SIGTERM) == nil {
				time.Sleep(100 * time.Millisecond)
			}
		}()
		if code := s.wait(); code != 128+15 && code != -15 {
			t.Errorf("status %d", code)
		}
		s.restored("SIGTERM twice")
	})
	t.Run("SIGHUP", func(t *testing.T) {
		s := start(t, "702")
		_ = s.cmd.Process.Signal(syscall.SIGHUP)
		if code := s.wait(); code != 128+1 && code != -1 {
			t.Errorf("status %d", code)
		}
		s.restored("SIGHUP")
		if !running("sleep 702") {
			t.Error("the command did not survive")
		}
	})
	t.Run("lost terminal", func(t *testing.T) {
		s := start(t, "703")
		_, _ = s.tty.Close(), s.pty.Close()
		s.wait()
		if !running("sleep 703") {
			t.Error("the command did not survive")
		}
	})
	t.Run("SIGKILL", func(t *testing.T) {
		s := start(t, "704")
		_ = s.cmd.Process.Kill()
		s.wait()
		if st := h.vm("box").State; st != "running" || !running("sleep 704") {
			t.Errorf("the VM is %s, or its command did not survive", st)
		}
	})
}

// TestTerminalRun leaves a VM by its shell, comes back the way that is told, and loses the terminal there.
func TestTerminalRun(t *testing.T) {
	h := box(t)
	s := h.terminal(t, "vm", "run", "--name", "seat")
	t.Cleanup(func() { h.try("vm", "delete", "--force", "seat") })
	s.await(`root@seat`)
	s.asks("stty size; pwd", `\n30 100\r\n/root\r`)
	s.resize(50, 80)
	s.asks("for i in $(seq 100); do [ \"$(stty size)\" = '50 80' ] && break; sleep 0.1; done; stty size", `\n50 80\r`)
	s.say("exit 3\r")
	if code := s.wait(); code != 3 {
		t.Errorf("status %d", code)
	}
	s.restored("the run")
	s.await(`vm "seat" stays; come back: banger vm ssh seat\r\n.*remove it: banger vm delete --force seat\r`)

	s = h.terminal(t, "vm", "exec", "seat")
	s.await(`root@seat`)
	s.say("echo go''ing; sleep 800\r")
	s.await(`going\r`)
	_, _ = s.tty.Close(), s.pty.Close()
	s.wait()
	if r := h.run("vm", "exec", "seat", "--", "pgrep", "-fx", "sleep 800"); r.code != 0 {
		t.Errorf("after the terminal was lost: status %d, %s", r.code, r.stderr)
	}
}

// tmux is a tmux of the test's own.
type tmux struct {
	*host
	socket string
}

func newTmux(t *testing.T, h *host) *tmux {
	t.Helper()
	m := &tmux{host: h, socket: filepath.Join(h.dir, "tmux")}
	t.Cleanup(func() { m.try("kill-server") })
	return m
}

func (m *tmux) try(args ...string) (string, error) {
	c := exec.Command("tmux", append([]string{"-S", m.socket, "-f", "/dev/null"}, args...)...)
	c.Env, c.Dir = m.env, m.dir
	out, err := c.CombinedOutput()
	return string(out), err
}

func (m *tmux) do(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	if err != nil {
		m.t.Fatalf("tmux %v: %v: %s", args, err, out)
	}
	return out
}

// shows waits until the screen is what ok wants.
func (m *tmux) shows(what string, ok func(lines []string) bool) {
	m.t.Helper()
	var screen string
	if err := waitFor(time.Minute, func() bool {
		screen = m.do("capture-pane", "-p")
		return ok(strings.Split(strings.TrimSuffix(screen, "\n"), "\n"))
	}); err != nil {
		m.t.Fatalf("no %s on the screen:\n%s", what, screen)
	}
}

// TestTerminalPrograms runs vim and less in a guest and looks at the screen.
func TestTerminalPrograms(t *testing.T) {
	h := *box(t)
	h.t = t
	m := newTmux(t, &h)
	h.inGuest("box", "seq -f 'line %g of the text' 1 200 >/root/text; printf 'grün\\n' >/root/short")
	m.do("new-session", "-d", "-x", "90", "-y", "24", "banger vm exec -it box -- bash --norc")
	m.shows("prompt", func(l []string) bool { return strings.HasPrefix(l[0], "bash-") })

	m.do("send-keys", "vim -u NONE -N -c 'set ruler laststatus=2' short", "Enter")
	m.shows("vim", func(l []string) bool {
		return len(l) == 24 && l[0] == "grün" && l[1] == "~" && l[21] == "~" && strings.HasPrefix(l[22], "short") &&
			strings.HasSuffix(strings.TrimSpace(l[22]), "All") && strings.Contains(l[23], `"short" 1L, 6B`)
	})
	m.do("send-keys", "Aer und blau", "Escape", ":s/blau/rot/", "Enter")
	m.shows("what was typed", func(l []string) bool { return l[0] == "grüner und rot" })
	m.do("resize-window", "-x", "60", "-y", "12")
	m.shows("vim in a smaller window", func(l []string) bool {
		return len(l) == 12 && l[0] == "grüner und rot" && l[9] == "~" && strings.HasPrefix(l[10], "short [+]")
	})
	m.do("send-keys", ":wq", "Enter")
	m.shows("prompt after vim", func(l []string) bool {
		return strings.Contains(strings.Join(l, "\n"), "bash-") && !strings.Contains(l[1], "~")
	})
	if got := h.inGuest("box", "cat /root/short"); got != "grüner und rot\n" {
		t.Errorf("written: %q", got)
	}

	m.do("send-keys", "clear; less text", "Enter")
	m.shows("less", func(l []string) bool {
		return l[0] == "line 1 of the text" && l[10] == "line 11 of the text" && strings.HasPrefix(l[11], "text")
	})
	m.do("send-keys", "G")
	m.shows("the end in less", func(l []string) bool { return l[10] == "line 200 of the text" && strings.HasPrefix(l[11], "(END)") })
	m.do("send-keys", "/line 77 ", "Enter")
	m.shows("what less was to find", func(l []string) bool {
		return strings.HasPrefix(l[0], "line 77 of") || strings.Contains(strings.Join(l, "\n"), "Pattern not found")
	})
	m.do("send-keys", "q", "exit", "Enter")
	if err := waitFor(waitShort, func() bool { _, err := m.try("has-session"); return err != nil }); err != nil {
		t.Errorf("the session goes on:\n%s", m.do("capture-pane", "-p"))
	}
}
