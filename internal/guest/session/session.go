// Package session is the agent's side of sessions: commands with a name, which go on
// without any client. It runs them by package process, whose only client it is itself, writes what they print to a
// package journal on the guest's disk, and serves attachments, which read that from where they want.
//
// Rules:
//
//   - One attachment writes, any number read. Who writes is never made to lose output it has not acknowledged: where
//     the journal would drop that, the process is not read until it has. Everybody else gets the oldest dropped, and is told how much.
//   - A writer whose connection broke keeps its place for Grace, unless another one asks for it; one that detached does not.
//   - Of an ended session log and end stay until it is removed, in this boot and later ones. The oldest go beyond wire.MaxEndedSessions.
//   - A session without an end on the disk was cut off by the end of the guest.
//
// session.go owns the table, disk.go what is kept, run.go runs one session, attach.go serves an attachment.
package session

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/journal"
	"git.thaloco.com/thaloco/banger/internal/guest/process"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// Grace is how long a writer may be without a connection and still keep its place.
const Grace = 30 * time.Second

// Config is what New needs.
type Config struct {
	// Dir is a directory for sessions only. It is closed by Close.
	Dir       *os.Root
	Processes *process.Manager
	// Log receives what nobody else is told; nil for none.
	Log *slog.Logger
	// Now is the clock; nil for that of the system.
	Now func() time.Time
	// Grace is how long a writer may be without a connection; 0 for the constant.
	Grace time.Duration
}

// Sessions are those of one guest. The methods may be called from several goroutines.
type Sessions struct {
	cfg Config
	wg  sync.WaitGroup

	mu      sync.Mutex // guards what follows; never taken with a session's held
	all     map[string]*session
	seq     uint64
	changed chan struct{}
	closed  bool
}

// New returns the sessions of a guest: those of earlier boots have ended.
func New(cfg Config) (*Sessions, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Grace = cmp.Or(cfg.Grace, Grace)
	s := &Sessions{cfg: cfg, all: map[string]*session{}, changed: make(chan struct{}), seq: max(1, uint64(cfg.Now().UnixNano()))}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("read earlier sessions: %w", err)
	}
	s.evict()
	return s, nil
}

// Start starts a session. The error is a *wire.ExecError.
func (s *Sessions) Start(ctx context.Context, req wire.SessionStart) (wire.SessionStatus, error) {
	if err := validate(req); err != nil {
		return wire.SessionStatus{}, err
	}
	e := newSession(s, req)
	if err := s.reserve(e); err != nil {
		return wire.SessionStatus{}, err
	}
	if err := e.start(ctx, req); err != nil {
		s.mu.Lock()
		delete(s.all, e.name)
		s.mu.Unlock()
		var x *wire.ExecError
		if !errors.As(err, &x) {
			x = wire.ExecErrorf(wire.ExecFailed, "start session %q: %v", req.Name, err)
		}
		return wire.SessionStatus{}, x
	}
	s.bump()
	return e.status(), nil
}

func validate(req wire.SessionStart) *wire.ExecError {
	switch {
	case !wire.ValidSessionName(req.Name):
		return wire.ExecErrorf(wire.ExecInvalid, "session name %.80q is not valid", req.Name)
	case !wire.ValidSessionStdin(req.Stdin):
		return wire.ExecErrorf(wire.ExecInvalid, "stdin mode %.40q is none of none, pipe, pty", req.Stdin)
	}
	return nil
}

// reserve enters a session that is about to be started.
func (s *Sessions) reserve(e *session) *wire.ExecError {
	s.mu.Lock()
	defer s.mu.Unlock()
	running := 0
	for _, other := range s.all {
		if !other.hasEnded() {
			running++
		}
	}
	switch {
	case s.closed:
		return wire.ExecErrorf(wire.ExecFailed, "the guest is going down")
	case s.all[e.name] != nil:
		return wire.ExecErrorf(wire.ExecExists, "there is a session %q already", e.name)
	case running >= wire.MaxSessions:
		return wire.ExecErrorf(wire.ExecFailed, "%d sessions run already", running)
	}
	s.all[e.name] = e
	return nil
}

// bump tells who waits that something has changed.
func (s *Sessions) bump() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	close(s.changed)
	s.changed = make(chan struct{})
}

// List returns every session, the oldest first.
func (s *Sessions) List() wire.SessionList {
	s.mu.Lock()
	list := wire.SessionList{Seq: s.seq, Sessions: []wire.SessionStatus{}}
	all := make([]*session, 0, len(s.all))
	for _, e := range s.all {
		all = append(all, e)
	}
	s.mu.Unlock()
	for _, e := range all {
		if e.isUp() {
			list.Sessions = append(list.Sessions, e.status())
		}
	}
	slices.SortFunc(list.Sessions, func(a, b wire.SessionStatus) int {
		return cmp.Or(a.StartedAt.Compare(b.StartedAt), cmp.Compare(a.Name, b.Name))
	})
	return list
}

