package supervise

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/hostproc"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/fakeqemu"
)

// run is a started VM.
type run struct {
	*machine
	ctx  context.Context
	dir  string
	spec vmm.Spec
	eng  *Engine
}

// startVM starts a VM with knobs; change may alter its spec.
func startVM(t *testing.T, knobs fakeqemu.Knobs, change func(*vmm.Spec)) *run {
	t.Helper()
	r, err := tryVM(t, knobs, change)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// tryVM is startVM of a VM that may end before it is known to have started.
func tryVM(t *testing.T, knobs fakeqemu.Knobs, change func(*vmm.Spec)) (*run, error) {
	t.Helper()
	dir, spec := newVM(t, knobs)
	if change != nil {
		change(&spec)
	}
	eng := newEngine(t, "--ending-grace", "300ms")
	ctx := within(t, 60*time.Second)
	m, err := eng.Start(ctx, dir, spec)
	if err != nil {
		return nil, err
	}
	r := &run{machine: m.(*machine), ctx: ctx, dir: dir, spec: spec, eng: eng}
	t.Cleanup(func() {
		_ = r.Kill(within(t, 30*time.Second))
		_ = r.Close()
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(dir, paths.VMMLog))
			t.Logf("vmm.log:\n%s", b[max(0, len(b)-4000):])
		}
	})
	return r, nil
}

func (r *run) await(t *testing.T, is func(vmm.Status) bool) vmm.Status {
	t.Helper()
	st := r.Status()
	for !is(st) {
		var err error
		if st, err = r.Next(r.ctx, st.Seq); err != nil {
			t.Fatalf("%v; the last status: %+v", err, st)
		}
	}
	return st
}

func (r *run) awaitFull(t *testing.T) vmm.Status {
	t.Helper()
	return r.await(t, func(st vmm.Status) bool { return st.Mark == api.MarkFull || st.Phase == vmm.PhaseEnded })
}

func (r *run) awaitEnd(t *testing.T) vmm.End {
	t.Helper()
	return *r.await(t, func(st vmm.Status) bool { return st.Phase == vmm.PhaseEnded }).End
}

// order runs a command in the guest and does not care how that ends.
func (r *run) order(argv ...string) string {
	var out bytes.Buffer
	ctx, cancel := context.WithTimeout(r.ctx, 30*time.Second)
	defer cancel()
	_, _ = exec.Run(ctx, exec.Options{
		Dial:   func(ctx context.Context) (net.Conn, error) { return r.Dial(ctx, wire.PortExec) },
		Start:  wire.ExecStart{Argv: argv, NoStdin: true},
		Stdout: &out, ReconnectFor: -1,
	})
	return out.String()
}

