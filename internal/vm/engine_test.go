package vm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/probe"
)

// chain is what a daemon falls back on, one after the other.
func chain() []probe.Decision {
	return []probe.Decision{
		{Engine: "firecracker", Accel: "kvm", Binary: "/fc", Version: "1.17.0"},
		{Engine: "qemu", Accel: "kvm", Binary: "/qemu", Version: "7.2", Reason: "it died"},
		{Engine: "qemu", Accel: "tcg", Binary: "/qemu", Version: "7.2", Reason: "they died"},
	}
}

func died(words string) error {
	return api.Errorf(api.KindUnavailable, "start it: %w: %s", vmm.ErrStart, words)
}

// TestStartFallsBack: a VMM that ends at its start makes way for the next, in the same operation; the spec follows.
func TestStartFallsBack(t *testing.T) {
	type started struct {
		Engine, Accel, Binary, Device string
		CPUs                          int
		Deadline                      string
	}
	onFC := started{"firecracker", "kvm", "/fc", wire.DeviceTAP, 3, bootDeadlineKVM.String()}
	onKVM := started{"qemu", "kvm", "/qemu", wire.DeviceVirtio, 3, bootDeadlineKVM.String()}
	onTCG := started{"qemu", "tcg", "/qemu", wire.DeviceVirtio, 1, bootDeadlineTCG.String()}
	fc, kvm, tcg := died("exit status 1"), died("no KVM"), died("nothing works")
	toKVM := "Firecracker 1.17.0 ended at its start, and QEMU 7.2 with KVM runs the VM: " + fc.Error() + "; why: banger doctor"
	toTCG := "QEMU 7.2 with KVM ended at its start, and QEMU 7.2 without KVM runs the VM: " + kvm.Error() + "; why: banger doctor"
	tests := map[string]struct {
		errs  map[string]error
		want  []started
		notes []string
		last  error // what it fails with in the end
	}{
		"none dies": {nil, []started{onFC}, nil, nil},
		"one":       {map[string]error{"firecracker/kvm": fc}, []started{onFC, onKVM}, []string{toKVM}, nil},
		"two": {map[string]error{"firecracker/kvm": fc, "qemu/kvm": kvm}, []started{onFC, onKVM, onTCG},
			[]string{toKVM, toTCG}, nil},
		"all": {map[string]error{"firecracker/kvm": fc, "qemu/kvm": kvm, "qemu/tcg": tcg}, []started{onFC, onKVM, onTCG},
			[]string{toKVM, toTCG}, tcg},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.svc.cfg.Defaults.CPUs = func(emulated bool) int {
				if emulated {
					return 1
				}
				return 3
			}
			w.supplies.engines, w.engine.startErrs = chain(), tt.errs
			rep := newNotes()
			vm, err := w.svc.Create(t.Context(), api.CreateVM{Name: "a", Start: true}, rep)
			if (tt.last == nil) != (err == nil) || tt.last != nil && !errors.Is(err, vmm.ErrStart) {
				t.Fatalf("err = %v", err)
			}
			var got []started
			for _, s := range w.engine.specs {
				got = append(got, started{s.Engine, s.Accel, s.Binary, s.Identity.Network.Device, s.CPUs, s.BootDeadline.String()})
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("starts: %s", diff)
			}
			if diff := cmp.Diff(tt.notes, rep.lines); diff != "" {
				t.Errorf("notes: %s", diff)
			}
			if len(w.supplies.engineFailures) != len(tt.errs) {
				t.Errorf("remembered: %q", w.supplies.engineFailures)
			}
			last := tt.want[len(tt.want)-1]
			if err == nil && (vm.Engine != last.Engine || vm.Accel != last.Accel || vm.CPUs != last.CPUs || w.engine.running() != 1) {
				t.Errorf("it runs as %+v, %s", vm, w.engine)
			}
			if err != nil {
				w.state("a", api.StateFailed)
			}
		})
	}
}

// TestStartDoesNotFallBack where another engine would do no better.
func TestStartDoesNotFallBack(t *testing.T) {
	for name, cause := range map[string]error{
		"another failure":   errInjected,
		"a full disk":       fmt.Errorf("%w: %w", vmm.ErrStart, syscall.ENOSPC),
		"a full disk, told": died("No space left on device (os error 28)"),
		"no memory, told":   died("Cannot allocate memory (os error 12)"),
	} {
		w := newWorld(t)
		w.supplies.engines, w.engine.startErr = chain(), cause
		_, err := w.svc.Create(t.Context(), api.CreateVM{Start: true}, progress.Discard)
		if !errors.Is(err, cause) || w.engine.starts != 1 || len(w.supplies.engineFailures) != 0 {
			t.Errorf("%s: %v after %d starts, remembered %q", name, err, w.engine.starts, w.supplies.engineFailures)
		}
	}
}

