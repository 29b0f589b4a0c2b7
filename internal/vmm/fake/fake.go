// Package fake is an engine without a VMM, for unit tests of what is built on
// engines: its machines are goroutines, their guests are fakeguests, so that commands of a guest run on the
// host. A machine outlives the Engine value that started it as long as the Host both share.
package fake

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/fakeguest"
	"git.thaloco.com/thaloco/banger/internal/vmm/frames"
	"git.thaloco.com/thaloco/banger/internal/vmm/watch"
)

// Host is where fake machines live. Engines come and go on it, as daemons do on a real one.
type Host struct {
	mu       sync.Mutex // guards what follows
	machines map[string]*body
	pid      int
	steps    int
	failAt   int
	failWith error
}

// NewHost returns a host without machines.
func NewHost() *Host { return &Host{machines: map[string]*body{}, pid: 1000} }

// FailAt makes the n-th step of an engine or a machine from now on fail with err, counted from 1; the steps after it work.
// Every Start, Attach, Dial, OpenLink, Pause, Resume, ResizeDrive and Kill is one step.
func (h *Host) FailAt(n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.steps, h.failAt, h.failWith = 0, n, err
}

// step counts a step.
func (h *Host) step() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.steps++; h.steps == h.failAt {
		return h.failWith
	}
	return nil
}