func TestKilledSupervisorIsLost(t *testing.T) {
	r := startVM(t, fakeqemu.Knobs{}, nil)
	st := r.awaitFull(t)
	vmmProc, err := hostproc.Identify(st.VMMPID)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(st.SupervisorPID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if end := r.awaitEnd(t); end.Cause != vmm.EndLost {
		t.Errorf("the end is %+v", end)
	}
	if vmmProc.Alive() {
		t.Error("the VMM runs on")
	}
	var gone *vmm.GoneError
	if _, err := r.eng.Attach(r.ctx, r.dir); !errors.As(err, &gone) || gone.End == nil || gone.End.Cause != vmm.EndLost {
		t.Errorf("attach: %v", err)
	}
	again, err := r.eng.Start(r.ctx, r.dir, r.spec)
	if err != nil {
		t.Fatalf("start where a supervisor was killed: %v", err)
	}
	if err := again.Kill(r.ctx); err != nil {
		t.Error(err)
	}
	_ = again.Close()
}

func TestStoppedSupervisorIsKilled(t *testing.T) {
	r := startVM(t, fakeqemu.Knobs{}, nil)
	st := r.awaitFull(t)
	if err := syscall.Kill(st.SupervisorPID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if end := r.awaitEnd(t); end.Cause != vmm.EndKilled {
		t.Errorf("the end is %+v", end)
	}
}

func TestSignalsOfATerminalMeanNothing(t *testing.T) {
	r := startVM(t, fakeqemu.Knobs{}, nil)
	st := r.awaitFull(t)
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT} {
		if err := syscall.Kill(st.SupervisorPID, sig); err != nil {
			t.Fatal(err)
		}
	}
	if out := r.order("echo", "there"); out != "there\n" {
		t.Errorf("after SIGHUP and SIGINT the guest says %q", out)
	}
}

func TestKilledVMMCrashed(t *testing.T) {
	r := startVM(t, fakeqemu.Knobs{}, nil)
	if err := syscall.Kill(r.awaitFull(t).VMMPID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if end := r.awaitEnd(t); end.Cause != vmm.EndCrashed || !strings.Contains(end.Detail, "signal killed") {
		t.Errorf("the end is %+v", end)
	}
}

// TestSignalledVMMIsNoCrash: at a shutdown of the host QEMU may be told before its supervisor is.
func TestSignalledVMMIsNoCrash(t *testing.T) {
	r := startVM(t, fakeqemu.Knobs{}, nil)
	if err := syscall.Kill(r.awaitFull(t).VMMPID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if end := r.awaitEnd(t); end.Cause != vmm.EndKilled {
		t.Errorf("the end is %+v", end)
	}
}

// TestStartsDoNotMeet: of two that start a VM in one directory one gets it, and the other leaves its files alone.
func TestStartsDoNotMeet(t *testing.T) {
	dir, spec := newVM(t, fakeqemu.Knobs{})
	eng, ctx := newEngine(t), within(t, 60*time.Second)
	type result struct {
		m   vmm.Machine
		err error
	}
	results := make(chan result)
	const starts = 4
	for range starts {
		go func() {
			m, err := eng.Start(ctx, dir, spec)
			results <- result{m, err}
		}()
	}
	var got vmm.Machine
	for range starts {
		switch r := <-results; {
		case r.err == nil && got == nil:
			got = r.m
		case r.err == nil:
			t.Error("it was started twice")
			_ = r.m.Close()
		case api.KindOf(r.err) != api.KindConflict:
			t.Errorf("start: %v", r.err)
		}
	}
	if got == nil {
		t.Fatal("nobody started it")
	}
	defer got.Close()
	other, err := eng.Attach(ctx, dir)
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	if err := errors.Join(other.Kill(ctx), other.Close()); err != nil {
		t.Error(err)
	}
}

func TestCrashNamesTheLastLine(t *testing.T) {
	r := startVM(t, fakeqemu.Knobs{}, nil)
	r.awaitFull(t)
	r.order("crash")
	want := "qemu ended with exit status 3: fakeqemu: Aborted on request"
	if end := r.awaitEnd(t); end.Cause != vmm.EndCrashed || end.Detail != want {
		t.Errorf("the end is %+v, want detail %q", end, want)
	}
}

func TestCrashAtStart(t *testing.T) {
	dir, spec := newVM(t, fakeqemu.Knobs{CrashAtStart: "no such machine"})
	_, err := newEngine(t).Start(within(t, 30*time.Second), dir, spec)
	if err == nil || !strings.Contains(err.Error(), "no such machine") || api.KindOf(err) != api.KindUnavailable {
		t.Errorf("start of a VMM that dies: %v (%s)", err, api.KindOf(err))
	}
}

func TestHangingVMMCanBeCancelled(t *testing.T) {
	dir, spec := newVM(t, fakeqemu.Knobs{Hang: true})
	_, err := newEngine(t).Start(within(t, 300*time.Millisecond), dir, spec)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("start of a VMM that hangs: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, paths.VMControl)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its socket: %v", err)
	}
}

func TestQEMUWithoutSeccomp(t *testing.T) {
	r := startVM(t, fakeqemu.Knobs{NoSandbox: true}, nil)
	r.awaitFull(t)
	r.order("reboot")
	r.await(t, func(st vmm.Status) bool { return st.Boots == 2 })
	// Twice for the first start, once for the second.
	if b, err := os.ReadFile(filepath.Join(r.dir, fakeqemu.BootsFile)); err != nil || string(b) != "3" {
		t.Errorf("qemu was started %s times, %v", b, err)
	}
}

func TestBootIsTriedTwice(t *testing.T) {
	t.Run("second boot calls", func(t *testing.T) {
		t.Parallel()
		r := startVM(t, fakeqemu.Knobs{NeverCall: 1}, func(s *vmm.Spec) { s.BootDeadline = 5 * time.Second })
		if st := r.awaitFull(t); st.Phase != vmm.PhaseRunning || st.Boots != 2 || len(st.Notes) != 1 {
			t.Errorf("the status is %+v", st)
		}
	})
	t.Run("none does", func(t *testing.T) {
		t.Parallel()
		r := startVM(t, fakeqemu.Knobs{NeverCall: 9}, func(s *vmm.Spec) { s.BootDeadline = 500 * time.Millisecond })
		if end := r.awaitEnd(t); end.Cause != vmm.EndBootTimeout || r.Status().Boots != 2 {
			t.Errorf("the end is %+v after %d boots", end, r.Status().Boots)
		}
	})
}

func TestBadAgents(t *testing.T) {
	for name, knobs := range map[string]fakeqemu.Knobs{
		"garbage":         {Garbage: true},
		"another version": {WrongVersion: true},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := tryVM(t, knobs, nil)
			if err != nil && strings.Contains(err.Error(), "("+string(vmm.EndBadAgent)+")") {
				return // it had ended before anybody could ask how it is
			}
			if err != nil {
				t.Fatal(err)
			}
			if end := r.awaitEnd(t); end.Cause != vmm.EndBadAgent || end.Detail == "" {
				t.Errorf("the end is %+v", end)
			}
		})
	}
}