// TestStartKeepsCPUs: who asked for a number of CPUs gets it on whatever engine.
func TestStartKeepsCPUs(t *testing.T) {
	w := newWorld(t)
	w.supplies.engines, w.engine.startErrs = chain(), map[string]error{"firecracker/kvm": died("no"), "qemu/kvm": died("no")}
	if vm := w.create(api.CreateVM{Start: true, CPUs: 4}); vm.CPUs != 4 || vm.Accel != "tcg" {
		t.Errorf("it runs as %+v", vm)
	}
}

// TestStartCancelledDoesNotFallBack: Ctrl-C is no failure of an engine.
func TestStartCancelledDoesNotFallBack(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	w.supplies.engines, w.engine.startErr = chain(), died("killed")
	rep := &steps{Reporter: progress.Discard, heard: func(step string) {
		if strings.HasPrefix(step, "boot ") {
			cancel()
		}
	}}
	if _, err := w.svc.Create(ctx, api.CreateVM{Start: true}, rep); err == nil || len(w.supplies.engineFailures) != 0 {
		t.Errorf("err = %v, remembered %q", err, w.supplies.engineFailures)
	}
}

// TestCrashBeforeTheAgentFallsBack: a VMM that comes up and fails before anything of the guest but banger's own ran is one that ended
// at its start; any other end is the guest's affair, or somebody's.
func TestCrashBeforeTheAgentFallsBack(t *testing.T) {
	end := func(cause vmm.EndCause, detail string) *vmm.End { return &vmm.End{Cause: cause, Detail: detail} }
	for name, tt := range map[string]struct {
		crash vmm.Status
		falls bool
	}{
		"before the agent":     {vmm.Status{End: end(vmm.EndCrashed, "exit status 1"), Boots: 1}, true},
		"after the agent":      {vmm.Status{End: end(vmm.EndCrashed, "exit status 1"), Boots: 1, Agent: "v1"}, false},
		"at the second boot":   {vmm.Status{End: end(vmm.EndCrashed, "exit status 1"), Boots: 2}, false},
		"killed":               {vmm.Status{End: end(vmm.EndCrashed, "firecracker was ended by signal killed"), Boots: 1}, false},
		"a panic":              {vmm.Status{End: end(vmm.EndUnexpected, ""), Boots: 1}, false},
		"the agent is not one": {vmm.Status{End: end(vmm.EndBadAgent, ""), Boots: 1}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.supplies.engines, w.engine.crashes = chain(), map[string]vmm.Status{"firecracker/kvm": tt.crash}
			// What the daemon remembers makes the next start choose the next engine.
			w.supplies.failed = func() { w.supplies.engines = chain()[1:] }
			rep := newNotes()
			vm, err := w.svc.Create(t.Context(), api.CreateVM{Name: "a", Start: true, RemoveOnExit: true}, rep)
			if !tt.falls {
				if api.KindOf(err) != api.KindGuest || len(w.supplies.engineFailures) != 0 || len(rep.lines) != 0 || w.engine.starts != 1 {
					t.Errorf("err = %v, remembered %q, notes %q", err, w.supplies.engineFailures, rep.lines)
				}
				return
			}
			if err != nil || vm.State != api.StateRunning || vm.Engine != "qemu" || vm.Accel != "kvm" || w.engine.starts != 2 || w.engine.running() != 1 {
				t.Errorf("it runs as %+v, %v", vm, err)
			}
			if len(rep.lines) != 1 || !strings.HasPrefix(rep.lines[0], "Firecracker 1.17.0 ended at its start, and QEMU 7.2 with KVM runs the VM: ") {
				t.Errorf("notes %q", rep.lines)
			}
			if len(w.supplies.engineFailures) != 1 || !strings.Contains(w.supplies.engineFailures[0], "exit status 1") {
				t.Errorf("remembered: %q", w.supplies.engineFailures)
			}
		})
	}
	t.Run("all of them", func(t *testing.T) {
		w := newWorld(t)
		crash := vmm.Status{End: end(vmm.EndCrashed, "exit status 1"), Boots: 1}
		w.supplies.engines = chain()
		w.engine.crashes = map[string]vmm.Status{"firecracker/kvm": crash, "qemu/kvm": crash, "qemu/tcg": crash}
		w.supplies.failed = func() { w.supplies.engines = w.supplies.engines[1:] }
		_, err := w.svc.Create(t.Context(), api.CreateVM{Name: "a", Start: true}, progress.Discard)
		if e := api.AsError(err); e.Kind != api.KindGuest || !strings.Contains(e.Hint, "vm logs") || w.engine.starts != 3 {
			t.Errorf("err = %v after %d starts", err, w.engine.starts)
		}
		w.state("a", api.StateFailed)
	})
}
