// Package supervise keeps VMs running without the daemon. Its Main is the
// program `bangerd vm-supervise`, one per VM, the parent of the VMM; its
// Engine, which implements vmm.Engine, starts supervisors and finds them again.
//
// The files of the supervisor: supervisor.go the process, boot.go one start of
// the VMM, call.go the agent's call, vsock.go streams to and from the guest
// (Firecracker's protocol), control.go the supervisor's own protocol
// (protocol.go), log.go bounded logs. Of the client: engine.go and machine.go. Shared: files.go.
//
// A supervisor's working directory is the VM's, so that sockets have short names; whoever dials them does so
// through a descriptor of that directory.
package supervise

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/hostproc"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/driver"
	"git.thaloco.com/thaloco/banger/internal/vmm/jail"
	"git.thaloco.com/thaloco/banger/internal/vmm/qemu"
	"git.thaloco.com/thaloco/banger/internal/vmm/watch"
)

// Command is the subcommand of bangerd that is Main.
const Command = "vm-supervise"

// supervisor looks after one VM.
type supervisor struct {
	spec        vmm.Spec
	log         *slog.Logger
	endingGrace time.Duration
	// startTimeout is how long the VMM may take to answer at first, requestTimeout how long later; 0 for its driver's own.
	startTimeout, requestTimeout time.Duration

	board   watch.Board
	guest   *guestLine // of a guest with a virtio-serial port
	ports   *hostPorts
	cable   *cable        // nil for a VM without a network, or with a TAP of the host
	streams atomic.Uint32 // that the host opened to the guest, as far as the supervisor sees them
	// killed ends when the VM is to end at once.
	killed context.Context
	kill   context.CancelFunc

	// The logs of the VMM and the supervisor, of the guest's console, and of its agent.
	vmmLog, consoleLog, agentLog *boundedLog
	// tsc is the rate of the host's time stamp counter in kHz, 0 where it cannot be found out.
	tsc func() int

	// Of the main goroutine alone:
	began     time.Time
	ready     *readiness
	rec       record
	noSandbox bool // this QEMU has no seccomp filter

	mu    sync.Mutex // guards vmm, asked
	vmm   driver.VMM // nil between boots
	asked bool       // somebody asked for a pause
}

// Main is the program `bangerd vm-supervise`: it returns the exit status.
func Main(args []string) int {
	fs := flag.NewFlagSet(Command, flag.ContinueOnError)
	dir := fs.String("dir", "", "the VM's directory")
	readyFD := fs.Int("ready-fd", -1, "descriptor that is told how the start went")
	s := &supervisor{guest: newGuestLine(), began: time.Now()}
	fs.DurationVar(&s.endingGrace, "ending-grace", defaultEndingGrace, "how long an announced end may take")
	fs.DurationVar(&s.startTimeout, "start-timeout", defaultStartTimeout, "how long the VMM may take until it answers")
	fs.DurationVar(&s.requestTimeout, "request-timeout", 0, "how long Firecracker may take for an answer later; 0 for what is usual")
	if fs.Parse(args) != nil || *dir == "" || fs.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "usage: %s --dir DIR\n", Command)
		return 2
	}
	// A supervisor is small and mostly idle: it trades a little CPU time for memory.
	debug.SetGCPercent(40)
	// The kernel kills the VMM with the thread that started it: this one, until the process ends.
	runtime.LockOSThread()
	s.ready = &readiness{}
	if *readyFD >= 0 {
		unix.CloseOnExec(*readyFD)
		s.ready.f = os.NewFile(uintptr(*readyFD), "ready")
	}
	if err := s.supervise(*dir); err != nil {
		s.ready.tell(err)
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// readiness tells whoever started the supervisor, once, that the VM runs or why not.
type readiness struct{ f *os.File }

// startReply is what goes through it, as one line of JSON.
type startReply struct {
	Error *api.Error `json:"error,omitempty"`
	// Died: the error is that the VMM ended, or had to be ended, before it ran the guest.
	Died bool `json:"died,omitempty"`
}

func (r *readiness) tell(err error) {
	if r.f == nil {
		return
	}
	var m startReply
	if err != nil {
		m.Error, m.Died = api.AsError(err), errors.Is(err, vmm.ErrStart)
	}
	_ = writeMessage(r.f, m) // nobody listens any more: then nobody needs to know
	r.f.Close()
	r.f = nil
}

// supervise runs the VM in dir to its end. An error means that it was not started.
func (s *supervisor) supervise(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return fmt.Errorf("supervise: %w", err)
	}
	harden()
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := readJSON(".", paths.VMSpec, &s.spec); err != nil {
		return fmt.Errorf("supervise: %w", err)
	}
	if err := checkSpec(s.spec); err != nil {
		return err
	}
	if err := s.openLogs(); err != nil {
		return fmt.Errorf("supervise: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.killed, s.kill = context.WithCancel(ctx)
	defer s.kill()
	stop := s.signals(ctx)
	defer stop()
	if err := s.confine(); err != nil {
		return err
	}
	s.tsc = sync.OnceValue(s.measureTSC)
	if s.spec.Accel == vmm.AccelTCG {
		go s.tsc() // takes 20 ms, which the rest of the start takes as well
	}
	return s.serve(ctx)
}

// harden takes from the supervisor and its VMM what neither needs.
func harden() {
	unix.Umask(0o077)
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}) // a core would hold the guest's memory
	_ = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) // of this thread, and of the VMM it starts
}