func TestSecretIsGoodOnce(t *testing.T) {
	r := startVM(t, fakeqemu.Knobs{CallTwice: true}, nil)
	r.awaitFull(t)
	if _, err := os.Stat(filepath.Join(r.dir, fakeqemu.RefusedFile)); err != nil {
		t.Errorf("the second use of the secret: %v", err)
	}
	if _, err := os.Stat(filepath.Join(r.dir, paths.VMInitrd)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the initrd, with the secret in it, is on the disk: %v", err)
	}
}

func TestWedgedGuestsEndAsAnnounced(t *testing.T) {
	for verb, want := range map[string]vmm.EndCause{"poweroff": vmm.EndPoweroff, "halt": vmm.EndHalt} {
		r := startVM(t, fakeqemu.Knobs{Wedge: true}, nil)
		r.awaitFull(t)
		r.order(verb)
		if end := r.awaitEnd(t); end.Cause != want {
			t.Errorf("%s: the end is %+v", verb, end)
		}
	}
}

func TestFullDiskPausesAndGoesOn(t *testing.T) {
	r := startVM(t, fakeqemu.Knobs{}, nil)
	r.awaitFull(t)
	go r.order("diskfull")
	r.await(t, func(st vmm.Status) bool { return st.PauseReason == pausedDiskFull })
	// There is room, so it goes on at the next look.
	r.await(t, func(st vmm.Status) bool { return st.Phase == vmm.PhaseRunning })
}

func TestKillDoesNotWaitForAnAnswer(t *testing.T) {
	r := startVM(t, fakeqemu.Knobs{DeafToCont: true}, nil)
	r.awaitFull(t)
	go r.order("diskfull")
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(filepath.Join(r.dir, fakeqemu.DeafFile)); err == nil {
			break
		}
		select {
		case <-tick.C:
		case <-r.ctx.Done():
			t.Fatal("nobody asked the CPUs to go on")
		}
	}
	if err := r.Kill(r.ctx); err != nil {
		t.Fatal(err)
	}
	if end := r.awaitEnd(t); end.Cause != vmm.EndKilled {
		t.Errorf("the end is %+v", end)
	}
}

