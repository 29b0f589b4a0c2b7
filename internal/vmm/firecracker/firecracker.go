// Package firecracker drives Firecracker for a VM's supervisor: the configuration of a cold boot (config.go), its API (client.go),
// its log (log.go), snapshots (snapshot.go), and one running Firecracker (this file).
//
// What is said of Firecracker here is of version 1.17, the minimum, unless it says otherwise; files named src/ are its own.
package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/driver"
)

// Config is what Start needs. All fields are required but Command, Restore and RequestTimeout.
type Config struct {
	Spec vmm.Spec
	// Dir is Firecracker's working directory: relative paths in Spec and Initrd count from it, its sockets are in it.
	Dir string
	// Initrd is the joined initrd.
	Initrd string
	// Command is what runs Firecracker, up to and without its own arguments; empty for Spec.Binary alone.
	Command []string
	// NoID leaves out --id: who runs Firecracker gives it.
	NoID bool
	// Share is called with the name of each file in Dir that Firecracker must be able to open; nil for nothing to do.
	Share func(name string) error
	// Console receives the guest's console, Stderr what Firecracker says there; it makes the former non-blocking, so that must be a
	// pipe of its own. Log receives its log.
	Console, Stderr *os.File
	Log             io.Writer
	// Env is Firecracker's environment.
	Env []string
	// Restore starts from a snapshot instead of booting.
	Restore *Restore
	// RequestTimeout bounds each request to a Firecracker that runs; 0 for what is usual.
	RequestTimeout time.Duration
}

// startPoll is how often a Firecracker that was just started is looked for.
const startPoll = 2 * time.Millisecond

// VMM is a running Firecracker. Its methods may be called from several goroutines.
type VMM struct {
	child   *hostexec.Child
	api     *client
	log     *logPipe
	cfg     Config
	changed chan struct{}
	done    chan struct{}

	mu     sync.Mutex // guards what follows
	state  driver.State
	status int // of the process that has ended
	sig    syscall.Signal
	exit   driver.Exit
}

var _ driver.VMM = (*VMM)(nil)

// Start starts Firecracker and returns when it runs the guest. The kernel kills Firecracker when the calling thread ends: call it
// from a goroutine locked to a thread that outlives the VM.
func Start(ctx context.Context, cfg Config) (_ *VMM, err error) {
	if err := check(cfg.Spec); err != nil {
		return nil, err
	}
	// Firecracker removes neither of its sockets, and does not start where one is.
	if err := removeFiles(cfg.Dir); err != nil {
		return nil, fmt.Errorf("start firecracker: %w", err)
	}
	v := &VMM{cfg: cfg, changed: make(chan struct{}, 1), done: make(chan struct{}), api: newClient(filepath.Join(cfg.Dir, paths.VMFirecrackerAPI))}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeFiles(cfg.Dir))
		}
	}()
	if v.log, err = openLog(cfg.Dir, cfg.Log, v.driveFailed); err != nil {
		return nil, err
	}
	argv, err := v.prepare()
	if err == nil {
		if v.child, err = (hostexec.Runner{}).StartChild(argv, cfg.Dir, cfg.Env, cfg.Console, cfg.Stderr); err != nil {
			err = fmt.Errorf("start firecracker: %w", err)
		}
	}
	if err != nil {
		v.log.close()
		return nil, err
	}
	go v.wait()
	if err := v.await(ctx); err != nil {
		return nil, v.notStarted(err)
	}
	v.log.started()
	// It was read when the VM was built.
	_ = os.Remove(filepath.Join(cfg.Dir, paths.VMFirecrackerConfig))
	return v, nil
}

// files are what a running Firecracker has in its directory.
func files() []string {
	return []string{paths.VMFirecrackerAPI, paths.VMVsock, paths.VMFirecrackerConfig, paths.VMFirecrackerLog}
}

