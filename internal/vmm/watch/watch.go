// Package watch holds a VM's status and lets any number of others wait for the next.
package watch

import (
	"context"
	"reflect"
	"sync"

	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// MaxNotes is how many notes a status keeps, the newest.
const MaxNotes = 16

// Board is a status that changes. The zero value holds nothing yet.
type Board struct {
	mu      sync.Mutex // guards status, changed
	status  vmm.Status
	changed chan struct{} // closed at the next change; nil while nobody waits
}

// Status is the status now.
func (b *Board) Status() vmm.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return clone(b.status)
}

// Update changes the status by change and, where that made a difference, counts Seq up and wakes all who wait. After
// the VM has ended it does nothing.
func (b *Board) Update(change func(*vmm.Status)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.status.Phase == vmm.PhaseEnded {
		return
	}
	next := clone(b.status)
	change(&next)
	next.Seq = b.status.Seq
	if reflect.DeepEqual(next, b.status) {
		return
	}
	next.Seq++
	b.set(next)
}

// Set takes over a status that somebody else keeps, where it is newer than what is held.
func (b *Board) Set(s vmm.Status) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.status.Phase != vmm.PhaseEnded && s.Seq > b.status.Seq {
		b.set(clone(s))
	}
}

// set is called with mu held.
func (b *Board) set(s vmm.Status) {
	if over := len(s.Notes) - MaxNotes; over > 0 {
		s.Notes = s.Notes[over:]
	}
	b.status = s
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
}

// Next waits for a status with Seq > after. A VM that has ended has no further one: then it waits for ctx.
func (b *Board) Next(ctx context.Context, after uint64) (vmm.Status, error) {
	for {
		b.mu.Lock()
		s := clone(b.status)
		if s.Seq > after {
			b.mu.Unlock()
			return s, nil
		}
		if b.changed == nil {
			b.changed = make(chan struct{})
		}
		changed := b.changed
		b.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return s, context.Cause(ctx)
		}
	}
}

// clone copies a status so that the two share nothing.
func clone(s vmm.Status) vmm.Status {
	s.Notes = append([]string(nil), s.Notes...)
	if s.End != nil {
		end := *s.End
		s.End = &end
	}
	return s
}