// String lists the machines that have not ended: base name of the directory and phase, in order.
func (h *Host) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for dir, b := range h.machines {
		if st := b.board.Status(); st.Phase != vmm.PhaseEnded {
			out = append(out, filepath.Base(dir)+" "+string(st.Phase))
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// Close ends every machine. Tests call it when they end.
func (h *Host) Close() {
	h.mu.Lock()
	var all []*body
	for _, b := range h.machines {
		all = append(all, b)
	}
	h.mu.Unlock()
	for _, b := range all {
		b.end(vmm.EndKilled, "")
	}
}

// Lose ends the machine in dir as the death of its supervisor does; false where none runs.
func (h *Host) Lose(dir string) bool {
	h.mu.Lock()
	b := h.machines[dir]
	h.mu.Unlock()
	return b != nil && b.end(vmm.EndLost, "the test lost it")
}

// Engine is an engine on a Host.
type Engine struct {
	Host *Host
	// Silent guests never call, and so never get a mark.
	Silent bool
	// Log receives what guests say; nil for none.
	Log *slog.Logger
}

var _ vmm.Engine = (*Engine)(nil)

// Start implements vmm.Engine.
func (e *Engine) Start(ctx context.Context, dir string, spec vmm.Spec) (vmm.Machine, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := e.Host.step(); err != nil {
		return nil, err
	}
	if err := check(dir, spec); err != nil {
		return nil, err
	}
	log := e.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	h := e.Host
	h.mu.Lock()
	defer h.mu.Unlock()
	if b := h.machines[dir]; b != nil && b.board.Status().Phase != vmm.PhaseEnded {
		return nil, api.Errorf(api.KindConflict, "it runs already")
	}
	b := &body{host: h, dir: dir, spec: spec, silent: e.Silent, log: log}
	h.pid++
	supervisor := h.pid
	if err := b.plugIn(); err != nil {
		return nil, err
	}
	if err := b.boot(); err != nil {
		return nil, err
	}
	h.machines[dir] = b
	b.started(h.nextPID(), supervisor)
	return newMachine(b), nil
}

// nextPID is called with mu held.
func (h *Host) nextPID() int {
	h.pid++
	return h.pid
}

// Attach implements vmm.Engine.
func (e *Engine) Attach(_ context.Context, dir string) (vmm.Machine, error) {
	if err := e.Host.step(); err != nil {
		return nil, fmt.Errorf("attach to the VM in %q: %w", dir, err)
	}
	e.Host.mu.Lock()
	b := e.Host.machines[dir]
	e.Host.mu.Unlock()
	if b == nil {
		return nil, &vmm.GoneError{Dir: dir}
	}
	if st := b.board.Status(); st.Phase == vmm.PhaseEnded {
		return nil, &vmm.GoneError{Dir: dir, End: st.End}
	}
	return newMachine(b), nil
}

// check refuses what a real engine could not start.
func check(dir string, spec vmm.Spec) error {
	if spec.Version != vmm.SpecVersion || spec.CPUs < 1 || spec.MemoryMiB < 128 {
		return api.Errorf(api.KindInvalid, "version %d, %d CPUs, %d MiB of memory", spec.Version, spec.CPUs, spec.MemoryMiB)
	}
	files := append([]string{spec.Binary, spec.Kernel}, spec.Initramfs...)
	for _, d := range spec.Drives {
		files = append(files, d.Path)
	}
	for _, f := range files {
		if f != "" && !filepath.IsAbs(f) {
			f = filepath.Join(dir, f)
		}
		if _, err := os.Stat(f); err != nil {
			return err
		}
	}
	return nil
}

// body is a machine, however many hold it.
type body struct {
	host   *Host
	dir    string
	spec   vmm.Spec
	silent bool
	log    *slog.Logger
	board  watch.Board

	// frames are the ends of the network, nil for a VM without one.
	hostFrames, vmFrames *os.File

	mu    sync.Mutex // guards guest, conns and link, serialises ends and boots
	guest *fakeguest.Guest
	conns []net.Conn
	link  *frames.Link // opened last
	over  bool
}

// boot starts the guest; called with mu held, or before anybody else knows b.
func (b *body) boot() (err error) {
	b.guest, err = fakeguest.New(fakeguest.Config{
		Dir: filepath.Join(b.dir, "fakeguest"), Identity: b.spec.Identity, Log: b.log,
		// The guest cannot be closed from its own goroutine.
		OnVerb: func(verb string) { go b.verb(verb) },
	})
	return err
}

// started tells that a boot runs.
func (b *body) started(pid, supervisor int) {
	b.board.Update(func(st *vmm.Status) {
		st.Phase, st.VMMPID, st.SupervisorPID, st.Boots = vmm.PhaseRunning, pid, supervisor, st.Boots+1
		st.PauseReason, st.Mark, st.Agent, st.Init, st.Ending = "", api.MarkNone, "", "", ""
	})
	if !b.silent {
		b.board.Update(func(st *vmm.Status) { st.Agent, st.Init, st.Mark = fakeguest.Version, "none", api.MarkFull })
	}
}

// verb does what the guest asked for.
func (b *body) verb(verb string) {
	if verb != fakeguest.VerbPanic {
		b.board.Update(func(st *vmm.Status) { st.Ending = verb })
	}
	switch verb {
	case "poweroff":
		b.end(vmm.EndPoweroff, "")
	case "halt":
		b.end(vmm.EndHalt, "")
	case fakeguest.VerbPanic:
		b.end(vmm.EndUnexpected, "the guest was reset")
	case "reboot":
		b.reboot()
	}
}

func (b *body) reboot() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return
	}
	b.hangUp()
	supervisor := b.board.Status().SupervisorPID
	if err := b.boot(); err != nil {
		b.over = true
		b.note(vmm.EndStart, err.Error())
		return
	}
	b.host.mu.Lock()
	pid := b.host.nextPID()
	b.host.mu.Unlock()
	b.started(pid, supervisor)
}

// hangUp ends the guest and what is connected to it; called with mu held.
func (b *body) hangUp() {
	b.guest.Close()
	for _, c := range b.conns {
		c.Close()
	}
	b.conns = nil
}

// end ends the machine; false where it has ended before.
func (b *body) end(cause vmm.EndCause, detail string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return false
	}
	b.over = true
	b.hangUp()
	b.unplug()
	b.note(cause, detail)
	return true
}

// note puts the end on the board.
func (b *body) note(cause vmm.EndCause, detail string) {
	b.board.Update(func(st *vmm.Status) {
		st.Phase, st.PauseReason, st.VMMPID = vmm.PhaseEnded, "", 0
		st.End = &vmm.End{Cause: cause, Detail: detail, At: time.Now().UTC()}
	})
}

// machine is one holder of a body.
type machine struct {
	*body
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
}

func newMachine(b *body) *machine {
	m := &machine{body: b}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m
}

// Status implements vmm.Machine.
func (m *machine) Status() vmm.Status { return m.board.Status() }

// Next implements vmm.Machine.
func (m *machine) Next(ctx context.Context, after uint64) (vmm.Status, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(m.ctx, func() { cancel(net.ErrClosed) })
	defer stop()
	return m.board.Next(ctx, after)
}