func removeFiles(dir string) error {
	var errs []error
	for _, name := range files() {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// prepare writes the configuration and returns the command.
func (v *VMM) prepare() ([]string, error) {
	argv := v.cfg.Command
	if len(argv) == 0 {
		argv = []string{v.cfg.Spec.Binary}
	}
	argv = append([]string{}, argv...)
	if !v.cfg.NoID {
		argv = append(argv, "--id", v.cfg.Spec.VM)
	}
	argv = append(argv, "--api-sock", paths.VMFirecrackerAPI, "--log-path", paths.VMFirecrackerLog, "--level", "Warn")
	shared := []string{paths.VMFirecrackerLog}
	if v.cfg.Restore == nil {
		config, err := encode(newVMConfig(v.cfg.Spec, v.cfg.Initrd))
		if err == nil {
			err = os.WriteFile(filepath.Join(v.cfg.Dir, paths.VMFirecrackerConfig), config, 0o600)
		}
		if err != nil {
			return nil, fmt.Errorf("start firecracker: %w", err)
		}
		argv = append(argv, "--config-file", paths.VMFirecrackerConfig)
		shared = append(shared, paths.VMFirecrackerConfig, v.cfg.Initrd)
	}
	for _, name := range shared {
		if v.cfg.Share == nil {
			break
		}
		if err := v.cfg.Share(name); err != nil {
			return nil, err
		}
	}
	return argv, nil
}

// instance is the answer to GET /.
type instance struct {
	State   string `json:"state"`
	Version string `json:"vmm_version"`
}

// await returns when the guest runs. The API's socket is there before the VM is built, and its first answer comes after (api_server_adapter.rs).
func (v *VMM) await(ctx context.Context) error {
	poll := time.NewTicker(startPoll)
	defer poll.Stop()
	loaded := v.cfg.Restore == nil
	for {
		var is instance
		err := v.api.get(ctx, "/", &is)
		switch {
		case err == nil && !loaded && is.State == "Not started":
			if err := v.load(ctx); err != nil {
				return err
			}
			loaded = true
			continue
		case err == nil && loaded && is.State == "Running":
			return nil
		case err == nil:
			return fmt.Errorf("it is in state %q after its start", printable(is.State))
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		select {
		case <-v.done:
			return err
		default:
		}
		if !notThere(err) {
			// Most likely it is just ending: then its end says why.
			select {
			case <-v.done:
				return err
			case <-time.After(drainTime):
				return err
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		select {
		case <-poll.C:
		case <-v.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// notStarted ends a Firecracker that did not come up, and says why it did not.
func (v *VMM) notStarted(cause error) error {
	gone := false
	select {
	case <-v.done:
		gone = true
	default:
		v.Kill()
		<-v.done
	}
	v.mu.Lock()
	status, sig, x := v.status, v.sig, v.exit
	v.mu.Unlock()
	if gone && x.Ending == driver.HostSignal { // of which it is not to blame
		return fmt.Errorf("start firecracker: a signal of the host ended it")
	}
	var err error = &driver.StartError{VMM: "firecracker", Status: status, Signal: sig, Gone: gone, Cause: cause}
	words := v.log.why()
	if meaning := statuses[status].meaning; gone && meaning != "" {
		err = fmt.Errorf("%w: it %s", err, meaning)
	}
	if f, ok := errors.AsType[*Fault](cause); words != "" && (gone || !ok || !strings.Contains(words, f.Message)) {
		err = fmt.Errorf("%w: %s", err, words)
	}
	if hint := statuses[status].hint; gone && hint != "" {
		return api.Errorf(api.KindUnavailable, "%w", err).WithHint("%s", hint)
	}
	return advise(err, words+" "+cause.Error())
}

// wait notes Firecracker's end and removes what it leaves.
func (v *VMM) wait() {
	status, sig, err := v.child.Wait()
	if err != nil {
		status, sig = -1, 0
	}
	v.log.close()
	v.api.close()
	v.mu.Lock()
	v.status, v.sig, v.exit = status, sig, exit(status, sig, v.log.why())
	v.mu.Unlock()
	_ = removeFiles(v.cfg.Dir)
	close(v.done)
}

// Exit statuses of Firecracker (FcExitCode in src/vmm/src/lib.rs): signals it catches are statuses, not ends by a signal.
const (
	exitOK      = 0
	exitSyscall = 148
	exitBus     = 149
	exitFSize   = 151
	exitConfig  = 152
	exitArgs    = 153
	exitHangup  = 156
)

// statuses are those that say more than their number: what Firecracker did, and what to do about it.
var statuses = map[int]struct{ meaning, hint string }{
	exitSyscall: {"made a system call that its filter forbids", "engine = \"qemu\" in config.toml does without Firecracker"},
	exitBus:     {"lost memory that was backed by a file", "make room on the host's disk, then start it again"},
	exitFSize:   {"met a limit for the size of files (ulimit -f)", "ulimit -f unlimited, then banger daemon stop, then start it again"},
	exitConfig:  {"does not take its configuration", misfit},
	exitArgs:    {"does not know its arguments", misfit},
}

// misfit is what to do where Firecracker and banger do not fit together.
const misfit = "banger doctor says which Firecracker that is; without firecracker_bin in config.toml banger takes one that fits"

// tripleFault is in the log where the guest's CPU gave up: to KVM that is a shutdown, to Firecracker an error (#5611).
const tripleFault = "Unexpected exit reason on vcpu run: Shutdown"

// exit says what the end of Firecracker's process means; why is what its log says of it. The guest's reset is the end without an
// error, announced or not, panics included.
func exit(status int, sig syscall.Signal, why string) driver.Exit {
	failed := func(format string, args ...any) driver.Exit {
		x := driver.Exit{Ending: driver.Failed, Detail: fmt.Sprintf(format, args...)}
		if why != "" {
			x.Detail += ": " + why
		}
		return x
	}
	switch {
	case sig == syscall.SIGTERM, sig == syscall.SIGINT, sig == syscall.SIGHUP, status == exitHangup:
		return driver.Exit{Ending: driver.HostSignal}
	case sig != 0:
		return failed("firecracker was ended by signal %s", sig)
	case status == exitOK:
		return driver.Exit{Ending: driver.GuestReset}
	case status == 1 && strings.Contains(why, tripleFault):
		return driver.Exit{Ending: driver.GuestReset}
	case statuses[status].meaning != "":
		return failed("firecracker %s", statuses[status].meaning)
	}
	return failed("firecracker ended with exit status %d", status)
}

// driveFailed notes that the guest was told of an error of a drive.
func (v *VMM) driveFailed(line string) {
	v.mu.Lock()
	v.state.DiskError = line
	v.mu.Unlock()
	v.poke()
}

func (v *VMM) poke() {
	select {
	case v.changed <- struct{}{}:
	default:
	}
}

// PID implements driver.VMM.
func (v *VMM) PID() int { return v.child.PID() }

// State implements driver.VMM.
func (v *VMM) State() driver.State {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.state
}

// Changed implements driver.VMM.
func (v *VMM) Changed() <-chan struct{} { return v.changed }

// Done implements driver.VMM.
func (v *VMM) Done() <-chan struct{} { return v.done }

// Exit implements driver.VMM.
func (v *VMM) Exit() driver.Exit {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.exit
}

// Kill implements driver.VMM.
func (v *VMM) Kill() { v.child.Kill() }

// vmState is the body of PATCH /vm.
type vmState struct {
	State string `json:"state"`
}

// Pause implements driver.VMM.
func (v *VMM) Pause(ctx context.Context) error { return v.setPaused(ctx, true) }

// Resume implements driver.VMM.
func (v *VMM) Resume(ctx context.Context) error { return v.setPaused(ctx, false) }

func (v *VMM) setPaused(ctx context.Context, paused bool) error {
	state := "Resumed"
	if paused {
		state = "Paused"
	}
	if err := v.request(ctx, requestTimeout, func(ctx context.Context) error { return v.api.patch(ctx, "/vm", vmState{state}) }); err != nil {
		return err
	}
	v.mu.Lock()
	v.state.Paused = paused
	v.mu.Unlock()
	v.poke()
	return nil
}

// drivePatch is the body of PATCH /drives/{id}: the same path again makes Firecracker read the file's size anew.
type drivePatch struct {
	ID         string `json:"drive_id"`
	PathOnHost string `json:"path_on_host"`
}

// ResizeDrive implements driver.VMM.
func (v *VMM) ResizeDrive(ctx context.Context, id string) error {
	for _, d := range v.cfg.Spec.Drives {
		if d.ID != id {
			continue
		}
		err := v.request(ctx, requestTimeout, func(ctx context.Context) error {
			return v.api.patch(ctx, "/drives/"+id, drivePatch{ID: id, PathOnHost: d.Path})
		})
		if err != nil {
			return fmt.Errorf("resize drive %q: %w", id, err)
		}
		return nil
	}
	return fmt.Errorf("resize drive %q: no such drive", id)
}

// balloonPatch is the body of PATCH /balloon.
type balloonPatch struct {
	AmountMiB int `json:"amount_mib"`
}

// SetBalloon asks the guest for mib MiB of its memory; 0 gives all back. The guest gives what it can spare, and takes it back rather
// than run out of memory.
func (v *VMM) SetBalloon(ctx context.Context, mib int) error {
	return v.request(ctx, requestTimeout, func(ctx context.Context) error { return v.api.patch(ctx, "/balloon", balloonPatch{mib}) })
}

// silence is a request that is not answered in time.
type silence struct{ d time.Duration }

// Error implements error.
func (s *silence) Error() string { return fmt.Sprintf("no answer within %s", s.d) }

// request bounds a request in time, and says what to do where its refusal is a known one.
func (v *VMM) request(ctx context.Context, d time.Duration, do func(context.Context) error) error {
	if v.cfg.RequestTimeout > 0 {
		d = v.cfg.RequestTimeout
	}
	bounded, cancel := context.WithTimeoutCause(ctx, d, &silence{d})
	defer cancel()
	err := do(bounded)
	switch {
	case err == nil:
		return nil
	case errors.As(err, new(*Fault)):
		return advise(err, err.Error())
	case errors.As(err, new(*silence)):
		return api.Errorf(api.KindUnavailable, "%w", err).WithHint("banger vm kill %s   # ends it, should it not answer again", v.cfg.Spec.Name)
	case ctx.Err() != nil:
		return err
	}
	// Most likely it is just ending: then its end says why.
	select {
	case <-v.done:
	case <-time.After(drainTime):
		return err
	case <-ctx.Done():
		return err
	}
	if x := v.Exit(); x.Ending == driver.Failed {
		return api.Errorf(api.KindUnavailable, "%w: %s", err, x.Detail)
	}
	return api.Errorf(api.KindConflict, "%w: the VM has ended", err)
}
