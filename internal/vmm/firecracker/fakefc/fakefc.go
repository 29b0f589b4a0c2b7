// Package fakefc is a Firecracker 1.17 without a machine, for tests of all that is
// built on one: its command line and its API with the words of the real one (args.go, config.go, api.go, snapshot.go,
// http.go), strict in what they take (decode.go, spec.go); the host's side of its vsock device (vsock.go); and in place of the
// VM a fakeguest on the host (guest.go), or the very kernel and drives in QEMU (qemu.go).
//
// What it does wrong is told by a file KnobsFile (knobs.go). The guest's directory is fakeguest/ in the VM's directory; for root that
// directory's root/ is mounted on /root, in a mount namespace of its own, so that guest paths under /root are not the host's.
//
// What is said of Firecracker's behaviour was read from its sources around version 1.17; names of files are theirs.
package fakefc

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/sshd"
	"git.thaloco.com/thaloco/banger/internal/vmm/fakeguest"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker/fakefc/vhostvsock"
)

// Banner is the first line on the console of a fakeguest.
const Banner = "fakefc: the guest's console"

// Exit statuses (FcExitCode in src/vmm/src/lib.rs).
const (
	exitOK        = 0
	exitError     = 1
	exitBadConfig = 152
	exitBadArgs   = 153
	exitSyscall   = 148
)

const sigAbort = unix.SIGABRT

// caught are the signals that Firecracker makes an exit status of (signal_handler.rs).
var caught = map[os.Signal]int{unix.SIGBUS: 149, unix.SIGXFSZ: 151, unix.SIGXCPU: 154, unix.SIGHUP: 156, unix.SIGILL: 157}

// sftpArg makes the program the sftp server of its guest's ssh server.
const sftpArg = "sftp-server"

// Main runs the program with arguments args and returns its exit status.
func Main(args []string) int {
	if len(args) == 1 && args[0] == sftpArg {
		if err := sshd.ServeSFTP(os.Stdin, os.Stdout); err != nil && !errors.Is(err, io.EOF) {
			fmt.Fprintln(os.Stderr, "fakefc:", err)
			return 1
		}
		return 0
	}
	knobs, err := readKnobs()
	if err != nil {
		fmt.Fprintln(os.Stderr, "fakefc:", err)
		return 1
	}
	log := &logger{fd: 1, id: "anonymous-instance", level: levels["info"]}
	opt, err := parseArgs(args)
	if err != nil {
		return startFailed(log, exitBadArgs, err)
	}
	if opt.version || opt.snapshotVersion || opt.help || opt.describe != "" {
		return tell(opt, knobs, log)
	}
	level, ok := levels[strings.ToLower(opt.level)]
	if !ok {
		return startFailed(log, exitBadConfig, &mainError{
			"Failed to set log level: " + opt.level, fmt.Sprintf("InvalidLogLevel(InvalidLogLevel(%q))", opt.level),
		})
	}
	log.id, log.level, log.showLevel = opt.id, level, opt.showLevel
	if opt.logPath != "" {
		if log.fd, err = openLog(opt.logPath); err != nil {
			return startFailed(log, exitError, faultf("Could not initialize logger: Failed to open target file: %s", osError(err)))
		}
	}
	if err := checkID(opt.id); err != nil {
		panics(log, "Invalid instance ID: "+err.Error())
	}
	if knobs.CrashAtStart != "" {
		fmt.Fprintln(os.Stderr, knobs.CrashAtStart)
		return exitError
	}
	if knobs.Backend != BackendQEMU {
		// In the confinement of a Landlock there is no mounting.
		if err := fakeguest.OwnNamespace(); err != nil && !errors.Is(err, unix.EPERM) {
			fmt.Fprintln(os.Stderr, "fakefc:", err)
			return exitError
		}
	}
	f := &fake{opt: opt, knobs: knobs, log: log, spec: newSpec(knobs.Spec), state: stateNotStarted, end: make(chan int, 1)}
	f.res = newResources(log)
	f.res.bind, f.res.unbind = f.bind, f.unbind
	return f.run()
}

// mainError is an error of main.rs: what it says of itself, and how Rust shows it.
type mainError struct{ text, debug string }

func (e *mainError) Error() string { return e.text }

// startFailed tells of an error as main.rs does.
func startFailed(log *logger, status int, err error) int {
	debug := fmt.Sprintf("%q", err.Error())
	if m, ok := errors.AsType[*mainError](err); ok {
		debug = m.debug
	}
	log.errorf("%s", err)
	fmt.Fprintf(os.Stderr, "Error: %s\n", debug)
	log.errorf("Firecracker exiting with error. exit_code=%d", status)
	return status
}

