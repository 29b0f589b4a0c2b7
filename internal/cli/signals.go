package cli

import (
	"os"
	"sync"
	"time"
)

// againWithin is how soon after the first a second signal ends what the first was to end gently.
const againWithin = 2 * time.Second

// dispatcher hands signals to whoever is in charge of them: the last who took them.
type dispatcher struct {
	mu       sync.Mutex
	handlers []*func(os.Signal) // guarded by mu; the first is the fall-back
}

func newDispatcher(fallback func(os.Signal)) *dispatcher {
	return &dispatcher{handlers: []*func(os.Signal){&fallback}}
}

// run dispatches what comes from sigs until stop is called.
func (d *dispatcher) run(sigs <-chan os.Signal) (stop func()) {
	done := make(chan struct{})
	go func() {
		for {
			select {
			case s := <-sigs:
				d.dispatch(s)
			case <-done:
				return
			}
		}
	}()
	return sync.OnceFunc(func() { close(done) })
}

func (d *dispatcher) dispatch(s os.Signal) {
	d.mu.Lock()
	h := *d.handlers[len(d.handlers)-1]
	d.mu.Unlock()
	h(s)
}

// take returns a channel of the signals from now on, until release is called. It holds a few;
// more than that are dropped.
func (d *dispatcher) take() (sigs <-chan os.Signal, release func()) {
	ch := make(chan os.Signal, 8)
	h := func(s os.Signal) {
		select {
		case ch <- s:
		default:
		}
	}
	d.mu.Lock()
	d.handlers = append(d.handlers, &h)
	d.mu.Unlock()
	return ch, sync.OnceFunc(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		for i, other := range d.handlers {
			if other == &h {
				d.handlers = append(d.handlers[:i:i], d.handlers[i+1:]...)
				return
			}
		}
	})
}

// repeats tells a second signal from a first.
type repeats struct {
	now  func() time.Time
	last time.Time
}

// again reports whether this signal follows the one before it within againWithin.
func (r *repeats) again() bool {
	now := r.now()
	second := !r.last.IsZero() && now.Sub(r.last) <= againWithin
	r.last = now
	return second
}
