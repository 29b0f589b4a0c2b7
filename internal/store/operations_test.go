package store

import (
	"fmt"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func operation(i int, state api.OperationState) api.Operation {
	op := api.Operation{ID: fmt.Sprintf("op%d", i), Kind: "vm.create", Target: "web", State: state, CreatedAt: t0.Add(time.Duration(i) * time.Second)}
	if op.Ended() {
		end := op.CreatedAt.Add(time.Second)
		op.EndedAt = &end
	}
	return op
}

func TestOperations(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	running := operation(0, api.OperationRunning)
	must(t, s.PutOperation(ctx, running))
	for i := 1; i <= keepOperations+20; i++ {
		must(t, s.PutOperation(ctx, operation(i, api.OperationDone)))
	}
	all, err := s.Operations(ctx, 0)
	must(t, err)
	if len(all) != keepOperations+1 || all[0].ID != fmt.Sprintf("op%d", keepOperations+20) || all[len(all)-1].ID != "op0" {
		t.Errorf("%d operations from %s to %s", len(all), all[0].ID, all[len(all)-1].ID)
	}
	if three, err := s.Operations(ctx, 3); err != nil || len(three) != 3 || three[0].ID != all[0].ID {
		t.Errorf("Operations(3) = %v, %v", three, err)
	}
	_, err = s.Operation(ctx, "op1")
	wantKind(t, err, api.KindNotFound, `no operation "op1"`)

	running.State, running.EndedAt = api.OperationFailed, &t0
	running.Error = api.Errorf(api.KindGuest, "it broke").WithHint("look")
	running.Notes, running.Result = []string{"a", "b"}, []byte(`{"x":1}`)
	must(t, s.PutOperation(ctx, running))
	// The oldest of all, it was pruned as soon as it had ended.
	_, err = s.Operation(ctx, "op0")
	wantKind(t, err, api.KindNotFound)

	running.ID, running.CreatedAt = "new", t0.Add(time.Hour)
	must(t, s.PutOperation(ctx, running))
	got, err := s.Operation(ctx, "new")
	must(t, err)
	if diff := cmp.Diff(running, got, cmpopts.IgnoreUnexported(api.Error{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestFailRunningOperations(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	for i, state := range []api.OperationState{api.OperationRunning, api.OperationDone, api.OperationRunning, api.OperationCancelled} {
		must(t, s.PutOperation(ctx, operation(i, state)))
	}
	if n, err := s.FailRunningOperations(ctx, "bangerd ended while it ran"); n != 2 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if n, err := s.FailRunningOperations(ctx, "again"); n != 0 || err != nil {
		t.Fatalf("the second time: %d, %v", n, err)
	}
	op, err := s.Operation(ctx, "op2")
	must(t, err)
	if op.State != api.OperationFailed || op.EndedAt == nil || op.Error == nil || op.Error.Message != "bangerd ended while it ran" {
		t.Errorf("%+v", op)
	}
}

func TestEvents(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	for i := range 5 {
		e, err := s.AddEvent(ctx, api.Event{Kind: "vm.state", VM: "web", Text: fmt.Sprint(i), Time: t0.In(time.FixedZone("x", 3600))})
		must(t, err)
		if e.Seq != int64(i+1) {
			t.Errorf("event %d has seq %d", i, e.Seq)
		}
	}
	got, err := s.Events(ctx, 2, 2)
	must(t, err)
	want := []api.Event{
		{Seq: 3, Time: t0, Kind: "vm.state", VM: "web", Text: "2"},
		{Seq: 4, Time: t0, Kind: "vm.state", VM: "web", Text: "3"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	// Only the newest are kept, and a seq is never used again.
	_, err = s.write.Exec("UPDATE sqlite_sequence SET seq = 20000 WHERE name = 'events'")
	must(t, err)
	last, err := s.AddEvent(ctx, api.Event{Kind: "k"})
	must(t, err)
	all, err := s.Events(ctx, 0, 0)
	if err != nil || len(all) != 1 || last.Seq != 20001 || all[0].Time.IsZero() {
		t.Errorf("%v, %v", all, err)
	}
	_, err = s.write.Exec("DELETE FROM events")
	must(t, err)
	if e, err := s.AddEvent(ctx, api.Event{Kind: "k"}); err != nil || e.Seq != 20002 {
		t.Errorf("%v, %v", e, err)
	}
}
