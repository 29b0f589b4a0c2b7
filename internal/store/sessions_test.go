package store

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
)

func TestSessions(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	fill(t, s)
	status := 7
	v := Session{VM: "id-web", Name: "planner", State: api.SessionRunning, ID: "4f", Command: []string{"pi", "--mode", "rpc"}, Stdin: "pipe", PID: 9, CreatedAt: t0}
	must(t, s.InsertSession(ctx, v))
	wantKind(t, s.InsertSession(ctx, v), api.KindConflict)
	wantKind(t, s.InsertSession(ctx, Session{VM: "none", Name: "a", State: api.SessionRunning, CreatedAt: t0}), api.KindNotFound)
	got, err := s.Session(ctx, "id-web", "planner")
	must(t, err)
	if diff := cmp.Diff(v, got); diff != "" {
		t.Error(diff)
	}
	_, err = s.Session(ctx, "id-web", "planer")
	wantKind(t, err, api.KindNotFound)
	if hint := api.AsError(err).Hint; hint != "did you mean planner?" {
		t.Errorf("hint %q", hint)
	}
	failed := errors.New("not now")
	if _, err := s.UpdateSession(ctx, "id-web", "planner", func(v *Session) error { v.PID = 1; return failed }); !errors.Is(err, failed) {
		t.Errorf("err = %v", err)
	}
	v.State, v.Status, v.PID, v.EndedAt = api.SessionEnded, &status, 0, &t0
	got, err = s.UpdateSession(ctx, "id-web", "planner", func(v *Session) error {
		v.State, v.Status, v.PID, v.EndedAt = api.SessionEnded, &status, 0, &t0
		return nil
	})
	must(t, err)
	all, err := s.Sessions(ctx, "id-web")
	must(t, err)
	if diff := cmp.Diff([]Session{v}, all); diff != "" || !cmp.Equal(got, v) {
		t.Error(diff)
	}
	must(t, s.InsertSession(ctx, Session{VM: "id-web", Name: "b", State: api.SessionRunning, CreatedAt: t0}))
	must(t, s.DeleteSession(ctx, "id-web", "b"))
	must(t, s.DeleteSession(ctx, "id-web", "b"))
	must(t, s.DeleteVM(ctx, "id-web")) // and its sessions with it
	if all, err := s.Sessions(ctx, "id-web"); err != nil || len(all) != 0 {
		t.Errorf("left %+v, %v", all, err)
	}
}
