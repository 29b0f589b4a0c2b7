package operation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"

	"github.com/google/go-cmp/cmp"
)

// memory is a Store in memory.
type memory struct {
	mu   sync.Mutex
	ops  map[string]api.Operation
	ids  []string
	puts int
	// fail is what the next puts answer.
	fail error
}

func (m *memory) PutOperation(ctx context.Context, op api.Operation) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if m.fail != nil {
		return m.fail
	}
	if m.ops == nil {
		m.ops = map[string]api.Operation{}
	}
	if _, ok := m.ops[op.ID]; !ok {
		m.ids = append([]string{op.ID}, m.ids...)
	}
	m.ops[op.ID] = op
	m.puts++
	return nil
}

func (m *memory) Operation(_ context.Context, id string) (api.Operation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	op, ok := m.ops[id]
	if !ok {
		return op, api.Errorf(api.KindNotFound, "no operation %q", id)
	}
	return op, nil
}

func (m *memory) Operations(context.Context, int) ([]api.Operation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []api.Operation
	for _, id := range m.ids {
		out = append(out, m.ops[id])
	}
	return out, nil
}

func (m *memory) setFail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

func newService(t *testing.T) (*Service, *memory, *bytes.Buffer) {
	t.Helper()
	m, log := &memory{}, &bytes.Buffer{}
	s := New(Config{Store: m, Log: slog.New(slog.NewTextHandler(&lockedWriter{w: log}, nil))})
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s, m, log
}

type lockedWriter struct {
	mu sync.Mutex
	w  *bytes.Buffer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// start starts an operation that must start.
func start(t *testing.T, s *Service, work func(context.Context, progress.Reporter) (any, error)) api.Operation {
	t.Helper()
	op, err := s.Start(t.Context(), "vm.create", "web", work)
	if err != nil {
		t.Fatal(err)
	}
	return op
}

// final watches an operation to its end.
func final(t *testing.T, s *Service, id string) api.Operation {
	t.Helper()
	var last api.Operation
	if err := s.Watch(t.Context(), id, func(op api.Operation) error { last = op; return nil }); err != nil {
		t.Fatal(err)
	}
	if !last.Ended() || last.EndedAt == nil {
		t.Fatalf("the last state watched is %+v", last)
	}
	return last
}

func TestEnds(t *testing.T) {
	for _, tc := range []struct {
		name   string
		work   func(context.Context, progress.Reporter) (any, error)
		state  api.OperationState
		result string
		kind   api.ErrorKind
		text   string
	}{
		{"value", func(context.Context, progress.Reporter) (any, error) { return api.VM{Name: "web"}.Name, nil }, api.OperationDone, `"web"`, "", ""},
		{"nothing", func(context.Context, progress.Reporter) (any, error) { return nil, nil }, api.OperationDone, "", "", ""},
		{"error", func(context.Context, progress.Reporter) (any, error) {
			return 7, fmt.Errorf("boot: %w", api.Errorf(api.KindGuest, "no answer").WithHint("look at the log"))
		}, api.OperationFailed, "", api.KindGuest, "boot: no answer"},
		{"plain error", func(context.Context, progress.Reporter) (any, error) { return nil, errors.New("odd") }, api.OperationFailed, "", api.KindInternal, "odd"},
		{"cancelled error without a cancel", func(context.Context, progress.Reporter) (any, error) { return nil, context.Canceled },
			api.OperationFailed, "", api.KindInternal, "canceled"},
		{"unencodable", func(context.Context, progress.Reporter) (any, error) { return func() {}, nil }, api.OperationFailed, "", api.KindInternal, "encode the result"},
		{"panic", func(context.Context, progress.Reporter) (any, error) { panic("kaboom") }, api.OperationFailed, "", api.KindInternal, "kaboom"},
		{"goexit", func(context.Context, progress.Reporter) (any, error) { runtime.Goexit(); return nil, nil }, api.OperationFailed, "", api.KindInternal, "without a result"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, m, log := newService(t)
			op := start(t, s, tc.work)
			got := final(t, s, op.ID)
			if got.State != tc.state || string(got.Result) != tc.result || (got.Error == nil) != (tc.text == "") {
				t.Fatalf("%+v, error %v", got, got.Error)
			}
			if got.Error != nil && (got.Error.Kind != tc.kind || !strings.Contains(got.Error.Message, tc.text)) {
				t.Errorf("error %+v", got.Error)
			}
			stored, err := m.Operation(t.Context(), op.ID)
			if err != nil || stored.State != got.State {
				t.Errorf("stored %+v, %v", stored, err)
			}
			if m.puts != 2 {
				t.Errorf("recorded %d times, want twice", m.puts)
			}
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if tc.name == "panic" && !strings.Contains(log.String(), "operation_test.go") {
				t.Errorf("the log has no stack: %s", log)
			}
			if internal := strings.Contains(log.String(), "level=ERROR"); internal != (tc.kind == api.KindInternal) {
				t.Errorf("log: %s", log)
			}
			if again, err := s.Get(t.Context(), op.ID); err != nil || again.State != tc.state {
				t.Errorf("Get after the end: %+v, %v", again, err)
			}
		})
	}
}