// lockDir makes sure that this is the only supervisor of the directory.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(".")
	if err != nil {
		return nil, fmt.Errorf("supervise: %w", err)
	}
	for end := time.Now().Add(sweepTime); ; {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return f, nil
		}
		if time.Now().After(end) || !pause(context.Background(), 10*time.Millisecond) {
			f.Close()
			return nil, api.Errorf(api.KindConflict, "a supervisor runs in %q already", dir)
		}
	}
}

func (s *supervisor) openLogs() (err error) {
	s.vmmLog, err = openLog(paths.VMMLog, maxLog, func(f *os.File) {
		// A panic of the Go runtime goes where our messages go.
		_ = unix.Dup3(int(f.Fd()), 1, 0)
		_ = unix.Dup3(int(f.Fd()), 2, 0)
	})
	if err != nil {
		return err
	}
	s.log = slog.New(slog.NewTextHandler(s.vmmLog, nil)).With("vm", s.spec.VM)
	if s.consoleLog, err = openLog(paths.VMConsoleLog, maxLog, nil); err != nil {
		return err
	}
	s.agentLog, err = openLog(paths.VMAgentLog, maxLog, nil)
	return err
}

// signals makes SIGTERM a kill of the VM; a terminal's signals and a vanished one mean nothing here.
func (s *supervisor) signals(ctx context.Context) (stop func()) {
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGTERM)
	go func() {
		select {
		case <-ch:
			s.kill()
		case <-ctx.Done():
		}
	}()
	return func() { signal.Stop(ch) }
}

// serve binds the sockets and runs the VM.
func (s *supervisor) serve(ctx context.Context) error {
	self, err := hostproc.Identify(os.Getpid())
	if err != nil {
		return fmt.Errorf("supervise: %w", err)
	}
	control, err := listen(paths.VMControl)
	if err != nil {
		return err
	}
	defer control.Close()
	s.rec = record{Version: ProtocolVersion, Supervisor: self, Transport: transport(s.spec.Engine)}
	if err := writeJSON(".", paths.VMSupervisor, s.rec, false); err != nil {
		return fmt.Errorf("supervise: %w", err)
	}
	defer remove(".", paths.VMSupervisor)
	if s.spec.Identity.Network != nil && s.spec.TAP == "" {
		if s.cable, err = newCable(); err != nil {
			return fmt.Errorf("supervise: %w", err)
		}
		defer s.cable.close()
	}
	server := &controlServer{s: s, log: s.log}
	go server.serve(ctx, control)
	closeSockets, err := s.openSockets(ctx)
	if err != nil {
		return err
	}
	defer closeSockets()

	out := s.runVM(ctx)
	end := out.end
	end.At = time.Now().UTC()
	s.log.Info("the vm ended", "cause", end.Cause, "detail", end.Detail)
	s.ready.tell(startError(out)) // where it was not told that the VM runs
	if err := writeJSON(".", paths.VMEnd, end, true); err != nil {
		s.log.Error("the vm's end was not recorded", "error", err)
	}
	s.board.Update(func(st *vmm.Status) {
		st.Phase, st.PauseReason, st.VMMPID, st.End = vmm.PhaseEnded, "", 0, &end
	})
	if s.cable != nil {
		s.cable.close()
	}
	server.drain(2 * time.Second)
	return nil
}

// openSockets serves what leads to the guest and what the guest calls. Firecracker has the former itself.
func (s *supervisor) openSockets(ctx context.Context) (func(), error) {
	s.ports = &hostPorts{log: s.log, peers: checkPeer}
	if s.spec.Jailer != "" {
		s.ports.peers = func(conn *net.UnixConn) error { return checkPeerOr(conn, jail.UserOf(s.spec.VM)) }
	}
	stop, err := s.ports.listen(ctx, "", s)
	if err != nil || transport(s.spec.Engine) == wire.TransportVsock {
		return stop, err
	}
	ln, err := listen(paths.VMVsock)
	if err != nil {
		stop()
		return nil, err
	}
	server := &vsockServer{dial: s.guest.dial, log: s.log, streams: &s.streams}
	go server.serve(ctx, ln)
	return func() { ln.Close(); stop() }, nil
}