// op begins an operation on a machine that runs.
func (m *machine) op(what string) error {
	if err := m.host.step(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if m.board.Status().Phase == vmm.PhaseEnded {
		return api.Errorf(api.KindConflict, "%s: the VM has ended", what)
	}
	return nil
}

// Dial implements vmm.Machine. A paused guest does not answer.
func (m *machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if err := m.op("dial"); err != nil {
		return nil, err
	}
	st := m.board.Status()
	for st.Phase == vmm.PhasePaused {
		var err error
		if st, err = m.Next(ctx, st.Seq); err != nil {
			return nil, fmt.Errorf("dial port %d: %w", port, err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over {
		return nil, api.Errorf(api.KindConflict, "dial port %d: the VM has ended", port)
	}
	ours, theirs := net.Pipe()
	if m.silent || !m.guest.Accept(port, theirs) {
		ours.Close()
		theirs.Close()
		return nil, fmt.Errorf("dial port %d: %w", port, vmm.ErrRefused)
	}
	m.conns = append(m.conns, ours)
	return ours, nil
}

// plugIn makes the network of a VM that has one, and a guest on it.
func (b *body) plugIn() (err error) {
	n := b.spec.Identity.Network
	if n == nil {
		return nil
	}
	if b.hostFrames, b.vmFrames, err = frames.Pair(); err != nil {
		return err
	}
	guest, err := frames.NewLink(b.vmFrames, nil)
	if err != nil {
		return err
	}
	go func() {
		if err := fakeguest.ServeNetwork(guest, *n); !errors.Is(err, net.ErrClosed) {
			b.log.Error("the fake guest's network ended", "err", err)
		}
	}()
	return nil
}

// unplug ends the network; called with mu held.
func (b *body) unplug() {
	if b.hostFrames == nil {
		return
	}
	if b.link != nil {
		_ = b.link.Close()
	}
	_ = b.hostFrames.Close()
	_ = b.vmFrames.Close()
}

// OpenLink implements vmm.Machine.
func (m *machine) OpenLink(context.Context) (vmm.Link, error) {
	if err := m.op("open the network"); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hostFrames == nil {
		return nil, api.Errorf(api.KindConflict, "the VM was started without a network")
	}
	if m.over {
		return nil, api.Errorf(api.KindConflict, "open the network: the VM has ended")
	}
	rc, err := m.hostFrames.SyscallConn()
	if err != nil {
		return nil, err
	}
	dup := -1
	var dupErr error
	err = rc.Control(func(fd uintptr) { dup, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(err, dupErr); err != nil {
		return nil, err
	}
	link, err := frames.NewLink(os.NewFile(uintptr(dup), "frames"), nil)
	if err != nil {
		return nil, err
	}
	if m.link != nil {
		_ = m.link.Close()
	}
	m.link = link
	return link, nil
}

// Pause implements vmm.Machine.
func (m *machine) Pause(context.Context) error {
	if err := m.op("pause"); err != nil {
		return err
	}
	m.board.Update(func(st *vmm.Status) {
		if st.Phase == vmm.PhaseRunning {
			st.Phase, st.PauseReason = vmm.PhasePaused, "asked"
		}
	})
	return nil
}

// Resume implements vmm.Machine.
func (m *machine) Resume(context.Context) error {
	if err := m.op("resume"); err != nil {
		return err
	}
	m.board.Update(func(st *vmm.Status) {
		if st.Phase == vmm.PhasePaused {
			st.Phase, st.PauseReason = vmm.PhaseRunning, ""
		}
	})
	return nil
}

// ResizeDrive implements vmm.Machine.
func (m *machine) ResizeDrive(_ context.Context, id string) error {
	if err := m.op("resize"); err != nil {
		return err
	}
	if !slices.ContainsFunc(m.spec.Drives, func(d vmm.Drive) bool { return d.ID == id }) {
		return fmt.Errorf("resize drive %q: %w", id, fs.ErrNotExist)
	}
	return nil
}

// Kill implements vmm.Machine.
func (m *machine) Kill(context.Context) error {
	if err := m.host.step(); err != nil {
		return fmt.Errorf("kill: %w", err)
	}
	m.end(vmm.EndKilled, "")
	return nil
}

// Close implements vmm.Machine.
func (m *machine) Close() error {
	m.cancel()
	return nil
}
