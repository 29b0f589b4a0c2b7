package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
)

func TestRunStatus(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	steps := []struct {
		args []string
		code int
		out  string
		err  string // contained
	}{
		{[]string{"--", "true"}, 0, "", ""},
		{[]string{"--", "sh", "-c", "exit 7"}, 7, "", ""},
		{[]string{"--", "sh", "-c", "echo out; echo err >&2"}, 0, "out\n", "err\n"},
		{[]string{"--", "sh", "-c", "kill -TERM $$"}, 143, "", ""},
		{[]string{"--", "no-such-command-anywhere"}, 127, "", `banger: run in vm "quiet-otter":`},
		{[]string{"--", "/etc/passwd"}, 126, "", "banger: run in vm"},
		{[]string{"-w", "/no/such/dir", "--", "true"}, 125, "", "/no/such/dir"},
	}
	for _, s := range steps {
		code := a.run(append([]string{"vm", "run", "--rm"}, s.args...)...)
		if code != s.code || a.out.String() != s.out || !strings.Contains(a.err.String(), s.err) {
			t.Errorf("%q: status %d, stdout %q, stderr %q; want %d, %q, … %q …", s.args, code, a.out.String(), a.err.String(), s.code, s.out, s.err)
		}
		if d.String() != "" {
			t.Errorf("%q left %s", s.args, d)
		}
	}
	if n := d.asked("POST /v1/vms/id-quiet-otter/release"); n != len(steps) {
		t.Errorf("%d runs, %d releases", len(steps), n)
	}
}

func TestRunPassesStdin(t *testing.T) {
	a := newTestApp(t)
	startFake(t, a.env)
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	a.In = bytes.NewReader(data)
	if code := a.run("vm", "run", "--rm", "--", "cat"); code != 0 || !bytes.Equal(a.out.Bytes(), data) {
		t.Errorf("status %d, %d bytes of %d came back: %s", code, a.out.Len(), len(data), a.err.String())
	}
	a.In = strings.NewReader("lost")
	if code := a.run("vm", "run", "--rm", "-i=false", "--", "cat"); code != 0 || a.out.Len() != 0 {
		t.Errorf("with -i=false: status %d, %q", code, a.out.String())
	}
	a.In = strings.NewReader("echo from a shell; exit 3\n")
	if code := a.run("vm", "run", "--rm"); code != 3 || a.out.String() != "from a shell\n" {
		t.Errorf("a shell that reads stdin: status %d, %q, %q", code, a.out.String(), a.err.String())
	}
}

func TestRunKeepsVM(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	if code := a.run("vm", "run", "--", "true"); code != 0 || d.String() != "quiet-otter running" {
		t.Errorf("status %d, the VMs are: %s", code, d)
	}
	if !strings.Contains(a.err.String(), "banger vm delete --force quiet-otter") {
		t.Errorf("nothing is said about the VM that stays: %q", a.err.String())
	}
	if code := a.run("vm", "run", "--name", "web", "--", "true"); code != 0 || a.err.Len() != 0 {
		t.Errorf("with a name: status %d, %q", code, a.err.String())
	}
}

// TestRunShellEnds: what is said after a shell is true of the VM as the shell left it.
func TestRunShellEnds(t *testing.T) {
	const (
		comeBack = `banger: vm "web" stays; come back: banger vm exec web` + "\nbanger: remove it: banger vm delete --force web\n"
		ended    = `banger: vm "web" has ended; start it again: banger vm start web` + "\nbanger: remove it: banger vm delete web\n"
	)
	for _, tc := range []struct {
		name, script string
		after        func(*api.VM) // what becomes of the VM once it is looked at
		status       int
		says         string
	}{
		{"exit", "exit 3", nil, 3, comeBack},
		{"poweroff", "kill -HUP $$", func(vm *api.VM) { vm.State = api.StateStopped }, 0, ended},
		{"terminated by poweroff", "kill -TERM $$", func(vm *api.VM) { vm.State = api.StateStopped }, 0, ended},
		{"reboot", "kill -HUP $$", func(vm *api.VM) { vm.Restarts++ }, 129, comeBack},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := newTestApp(t)
			d := startFake(t, a.env)
			a.Terminal.In, a.Terminal.Out, a.Terminal.Err = true, true, false
			a.Terminal.Raw = func() (func(), error) { return func() {}, nil }
			// A login shell has an interactive shell's way with signals; exec is a plain one's.
			a.In = strings.NewReader("exec sh -c '" + tc.script + "'\n")
			d.looked = tc.after
			if code := a.run("vm", "run", "--name", "web"); code != tc.status || a.err.String() != tc.says {
				t.Errorf("status %d, want %d; said %q", code, tc.status, a.err.String())
			}
		})
	}
}

