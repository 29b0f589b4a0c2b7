// Package vm is the life of VMs: it creates, starts, watches, stops and deletes
// them, keeps their records, and brings records and host together again after a
// crash. Everything it touches outside comes in through Config.
//
// The files: states.go has the table of states, create.go, start.go, stop.go
// and delete.go a verb each, watch.go follows running VMs, recover.go is the start
// after a stop or a crash, guest.go what goes on inside a running VM,
// ssh.go how ssh gets there, ports.go what listens there and how it is reached, forwards.go the
// ports of the host that lead there; sessions.go has sessions, session_watch.go keeps their records true, session_socket.go leads to
// them from the host, session_logs.go has what they printed.
package vm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/disk"
	"git.thaloco.com/thaloco/banger/internal/filesync"
	"git.thaloco.com/thaloco/banger/internal/forward"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/sshkeys"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// Config is what a Service needs. Every field is required, where nothing else is said.
type Config struct {
	Records  Records
	Supplies Supplies
	Engine   vmm.Engine
	Network  Network
	Defaults Defaults
	Paths    paths.Paths
	Log      *slog.Logger
	Host     Host
	// Sessions bound the logs of sessions.
	Sessions SessionLimits
	// FileSync is what every new VM gets; may be empty.
	FileSync []filesync.Entry
	// PreviewURL is where a browser on the host reaches a TCP port of a VM, empty where it cannot; nil for nowhere.
	PreviewURL func(vm string, port uint16) string
}

// Host is what the service knows of the host beside its files.
type Host struct {
	// CPUs is how many the host has, MemoryBytes its memory in bytes.
	CPUs        int
	MemoryBytes int64
	// Home is the user's home directory, which is not copied into a VM; may be empty.
	Home string
	// OwnerGone returns a channel that is closed when the process has ended; it is closed
	// already where the process is not there.
	OwnerGone func(ctx context.Context, o api.Owner) <-chan struct{}
	// SSHKey is the key that VMs let their user in with; it is asked for whenever it is needed.
	SSHKey func() (sshkeys.UserKey, error)
	Now    func() time.Time
}

// Service owns all VMs of one daemon.
type Service struct {
	cfg Config
	// ctx ends when the service is closed; what runs in the background hangs on it.
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu    sync.Mutex // guards what follows
	locks map[string]chan struct{}
	live  map[string]*live
	subs  map[chan api.Event]struct{}
	// starting counts the starts of sessions that are under way, by VM and name; sessionChange is closed and replaced when a session has ended.
	starting      map[[2]string]int
	sessionChange chan struct{}

	sockets    sessionSockets
	knownHosts sync.Mutex // held while the file of known hosts is brought up to date

	forwards *forward.Service
	// dialPort connects forwards with guests: beginPort, but for tests.
	dialPort   func(ctx context.Context, nameOrID, network string, port uint16) (net.Conn, error)
	forwarding sync.Mutex // held while recorded forwards and listeners are brought together
}

// live is a VM whose engine runs it.
type live struct {
	machine vmm.Machine
	// carries tells that the guest's agent has carried a port: it is not one that cannot.
	carries atomic.Bool
	// tunnels are the connections to the guest's ports.
	tunnels atomic.Int32
	// firstBoot is held while the guest is given its files.
	firstBoot sync.Mutex
	// ending is closed when the watcher has seen the end, unplugged once the VM joins the network no more, ended when the end is recorded.
	ending, unplugged, ended chan struct{}
	// sessions gets a token when the VM's sessions are to be looked at, unfollowed is closed when nobody does any more.
	sessions, unfollowed chan struct{}

	mu     sync.Mutex // guards status and change
	status vmm.Status
	change chan struct{} // closed and replaced at every change
}

// New returns a service without VMs; Recover finds those of the records.
func New(cfg Config) *Service {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Service{cfg: cfg, ctx: ctx, cancel: cancel, forwards: forward.New(forward.Config{Log: cfg.Log}),
		locks: map[string]chan struct{}{}, live: map[string]*live{}, subs: map[chan api.Event]struct{}{},
		starting: map[[2]string]int{}, sessionChange: make(chan struct{}), sockets: sessionSockets{open: map[[2]string]*sessionSocket{}}}
	s.dialPort = s.beginPort
	return s
}

// Close stops watching and forwarding. The VMs go on.
func (s *Service) Close() {
	s.cancel()
	s.forwards.CloseAll()
	s.tasks.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range maps.Values(s.live) {
		_ = l.machine.Close()
	}
}

// List returns every VM, the oldest first.
func (s *Service) List(ctx context.Context) ([]api.VM, error) {
	recs, err := s.cfg.Records.VMs(ctx)
	if err != nil {
		return nil, err
	}
	vms := make([]api.VM, 0, len(recs))
	for _, r := range recs {
		vms = append(vms, s.view(r))
	}
	return vms, nil
}

// VM returns the VM of that name or id.
func (s *Service) VM(ctx context.Context, nameOrID string) (api.VM, error) {
	rec, err := s.cfg.Records.VM(ctx, nameOrID)
	if err != nil {
		return api.VM{}, err
	}
	return s.view(rec), nil
}

