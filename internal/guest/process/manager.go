// Package process is the one implementation of running commands in a guest.
// A Manager starts processes and keeps their output until a client has it;
// Serve speaks the agent's side of the exec protocol of package wire. It works on any Linux, so
// that fakes and tests run it on the host.
//
// Rules:
//
//   - A process runs in a session of its own; signals go to its process group.
//   - A lost client changes nothing: output waits in bounded rings, then the process blocks.
//     Only OwnerGone hangs a process up; from then on, and for a process started with Detach,
//     output nobody attached for is dropped, oldest first.
//   - The newest attachment wins; an older one ends with wire.ExecTakenOver.
//   - The exit is reported when the process has ended and its output has been read: to the end, or, where
//     a grandchild keeps a pipe open, until nothing came for Config.DrainIdle. What such a grandchild writes
//     later is read and thrown away, so that it does not die of SIGPIPE.
//
// manager.go owns the table of processes, start.go and spawn.go start one, account.go knows
// users, run.go moves output, input and the end of one, serve.go and client.go are a stream.
package process

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// Defaults are what the VM's identity gives to every process.
type Defaults struct {
	// Env is KEY=VALUE, later wins; a request's environment goes over it.
	Env []string
	// WorkDir is where processes start; empty, or not there, for the user's home.
	WorkDir string
	// User is name or uid, and :group; empty for the user the agent runs as.
	User string
	// Cmd runs where a shell is asked for and the guest has none; empty for an error then.
	Cmd []string
}

// Config is what a Manager needs. The zero value is usable.
type Config struct {
	// Log receives what nobody else is told; nil for none.
	Log *slog.Logger
	// Defaults is asked at every start; nil for none.
	Defaults func() Defaults
	// EtcDir holds passwd and group; empty for /etc.
	EtcDir string
	// Started is called with the pid of every new process before anything else is done with it; may be nil.
	Started func(pid int)
	// DrainIdle is how long after a process's end its pipes must be silent; 0 for 100 ms.
	DrainIdle time.Duration
	// MaxProcesses and MaxEnded bound how many run and how many ended ones are kept; 0 for wire's.
	MaxProcesses, MaxEnded int
	// Session serves an attachment to a session, until it ends; fr has read its first frame from conn. The error is told the client
	// where it is a *wire.ExecError. Nil where there are no sessions.
	Session func(ctx context.Context, req wire.ExecAttach, conn net.Conn, fr *wire.FrameReader) error
}

// Manager owns the processes of one guest. Its methods may be called from several goroutines.
type Manager struct {
	cfg Config
	log *slog.Logger

	mu      sync.Mutex // guards what follows; never held together with a proc's
	procs   map[string]*proc
	running int
	ended   []*proc // oldest first
	conns   map[net.Conn]struct{}
	// lingering are pipes that ended processes left open in others.
	lingering map[*os.File]struct{}
	closed    bool
	wg        sync.WaitGroup // goroutines of processes and streams
}

// NewManager returns a Manager without processes.
func NewManager(cfg Config) *Manager {
	cfg.EtcDir = cmp.Or(cfg.EtcDir, "/etc")
	cfg.DrainIdle = cmp.Or(cfg.DrainIdle, 100*time.Millisecond)
	cfg.MaxProcesses = cmp.Or(cfg.MaxProcesses, wire.MaxProcesses)
	cfg.MaxEnded = cmp.Or(cfg.MaxEnded, wire.MaxEnded)
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	unignore()
	return &Manager{cfg: cfg, log: log, procs: map[string]*proc{},
		conns: map[net.Conn]struct{}{}, lingering: map[*os.File]struct{}{}}
}

// unignore takes back that this process ignores signals: what is ignored stays so in the commands it starts, which would
// then not hear an interrupt or a hang-up. A signal that is handled is the default again in a command. This process
// itself goes on as before.
func unignore() {
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGPIPE, syscall.SIGTERM} {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
}

// Start starts a process to which nobody is attached. The error is a *wire.ExecError.
func (m *Manager) Start(req wire.ExecStart) (wire.ExecStarted, error) {
	p, err := m.start(&req)
	if err != nil {
		return wire.ExecStarted{}, err
	}
	return wire.ExecStarted{ID: p.id, PID: p.pid}, nil
}

// List returns every process that runs or has ended and was not collected, ordered by pid.
func (m *Manager) List() []wire.ProcessStatus {
	m.mu.Lock()
	procs := slices.Collect(maps.Values(m.procs))
	m.mu.Unlock()
	out := make([]wire.ProcessStatus, 0, len(procs))
	for _, p := range procs {
		if p.isReady() {
			out = append(out, p.status())
		}
	}
	slices.SortFunc(out, func(a, b wire.ProcessStatus) int { return cmp.Compare(a.PID, b.PID) })
	return out
}