// TestRunComeBackToPath: the way back leads to the directory, as the same user.
func TestRunComeBackToPath(t *testing.T) {
	a := newTestApp(t)
	startFake(t, a.env)
	dir := t.TempDir()
	if code := a.run("vm", "run", dir, "-u", "root", "--", "true"); code != 0 {
		t.Fatalf("status %d, %q", code, a.err.String())
	}
	if want := "come back: banger vm exec -w " + dir + " -u root quiet-otter\n"; !strings.Contains(a.err.String(), want) {
		t.Errorf("said %q, want %q", a.err.String(), want)
	}
}

func TestRunPath(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if code := a.run("vm", "run", "--rm", dir, "-w", "sub", "--", "pwd"); code != 0 || a.out.String() != filepath.Join(dir, "sub")+"\n" {
		t.Errorf("status %d, the command ran in %q: %s", code, a.out.String(), a.err.String())
	}
	if diff := cmp.Diff([]string{dir}, d.copied); diff != "" {
		t.Error(diff)
	}
	if d.asked("POST /v1/vms/id-quiet-otter/start") != 1 {
		t.Error("the run did not wait for the guest after the copy")
	}
	if !strings.Contains(a.err.String(), "not copied: a socket") {
		t.Errorf("nothing is said about what was not copied: %q", a.err.String())
	}
}

func TestRunRefusesBeforeAnythingIsMade(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, s := range []struct {
		args string
		code int
		err  string
	}{
		{filepath.Join(dir, "nope"), 125, "there is no such directory"},
		{file, 125, "it is not a directory"},
		{filepath.Join(file, "x"), 125, "not a directory"},
		{"make test", 2, "hint: banger vm run -- make test"},
		{dir + " make test", 2, "hint: banger vm run " + dir + " -- make test"},
		{"sh", 2, "hint: banger vm run -- sh"},
		{"--", 2, "no command behind --"},
		{"-t -- true", 2, "-t needs a terminal"},
		{"-e =x -- true", 2, "KEY=VALUE"},
		{"--env-file /no/such -- true", 2, "/no/such"},
		{"--wait never -- true", 2, "agent, ready, full"},
		{"--cpus=-1 -- true", 2, "--cpus"},
	} {
		code := a.run(append([]string{"vm", "run"}, strings.Fields(s.args)...)...)
		if code != s.code || !strings.Contains(a.err.String(), s.err) {
			t.Errorf("vm run %s: status %d, %q; want %d, … %q …", s.args, code, a.err.String(), s.code, s.err)
		}
	}
	if len(d.requests) != 0 {
		t.Errorf("the daemon was asked: %q", d.requests)
	}
}

func TestRunUnreadablePath(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root reads everything")
	}
	dir := filepath.Join(t.TempDir(), "secret")
	if err := os.Mkdir(dir, 0o100); err != nil {
		t.Fatal(err)
	}
	if _, err := checkPath(dir); err == nil || !strings.Contains(err.Error(), "cannot be read: permission denied") {
		t.Errorf("%v", err)
	}
}

