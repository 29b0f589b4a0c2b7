// Package vmmtest checks that an implementation of vmm.Engine keeps the rules of
// its contract, whatever it is made of: a real QEMU, a fake one behind the real
// supervisor, or a fake engine.
package vmmtest

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// Fixture is one VM that can be started.
type Fixture struct {
	Engine vmm.Engine
	// Again is an engine as a restarted daemon would have it, which knows nothing of Engine's VMs; nil for Engine.
	Again vmm.Engine
	Dir   string
	Spec  vmm.Spec
	// Patience is how long anything may take; 0 for 30 s.
	Patience time.Duration
	// NetDevice is what the guest's eth0 is in the tests of the link: wire.DeviceVirtio, or wire.DeviceTAP.
	NetDevice string
	// NoSnapshots: the VMM is a stand-in that takes none, though its engine does.
	NoSnapshots bool
	// Panic is the command that resets the guest unannounced; empty for "panic".
	Panic []string
}

// New makes a fixture with a directory of its own, which holds the spec's writable drives.
type New func(t *testing.T) Fixture

// Run runs the suite.
func Run(t *testing.T, newFixture New) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, *vm){
		"Start":         testStart,
		"StartTwice":    testStartTwice,
		"Exec":          testExec,
		"DialRefused":   testDialRefused,
		"AttachRunning": testAttachRunning,
		"Pause":         testPause,
		"ResizeDrive":   testResizeDrive,
		"Snapshot":      testSnapshot,
		"Kill":          testKill,
		"Poweroff":      testPoweroff,
		"Halt":          testHalt,
		"Reboot":        testReboot,
		"Panic":         testPanic,
		"Next":          testNext,
	} {
		t.Run(name, func(t *testing.T) { test(t, start(t, newFixture(t))) })
	}
	RunLink(t, newFixture)
	t.Run("AttachNothing", func(t *testing.T) { testAttachNothing(t, newFixture(t)) })
	t.Run("StartCancelled", func(t *testing.T) { testStartCancelled(t, newFixture) })
	t.Run("StartInvalid", func(t *testing.T) { testStartInvalid(t, newFixture(t)) })
	t.Run("TwoAtOnce", func(t *testing.T) { testTwoAtOnce(t, newFixture) })
}

// vm is a started VM under test.
type vm struct {
	vmm.Machine
	fix Fixture
	ctx context.Context // ends when patience does
}

