package hostproc

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	const tail = " S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0"
	for name, c := range map[string]struct {
		text  string
		start uint64
		state byte
	}{
		"plain":           {"7 (bangerd)" + tail, 4711, 'S'},
		"a name with ) (": {"7 (a) R (b) 1)" + tail, 4711, 'S'},
		"cut short":       {"7 (bangerd) S 1 1", 0, 0},
		"empty":           {"", 0, 0},
	} {
		start, state, err := parseStat([]byte(c.text))
		if start != c.start || (err == nil) != (c.start > 0) || err == nil && state != c.state {
			t.Errorf("%s: %d, %c, %v", name, start, state, err)
		}
	}
}

func TestProcessIdentity(t *testing.T) {
	self, err := Identify(os.Getpid())
	if err != nil || !self.Alive() {
		t.Fatalf("this process is %+v, %v", self, err)
	}
	for name, change := range map[string]func(*Process){
		"another start":        func(p *Process) { p.StartTime++ },
		"another boot":         func(p *Process) { p.BootID = "x" },
		"no process":           func(p *Process) { p.PID = 0 },
		"a process group's id": func(p *Process) { p.PID = -1 },
	} {
		p := self
		change(&p)
		if p.Alive() {
			t.Errorf("%s: alive", name)
		}
		if err := p.Signal(0); err != nil {
			t.Errorf("%s: signal: %v", name, err)
		}
	}
}

// TestSignalAndGone follows a process through its end: as a zombie it is gone already.
func TestSignalAndGone(t *testing.T) {
	c := exec.Command("cat")
	if _, err := c.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := Identify(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	early, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Gone(early); !errors.Is(err, context.Canceled) {
		t.Errorf("a wait that was cancelled: %v", err)
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := p.Gone(ctx); err != nil {
		t.Error(err)
	}
	_ = c.Wait()
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Errorf("a signal to what has ended: %v", err)
	}
	if _, err := Identify(p.PID); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("identify what has ended: %v", err)
	}
}