func TestOutlivesItsRequest(t *testing.T) {
	s, _, _ := newService(t)
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	op, err := s.Start(ctx, "k", "", func(ctx context.Context, _ progress.Reporter) (any, error) {
		<-release
		return nil, ctx.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	close(release)
	if got := final(t, s, op.ID); got.State != api.OperationDone {
		t.Errorf("%+v", got.Error)
	}
}

func TestCancel(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(ctx context.Context) error
		text string
	}{
		{"context's error", func(ctx context.Context) error { return fmt.Errorf("pull: %w", context.Cause(ctx)) }, "cancelled"},
		{"another error", func(context.Context) error { return errors.New("remove tap: busy") }, "cancelled; remove tap: busy"},
		{"kind", func(context.Context) error { return api.Errorf(api.KindCancelled, "given up") }, "cancelled"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _, _ := newService(t)
			op := start(t, s, func(ctx context.Context, _ progress.Reporter) (any, error) {
				<-ctx.Done()
				return nil, tc.end(ctx)
			})
			for range 3 {
				if err := s.Cancel(t.Context(), op.ID); err != nil {
					t.Fatal(err)
				}
			}
			got := final(t, s, op.ID)
			if got.State != api.OperationCancelled || got.Error.Kind != api.KindCancelled || got.Error.Message != tc.text {
				t.Errorf("%+v, %+v", got, got.Error)
			}
			if err := s.Cancel(t.Context(), op.ID); err != nil {
				t.Errorf("cancel after the end: %v", err)
			}
		})
	}
	s, _, _ := newService(t)
	if err := s.Cancel(t.Context(), "nope"); api.KindOf(err) != api.KindNotFound {
		t.Errorf("cancel of nothing: %v", err)
	}
	if err := s.Watch(t.Context(), "nope", nil); api.KindOf(err) != api.KindNotFound {
		t.Errorf("watch of nothing: %v", err)
	}
	if _, err := s.Get(t.Context(), "nope"); api.KindOf(err) != api.KindNotFound {
		t.Errorf("get of nothing: %v", err)
	}
}

// An operation that was done before it noticed the cancellation is done.
func TestCancelTooLate(t *testing.T) {
	s, _, _ := newService(t)
	op := start(t, s, func(ctx context.Context, _ progress.Reporter) (any, error) {
		<-ctx.Done()
		return "made", nil
	})
	if err := s.Cancel(t.Context(), op.ID); err != nil {
		t.Fatal(err)
	}
	if got := final(t, s, op.ID); got.State != api.OperationDone || string(got.Result) != `"made"` {
		t.Errorf("%+v", got)
	}
}

