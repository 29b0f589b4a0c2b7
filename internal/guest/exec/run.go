package exec

import (
	"cmp"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// Times of a run.
const (
	defaultReconnect = 30 * time.Second
	firstBackoff     = 5 * time.Millisecond
	maxBackoff       = time.Second
	answerTimeout    = 20 * time.Second // for the agent's answer to a start or an attach
	pipeGrace        = time.Second      // between SIGPIPE, SIGHUP and giving up after a broken Stdout
)

// run is a command over all its connections.
type run struct {
	opts Options
	id   string

	// Used by the goroutine that reads the connection only.
	started  bool      // the agent confirmed it once
	tried    bool      // a start was sent
	retried  bool      // more than one was
	attached bool      // the next connection attaches instead of starting
	got      [2]uint64 // of stdout and stderr, delivered
	readOnly bool      // of a session: what Stdin has is thrown away
	out      [2]io.Writer

	mu      sync.Mutex // guards what follows
	in      *wire.Ring // stdin from the first byte not acknowledged
	inEOF   bool       // Stdin has ended
	deaf    bool       // a session takes no stdin: what Stdin has is thrown away
	room    *sync.Cond // in has room, or closed
	closed  bool       // Run returns
	signals []string   // not sent yet
	size    *Size      // not sent yet
	broken  error      // of Stdout or Stderr
	conn    *conn      // in use, or nil

	gaveUp chan struct{} // closed when a command whose output is broken has had its time
}

func newRun(opts Options) *run {
	r := &run{opts: opts, id: cmp.Or(opts.AttachID, opts.Start.ID), in: wire.NewRing(0, wire.StdinWindow), gaveUp: make(chan struct{})}
	r.room = sync.NewCond(&r.mu)
	if r.id == "" {
		r.id = NewID()
	}
	r.attached = opts.AttachID != "" || opts.Session != nil
	r.opts.Start.Version, r.opts.Start.ID = wire.Version, r.id
	if opts.Stdin == nil && !r.attached {
		r.opts.Start.NoStdin = true
	}
	for i, w := range []io.Writer{opts.Stdout, opts.Stderr} {
		if r.out[i] = w; w == nil {
			r.out[i] = io.Discard
		}
	}
	return r
}

// stop lets go of the goroutine that reads Stdin.
func (r *run) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.room.Signal()
}

// run dials until the command has ended or there is no way back to it.
func (r *run) run(ctx context.Context) (wire.ExecExit, error) {
	go r.relay(ctx)
	patience := cmp.Or(r.opts.ReconnectFor, defaultReconnect)
	var lostAt time.Time
	backoff := firstBackoff
	for first := true; ; first = false {
		exit, progress, err := r.once(ctx)
		switch {
		case err == nil:
			return exit, r.brokenOutput()
		case ctx.Err() != nil:
			return wire.ExecExit{}, context.Cause(ctx)
		case r.brokenOutput() != nil:
			return wire.ExecExit{}, r.brokenOutput()
		case first && !r.started && errors.As(err, new(*dialError)):
			return wire.ExecExit{}, errors.Unwrap(err)
		case final(err):
			return wire.ExecExit{}, unwrapDial(err)
		}
		if progress || lostAt.IsZero() {
			lostAt, backoff = time.Now(), firstBackoff
			r.tell(StateReconnecting, err)
		}
		if patience < 0 || time.Since(lostAt) > patience {
			return wire.ExecExit{}, &LostError{ID: r.id, Started: r.started, Err: unwrapDial(err)}
		}
		select {
		case <-time.After(backoff):
			backoff = min(2*backoff, maxBackoff)
		case <-ctx.Done():
			return wire.ExecExit{}, context.Cause(ctx)
		}
	}
}

// once makes one connection and uses it until the command has ended (nil error) or it breaks.
// It tells whether it got as far as being attached.
func (r *run) once(ctx context.Context) (exit wire.ExecExit, progress bool, err error) {
	nc, err := r.opts.Dial(ctx)
	if err != nil {
		return exit, false, &dialError{err}
	}
	c := newConn(r, nc)
	type result struct {
		exit wire.ExecExit
		err  error
	}
	done := make(chan result, 1)
	go func() {
		exit, err := c.serve()
		done <- result{exit, err}
	}()
	select {
	case res := <-done:
		return res.exit, c.attached, r.turn(res.err)
	case <-r.gaveUp:
		if c.close() {
			return exit, false, r.brokenOutput() // the other output blocks
		}
	case <-ctx.Done():
		c.detach()
		if c.close() {
			// A Write to Stdout or Stderr blocks, perhaps for ever: whoever ended ctx does not wait for it.
			return exit, false, context.Cause(ctx)
		}
	}
	res := <-done
	return res.exit, c.attached, res.err
}

// turn looks at why a connection ended before the agent had confirmed the start: where nobody knows whether
// it arrived, attach and start take turns until one of them fits.
func (r *run) turn(err error) error {
	switch {
	case r.started || r.opts.AttachID != "" || r.opts.Session != nil:
	case isExec(err, wire.ExecNoProcess):
		r.attached = false
		return errRetry
	case isExec(err, wire.ExecExists) && r.retried:
		r.attached = true
		return errRetry
	}
	return err
}

// relay takes in signals and sizes for as long as the run lasts.
func (r *run) relay(ctx context.Context) {
	resize, signals := r.opts.Resize, r.opts.Signals
	for {
		select {
		case <-ctx.Done():
			return
		case s, ok := <-resize:
			if !ok {
				resize = nil
				continue
			}
			r.post(func() { r.size = &s })
		case name, ok := <-signals:
			if !ok {
				signals = nil
				continue
			}
			r.post(func() {
				if len(r.signals) < maxSignals {
					r.signals = append(r.signals, name)
				}
			})
		}
	}
}

// maxSignals is how many signals wait for a connection.
const maxSignals = 64

// post changes what is to be sent, and lets the connection send it.
func (r *run) post(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
	if r.conn != nil {
		r.conn.news.Signal()
	}
}

// feed reads Stdin into the window. That of a session is read also where nothing of it is sent: only who reads it learns that its other end
// has left, or typed what leaves.
func (r *run) feed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		for r.in.Full() && !r.closed {
			r.room.Wait()
		}
		if r.closed {
			return
		}
		room := r.in.Reserve()
		r.mu.Unlock()
		n, err := r.opts.Stdin.Read(room)
		r.mu.Lock()
		r.in.Commit(n)
		r.inEOF = err != nil
		if r.conn != nil {
			r.conn.news.Signal()
		}
		if err != nil {
			return
		}
	}
}

func (r *run) brokenOutput() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken == nil {
		return nil
	}
	return &OutputError{Err: r.broken}
}

func (r *run) tell(s State, err error) {
	if r.opts.OnState != nil {
		r.opts.OnState(s, err)
	}
}

// dialError marks an error as that of Dial.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

func unwrapDial(err error) error {
	if d, ok := errors.AsType[*dialError](err); ok {
		return d.error
	}
	return err
}

// errRetry says that the next connection may succeed at once.
var errRetry = errors.New("try again")

// final tells whether there is no use in dialling again.
func final(err error) bool {
	if errors.Is(err, wire.ErrProtocol) || errors.Is(err, ErrInputLeft) || errors.As(err, new(*wire.ExecError)) {
		return true
	}
	if !errors.As(err, new(*api.Error)) {
		return false
	}
	switch api.KindOf(err) {
	case api.KindNotFound, api.KindConflict, api.KindInvalid, api.KindVersion:
		return true
	}
	return false
}