func TestRunDetached(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	if code := a.run("vm", "run", "--name", "web", "-d", "--rm", "-e", "K=V"); code != 0 || a.out.String() != "web\n" {
		t.Fatalf("status %d, %q, %q", code, a.out.String(), a.err.String())
	}
	if d.owners["web"] != nil || !d.vms["web"].RemoveOnExit {
		t.Error("a detached --rm VM is to go when it stops, not with its client")
	}
	mark := filepath.Join(t.TempDir(), "mark")
	if code := a.run("vm", "run", "-d", "--", "sh", "-c", "echo done > "+mark); code != 0 || a.out.String() != "quiet-otter\n" {
		t.Fatalf("status %d, %q, %q", code, a.out.String(), a.err.String())
	}
	waitFor(t, func() bool { b, _ := os.ReadFile(mark); return string(b) == "done\n" })
}

// waitFor polls a condition that a process of its own brings about.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("it did not happen within a minute")
		}
	}
}

func TestRunFailedGuestKeepsVM(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	d.on("vm.start", func(context.Context, *fakeOp) error {
		return api.Errorf(api.KindGuest, "the guest never became ready")
	})
	if code := a.run("vm", "run", "--rm", t.TempDir(), "--", "true"); code != 125 || !strings.Contains(a.err.String(), "banger vm logs quiet-otter") {
		t.Errorf("status %d, %q", code, a.err.String())
	}
	if d.String() != "quiet-otter running" {
		t.Errorf("the VM whose guest failed is to stay for its logs: %q", d)
	}
	d.on("vm.workspace", func(context.Context, *fakeOp) error {
		return api.Errorf(api.KindInvalid, "HEAD is broken")
	})
	if code := a.run("vm", "run", "--name", "two", t.TempDir(), "--", "true"); code != 125 || d.String() != "quiet-otter running" {
		t.Errorf("a copy that failed: status %d, the VMs are: %s", code, d)
	}
}

func TestRunInterruptedWhileMade(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	d.on("vm.create", func(ctx context.Context, _ *fakeOp) error {
		a.interrupt()
		<-ctx.Done()
		return ctx.Err()
	})
	if code := a.run("vm", "run", "--", "true"); code != 130 || d.String() != "" {
		t.Errorf("status %d, the VMs are: %s; %s", code, d, a.err.String())
	}
	if d.asked("DELETE /v1/operations/op1") != 1 {
		t.Error("the operation was not cancelled")
	}
	// One that succeeds in spite of it is taken back.
	d.on("vm.create", func(ctx context.Context, o *fakeOp) error {
		a.interrupt()
		<-ctx.Done()
		o.d.add(api.VM{Name: "stray", State: api.StateRunning})
		o.set(func(op *api.Operation) {
			op.State, op.Result = api.OperationDone, []byte(`{"id":"id-stray","name":"stray"}`)
		})
		return errEnded
	})
	if code := a.run("vm", "run", "--", "true"); code != 130 || d.String() != "" {
		t.Errorf("status %d, the VMs are: %s; %s", code, d, a.err.String())
	}
}

func TestSecondInterruptLeavesAtOnce(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	release := make(chan struct{})
	defer close(release)
	d.on("image.pull", func(context.Context, *fakeOp) error {
		a.interrupt()
		a.interrupt()
		<-release // it does not listen
		return nil
	})
	if code := a.run("image", "pull", "x"); code != 130 {
		t.Errorf("status %d", code)
	}
}

// gateWriter tells when something was written.
type gateWriter struct {
	mu  sync.Mutex
	buf bytes.Buffer
	on  chan struct{}
}

func (g *gateWriter) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.buf.Write(p)
	select {
	case g.on <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (g *gateWriter) String() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.buf.String()
}

