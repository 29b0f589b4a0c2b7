package sshd

import (
	"bytes"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// console is the client's end of a session with a terminal: it types, and waits for what is shown.
type console struct {
	t  *testing.T
	s  *ssh.Session
	in io.WriteCloser

	mu    sync.Mutex
	more  chan struct{} // closed and replaced with each output
	shown bytes.Buffer
	ended bool
}

func newConsole(t *testing.T, c *ssh.Client, modes ssh.TerminalModes) *console {
	t.Helper()
	p := &console{t: t, s: newSession(t, c), more: make(chan struct{})}
	if err := p.s.RequestPty("vt100", 24, 80, modes); err != nil {
		t.Fatal(err)
	}
	var err error
	if p.in, err = p.s.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := out.Read(buf)
			p.mu.Lock()
			p.shown.Write(buf[:n])
			p.ended = err != nil
			close(p.more)
			p.more = make(chan struct{})
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return p
}

func (p *console) types(text string) {
	p.t.Helper()
	if _, err := io.WriteString(p.in, text); err != nil {
		p.t.Fatal(err)
	}
}

// awaits waits until text is shown and forgets everything up to it.
func (p *console) awaits(text string) {
	p.t.Helper()
	late := time.After(20 * time.Second)
	for {
		p.mu.Lock()
		have, more, ended := p.shown.String(), p.more, p.ended
		if i := strings.Index(have, text); i >= 0 {
			p.shown.Next(i + len(text))
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
		if ended {
			p.t.Fatalf("ended without %q after %q", text, have)
		}
		select {
		case <-more:
		case <-late:
			p.t.Fatalf("no %q in %q", text, have)
		}
	}
}

func TestTerminal(t *testing.T) {
	c := newGuest(t, nil).dial()
	p := newConsole(t, c, nil)
	if err := p.s.Setenv("GREETING", "hello there"); err != nil {
		t.Fatal(err)
	}
	if err := p.s.Start("exec env PS1='$ ' HISTFILE= bash --norc --noprofile --noediting -i"); err != nil {
		t.Fatal(err)
	}
	p.types("stty size; echo $TERM-$GREETING; tty\n")
	p.awaits("24 80\r\n")
	p.awaits("vt100-hello there\r\n/dev/pts/")
	if err := p.s.WindowChange(50, 132); err != nil {
		t.Fatal(err)
	}
	p.types("until stty size | grep ^50; do sleep 0.1; done\n") // what is typed may overtake it
	p.awaits("50 132\r\n")

	// What shows that a command runs must not be what was typed.
	p.types("trap 'echo caught' INT; sh -c 'echo run''ning; exec sleep 1000'; echo slept $?\n")
	p.awaits("running")
	p.types("echo typed in vain\x03")
	p.awaits("slept 130")
	p.types("sh -c 'echo aga''in; exec sleep 1000'\n")
	p.awaits("again")
	p.types("\x1a")
	p.awaits("Stopped")
	p.types("jobs; kill %1; wait; echo jobs are $((40+2))\n")
	p.awaits("sleep 1000")
	p.awaits("jobs are 42\r\n")
	p.types("exit 5\nexit 5\n") // the first only warns where the job has not been reaped yet
	wantStatus(t, p.s.Wait(), 5)
}

// TestTerminalSignals: signals of the protocol reach the process group, and one the guest does not know is refused.
func TestTerminalSignals(t *testing.T) {
	c := newGuest(t, nil).dial()
	p := newConsole(t, c, nil)
	if err := p.s.Start("trap 'echo got usr1' USR1; echo ready; while :; do sleep 0.1; done"); err != nil {
		t.Fatal(err)
	}
	p.awaits("ready")
	if err := p.s.Signal(ssh.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	p.awaits("got usr1")
	if ok, err := p.s.SendRequest("signal", true, ssh.Marshal(struct{ Name string }{"NOPE"})); ok || err != nil {
		t.Errorf("an unknown signal: %v %v", ok, err)
	}
	if err := p.s.Signal(ssh.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if x, ok := p.s.Wait().(*ssh.ExitError); !ok || x.Signal() != "KILL" { //nolint:errorlint // Wait returns it bare
		t.Errorf("ended with %v", x)
	}
}

// TestTerminalModes: what the client's terminal is set to, the guest's is, from its first byte on.
func TestTerminalModes(t *testing.T) {
	c := newGuest(t, nil).dial()
	p := newConsole(t, c, ssh.TerminalModes{ssh.ECHO: 0, ssh.IUTF8: 0, ssh.VINTR: 7, ssh.VEOF: 255, ssh.ONLCR: 0, ssh.TTY_OP_ISPEED: 9600})
	if err := p.s.Start("stty -a; echo end"); err != nil {
		t.Fatal(err)
	}
	p.awaits("intr = ^G;")
	p.awaits("eof = <undef>;")
	p.awaits("-iutf8")
	p.awaits("-onlcr")
	p.awaits("-echo ")
	p.awaits("end\n")
}

func TestLoginShell(t *testing.T) {
	c := newGuest(t, nil).dial()
	p := newConsole(t, c, nil)
	if err := p.s.Shell(); err != nil {
		t.Fatal(err)
	}
	p.types("echo shell-is-$0-; exit 9\n")
	p.awaits("shell-is--")
	wantStatus(t, p.s.Wait(), 9)
	if err := newSession(t, c).RequestSubsystem("nonsense"); err == nil {
		t.Error("an unknown subsystem was taken")
	}
}

// TestHangUp: a client that leaves its terminal hangs up what runs in it.
func TestHangUp(t *testing.T) {
	g := newGuest(t, nil)
	for name, leave := range map[string]func(*ssh.Client, *ssh.Session){
		"channel":    func(_ *ssh.Client, s *ssh.Session) { _ = s.Close() },
		"connection": func(c *ssh.Client, _ *ssh.Session) { _ = c.Close() },
	} {
		for _, pty := range []bool{true, false} {
			c := g.dial()
			s := newSession(t, c)
			if pty {
				if err := s.RequestPty("vt100", 24, 80, nil); err != nil {
					t.Fatal(err)
				}
			}
			out, err := s.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Start("echo ready; exec sleep 1000"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(out, make([]byte, 5)); err != nil {
				t.Fatal(err)
			}
			leave(c, s)
			eventually(t, name+": the process is hung up", func() bool {
				for _, p := range g.procs.List() {
					if p.Exit == nil {
						return false
					}
				}
				return true
			})
		}
	}
}

func wantStatus(t *testing.T, err error, want int) {
	t.Helper()
	x, ok := err.(*ssh.ExitError) //nolint:errorlint // Wait returns it bare
	if !ok || x.ExitStatus() != want {
		t.Errorf("ended with %v, want status %d", err, want)
	}
}
