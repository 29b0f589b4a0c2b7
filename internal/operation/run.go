package operation

import (
	"context"
	"slices"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

const (
	// watchInterval is the least time between two calls of a watcher.
	watchInterval = 50 * time.Millisecond
	// maxNotes and maxText bound what one operation keeps for the user: lines, and bytes of each line.
	maxNotes = 100
	maxText  = 2048
)

// run is an operation in memory. It is its own progress.Reporter.
type run struct {
	cancel context.CancelCauseFunc

	mu sync.Mutex // guards all below
	op api.Operation
	// changed is closed at the next change; nil while nobody waits for one, so that a report costs next to nothing.
	changed chan struct{}
	// ended is closed with the final state; made by the first watcher.
	ended chan struct{}
}

// change changes the operation unless it has ended, and wakes the watchers.
func (r *run) change(do func(op *api.Operation)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.op.Ended() {
		return
	}
	do(&r.op)
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
	if r.op.Ended() && r.ended != nil {
		close(r.ended)
	}
}

// Step implements progress.Reporter.
func (r *run) Step(name string) {
	r.change(func(op *api.Operation) { op.Progress = api.Progress{Step: clip(name)} })
}

// Bytes implements progress.Reporter.
func (r *run) Bytes(done, total int64) {
	r.change(func(op *api.Operation) { op.Progress.Done, op.Progress.Total = done, total })
}

// Note implements progress.Reporter. The last line kept of too many says so.
func (r *run) Note(text string) {
	r.change(func(op *api.Operation) {
		switch n := len(op.Notes); {
		case n < maxNotes:
			op.Notes = append(op.Notes, clip(text))
		case n == maxNotes:
			op.Notes = append(op.Notes, "more notes were dropped")
		}
	})
}

func clip(text string) string {
	if len(text) <= maxText {
		return text
	}
	return text[:maxText] + "…"
}

func (r *run) finish(op api.Operation) {
	r.change(func(o *api.Operation) { *o = op })
}

// snapshot is the operation as it is now. Its slices may be appended to, not written.
func (r *run) snapshot() api.Operation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.snapshotLocked()
}

func (r *run) snapshotLocked() api.Operation {
	op := r.op
	op.Notes = slices.Clip(op.Notes)
	return op
}

// observe returns the operation as it is now, a channel that is closed when it is not so any more, and one closed when it
// has ended; both are nil where it has.
func (r *run) observe() (op api.Operation, changed, ended <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	op = r.snapshotLocked()
	if op.Ended() {
		return op, nil, nil
	}
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	if r.ended == nil {
		r.ended = make(chan struct{})
	}
	return op, r.changed, r.ended
}

func (r *run) watch(ctx context.Context, fn func(api.Operation) error) error {
	pause := time.NewTimer(watchInterval)
	defer pause.Stop()
	for {
		op, changed, ended := r.observe()
		if err := fn(op); err != nil || op.Ended() {
			return err
		}
		pause.Reset(watchInterval)
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		select { // the end does not wait
		case <-pause.C:
		case <-ended:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