// panics is the end of a Firecracker that meets what it did not expect.
func panics(log *logger, text string) {
	log.errorf("Firecracker panicked at src/firecracker/src/main.rs:1:\n%s", text)
	dieBySignal(sigAbort)
}

// tell answers the options that start no VM.
func tell(opt options, knobs Knobs, log *logger) int {
	switch {
	case opt.help:
		fmt.Fprintf(os.Stdout, "Firecracker v%s\n\nfakefc: see package fakefc\n", knobs.Version)
	case opt.version:
		fmt.Fprintf(os.Stdout, "Firecracker v%s\n\n", knobs.Version)
	case opt.snapshotVersion:
		fmt.Fprintf(os.Stdout, "v%s\n", SnapshotVersion)
	default:
		version, err := describe(opt.describe)
		if err != nil {
			return startFailed(log, exitError, err)
		}
		fmt.Fprintf(os.Stdout, "v%s\n", version)
	}
	log.infof("Firecracker exiting successfully. exit_code=0")
	return exitOK
}

// dieBySignal ends the process by a signal that Go would make something else of.
func dieBySignal(sig unix.Signal) {
	runtime.LockOSThread()
	var byDefault [4]uint64 // struct kernel_sigaction: SIG_DFL, no flags, no restorer, no mask
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&byDefault)), 0, 8, 0, 0)
	_ = unix.Tgkill(os.Getpid(), unix.Gettid(), sig)
	select {}
}

// fake is the process. What is not set at its start is used by one request at a time.
type fake struct {
	opt    options
	knobs  Knobs
	log    *logger
	spec   *spec
	server *server
	end    chan int // the exit status

	res            *resources
	gate           *gate
	dev            *device            // nil where there is no vsock device, or the backend is QEMU
	vhost          *vhostvsock.Device // then this is it
	guest          guest
	state          string
	noted          string // the last line in RequestsFile
	dieAfterAnswer int
}

// run is main.rs after its options, in its order.
func (f *fake) run() int {
	f.gate = newGate()
	f.log.infof("Running Firecracker v%s", f.knobs.Version)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGBUS, unix.SIGXFSZ, unix.SIGXCPU, unix.SIGHUP, unix.SIGILL, unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGPIPE)
	var file []byte
	if f.opt.configFile != "" {
		var err error
		if file, err = os.ReadFile(f.opt.configFile); err != nil {
			panics(f.log, fmt.Sprintf("Unable to open or read from the configuration file: %s", osError(err)))
		}
	}
	if f.knobs.HangAtStart {
		select {}
	}
	if !f.opt.noAPI {
		ln, err := listen(f.opt.apiSock)
		if err != nil {
			return startFailed(f.log, exitError, &mainError{
				"RunWithApiError error: Failed to open the API socket at: " + f.opt.apiSock + ". Check that it is not already used.",
				fmt.Sprintf("RunWithApi(FailedToBindSocket(%q))", f.opt.apiSock),
			})
		}
		f.log.infof("Listening on API socket (%q).", f.opt.apiSock)
		f.serve(ln)
	}
	if f.opt.configFile != "" {
		if status := f.buildFromFile(file); status != exitOK {
			return status
		}
	}
	if f.server != nil {
		f.server.one.Unlock()
	}
	return f.wait(signals)
}

// serve starts the API. It answers when its lock is released.
func (f *fake) serve(ln *net.UnixListener) {
	f.server = &server{handle: f.handle, maxPayload: f.opt.maxPayload, answered: func() {
		if f.dieAfterAnswer != 0 {
			f.finish(f.dieAfterAnswer)
		}
	}}
	f.server.one.Lock()
	go f.server.serve(ln)
	f.log.apif("API server started.")
}

// buildFromFile is the boot by a configuration file.
func (f *fake) buildFromFile(text []byte) (status int) {
	f.note("CONFIG "+f.opt.configFile, text)
	debug, err := f.res.load(text, f.spec)
	if err != nil {
		err = faultf("Configuration for VMM from one single json failed: %w", err)
	} else if err = f.build(); err != nil {
		debug = fmt.Sprintf("StartMicroVM(%q)", err.Error())
		err = faultf("Could not Start MicroVM from one single json: %w", err)
	}
	if err == nil {
		return exitOK
	}
	if f.guest != nil {
		f.guest.close()
	}
	return startFailed(f.log, exitError, &mainError{
		"RunWithApiError error: Failed to build MicroVM from Json: " + err.Error(), "RunWithApi(BuildFromJson(" + debug + "))",
	})
}