// view joins a record with what only a running VM has.
func (s *Service) view(r store.VM) api.VM {
	vm := api.VM{ID: r.ID, Name: r.Name, State: r.State, Reason: r.Reason, Image: r.Image, ImageDigest: r.ImageDigest,
		Kernel: r.Kernel, KernelDigest: r.KernelDigest, Engine: r.Engine, Accel: r.Accel, CPUs: r.CPUs,
		MemoryBytes: r.MemoryBytes, DiskBytes: r.DiskBytes, Env: r.Env, RemoveOnExit: r.RemoveOnExit,
		Address: r.Address, Forwards: r.Forwards, HostPorts: r.HostPorts, CreatedAt: r.CreatedAt, StartedAt: r.StartedAt}
	if _, used, err := disk.Usage(filepath.Join(s.cfg.Paths.VM(r.ID), paths.VMData)); err == nil {
		vm.DiskUsedBytes = used
	}
	if l := s.running(r.ID); l != nil {
		st := l.now()
		vm.Mark, vm.VMMPID, vm.SupervisorPID = st.Mark, st.VMMPID, st.SupervisorPID
		vm.Restarts = max(st.Boots-1, 0)
		if st.Seq > 0 { // the engine is right even where the disk is too full to record it
			vm.State, vm.Reason = derive(r.State, st)
		}
	}
	return vm
}

// Events calls fn for every event from now on, until ctx ends. A receiver that is
// too slow misses events.
func (s *Service) Events(ctx context.Context, fn func(api.Event) error) error {
	ch := make(chan api.Event, 64)
	s.mu.Lock()
	s.subs[ch] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.subs, ch)
		s.mu.Unlock()
	}()
	for {
		select {
		case ev := <-ch:
			if err := fn(ev); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		case <-s.ctx.Done():
			return nil
		}
	}
}

// emit records an event and tells it to who listens.
func (s *Service) emit(kind, vm, text string) {
	ev, err := s.cfg.Records.AddEvent(context.WithoutCancel(s.ctx),
		api.Event{Time: s.cfg.Host.Now(), Kind: kind, VM: vm, Text: text})
	if err != nil {
		s.cfg.Log.Error("record event", "vm", vm, "kind", kind, "err", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for ch := range s.subs {
		select {
		case ch <- ev:
		default:
		}
	}
}

// move applies an event to the recorded state of a VM.
func (s *Service) move(ctx context.Context, id string, ev event, reason string) (store.VM, error) {
	rec, err := s.cfg.Records.UpdateVM(context.WithoutCancel(ctx), id, func(r *store.VM) error {
		to, err := next(r.State, ev)
		if err != nil {
			return api.Errorf(api.KindConflict, "%s vm %q: %w", ev, r.Name, err)
		}
		r.State, r.Reason = to, reason
		return nil
	})
	if err == nil {
		s.emit("vm.state", rec.Name, string(rec.State))
	}
	return rec, err
}

// lock waits for the right to change the VM id, and returns what gives it back.
func (s *Service) lock(ctx context.Context, id string) (unlock func(), err error) {
	s.mu.Lock()
	l, ok := s.locks[id]
	if !ok {
		l = make(chan struct{}, 1)
		s.locks[id] = l
	}
	s.mu.Unlock()
	select {
	case l <- struct{}{}:
		return func() { <-l }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// running returns the live part of a VM, nil where it does not run.
func (s *Service) running(id string) *live {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live[id]
}

// now is the last status seen.
func (l *live) now() vmm.Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status
}

func (l *live) set(st vmm.Status) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status = st
	close(l.change)
	l.change = make(chan struct{})
}

// until waits for a status that ok accepts. The caller sees the end as a status like any other.
func (l *live) until(ctx context.Context, ok func(vmm.Status) bool) (vmm.Status, error) {
	for {
		l.mu.Lock()
		st, change := l.status, l.change
		l.mu.Unlock()
		if ok(st) {
			return st, nil
		}
		select {
		case <-change:
		case <-ctx.Done():
			return st, context.Cause(ctx)
		}
	}
}

// undo is a stack of what to take back when a piece of work fails half-way.
type undo struct{ steps []func(context.Context) error }

func (u *undo) push(step func(context.Context) error) { u.steps = append(u.steps, step) }

// run takes everything back, the last first, without the caller's cancellation, and joins what goes wrong to err.
func (u *undo) run(ctx context.Context, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	for _, step := range slices.Backward(u.steps) {
		if e := step(ctx); e != nil {
			err = errors.Join(err, fmt.Errorf("undo: %w", e))
		}
	}
	u.steps = nil
	return err
}

// note tells a reporter each note of a status it has not told yet.
func note(rep progress.Reporter, st vmm.Status, told int) int {
	for _, n := range st.Notes[min(told, len(st.Notes)):] {
		rep.Note(n)
	}
	return max(told, len(st.Notes))
}