// Signal sends a signal, named as "INT", to a process group. The error is a *wire.ExecError;
// a process that has ended takes any signal.
func (m *Manager) Signal(id, name string) error {
	p, err := m.find(id)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.signal(name)
}

// OwnerGone says that whoever a process was started for will not come back: its process group gets
// SIGHUP, its terminal is hung up, and output nobody attached for is dropped from now on. One that has
// ended is forgotten. The error is a *wire.ExecError.
func (m *Manager) OwnerGone(id string) error {
	p, err := m.find(id)
	if err != nil {
		return err
	}
	if p.hangUp() {
		m.forget(p)
	}
	return nil
}

// Abandon is OwnerGone for a process nobody will ask about again: it is forgotten as soon as it has ended.
func (m *Manager) Abandon(id string) error {
	p, err := m.find(id)
	if err != nil {
		return err
	}
	p.abandoned.Store(true)
	return m.OwnerGone(id)
}

// Wait waits for the end of a process that somebody else collects. The error is a *wire.ExecError or that of ctx.
func (m *Manager) Wait(ctx context.Context, id string) (wire.ExecExit, error) {
	p, err := m.find(id)
	if err != nil {
		return wire.ExecExit{}, err
	}
	select {
	case <-p.done:
		return *p.status().Exit, nil
	case <-ctx.Done():
		return wire.ExecExit{}, context.Cause(ctx)
	}
}

// Connect returns the client's end of an exec stream to m within this process.
func (m *Manager) Connect() net.Conn {
	ours, theirs := net.Pipe()
	go func() { _ = m.Serve(context.Background(), theirs) }()
	return ours
}

// Close kills every process group, ends every stream and waits for both. Starts are refused from then on.
func (m *Manager) Close() error {
	m.mu.Lock()
	m.closed = true
	for conn := range m.conns {
		_ = conn.Close()
	}
	for f := range m.lingering {
		_ = f.Close()
	}
	procs := slices.Collect(maps.Values(m.procs))
	m.mu.Unlock()
	for _, p := range procs {
		if <-p.ready; p.pid != 0 {
			p.end()
		}
	}
	m.wg.Wait()
	return nil
}

// find returns a process that was started.
func (m *Manager) find(id string) (*proc, error) {
	m.mu.Lock()
	p := m.procs[id]
	m.mu.Unlock()
	if p != nil {
		<-p.ready
		if p.pid != 0 {
			return p, nil
		}
	}
	return nil, wire.ExecErrorf(wire.ExecNoProcess, "no process %q", id)
}

// reserve enters a process that is about to be started.
func (m *Manager) reserve(p *proc) *wire.ExecError {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return wire.ExecErrorf(wire.ExecFailed, "the guest is going down")
	case m.procs[p.id] != nil:
		return wire.ExecErrorf(wire.ExecExists, "process %q was started already", p.id)
	case m.running >= m.cfg.MaxProcesses:
		return wire.ExecErrorf(wire.ExecFailed, "%d processes run already", m.running)
	}
	m.procs[p.id] = p
	m.running++
	return nil
}

// unreserve takes back a reservation whose start failed.
func (m *Manager) unreserve(p *proc) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.procs, p.id)
	m.running--
}

// noteEnd keeps an ended process until it is collected, and evicts the oldest beyond MaxEnded.
func (m *Manager) noteEnd(p *proc) {
	m.mu.Lock()
	m.running--
	var evicted []*proc
	switch {
	case m.procs[p.id] != p:
	case p.abandoned.Load():
		delete(m.procs, p.id)
	default:
		m.ended = append(m.ended, p)
		if n := len(m.ended) - m.cfg.MaxEnded; n > 0 {
			evicted = slices.Clone(m.ended[:n])
			m.ended = slices.Delete(m.ended, 0, n)
			for _, old := range evicted {
				delete(m.procs, old.id)
			}
		}
	}
	m.mu.Unlock()
	for _, old := range evicted {
		m.log.Info("process was never collected", "exec", old.id, "pid", old.pid)
	}
}

// forget removes an ended process.
func (m *Manager) forget(p *proc) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.procs[p.id] == p {
		delete(m.procs, p.id)
	}
	m.ended = slices.DeleteFunc(m.ended, func(e *proc) bool { return e == p })
}

// enter counts a stream in, unless m is closed.
func (m *Manager) enter(conn net.Conn) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return net.ErrClosed
	}
	m.conns[conn] = struct{}{}
	m.wg.Add(1)
	return nil
}

func (m *Manager) leave(conn net.Conn) {
	_ = conn.Close()
	m.mu.Lock()
	delete(m.conns, conn)
	m.mu.Unlock()
	m.wg.Done()
}

// closeAll closes files, of which some may be nil.
func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// gone tells whether err says that a file was closed or has ended on its own.
func gone(err error) bool { return err != nil && !errors.Is(err, os.ErrDeadlineExceeded) }