// wait is the life of the process.
func (f *fake) wait(signals <-chan os.Signal) int {
	for {
		select {
		case status := <-f.end:
			f.log.infof("Vmm is stopping.")
			f.closeGuest()
			if status != exitOK {
				fmt.Fprintf(os.Stderr, "Error: RunWithApi(MicroVMStoppedWithError(%d))\n", status)
				f.log.errorf("Firecracker exiting with error. exit_code=%d", status)
				return status
			}
			f.log.infof("Firecracker exiting successfully. exit_code=0")
			return status
		case sig := <-signals:
			number, _ := sig.(unix.Signal)
			if number == unix.SIGPIPE {
				f.log.errorf("Received signal %d, code 0.", number)
				continue
			}
			if status := caught[sig]; status != 0 {
				f.log.errorf("Shutting down VM after intercepting signal %d, code 0.", number)
				f.closeGuest()
				return status
			}
			f.closeGuest() // or its processes would live on
			dieBySignal(number)
		}
	}
}

func (f *fake) closeGuest() {
	if f.server != nil {
		f.server.one.Lock() // what is being asked for has its answer, or never gets one
	}
	if f.guest != nil {
		f.guest.close()
	}
}

// finish ends the process with a status; the first one counts.
func (f *fake) finish(status int) {
	select {
	case f.end <- status:
	default:
	}
}

// moment is where the knobs have their way.
func (f *fake) moment(now string) {
	for _, knob := range f.knobs.HangAt {
		if is(knob, now) {
			select {}
		}
	}
	if status, ok := find(f.knobs.DieAt, now); ok {
		if status == exitSyscall {
			f.log.errorf("Shutting down VM after intercepting a bad syscall (56).")
		}
		f.abandon()
		os.Exit(status)
	}
	if sig, ok := find(f.knobs.SignalAt, now); ok {
		f.abandon()
		dieBySignal(unix.Signal(sig))
	}
}

// abandon takes the guest's processes along.
func (f *fake) abandon() {
	if f.guest != nil {
		f.guest.close()
	}
}

// bind makes the socket of the vsock device.
func (f *fake) bind(v vsockConfig) (err error) {
	if f.knobs.Backend == BackendQEMU {
		f.vhost, err = vhostvsock.Bind(vhostvsock.Config{CID: uint64(v.GuestCID), UDSPath: v.UDSPath, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
		return err
	}
	f.dev, err = newDevice(v.UDSPath, f.gate)
	return err
}

func (f *fake) unbind() {
	if f.dev != nil {
		f.dev.close()
	}
	if f.vhost != nil {
		f.vhost.Close()
	}
	f.dev, f.vhost = nil, nil
}

// build makes the VM of the resources and lets it run.
func (f *fake) build() error {
	f.moment(MomentBoot)
	if f.res.BootSource == nil {
		return faultf("Cannot start microvm without kernel configuration.")
	}
	if err := kvmError(f.knobs.KVM); err != nil {
		return err
	}
	boots, err := countBoot()
	if err != nil {
		return err
	}
	if f.knobs.Backend == BackendQEMU {
		g := &emulator{config: f.res.config, args: f.kernelArgs(), log: f.log, vhost: f.vhost, taps: f.res.taps}
		if err := g.boot(f.finish); err != nil {
			return err
		}
		f.guest, f.state = g, stateRunning
		return nil
	}
	state, err := newState(f.res.config, boots)
	if err != nil {
		return err
	}
	return f.start(state, boots)
}

// kernelArgs are the kernel's arguments.
func (f *fake) kernelArgs() []string {
	if b := f.res.BootSource; b != nil && b.BootArgs != nil {
		return strings.Fields(*b.BootArgs)
	}
	return strings.Fields(defaultArgs)
}

// start runs a guest from a state.
func (f *fake) start(state guestState, boots int) error {
	if err := unix.SetNonblock(1, true); err != nil {
		return err
	}
	m := &machine{knobs: f.knobs, boots: boots, state: state, args: f.kernelArgs(), log: f.log, hasNIC: len(f.res.Interfaces) > 0, dev: f.dev, gate: f.gate, console: console{1}}
	if err := m.boot(f.finish); err != nil {
		return err
	}
	f.guest, f.state = m, stateRunning
	return nil
}

// resumeGuest runs the guest of a snapshot, or leaves it paused.
func (f *fake) resumeGuest(state guestState, run bool) error {
	boots, err := countBoot()
	if err != nil {
		return err
	}
	if !run {
		f.gate.stop()
	}
	if err := f.start(state, boots); err != nil {
		return err
	}
	if !run {
		f.state = statePaused
	}
	return nil
}