func TestInterruptGoesToTheCommand(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	r, w := io.Pipe() // stdin that stays open
	defer w.Close()
	a.In = r
	out := &gateWriter{on: make(chan struct{}, 1)}
	a.Out = out
	go func() {
		<-out.on
		a.interrupt()
	}()
	code := a.run("vm", "run", "--rm", "--", "sh", "-c", `trap 'echo got INT; exit 9' INT; echo up; while :; do sleep 0.05; done`)
	if code != 9 || out.String() != "up\ngot INT\n" || d.String() != "" {
		t.Errorf("status %d, stdout %q, stderr %q, left %q", code, out.String(), a.err.String(), d)
	}
	// A command that does not listen: the second one ends the run.
	out = &gateWriter{on: make(chan struct{}, 1)}
	a.Out = out
	go func() {
		<-out.on
		a.interrupt()
		a.interrupt()
	}()
	code = a.run("vm", "run", "--rm", "--", "sh", "-c", `trap '' INT; echo up; sleep 600 & pid=$!; wait $pid`)
	if code != 130 || d.String() != "" {
		t.Errorf("status %d, stderr %q, left %q", code, a.err.String(), d)
	}
	for _, p := range d.procs.List() {
		d.procs.Signal(p.ID, "KILL")
	}
}

func TestHangupDetaches(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	d.add(api.VM{Name: "web", State: api.StateRunning})
	a.Terminal.In, a.Terminal.Out, a.Terminal.Err = true, true, true
	restored := 0
	a.Terminal.Raw = func() (func(), error) { return func() { restored++ }, nil }
	r, w := io.Pipe()
	defer w.Close()
	a.In = r
	out := &gateWriter{on: make(chan struct{}, 1)}
	a.Out = out
	go func() {
		<-out.on
		a.signals <- syscall.SIGHUP
	}()
	if code := a.run("vm", "exec", "web", "--", "sh", "-c", "echo up; read line; echo got $line"); code != 129 || restored != 1 {
		t.Fatalf("status %d, restored %d times: %s", code, restored, a.err.String())
	}
	procs := d.procs.List()
	if len(procs) != 1 || procs[0].Exit != nil || d.owned[0] != "" {
		t.Fatalf("the command did not go on: %+v", procs)
	}
	// And one can come back to it.
	a.In, out.buf = strings.NewReader("hello\n"), bytes.Buffer{}
	if code := a.run("vm", "exec", "--attach", procs[0].ID, "-t", "web"); code != 0 || !strings.HasSuffix(out.String(), "got hello\r\n") {
		t.Errorf("attached: status %d, %q, %q", code, out.String(), a.err.String())
	}
	waitFor(t, func() bool { return len(d.procs.List()) == 0 }) // collected
	if code := a.run("vm", "exec", "--attach", procs[0].ID, "web"); code != 125 || !strings.Contains(a.err.String(), "hint: it has ended") {
		t.Errorf("attached once more: status %d, %q", code, a.err.String())
	}
}

func TestRunTerminal(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	a.Terminal.In, a.Terminal.Out, a.Terminal.Err = true, true, true
	raw, restored := 0, 0
	a.Terminal.Raw = func() (func(), error) { raw++; return func() { restored++ }, nil }
	resized := make(chan os.Signal, 1)
	a.Terminal.Resized = resized
	a.In = strings.NewReader("")
	if code := a.run("vm", "run", "--name", "web", "--", "sh", "-c", "stty size; echo $TERM; exit 4"); code != 4 || a.out.String() != "24 80\r\nxterm\r\n" {
		t.Errorf("status %d, %q, %q", code, a.out.String(), a.err.String())
	}
	if raw != 1 || restored != 1 {
		t.Errorf("raw %d times, restored %d times", raw, restored)
	}
	if code := a.run("vm", "exec", "web", "-t=false", "--", "sh", "-c", "test -t 1"); code != 1 || raw != 1 {
		t.Errorf("-t=false: status %d, raw %d times", code, raw)
	}
	// A shell; Ctrl-C is a key for the guest, and a change of size arrives.
	stdin, keys := io.Pipe()
	a.In = stdin
	out := &gateWriter{on: make(chan struct{}, 1)}
	a.Out = out
	var rows atomic.Int32
	rows.Store(24)
	a.Terminal.Size = func() (int, int) { return int(rows.Load()), 132 }
	done := make(chan int)
	go func() { done <- a.run("vm", "run", "--rm", "--name", "shell") }()
	io.WriteString(keys, "trap 'echo int-$((40+2))' INT; echo up-$((40+2)); sleep 1000\n")
	waitFor(t, func() bool { return strings.Contains(out.String(), "up-42") })
	rows.Store(50)
	resized <- syscall.SIGWINCH
	waitFor(t, func() bool {
		keys.Write([]byte{interruptKey})
		io.WriteString(keys, "stty size\n")
		return strings.Contains(out.String(), "int-42") && strings.Contains(out.String(), "50 132")
	})
	io.WriteString(keys, "exit 5\n")
	if code := <-done; code != 5 || !strings.Contains(out.String(), "50 132") || restored != 2 {
		t.Errorf("a shell: status %d, restored %d times, %q", code, restored, out.String())
	}
	if d.String() != "web running" {
		t.Errorf("left %s", d)
	}
}

