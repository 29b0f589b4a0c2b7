package supervise

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/hostproc"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"golang.org/x/sys/unix"
)

// undoTimeout is how long a supervisor whose start was given up may take to end by itself.
const undoTimeout = 10 * time.Second

// Engine starts VMs by starting supervisors. It implements vmm.Engine.
type Engine struct {
	// Binary is the program whose subcommand Command is Main: bangerd.
	Binary string
	// Log receives what no caller is told; required.
	Log *slog.Logger
	// Args are further arguments of the supervisor; for tests.
	Args []string
	// Env is the supervisor's environment beside its own settings; nil for the caller's.
	Env []string

	mu       sync.Mutex // guards starting
	starting map[string]bool
}

var _ vmm.Engine = (*Engine)(nil)

// claim makes the caller the only one that starts the VM in dir: each puts files there, and takes them away where it fails.
func (e *Engine) claim(dir string) (release func(), err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.starting[dir] {
		return nil, api.Errorf(api.KindConflict, "it is just being started")
	}
	if e.starting == nil {
		e.starting = map[string]bool{}
	}
	e.starting[dir] = true
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.starting, dir)
	}, nil
}

// Start implements vmm.Engine.
func (e *Engine) Start(ctx context.Context, dir string, spec vmm.Spec) (_ vmm.Machine, err error) {
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	release, err := e.claim(dir)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := refuseRunning(ctx, dir); err != nil {
		return nil, err
	}
	leftovers := append(transient(), paths.VMEnd, paths.VMSupervisor)
	if err := remove(dir, leftovers...); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, remove(dir, append(leftovers, paths.VMSpec)...))
		}
	}()
	if err := writeJSON(dir, paths.VMSpec, spec, false); err != nil {
		return nil, err
	}
	proc, err := e.spawn(dir)
	if err != nil {
		return nil, err
	}
	defer proc.ready.Close()
	err = proc.await(ctx)
	if err == nil {
		var m *machine
		if m, err = attach(ctx, dir, e.Log); err == nil {
			return m, nil
		}
	}
	proc.undo(dir)
	var gone *vmm.GoneError
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.As(err, &gone) && gone.End != nil:
		ended := api.Errorf(api.KindUnavailable, "it ended at once (%s) %s", gone.End.Cause, gone.End.Detail)
		if err = ended; gone.End.Cause == vmm.EndCrashed { // nothing of the guest has run yet but banger's own
			err = &diedError{ended}
		}
	}
	return nil, err
}

// refuseRunning refuses to start a second VM in a directory. What a supervisor that was killed left running is ended,
// and one that has told its VM's end is given the moment it needs to be gone.
func refuseRunning(ctx context.Context, dir string) error {
	rec, err := readRecord(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, paths.VMEnd)); err == nil {
		ctx, cancel := context.WithTimeout(ctx, exitWait)
		defer cancel()
		_ = rec.Supervisor.Gone(ctx) // where it stays, it is refused
	}
	if rec.Supervisor.Alive() {
		return api.Errorf(api.KindConflict, "it runs already")
	}
	endVMM(rec.VMM)
	return nil
}

// spawned is a supervisor that was just started.
type spawned struct {
	proc   *os.Process
	ready  *os.File
	exited chan struct{}
}

// spawn starts the supervisor of dir.
func (e *Engine) spawn(dir string) (*spawned, error) {
	log, err := os.OpenFile(filepath.Join(dir, paths.VMMLog), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	env := e.Env
	if env == nil {
		env = os.Environ()
	}
	proc, err := hostexec.Runner{}.StartDaemon(hostexec.Daemon{
		Argv:  append([]string{e.Binary, Command, "--dir", dir, "--ready-fd", "3"}, e.Args...),
		Dir:   dir,
		Env:   append(slices.Clip(env), "GOMAXPROCS=2"),
		Log:   log,
		Files: []*os.File{w},
	})
	if err != nil {
		r.Close()
		return nil, err
	}
	s := &spawned{proc: proc, ready: r, exited: make(chan struct{})}
	go func() {
		_, _ = proc.Wait() // so that it is no zombie
		close(s.exited)
	}()
	return s, nil
}

// await waits until the supervisor says that the VM runs, or why not.
func (s *spawned) await(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var m startReply
	err := readMessage(bufio.NewReaderSize(s.ready, 512), maxReply, &m)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return api.Errorf(api.KindInternal, "its supervisor ended before it had started the VMM")
	case m.Died && m.Error != nil:
		return &diedError{m.Error}
	case m.Error != nil:
		return m.Error
	}
	return nil
}

// undo ends the supervisor, and with it the VMM, and waits for both.
func (s *spawned) undo(dir string) {
	rec, err := readRecord(dir)
	_ = s.proc.Signal(syscall.SIGTERM)
	select {
	case <-s.exited:
	case <-time.After(undoTimeout):
		_ = s.proc.Kill()
		<-s.exited
	}
	if err == nil {
		endVMM(rec.VMM)
	}
}

// endVMM makes sure that a VMM without a supervisor is gone. The kernel has killed it, or is about to.
func endVMM(p hostproc.Process) {
	_ = p.Signal(syscall.SIGKILL)
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	_ = p.Gone(ctx)
}

// Attach implements vmm.Engine.
func (e *Engine) Attach(ctx context.Context, dir string) (vmm.Machine, error) {
	m, err := attach(ctx, dir, e.Log)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// attach connects to the supervisor of dir.
func attach(ctx context.Context, dir string, log *slog.Logger) (*machine, error) {
	rec, err := readRecord(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &vmm.GoneError{Dir: dir, End: readEnd(dir)}
	}
	if err != nil {
		return nil, fmt.Errorf("attach to the VM in %q: %w", dir, err)
	}
	if !rec.Supervisor.Alive() {
		return nil, gone(dir, rec)
	}
	if rec.Version != ProtocolVersion {
		return nil, api.Errorf(api.KindVersion, "the supervisor of the VM in %q speaks version %d of its protocol, this daemon %d",
			dir, rec.Version, ProtocolVersion).WithHint("kill %d   # ends that VM", rec.Supervisor.PID)
	}
	d, err := openDir(dir)
	if err != nil {
		return nil, fmt.Errorf("attach to the VM in %q: %w", dir, err)
	}
	m := newMachine(dir, d, rec, log)
	if err := m.first(ctx); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// gone is the error for a VM whose supervisor is dead: it takes care that its VMM is dead as well.
func gone(dir string, rec record) error {
	endVMM(rec.VMM)
	sweep(dir)
	end := readEnd(dir)
	if end == nil {
		end = &vmm.End{Cause: vmm.EndLost, Detail: lostDetail, At: time.Now().UTC()}
	}
	return &vmm.GoneError{Dir: dir, End: end}
}

const lostDetail = "the VM's supervisor vanished, and its VMM with it"

// openDir opens a directory to dial sockets in it by short names.
func openDir(dir string) (*dirFD, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return &dirFD{fd: fd, refs: 1}, nil
}

// dirFD is a directory's descriptor, which lives until nobody dials through it any more.
type dirFD struct {
	mu   sync.Mutex // guards refs
	fd   int
	refs int
}

// name is a path of the file name in the directory, short whatever the directory is called; false after close.
func (d *dirFD) name(name string) (string, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refs == 0 {
		return "", false
	}
	d.refs++
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.fd, name), true
}

// release undoes name, or openDir.
func (d *dirFD) release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refs--; d.refs == 0 {
		_ = unix.Close(d.fd)
	}
}