// Wait returns the list once its Seq is another one than after, or ctx has ended.
func (s *Sessions) Wait(ctx context.Context, after uint64) wire.SessionList {
	for {
		s.mu.Lock()
		seq, changed := s.seq, s.changed
		s.mu.Unlock()
		if seq != after {
			return s.List()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return s.List()
		}
	}
}

// find returns a session. The error is a *wire.ExecError.
func (s *Sessions) find(name string) (*session, error) {
	s.mu.Lock()
	e := s.all[name]
	s.mu.Unlock()
	if e == nil || !e.isUp() {
		return nil, wire.ExecErrorf(wire.ExecNoSession, "no session %.80q", name)
	}
	return e, nil
}

// Signal signals the process group of a session; one that has ended takes any signal. After KILL nobody is waited for any more.
func (s *Sessions) Signal(name, signal string) error {
	e, err := s.find(name)
	if err != nil {
		return err
	}
	if e.hasEnded() {
		return nil
	}
	if signal == "KILL" {
		e.letGo()
	}
	err = s.cfg.Processes.Signal(e.meta.ID, signal)
	var x *wire.ExecError
	if errors.As(err, &x) && x.Code == wire.ExecNoProcess {
		return nil // it ends at this moment
	}
	return err
}

// Remove removes an ended session with its log; one that runs is refused.
func (s *Sessions) Remove(name string) error {
	e, err := s.find(name)
	if err != nil {
		return err
	}
	if !e.hasEnded() {
		return wire.ExecErrorf(wire.ExecExists, "session %q runs", name)
	}
	gone, err := s.setAside(e)
	if err != nil {
		return fmt.Errorf("remove session %q: %w", name, err)
	}
	e.close()
	s.bump()
	if err := s.cfg.Dir.RemoveAll(gone); err != nil {
		return fmt.Errorf("remove session %q: %w", name, err)
	}
	return nil
}

// setAside frees the name of a session, in the table and on the disk at once, and returns what its directory is called from then on:
// not as any session is, so that the next boot removes it where this one cannot.
func (s *Sessions) setAside(e *session) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[e.name] != e {
		return "", wire.ExecErrorf(wire.ExecNoSession, "no session %.80q", e.name)
	}
	gone := ".gone-" + exec.NewID()
	if err := s.cfg.Dir.Rename(e.name, gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	delete(s.all, e.name)
	return gone, nil
}

// Log prints the log of a session; with follow until it has ended or ctx has.
func (s *Sessions) Log(ctx context.Context, name string, w io.Writer, opts journal.Print, follow bool) error {
	e, err := s.find(name)
	if err != nil {
		return err
	}
	j, release, err := e.openJournal()
	if err != nil {
		return err
	}
	defer release()
	if follow {
		opts.Ended = e.done
	}
	return j.Log(ctx, w, opts)
}

// evict removes the oldest ended sessions beyond the bound.
func (s *Sessions) evict() {
	var ended []*session
	s.mu.Lock()
	for _, e := range s.all {
		if e.isUp() && e.hasEnded() {
			ended = append(ended, e)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(ended, func(a, b *session) int { return a.endedAt().Compare(b.endedAt()) })
	for _, e := range ended[:max(0, len(ended)-wire.MaxEndedSessions)] {
		if err := s.Remove(e.name); err != nil {
			s.cfg.Log.Warn("remove an old session", "session", e.name, "error", err)
		}
	}
}

// Close lets go of the directory, once the processes have been ended by who owns them.
func (s *Sessions) Close() error {
	s.mu.Lock()
	s.closed = true
	all := make([]*session, 0, len(s.all))
	for _, e := range s.all {
		all = append(all, e)
	}
	s.mu.Unlock()
	for _, e := range all {
		e.letGo()
		e.disconnect()
	}
	s.wg.Wait()
	for _, e := range all {
		e.close()
	}
	return s.cfg.Dir.Close()
}

// runOptions are what a session's process is run with.
func (e *session) runOptions(req wire.SessionStart, started func(wire.ExecStarted)) exec.Options {
	o := exec.Options{
		Dial: dial(e.table.cfg.Processes),
		Start: wire.ExecStart{ID: req.ID, Argv: req.Argv, Dir: req.Dir, Env: req.Env, User: req.User,
			PTY: req.Stdin == wire.SessionPTY, Rows: req.Rows, Cols: req.Cols},
		Stdout: sink{e, 0}, Stderr: sink{e, 1}, Resize: e.sizes, ReconnectFor: -1, OnStarted: started,
	}
	if req.Stdin != wire.SessionNone {
		o.Stdin = source{e}
	}
	return o
}