func within(t *testing.T, fix Fixture) context.Context {
	t.Helper()
	patience := fix.Patience
	if patience == 0 {
		patience = 30 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// start starts a VM that is killed with the test.
func start(t *testing.T, fix Fixture) *vm {
	t.Helper()
	ctx := within(t, fix)
	m, err := fix.Engine.Start(ctx, fix.Dir, fix.Spec)
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	v := &vm{Machine: m, fix: fix, ctx: ctx}
	t.Cleanup(func() { v.cleanUp(t) })
	return v
}

func (v *vm) cleanUp(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := v.Kill(ctx); err != nil {
		t.Errorf("kill: %v", err)
	}
	if err := v.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if t.Failed() {
		for _, name := range []string{"vmm.log", "agent.log", "console.log"} {
			b, _ := os.ReadFile(filepath.Join(v.fix.Dir, name))
			t.Logf("%s:\n%s", name, b[max(0, len(b)-4000):])
		}
	}
}

// await waits for a status.
func (v *vm) await(t *testing.T, what string, is func(vmm.Status) bool) vmm.Status {
	t.Helper()
	st := v.Status()
	for !is(st) {
		next, err := v.Next(v.ctx, st.Seq)
		if err != nil {
			t.Fatalf("wait for %s: %v; the last status was %+v", what, err, st)
		}
		if next.Seq <= st.Seq {
			t.Fatalf("Next(after %d) gave a status with seq %d", st.Seq, next.Seq)
		}
		if st = next; st.Phase == vmm.PhaseEnded && !is(st) {
			t.Fatalf("wait for %s: the VM ended: %+v", what, st.End)
		}
	}
	return st
}

func (v *vm) awaitReady(t *testing.T) vmm.Status {
	t.Helper()
	return v.await(t, "mark ready", func(st vmm.Status) bool { return st.Mark.Reached(api.MarkReady) })
}

func (v *vm) awaitEnd(t *testing.T, want vmm.EndCause) vmm.Status {
	t.Helper()
	st := v.await(t, "the end", func(st vmm.Status) bool { return st.Phase == vmm.PhaseEnded })
	if st.End == nil || st.End.Cause != want {
		t.Fatalf("the end is %+v, want cause %q", st.End, want)
	}
	if st.End.At.IsZero() || st.VMMPID != 0 {
		t.Errorf("an ended VM has the status %+v, end %+v", st, st.End)
	}
	_, err := v.fix.again().Attach(v.ctx, v.fix.Dir)
	var gone *vmm.GoneError
	if !errors.As(err, &gone) || gone.End == nil || gone.End.Cause != want {
		t.Errorf("attach to an ended VM: %v, want a GoneError with cause %q", err, want)
	}
	return st
}

func (f Fixture) again() vmm.Engine {
	if f.Again != nil {
		return f.Again
	}
	return f.Engine
}

// exec runs a command in the guest.
func (v *vm) exec(ctx context.Context, m vmm.Machine, argv ...string) (string, int, error) {
	var out bytes.Buffer
	exit, err := exec.Run(ctx, exec.Options{
		Dial:   func(ctx context.Context) (net.Conn, error) { return m.Dial(ctx, wire.PortExec) },
		Start:  wire.ExecStart{Argv: argv, NoStdin: true},
		Stdout: &out, ReconnectFor: -1,
	})
	return out.String(), exit.Status, err
}

// order gives the guest a command that ends it: how the command itself ends does not matter.
func (v *vm) order(argv ...string) {
	ctx, cancel := context.WithTimeout(v.ctx, 10*time.Second)
	defer cancel()
	_, _, _ = v.exec(ctx, v, argv...)
}

func testStart(t *testing.T, v *vm) {
	st := v.Status()
	if st.Phase != vmm.PhaseRunning || st.Boots != 1 || st.Seq == 0 || st.VMMPID <= 0 || st.End != nil {
		t.Errorf("after Start the status is %+v", st)
	}
	if st = v.awaitReady(t); st.Agent == "" || st.Init == "" {
		t.Errorf("when ready the status is %+v", st)
	}
}

func testStartTwice(t *testing.T, v *vm) {
	v.awaitReady(t)
	if _, err := v.fix.again().Start(v.ctx, v.fix.Dir, v.fix.Spec); err == nil {
		t.Error("a second VM was started in the directory of a running one")
	}
	if _, status, err := v.exec(v.ctx, v, "true"); err != nil || status != 0 {
		t.Errorf("after that the first gives status %d, %v", status, err)
	}
}

func testExec(t *testing.T, v *vm) {
	v.awaitReady(t)
	out, status, err := v.exec(v.ctx, v, "sh", "-c", "echo hello; exit 7")
	if err != nil || out != "hello\n" || status != 7 {
		t.Errorf("exec gives %q, status %d, %v", out, status, err)
	}
}

func testDialRefused(t *testing.T, v *vm) {
	v.awaitReady(t)
	conn, err := v.Dial(v.ctx, 4999)
	if !errors.Is(err, vmm.ErrRefused) {
		t.Errorf("dialling a port nobody listens on: %v, %v", conn, err)
	}
}

func testAttachRunning(t *testing.T, v *vm) {
	want := v.await(t, "mark full", func(st vmm.Status) bool { return st.Mark == api.MarkFull })
	other, err := v.fix.again().Attach(v.ctx, v.fix.Dir)
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	if diff := cmp.Diff(want, other.Status()); diff != "" {
		t.Errorf("status of the attached machine (-want +got):\n%s", diff)
	}
	if out, _, err := v.exec(v.ctx, other, "echo", "there"); err != nil || out != "there\n" {
		t.Errorf("exec through the attached machine: %q, %v", out, err)
	}
	if err := other.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := other.Next(v.ctx, want.Seq); err == nil {
		t.Error("a closed machine has a next status")
	}
	if _, _, err := v.exec(v.ctx, v, "true"); err != nil {
		t.Errorf("exec after the other machine was closed: %v", err)
	}
}

func testPause(t *testing.T, v *vm) {
	v.awaitReady(t)
	for range 2 { // both are idempotent
		if err := v.Pause(v.ctx); err != nil {
			t.Fatalf("pause: %v", err)
		}
	}
	v.await(t, "pause", func(st vmm.Status) bool { return st.Phase == vmm.PhasePaused && st.PauseReason == "asked" })
	ctx, cancel := context.WithTimeout(v.ctx, 200*time.Millisecond)
	defer cancel()
	if _, _, err := v.exec(ctx, v, "true"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("exec in a paused guest: %v", err)
	}
	for range 2 {
		if err := v.Resume(v.ctx); err != nil {
			t.Fatalf("resume: %v", err)
		}
	}
	v.await(t, "resume", func(st vmm.Status) bool { return st.Phase == vmm.PhaseRunning && st.PauseReason == "" })
	if _, status, err := v.exec(v.ctx, v, "true"); err != nil || status != 0 {
		t.Errorf("exec after a pause: status %d, %v", status, err)
	}
}

func testResizeDrive(t *testing.T, v *vm) {
	v.awaitReady(t)
	for _, d := range v.fix.Spec.Drives {
		if d.ReadOnly {
			continue
		}
		path := d.Path
		if !filepath.IsAbs(path) {
			path = filepath.Join(v.fix.Dir, path)
		}
		info, err := os.Stat(path)
		if err == nil {
			err = os.Truncate(path, info.Size()+64<<20)
		}
		if err == nil {
			err = v.ResizeDrive(v.ctx, d.ID)
		}
		if err != nil {
			t.Errorf("resize drive %q: %v", d.ID, err)
		}
	}
	if err := v.ResizeDrive(v.ctx, "nosuch"); err == nil {
		t.Error("a drive that is not there was resized")
	}
}

func testKill(t *testing.T, v *vm) {
	for range 2 {
		if err := v.Kill(v.ctx); err != nil {
			t.Fatalf("kill: %v", err)
		}
		if st := v.Status(); st.Phase != vmm.PhaseEnded {
			t.Fatalf("after Kill the status is %+v", st)
		}
	}
	v.awaitEnd(t, vmm.EndKilled)
	if _, err := v.Dial(v.ctx, wire.PortExec); err == nil {
		t.Error("a killed VM was dialled")
	}
	if err := v.Pause(v.ctx); err == nil {
		t.Error("a killed VM was paused")
	}
	m, err := v.fix.Engine.Start(v.ctx, v.fix.Dir, v.fix.Spec)
	if err != nil {
		t.Fatalf("start again after a kill: %v", err)
	}
	again := &vm{Machine: m, fix: v.fix, ctx: v.ctx}
	defer again.cleanUp(t)
	if st := again.awaitReady(t); st.Boots != 1 {
		t.Errorf("a VM that was started again has the status %+v", st)
	}
}

func testPoweroff(t *testing.T, v *vm) {
	v.awaitReady(t)
	v.order("poweroff")
	if st := v.awaitEnd(t, vmm.EndPoweroff); st.Ending != "poweroff" {
		t.Errorf("the guest announced %q", st.Ending)
	}
}

func testHalt(t *testing.T, v *vm) {
	v.awaitReady(t)
	v.order("halt")
	v.awaitEnd(t, vmm.EndHalt)
}

func testReboot(t *testing.T, v *vm) {
	first := v.awaitReady(t)
	v.order("reboot")
	v.await(t, "the second boot", func(st vmm.Status) bool { return st.Boots == 2 })
	second := v.awaitReady(t)
	if second.Boots != 2 || second.VMMPID == first.VMMPID || second.Ending != "" {
		t.Errorf("after a reboot the status is %+v, before %+v", second, first)
	}
	if _, status, err := v.exec(v.ctx, v, "true"); err != nil || status != 0 {
		t.Errorf("exec after a reboot: status %d, %v", status, err)
	}
}

func testPanic(t *testing.T, v *vm) {
	v.awaitReady(t)
	argv := v.fix.Panic
	if len(argv) == 0 {
		argv = []string{"panic"}
	}
	v.order(argv...)
	v.awaitEnd(t, vmm.EndUnexpected)
}

func testNext(t *testing.T, v *vm) {
	st := v.awaitReady(t)
	ctx, cancel := context.WithCancel(v.ctx)
	cancel()
	if _, err := v.Next(ctx, st.Seq+1000); !errors.Is(err, context.Canceled) {
		t.Errorf("Next with an ended context: %v", err)
	}
	if got, err := v.Next(v.ctx, 0); err != nil || got.Seq == 0 {
		t.Errorf("Next(0) gives %+v, %v", got, err)
	}
	if err := v.Kill(v.ctx); err != nil {
		t.Fatalf("kill: %v", err)
	}
	end := v.awaitEnd(t, vmm.EndKilled)
	short, cancel := context.WithTimeout(v.ctx, 50*time.Millisecond)
	defer cancel()
	if got, err := v.Next(short, end.Seq); err == nil {
		t.Errorf("after the end there was a status %+v", got)
	}
}

func testAttachNothing(t *testing.T, fix Fixture) {
	_, err := fix.Engine.Attach(within(t, fix), fix.Dir)
	var gone *vmm.GoneError
	if !errors.As(err, &gone) || gone.End != nil {
		t.Errorf("attach where no VM ever ran: %v, want a GoneError without an end", err)
	}
}

// testStartCancelled cancels at ever later moments.
func testStartCancelled(t *testing.T, newFixture New) {
	fix := newFixture(t)
	before := list(t, fix.Dir)
	for after := time.Duration(0); after < 2*time.Second; after = after*3/2 + time.Millisecond {
		ctx, cancel := context.WithTimeout(within(t, fix), after)
		m, err := fix.Engine.Start(ctx, fix.Dir, fix.Spec)
		cancel()
		if err == nil {
			v := &vm{Machine: m, fix: fix, ctx: within(t, fix)}
			v.cleanUp(t)
			return // it was quicker than we
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("start, cancelled after %s: %v", after, err)
		}
		if diff := cmp.Diff(before, list(t, fix.Dir)); diff != "" {
			t.Fatalf("start, cancelled after %s, left (-before +after):\n%s", after, diff)
		}
		var gone *vmm.GoneError
		if _, err := fix.again().Attach(within(t, fix), fix.Dir); !errors.As(err, &gone) {
			t.Fatalf("attach after a cancelled start: %v", err)
		}
	}
}

func testStartInvalid(t *testing.T, fix Fixture) {
	before := list(t, fix.Dir)
	for what, spoil := range map[string]func(*vmm.Spec){
		"no kernel":      func(s *vmm.Spec) { s.Kernel = filepath.Join(fix.Dir, "nosuch") },
		"no initramfs":   func(s *vmm.Spec) { s.Initramfs = []string{filepath.Join(fix.Dir, "nosuch")} },
		"no VMM":         func(s *vmm.Spec) { s.Binary = filepath.Join(fix.Dir, "nosuch") },
		"no drive":       func(s *vmm.Spec) { s.Drives = []vmm.Drive{{ID: "data", Path: "nosuch"}} },
		"little memory":  func(s *vmm.Spec) { s.MemoryMiB = 1 },
		"another format": func(s *vmm.Spec) { s.Version = 999 },
	} {
		spec := fix.Spec
		spoil(&spec)
		if m, err := fix.Engine.Start(within(t, fix), fix.Dir, spec); err == nil {
			t.Errorf("%s: the VM was started", what)
			_ = m.Kill(context.Background())
			_ = m.Close()
		}
		if diff := cmp.Diff(before, list(t, fix.Dir)); diff != "" {
			t.Errorf("%s: the start left (-before +after):\n%s", what, diff)
		}
	}
}

func testTwoAtOnce(t *testing.T, newFixture New) {
	a, b := start(t, newFixture(t)), start(t, newFixture(t))
	a.awaitReady(t)
	b.awaitReady(t)
	if err := a.Kill(a.ctx); err != nil {
		t.Fatalf("kill: %v", err)
	}
	if _, status, err := b.exec(b.ctx, b, "true"); err != nil || status != 0 {
		t.Errorf("after one VM was killed the other gives status %d, %v", status, err)
	}
}

// list names the files in dir that are not logs, nor a fake's own.
func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		if n := e.Name(); !strings.Contains(n, ".log") && !strings.HasPrefix(n, "fake") {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}
