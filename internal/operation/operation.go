// Package operation runs work that outlives the request that asked for it, and
// tells everybody who wants to know how far it is.
//
// An operation is recorded twice: when it starts and when it has ended. Its
// progress lives in memory only. operation.go starts, cancels and ends
// operations, run.go is one that is in memory, with its progress and its watchers.
package operation

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// Store is where operations are recorded.
type Store interface {
	PutOperation(ctx context.Context, op api.Operation) error
	// Operation returns a KindNotFound where there is none.
	Operation(ctx context.Context, id string) (api.Operation, error)
	// Operations returns the newest first.
	Operations(ctx context.Context, limit int) ([]api.Operation, error)
}

// Config is what a Service needs.
type Config struct {
	Store Store
	// Log gets the ends of operations; one that failed with KindInternal as an error.
	Log *slog.Logger
	// Now is the clock; time.Now where nil.
	Now func() time.Time
}

// Service runs operations. Its methods may be called from several goroutines.
type Service struct {
	store Store
	log   *slog.Logger
	now   func() time.Time

	base context.Context // every run's parent
	stop context.CancelCauseFunc
	runs sync.WaitGroup

	mu     sync.Mutex // guards live and closed
	live   map[string]*run
	closed bool
}

// errClosing is why the operations of a daemon that stops end; errCancelled why those do that a user cancelled.
var (
	errClosing   = fmt.Errorf("%w: banger's daemon is stopping", context.Canceled)
	errCancelled = fmt.Errorf("%w by the user", context.Canceled)
)

// New returns a Service without operations.
func New(cfg Config) *Service {
	s := &Service{store: cfg.Store, log: cfg.Log, now: cfg.Now, live: map[string]*run{}}
	if s.now == nil {
		s.now = time.Now
	}
	s.base, s.stop = context.WithCancelCause(context.Background())
	return s
}

// Start records an operation and runs it: run's context ends with Cancel and Close only, not with ctx. What run
// returns is the operation's result, as JSON. An error makes it failed, or cancelled where its context had ended; so does a panic, which is
// logged with its stack. Start returns once the operation is recorded; when that fails nothing is run.
func (s *Service) Start(ctx context.Context, kind, target string, work func(ctx context.Context, rep progress.Reporter) (any, error)) (api.Operation, error) {
	var id [8]byte
	rand.Read(id[:]) // never fails
	op := api.Operation{ID: hex.EncodeToString(id[:]), Kind: kind, Target: target,
		State: api.OperationRunning, CreatedAt: s.now().UTC()}
	runCtx, cancel := context.WithCancelCause(s.base)
	r := &run{op: op, cancel: cancel}

	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		cancel(nil)
		return api.Operation{}, api.Errorf(api.KindUnavailable, "start %s: banger's daemon is stopping", kind)
	}
	s.runs.Add(1)
	s.live[op.ID] = r
	s.mu.Unlock()

	if err := s.store.PutOperation(ctx, op); err != nil {
		s.drop(op.ID)
		s.runs.Done()
		cancel(nil)
		return api.Operation{}, fmt.Errorf("start %s: %w", kind, err)
	}
	go func() {
		defer s.runs.Done()
		defer cancel(nil)
		result, err := s.guarded(runCtx, r, work)
		s.end(runCtx, r, result, err)
	}()
	return op, nil
}

func (s *Service) drop(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, id)
}

