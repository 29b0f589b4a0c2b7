package vm

import (
	"context"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

func TestWatcherFollows(t *testing.T) {
	w := newWorld(t)
	vm := w.create(api.CreateVM{Name: "a", Start: true})
	m := w.machine(vm)
	m.update(func(st *vmm.Status) { st.Mark, st.Boots = "", 2 })
	w.until("a", func(vm api.VM) bool { return vm.State == api.StateStarting && vm.Restarts == 1 })
	m.update(func(st *vmm.Status) { st.Mark = api.MarkReady })
	w.state("a", api.StateRunning)
	m.end(vmm.EndUnexpected)
	if vm := w.state("a", api.StateStopped); vm.Reason != "guest ended unexpectedly" {
		t.Errorf("reason %q", vm.Reason)
	}
}

// updates counts the changes of records.
type updates struct {
	Records
	n int
}

func (c *updates) UpdateVM(ctx context.Context, id string, change func(*store.VM) error) (store.VM, error) {
	rec, err := c.Records.UpdateVM(ctx, id, change)
	if err == nil {
		c.n++
	}
	return rec, err
}

// TestOnlyChangesAreRecorded: what a status says beside the state is not worth a write to the disk.
func TestOnlyChangesAreRecorded(t *testing.T) {
	w := newWorld(t)
	vm := w.create(api.CreateVM{Name: "a"})
	counted := &updates{Records: w.db}
	w.svc.cfg.Records = counted
	st := vmm.Status{Seq: 1, Phase: vmm.PhaseRunning, Mark: api.MarkAgent}
	for _, step := range []struct {
		name   string
		change func()
		want   int
	}{
		{"it runs", func() {}, 1},
		{"the same again", func() {}, 1},
		{"a note", func() { st.Seq, st.Notes = 2, []string{"slow"} }, 1},
		{"ready", func() { st.Seq, st.Mark = 3, api.MarkReady }, 2},
		{"full", func() { st.Seq, st.Mark = 4, api.MarkFull }, 2},
		{"paused", func() { st.Phase, st.PauseReason = vmm.PhasePaused, "asked" }, 3},
		{"for another reason", func() { st.PauseReason = "host disk full" }, 4},
	} {
		step.change()
		w.svc.record(vm.ID, vm.Name, st)
		if counted.n != step.want {
			t.Errorf("%s: %d writes, want %d", step.name, counted.n, step.want)
		}
	}
	if rec, err := w.db.VM(t.Context(), vm.ID); err != nil || rec.State != api.StatePaused || rec.Reason != "host disk full" || !rec.WasReady {
		t.Errorf("the record is %+v, %v", rec, err)
	}
}