func TestProgress(t *testing.T) {
	s, m, _ := newService(t)
	reached, goOn := make(chan struct{}), make(chan struct{})
	op := start(t, s, func(_ context.Context, rep progress.Reporter) (any, error) {
		rep.Step("download")
		rep.Bytes(1, 2)
		rep.Note("a fall-back")
		close(reached)
		<-goOn
		rep.Step("unpack")
		rep.Note("a warning")
		return nil, nil
	})
	<-reached
	got, err := s.Get(t.Context(), op.ID)
	if err != nil {
		t.Fatal(err)
	}
	op.Progress, op.Notes = api.Progress{Step: "download", Done: 1, Total: 2}, []string{"a fall-back"}
	if diff := cmp.Diff(op, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	list, err := s.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Progress.Step != "download" {
		t.Errorf("List = %+v, %v", list, err)
	}
	close(goOn)
	end := final(t, s, op.ID)
	if diff := cmp.Diff([]string{"a fall-back", "a warning"}, end.Notes); diff != "" || end.Progress.Step != "unpack" {
		t.Errorf("%+v\n%s", end, diff)
	}
	if stored := m.ops[op.ID]; len(stored.Notes) != 2 {
		t.Errorf("stored %+v", stored)
	}
}

func TestNotesAreBounded(t *testing.T) {
	s, _, _ := newService(t)
	op := start(t, s, func(_ context.Context, rep progress.Reporter) (any, error) {
		for range 10 * maxNotes {
			rep.Note(strings.Repeat("x", 10*maxText))
		}
		return nil, nil
	})
	got := final(t, s, op.ID)
	if len(got.Notes) != maxNotes+1 || len(got.Notes[0]) > maxText+8 || got.Notes[maxNotes] != "more notes were dropped" {
		t.Errorf("%d notes, the first of %d bytes", len(got.Notes), len(got.Notes[0]))
	}
}

// Every watcher is told the state at once, no more than 20 times a second after, and the end.
func TestWatchCoalesces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _ := newService(t)
		op := start(t, s, func(_ context.Context, rep progress.Reporter) (any, error) {
			for i := range int64(10_000) {
				rep.Bytes(i+1, 10_000)
				if i%10 == 0 {
					<-time.After(time.Millisecond) // of the bubble's clock: 1 s in all
				}
			}
			return nil, nil
		})
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				calls := 0
				var last api.Operation
				err := s.Watch(t.Context(), op.ID, func(op api.Operation) error {
					if op.Progress.Done < last.Progress.Done {
						t.Errorf("progress went back from %d to %d", last.Progress.Done, op.Progress.Done)
					}
					calls, last = calls+1, op
					return nil
				})
				if err != nil || last.State != api.OperationDone || last.Progress.Done != 10_000 {
					t.Errorf("ended with %+v, %v", last, err)
				}
				if calls < 15 || calls > 22 {
					t.Errorf("%d calls in a second", calls)
				}
			})
		}
		wg.Wait()
	})
}

// The end is told at once, not at the next interval.
func TestWatchTellsTheEndAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _ := newService(t)
		release := make(chan struct{})
		op := start(t, s, func(context.Context, progress.Reporter) (any, error) { <-release; return nil, nil })
		began := time.Now()
		calls := 0
		err := s.Watch(t.Context(), op.ID, func(op api.Operation) error {
			if calls++; calls == 1 {
				close(release)
			}
			return nil
		})
		if took := time.Since(began); err != nil || calls != 2 || took != 0 {
			t.Errorf("%d calls, %v, %v", calls, took, err)
		}
	})
}

func TestWatchStops(t *testing.T) {
	s, _, _ := newService(t)
	op := start(t, s, func(ctx context.Context, _ progress.Reporter) (any, error) { <-ctx.Done(); return nil, ctx.Err() })
	enough := errors.New("enough")
	if err := s.Watch(t.Context(), op.ID, func(api.Operation) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("%v, want fn's error", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := s.Watch(ctx, op.ID, func(api.Operation) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want ctx's error", err)
	}
}

func TestClose(t *testing.T) {
	s, m, _ := newService(t)
	op := start(t, s, func(ctx context.Context, _ progress.Reporter) (any, error) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	})
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := m.ops[op.ID]
	if got.State != api.OperationCancelled || !strings.Contains(got.Error.Message, "daemon is stopping") {
		t.Errorf("after Close: %+v, %+v", got, got.Error)
	}
	if _, err := s.Start(t.Context(), "k", "", nil); api.KindOf(err) != api.KindUnavailable {
		t.Errorf("start after Close: %v", err)
	}
}

func TestCloseDoesNotWaitForEver(t *testing.T) {
	s, _, _ := newService(t)
	release := make(chan struct{})
	start(t, s, func(context.Context, progress.Reporter) (any, error) { <-release; return nil, nil })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want the context's error", err)
	}
	close(release)
}

func TestStoreFailures(t *testing.T) {
	s, m, _ := newService(t)
	full := errors.New("disk full")
	m.setFail(full)
	ran := false
	if _, err := s.Start(t.Context(), "k", "", func(context.Context, progress.Reporter) (any, error) { ran = true; return nil, nil }); !errors.Is(err, full) {
		t.Errorf("%v, want the store's error", err)
	}
	m.setFail(nil)
	op := start(t, s, func(context.Context, progress.Reporter) (any, error) { m.setFail(full); return 1, nil })
	if got := final(t, s, op.ID); got.State != api.OperationDone {
		t.Errorf("%+v", got)
	}
	if got, err := s.Get(t.Context(), op.ID); err != nil || got.State != api.OperationDone {
		t.Errorf("an end that could not be recorded is forgotten: %+v, %v", got, err)
	}
	if ran {
		t.Error("an operation ran that was not recorded")
	}
}