// guarded runs work; a panic and a runtime.Goexit in it become errors.
func (s *Service) guarded(ctx context.Context, r *run, work func(context.Context, progress.Reporter) (any, error)) (result json.RawMessage, err error) {
	done := make(chan struct{})
	go func() { // of its own, so that a Goexit in work ends it alone
		defer close(done)
		err = api.Errorf(api.KindInternal, "%s ended without a result", r.op.Kind)
		defer func() {
			if p := recover(); p != nil {
				s.log.Error("operation panicked", "operation", r.op.ID, "kind", r.op.Kind, "target", r.op.Target,
					"panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				result, err = nil, api.Errorf(api.KindInternal, "%s: internal error: %v", r.op.Kind, p).
					WithHint("this is a defect of banger; banger daemon logs has its stack")
			}
		}()
		v, workErr := work(ctx, r)
		if workErr != nil {
			err = workErr
			return
		}
		if v == nil {
			err = nil
			return
		}
		if result, err = json.Marshal(v); err != nil {
			err = fmt.Errorf("encode the result of %s: %w", r.op.Kind, err)
		}
	}()
	<-done
	return result, err
}

// end records the final state and then tells the watchers, so that who has seen the end finds it in the store.
func (s *Service) end(ctx context.Context, r *run, result json.RawMessage, err error) {
	op := r.snapshot()
	now := s.now().UTC()
	op.EndedAt = &now
	level := slog.LevelInfo
	switch {
	case err == nil:
		op.State, op.Result = api.OperationDone, result
	case ctx.Err() != nil:
		op.State = api.OperationCancelled
		op.Error = cancelledError(ctx, err)
	default:
		op.State = api.OperationFailed
		op.Error = api.AsError(err)
		if op.Error.Kind == api.KindInternal {
			level = slog.LevelError
		}
	}
	attrs := []any{"operation", op.ID, "kind", op.Kind, "target", op.Target, "state", op.State, "took", now.Sub(op.CreatedAt)}
	if err != nil {
		attrs = append(attrs, "error", err)
	}
	s.log.Log(context.Background(), level, "operation ended", attrs...)

	// Not with the run's context: that may have been cancelled, and this must be written all the same.
	if putErr := s.store.PutOperation(context.WithoutCancel(ctx), op); putErr != nil {
		s.log.Error("operation not recorded", "operation", op.ID, "error", putErr)
		// It stays in memory, where Get and List find it.
	} else {
		s.drop(op.ID)
	}
	r.finish(op)
}

// cancelledError is the error of a cancelled operation: why it was cancelled, and what went wrong besides.
func cancelledError(ctx context.Context, err error) *api.Error {
	cause := context.Cause(ctx)
	if errors.Is(err, context.Canceled) || api.KindOf(err) == api.KindCancelled {
		return api.Errorf(api.KindCancelled, "%v", strippedCause(cause))
	}
	out := api.Errorf(api.KindCancelled, "%v; %v", strippedCause(cause), err)
	out.Hint = api.AsError(err).Hint
	return out
}

func strippedCause(cause error) string {
	switch {
	case errors.Is(cause, errClosing):
		return "cancelled: banger's daemon is stopping"
	case errors.Is(cause, errCancelled):
		return "cancelled"
	}
	return fmt.Sprintf("cancelled: %v", cause)
}

// Get returns an operation as it is now; KindNotFound where there is none.
func (s *Service) Get(ctx context.Context, id string) (api.Operation, error) {
	if r := s.find(id); r != nil {
		return r.snapshot(), nil
	}
	return s.store.Operation(ctx, id)
}

func (s *Service) find(id string) *run {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live[id]
}

// List returns the operations that run and the last that have ended, newest first.
func (s *Service) List(ctx context.Context) ([]api.Operation, error) {
	s.mu.Lock()
	live := maps.Clone(s.live) // before the store is read: what ends meanwhile is seen there
	s.mu.Unlock()
	ops, err := s.store.Operations(ctx, 0)
	if err != nil {
		return nil, err
	}
	for i, op := range ops {
		if r := live[op.ID]; r != nil && !op.Ended() {
			ops[i] = r.snapshot()
		}
	}
	return ops, nil
}

// Cancel ends the context of an operation and returns at once; Watch tells when the operation has ended. It
// does nothing to an operation that has ended; KindNotFound where there is none.
func (s *Service) Cancel(ctx context.Context, id string) error {
	if r := s.find(id); r != nil {
		r.cancel(errCancelled)
		return nil
	}
	_, err := s.store.Operation(ctx, id)
	return err
}

// Watch calls fn with the operation as it is now and then after changes, at most 20 times a second, until it has called fn with
// the final state; several changes may be told by one call. It returns fn's error where fn returns one, and ctx's when ctx
// ends. KindNotFound where there is no such operation.
func (s *Service) Watch(ctx context.Context, id string, fn func(api.Operation) error) error {
	r := s.find(id)
	if r == nil {
		op, err := s.store.Operation(ctx, id)
		if err != nil {
			return err
		}
		return fn(op)
	}
	return r.watch(ctx, fn)
}

// Close cancels all operations, refuses new ones and waits until the running ones have ended and are recorded, or ctx has ended.
func (s *Service) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop(errClosing)
	done := make(chan struct{})
	go func() {
		s.runs.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for operations to end: %w", context.Cause(ctx))
	}
}