func TestFloodedConsoleIsBounded(t *testing.T) {
	r := startVM(t, fakeqemu.Knobs{Flood: 40 << 20}, nil)
	r.awaitFull(t)
	r.order("poweroff")
	r.awaitEnd(t)
	for _, name := range []string{paths.VMConsoleLog, paths.VMConsoleLog + ".1"} {
		st, err := os.Stat(filepath.Join(r.dir, name))
		if err != nil || st.Size() > maxLog || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	entries, err := filepath.Glob(filepath.Join(filepath.Dir(r.dir), "*", paths.VMConsoleLog+"*"))
	if err != nil || len(entries) != 2 {
		t.Errorf("console logs: %v, %v", entries, err)
	}
}

func TestEndIsRecordedForWhoComesLater(t *testing.T) {
	r := startVM(t, fakeqemu.Knobs{}, nil)
	r.awaitFull(t)
	if err := r.Close(); err != nil { // as a daemon that dies
		t.Fatal(err)
	}
	other, err := newEngine(t).Attach(r.ctx, r.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Kill(r.ctx); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(r.dir, paths.VMEnd))
	var end vmm.End
	if err == nil {
		err = json.Unmarshal(b, &end)
	}
	if err != nil || end.Cause != vmm.EndKilled {
		t.Errorf("end.json: %+v, %v", end, err)
	}
	for _, name := range []string{paths.VMControl, paths.VMVsock, paths.VMSupervisor} {
		if _, err := os.Lstat(filepath.Join(r.dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
}

// TestCrashOfTheHost: a supervisor.json without its content, as file systems leave them, is no running VM.
func TestCrashOfTheHost(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "zeroes": "\x00\x00\x00\x00", "cut short": `{"version":1,`} {
		t.Run(name, func(t *testing.T) {
			dir, spec := newVM(t, fakeqemu.Knobs{})
			if err := os.WriteFile(filepath.Join(dir, paths.VMSupervisor), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			eng, ctx := newEngine(t), within(t, 30*time.Second)
			var gone *vmm.GoneError
			if _, err := eng.Attach(ctx, dir); !errors.As(err, &gone) || gone.End != nil {
				t.Errorf("attach: %v, want a GoneError without an end", err)
			}
			m, err := eng.Start(ctx, dir, spec)
			if err != nil {
				t.Fatalf("start: %v", err)
			}
			defer m.Close()
			if err := m.Kill(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestUnreadableRecordStartsNothing: where it cannot be told whether a VM runs, nothing of it is touched.
func TestUnreadableRecordStartsNothing(t *testing.T) {
	dir, spec := newVM(t, fakeqemu.Knobs{})
	record := filepath.Join(dir, paths.VMSupervisor)
	if err := os.WriteFile(record, []byte(`{"version":"of another kind"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if m, err := newEngine(t).Start(within(t, 30*time.Second), dir, spec); err == nil {
		_ = m.Kill(within(t, 30*time.Second))
		_ = m.Close()
		t.Error("it was started")
	}
	if _, err := os.Stat(record); err != nil {
		t.Error(err)
	}
}

func TestVsockProtocol(t *testing.T) {
	r := startVM(t, fakeqemu.Knobs{}, nil)
	r.awaitFull(t)
	for name, c := range map[string]struct {
		send []string // in pieces
		want string   // of the answer; empty for the end
	}{
		"in pieces":       {[]string{"CON", "NECT", " 10", "01", "\n"}, "OK "},
		"nobody listens":  {[]string{"CONNECT 4999\n"}, ""},
		"not a number":    {[]string{"CONNECT x\n"}, ""},
		"out of range":    {[]string{"CONNECT 4294967296\n"}, ""},
		"another word":    {[]string{"HELLO 1001\n"}, ""},
		"no end of line":  {[]string{strings.Repeat("C", 100)}, ""},
		"nothing":         {[]string{"\n"}, ""},
		"sent in advance": {[]string{"CONNECT 1001\n\x09\x00\x00\x00\x00"}, "OK "},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := r.dial(r.ctx, paths.VMVsock)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			for _, piece := range c.send {
				if _, err := io.WriteString(conn, piece); err != nil {
					t.Fatal(err)
				}
			}
			line, err := bufio.NewReader(conn).ReadString('\n')
			if c.want == "" {
				if err == nil {
					t.Fatalf("the answer is %q, want the end", line)
				}
				return
			}
			n, nerr := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(line, "OK "), "\n"))
			if err != nil || nerr != nil || n < firstHostPort {
				t.Errorf("the answer is %q, %v", line, err)
			}
		})
	}
}

func TestControlRefusesWhatItDoesNotKnow(t *testing.T) {
	r := startVM(t, fakeqemu.Knobs{}, nil)
	r.awaitFull(t)
	for name, c := range map[string]struct {
		send string
		want api.ErrorKind // empty for no answer
	}{
		"another version":          {`{"version":99,"op":"pause"}` + "\n", api.KindVersion},
		"watch of another version": {`{"version":99,"op":"watch"}` + "\n", api.KindVersion},
		"unknown":                  {`{"version":1,"op":"dance"}` + "\n", api.KindInvalid},
		"no JSON":                  {"hello\n", ""},
		"too long":                 {strings.Repeat("x", maxRequest+1) + "\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := r.dial(r.ctx, paths.VMControl)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			_, _ = io.WriteString(conn, c.send)
			var rep reply
			err = readMessage(bufio.NewReader(conn), maxReply, &rep)
			switch {
			case c.want == "" && err == nil:
				t.Errorf("the answer is %+v", rep)
			case c.want != "" && (err != nil || rep.Error == nil || rep.Error.Kind != c.want):
				t.Errorf("the answer is %+v, %v", rep, err)
			}
		})
	}
}

func TestControlUnderstandsInEveryVersion(t *testing.T) {
	r := startVM(t, fakeqemu.Knobs{}, nil)
	for _, c := range []struct {
		op   string
		want vmm.Phase
	}{{opVersion, vmm.PhaseRunning}, {opKill, vmm.PhaseEnded}} {
		conn, err := r.dial(r.ctx, paths.VMControl)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		var rep reply
		err = writeMessage(conn, request{Version: ProtocolVersion + 1, Op: c.op})
		if err == nil {
			err = readMessage(bufio.NewReader(conn), maxReply, &rep)
		}
		if err != nil || rep.Error != nil || rep.Version != ProtocolVersion || rep.Status == nil || rep.Status.Phase != c.want {
			t.Errorf("the answer to %s is %+v, %v", c.op, rep, err)
		}
	}
}