// startError is an end before the VM ran, as an error.
func startError(out outcome) error {
	if out.end.Cause == vmm.EndKilled {
		return api.Errorf(api.KindCancelled, "start the VMM: cancelled")
	}
	err := api.Errorf(api.KindUnavailable, "%s", out.end.Detail)
	if out.hint != "" {
		err = err.WithHint("%s", out.hint)
	}
	if out.died {
		return &diedError{err}
	}
	return err
}

// diedError is an error that is a vmm.ErrStart as well.
type diedError struct{ err *api.Error }

// Error implements error.
func (e *diedError) Error() string { return e.err.Error() }

// Is implements the interface of errors.Is.
func (e *diedError) Is(target error) bool { return target == vmm.ErrStart }

// Unwrap returns the error itself.
func (e *diedError) Unwrap() error { return e.err }

// listen binds a socket by its relative name; a stale one is removed.
func listen(name string) (*net.UnixListener, error) {
	if err := remove(".", name); err != nil {
		return nil, fmt.Errorf("supervise: %w", err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: name})
	if err != nil {
		return nil, fmt.Errorf("supervise: %w", err)
	}
	return ln, nil // Close removes the file
}

// runVM starts the VMM as often as it takes, and returns how the VM ended.
func (s *supervisor) runVM(ctx context.Context) outcome {
	retried := false
	restore := s.spec.Restore // once
	quick := 0                // reboots in a row that came soon after their start
	for {
		began := time.Now()
		b := &boot{s: s, restore: restore, up: make(chan struct{}), down: make(chan struct{}), welcome: make(chan struct{}),
			verb: make(chan string, 1), bad: make(chan string, 1), halted: make(chan struct{}, 1), silent: make(chan struct{})}
		out := b.run(ctx)
		restore = ""
		switch {
		case !out.again:
			return out
		case out.timeout && retried:
			out.end.Detail += ", twice"
			return out
		case out.timeout:
			retried = true
			s.note("the guest did not start within %s and was started once more", s.bootDeadline())
			continue
		}
		retried = false
		if time.Since(began) > 10*time.Second {
			quick = 0
		}
		// A guest that does nothing but reboot costs little: 0, 0, 0, 1, 2, 4, … 30 seconds.
		if quick++; quick > 3 && !pause(s.killed, min(time.Second<<min(quick-4, 5), 30*time.Second)) {
			return ended(vmm.EndKilled, "")
		}
	}
}

func (s *supervisor) bootDeadline() time.Duration {
	if s.spec.BootDeadline > 0 {
		return s.spec.BootDeadline
	}
	return defaultBootDeadline
}

func (s *supervisor) measureTSC() int {
	khz, err := qemu.MeasureTSC(s.killed)
	if err != nil {
		s.log.Warn("the guest must measure its clock itself", "error", err)
		return 0
	}
	return khz
}

// checkSpec refuses a Spec no VMM could be started from.
func checkSpec(spec vmm.Spec) error {
	bad := func(format string, args ...any) error {
		return api.Errorf(api.KindInvalid, format, args...)
	}
	switch {
	case spec.Version != vmm.SpecVersion:
		return bad("its specification has version %d, this banger knows %d", spec.Version, vmm.SpecVersion)
	case spec.Engine != vmm.EngineQEMU && spec.Engine != vmm.EngineFirecracker:
		return bad("unknown engine %q", spec.Engine)
	case spec.Accel != vmm.AccelKVM && spec.Accel != vmm.AccelTCG:
		return bad("unknown acceleration %q", spec.Accel)
	case spec.Jailer != "" && spec.Engine != vmm.EngineFirecracker:
		return bad("the jailer is firecracker's")
	case spec.Restore != "" && spec.Engine != vmm.EngineFirecracker:
		return api.Errorf(api.KindUnavailable, "engine %q restores no snapshots", spec.Engine)
	case spec.Engine == vmm.EngineFirecracker && spec.Accel != vmm.AccelKVM:
		return bad("firecracker has no software emulation")
	case spec.TAP != "" && (spec.Identity.Network == nil || spec.Identity.Network.Device != wire.DeviceVirtio):
		return bad("a TAP of the host, and a guest without the device for it")
	case spec.Engine == vmm.EngineFirecracker && spec.Identity.Network != nil && spec.Identity.Network.Device != wire.DeviceTAP && spec.TAP == "":
		return bad("a VM of firecracker has its network by a TAP, in the guest or of the host")
	case spec.Binary == "" || spec.Kernel == "":
		return bad("no VMM or no kernel given")
	case spec.CPUs < 1:
		return bad("%d CPUs", spec.CPUs)
	case spec.MemoryMiB < vmm.MinMemoryMiB:
		return bad("%d MiB of memory are less than %d", spec.MemoryMiB, vmm.MinMemoryMiB)
	}
	seen := map[string]bool{}
	for _, d := range spec.Drives {
		if d.ID == "" || d.Path == "" || seen[d.ID] {
			return bad("drive %q has no path or is there twice", d.ID)
		}
		seen[d.ID] = true
	}
	return nil
}
