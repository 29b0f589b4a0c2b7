package vm

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

func TestStatesDocument(t *testing.T) {
	const path = "../../docs/states.md"
	want := statesDocument()
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("docs/states.md is out of date, run UPDATE=1 go test ./internal/vm (-want +got):\n%s", diff)
	}
}

func TestEveryStateIsReachedAndLeft(t *testing.T) {
	reached := map[api.VMState]bool{api.StateCreating: true, api.StateSuspended: true}
	for from, evs := range transitions {
		if _, ok := evs[evDelete]; !ok {
			t.Errorf("a VM that is %s cannot be deleted", from)
		}
		for _, to := range evs {
			reached[to] = true
		}
	}
	for _, s := range allStates {
		if !reached[s] {
			t.Errorf("nothing leads to %s", s)
		}
		if transitions[s] == nil {
			t.Errorf("nothing leads out of %s", s)
		}
	}
}

func TestNextRefuses(t *testing.T) {
	for _, tc := range []struct {
		from api.VMState
		ev   event
	}{
		{api.StateStopped, evStop}, {api.StateStarting, evStart}, {api.StateDeleting, evStart}, {api.StateCreating, evStart},
	} {
		if to, err := next(tc.from, tc.ev); err == nil {
			t.Errorf("next(%s, %s) = %s, want an error", tc.from, tc.ev, to)
		}
	}
}

func TestDerive(t *testing.T) {
	end := func(c vmm.EndCause, detail string) vmm.Status {
		return vmm.Status{Phase: vmm.PhaseEnded, End: &vmm.End{Cause: c, Detail: detail}}
	}
	for _, tc := range []struct {
		name   string
		last   api.VMState
		seen   vmm.Status
		state  api.VMState
		reason string
	}{
		{"no call yet", api.StateStarting, vmm.Status{Phase: vmm.PhaseRunning}, api.StateStarting, ""},
		{"called", api.StateStarting, vmm.Status{Phase: vmm.PhaseRunning, Mark: api.MarkAgent}, api.StateRunning, ""},
		{"ready", api.StateRunning, vmm.Status{Phase: vmm.PhaseRunning, Mark: api.MarkReady}, api.StateRunning, ""},
		{"rebooting", api.StateRunning, vmm.Status{Phase: vmm.PhaseRunning}, api.StateStarting, ""},
		{"being stopped", api.StateStopping, vmm.Status{Phase: vmm.PhaseRunning, Mark: api.MarkFull}, api.StateStopping, ""},
		{"paused for room", api.StateRunning, vmm.Status{Phase: vmm.PhasePaused, PauseReason: "host disk full"}, api.StatePaused, "host disk full"},
		{"paused while stopping", api.StateStopping, vmm.Status{Phase: vmm.PhasePaused}, api.StateStopping, ""},
		{"resumed", api.StatePaused, vmm.Status{Phase: vmm.PhaseRunning, Mark: api.MarkReady}, api.StateRunning, ""},
		{"powered off", api.StateRunning, end(vmm.EndPoweroff, ""), api.StateStopped, ""},
		{"killed", api.StateStopping, end(vmm.EndKilled, ""), api.StateStopped, ""},
		{"halted", api.StateRunning, end(vmm.EndHalt, ""), api.StateStopped, "guest halted"},
		{"panic", api.StateRunning, end(vmm.EndUnexpected, ""), api.StateStopped, "guest ended unexpectedly"},
		{"supervisor lost", api.StateRunning, end(vmm.EndLost, ""), api.StateStopped, "its supervisor vanished"},
		{"vmm crashed", api.StateRunning, end(vmm.EndCrashed, "signal 9"), api.StateFailed, "the VMM failed: signal 9"},
		{"never called", api.StateStarting, end(vmm.EndBootTimeout, ""), api.StateFailed, "the guest's agent never answered"},
		{"nothing recorded", api.StateRunning, vmm.Status{Phase: vmm.PhaseEnded}, api.StateStopped, "ended while nobody watched"},
		{"deleting stays", api.StateDeleting, end(vmm.EndKilled, ""), api.StateDeleting, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			state, reason := derive(tc.last, tc.seen)
			if state != tc.state || reason != tc.reason {
				t.Errorf("derive(%s) = %s, %q, want %s, %q", tc.last, state, reason, tc.state, tc.reason)
			}
		})
	}
}

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"web": true, "a": true, "web-1": true, "1web": true, "": false, "12": false, "-a": false, "a-": false, "Web": false,
		"a_b": false, "host": false, "gateway": false, "localhost": false, "banger": false, "ünder": false,
		"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa":  true,
		"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa": false,
	} {
		err := CheckName(name)
		if (err == nil) != ok {
			t.Errorf("CheckName(%q) = %v, want ok %v", name, err, ok)
		}
		if err != nil && (api.KindOf(err) != api.KindInvalid || api.AsError(err).Hint == "") {
			t.Errorf("CheckName(%q): kind %s, hint %q: want invalid and the rule", name, api.KindOf(err), api.AsError(err).Hint)
		}
	}
	for try := range 6 {
		if err := CheckName(generateName(try)); err != nil {
			t.Errorf("generated name: %v", err)
		}
	}
}
