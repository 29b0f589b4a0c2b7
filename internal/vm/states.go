package vm

import (
	"fmt"
	"slices"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// event is what moves a VM from one state to the next.
type event string

const (
	evMade   event = "made"   // its directory and drives are there
	evStart  event = "start"  // a start was asked for
	evUp     event = "up"     // the agent called
	evStop   event = "stop"   // a stop was asked for
	evPause  event = "pause"  // its CPUs stand still
	evResume event = "resume" // they go on
	evEnd    event = "end"    // the VMM ended, as a machine does
	evFail   event = "fail"   // it could not be started, or broke
	evDelete event = "delete" // a delete was asked for
)

var allStates = []api.VMState{api.StateCreating, api.StateStopped, api.StateStarting, api.StateRunning,
	api.StateStopping, api.StatePaused, api.StateSuspended, api.StateFailed, api.StateDeleting}

var allEvents = []event{evMade, evStart, evUp, evStop, evPause, evResume, evEnd, evFail, evDelete}

// transitions is the whole life of a VM. docs/states.md is generated from it.
// Suspended is reserved for suspend to disk: nothing leads to it yet.
var transitions = map[api.VMState]map[event]api.VMState{
	api.StateCreating: {evMade: api.StateStopped, evDelete: api.StateDeleting},
	api.StateStopped:  {evStart: api.StateStarting, evDelete: api.StateDeleting},
	api.StateStarting: {evUp: api.StateRunning, evStop: api.StateStopping, evEnd: api.StateStopped,
		evFail: api.StateFailed, evDelete: api.StateDeleting},
	api.StateRunning: {evStart: api.StateStarting, evStop: api.StateStopping, evPause: api.StatePaused,
		evEnd: api.StateStopped, evFail: api.StateFailed, evDelete: api.StateDeleting},
	api.StateStopping: {evEnd: api.StateStopped, evFail: api.StateFailed, evDelete: api.StateDeleting},
	api.StatePaused: {evResume: api.StateRunning, evStop: api.StateStopping, evEnd: api.StateStopped,
		evFail: api.StateFailed, evDelete: api.StateDeleting},
	api.StateSuspended: {evStart: api.StateStarting, evDelete: api.StateDeleting},
	api.StateFailed:    {evStart: api.StateStarting, evDelete: api.StateDeleting},
	api.StateDeleting:  {evDelete: api.StateDeleting},
}

// next returns the state that ev leads to from the state from.
func next(from api.VMState, ev event) (api.VMState, error) {
	to, ok := transitions[from][ev]
	if !ok {
		return from, fmt.Errorf("a VM that is %s cannot %s", from, ev)
	}
	return to, nil
}

// derive says what state a VM is in, from its last recorded state and what its engine shows.
// It is pure; the watcher of a VM and the recovery after a daemon's start both use it.
func derive(last api.VMState, seen vmm.Status) (state api.VMState, reason string) {
	if last == api.StateDeleting {
		return last, ""
	}
	switch seen.Phase {
	case vmm.PhaseEnded:
		return ended(seen.End)
	case vmm.PhasePaused:
		if last == api.StateStopping {
			return last, ""
		}
		return api.StatePaused, seen.PauseReason
	}
	switch {
	case last == api.StateStopping:
		return api.StateStopping, ""
	case seen.Mark.Reached(api.MarkAgent):
		return api.StateRunning, ""
	default:
		return api.StateStarting, ""
	}
}

// ended translates the end of a VMM into a state and the reason a user reads.
func ended(end *vmm.End) (api.VMState, string) {
	if end == nil {
		return api.StateStopped, "ended while nobody watched"
	}
	with := func(text string) string {
		if end.Detail == "" {
			return text
		}
		return text + ": " + end.Detail
	}
	switch end.Cause {
	case vmm.EndPoweroff, vmm.EndKilled:
		return api.StateStopped, ""
	case vmm.EndHalt:
		return api.StateStopped, "guest halted"
	case vmm.EndUnexpected:
		return api.StateStopped, with("guest ended unexpectedly")
	case vmm.EndLost:
		return api.StateStopped, with("its supervisor vanished")
	case vmm.EndBootTimeout:
		return api.StateFailed, with("the guest's agent never answered")
	case vmm.EndBadAgent:
		return api.StateFailed, with("the guest's agent misbehaved")
	case vmm.EndCrashed:
		return api.StateFailed, with("the VMM failed")
	default:
		return api.StateFailed, with("could not be started")
	}
}

// statesDocument renders docs/states.md.
func statesDocument() string {
	var b strings.Builder
	b.WriteString("# The states of a VM\n\nGenerated from `internal/vm/states.go` by `UPDATE=1 go test ./internal/vm`.\n\n")
	b.WriteString("| from | " + joinEvents(allEvents) + " |\n|---" + strings.Repeat("|---", len(allEvents)) + "|\n")
	for _, from := range allStates {
		fmt.Fprintf(&b, "| **%s** |", from)
		for _, ev := range allEvents {
			to, ok := transitions[from][ev]
			if !ok {
				b.WriteString(" - |")
				continue
			}
			fmt.Fprintf(&b, " %s |", to)
		}
		b.WriteString("\n")
	}
	b.WriteString("\nHow a VMM's end is told:\n\n| end | state | reason |\n|---|---|---|\n")
	for _, c := range []vmm.EndCause{vmm.EndPoweroff, vmm.EndHalt, vmm.EndKilled, vmm.EndUnexpected, vmm.EndCrashed,
		vmm.EndBootTimeout, vmm.EndBadAgent, vmm.EndStart, vmm.EndLost} {
		state, reason := ended(&vmm.End{Cause: c})
		if reason == "" {
			reason = "-"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", c, state, reason)
	}
	return b.String()
}

func joinEvents(evs []event) string {
	names := make([]string, 0, len(evs))
	for _, e := range evs {
		names = append(names, string(e))
	}
	return strings.Join(slices.Clip(names), " | ")
}