func TestExec(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	d.add(api.VM{Name: "web", State: api.StateRunning})
	d.add(api.VM{Name: "off", State: api.StateStopped})
	dir := t.TempDir()
	for _, s := range []struct {
		args string
		code int
		out  string
		err  string
	}{
		{"exec web -w " + dir + " -e K=V=1 -- env -u X sh -c pwd;echo${IFS}$K", 0, dir + "\nV=1\n", ""},
		{"exec off -- true", 125, "", "hint: start it: banger vm start off"},
		{"exec nope -- true", 125, "", "there is none of that name"},
		{"exec web ls -l", 2, "", "stand behind --"},
		{"exec web ls", 2, "", "hint: banger vm exec web -- ls"},
		{"exec", 2, "", "needs the name of a VM"},
		{"exec web --", 2, "", "no command behind --"},
		{"exec web --attach xyz", 2, "", "32 hex digits"},
	} {
		code := a.run(append([]string{"vm"}, strings.Fields(s.args)...)...)
		if code != s.code || a.out.String() != s.out || !strings.Contains(a.err.String(), s.err) {
			t.Errorf("vm %s: status %d, stdout %q, stderr %q; want %d, %q, … %q …", s.args, code, a.out.String(), a.err.String(), s.code, s.out, s.err)
		}
	}
	d.requests = nil
	a.run("vm", "exec", "web", "--", "true")
	if diff := cmp.Diff([]string{"GET /v1/vms/web/exec"}, d.requests); diff != "" {
		t.Errorf("an exec is to cost one request: %s", diff)
	}
	if last := d.owned[len(d.owned)-1]; !execID.MatchString(last) {
		t.Errorf("a command without a terminal is to go with its client, but the daemon was told %q", last)
	}
}

// brokenPipe is a stdout whose reader has gone.
type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) {
	return 0, &os.PathError{Op: "write", Path: "|1", Err: syscall.EPIPE}
}

func TestExecBrokenPipe(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	d.add(api.VM{Name: "web", State: api.StateRunning})
	a.Out = brokenPipe{}
	if code := a.run("vm", "exec", "web", "--", "yes"); code != 141 || a.err.Len() != 0 {
		t.Errorf("status %d, %q", code, a.err.String())
	}
}

func TestMissingCommandHints(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "ci.sh")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ command, code, want string }{
		{"sh", "not_found", fmt.Sprintf("the host has it at %s, the VM's image does not: install it in the VM", sh)},
		{script, "not_found", "the host has this file, the VM does not"},
		{script, "not_executable", "chmod +x"},
		{"no-such-command", "not_found", ""},
	} {
		if got := missingHint(c.command, c.code); !strings.Contains(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%s, %s: %q", c.command, c.code, got)
		}
	}
}

func TestSelf(t *testing.T) {
	o, err := self()
	if err != nil || o.PID != os.Getpid() || o.StartTime == 0 || len(o.BootID) != 36 {
		t.Errorf("%+v, %v", o, err)
	}
	var se signalError
	if !errors.As(fmt.Errorf("x: %w", signalError{syscall.SIGTERM}), &se) || exitCode(se) != 143 {
		t.Errorf("%v", se)
	}
}
