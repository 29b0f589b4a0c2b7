// Package qemu drives QEMU's microvm machine for a VM's supervisor: the
// argument list (args.go), its control protocol (qmp.go), the rate of the host's
// time stamp counter (tsc.go), and one running QEMU (this file).
package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/driver"
	"golang.org/x/sys/unix"
)

// Config is what Start needs. All fields are required, but Net for a VM without a network.
type Config struct {
	Spec vmm.Spec
	// Dir is the VM's directory; relative paths in Spec and Options count from it.
	Dir string
	Options
	// Console receives the guest's console, Stderr what QEMU says; QEMU holds copies of both.
	Console, Stderr *os.File
	// Net is the VM's end of frames.Pair where Spec.Identity has a network, or its TAP where Spec has one; QEMU holds a copy.
	Net *os.File
	// Env is QEMU's environment.
	Env []string
}

// Reasons of QEMU's SHUTDOWN event, from its qapi/run-state.json.
const (
	guestShutdown = "guest-shutdown" // ACPI power off
	guestReset    = "guest-reset"    // reset, triple fault or panic: we run with -no-reboot
	hostSignal    = "host-signal"    // SIGTERM, SIGINT or SIGHUP
)

// VMM is a running QEMU. Its methods may be called from several goroutines.
type VMM struct {
	child   *hostexec.Child
	qmp     *qmp
	dir     string
	spec    vmm.Spec
	agent   *os.File
	changed chan struct{}
	done    chan struct{}

	mu       sync.Mutex // guards what follows
	state    driver.State
	shutdown string // the reason of QEMU's SHUTDOWN event; empty before
	exit     driver.Exit
}

var _ driver.VMM = (*VMM)(nil)

// Start starts QEMU and returns when it runs the guest. The kernel kills QEMU when the calling thread
// ends: call it from a goroutine locked to a thread that outlives the VM.
func Start(ctx context.Context, cfg Config) (*VMM, error) {
	qmpOurs, qmpTheirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer qmpOurs.Close()
	defer qmpTheirs.Close()
	agentOurs, agentTheirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer agentTheirs.Close()
	v := &VMM{dir: cfg.Dir, spec: cfg.Spec, agent: agentOurs, changed: make(chan struct{}, 1), done: make(chan struct{})}
	conn, err := net.FileConn(qmpOurs)
	if err != nil {
		agentOurs.Close()
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	argv := append([]string{cfg.Spec.Binary}, Args(cfg.Spec, cfg.Options)...)
	inherits := []*os.File{qmpTheirs, agentTheirs}
	if cfg.Net != nil {
		inherits = append(inherits, cfg.Net)
	}
	v.child, err = hostexec.Runner{}.StartChild(argv, cfg.Dir, cfg.Env, cfg.Console, cfg.Stderr, inherits...)
	if err != nil {
		conn.Close()
		agentOurs.Close()
		return nil, err
	}
	// Ours alone from here on, so that the connection ends when QEMU does.
	qmpTheirs.Close()
	agentTheirs.Close()
	v.qmp, err = newQMP(ctx, conn, v.event)
	if err != nil {
		v.child.Kill()
		status, sig, _ := v.child.Wait()
		agentOurs.Close()
		return nil, &driver.StartError{VMM: "qemu", Status: status, Signal: sig, Gone: errors.Is(err, errQMPClosed), Cause: err}
	}
	go v.wait()
	return v, nil
}

func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("start qemu: make a socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "qemu"), os.NewFile(uintptr(fds[1]), "qemu-child"), nil
}

// wait notes QEMU's end. The last event may be under way when the process is gone, so the reader ends first.
func (v *VMM) wait() {
	status, sig, err := v.child.Wait()
	if err != nil {
		status, sig = -1, 0
	}
	select {
	case <-v.qmp.done:
	case <-time.After(2 * time.Second):
		v.qmp.close()
	}
	v.mu.Lock()
	v.exit = exit(status, sig, v.shutdown)
	v.mu.Unlock()
	v.agent.Close()
	close(v.done)
}

// exit says what the end of QEMU's process means.
func exit(status int, sig syscall.Signal, shutdown string) driver.Exit {
	switch {
	case sig == syscall.SIGTERM, sig == syscall.SIGINT, sig == syscall.SIGHUP, status == 0 && shutdown == hostSignal:
		return driver.Exit{Ending: driver.HostSignal}
	case sig != 0:
		return driver.Exit{Ending: driver.Failed, Detail: "qemu was ended by signal " + sig.String()}
	case status != 0:
		return driver.Exit{Ending: driver.Failed, Detail: fmt.Sprintf("qemu ended with exit status %d", status)}
	case shutdown == guestReset:
		return driver.Exit{Ending: driver.GuestReset}
	case shutdown == guestShutdown:
		return driver.Exit{Ending: driver.GuestShutdown}
	}
	return driver.Exit{Ending: driver.Failed, Detail: fmt.Sprintf("qemu ended by itself, reason %q", shutdown)}
}

// event takes an event of QEMU into the state. Whatever the guest provokes, it is one small struct.
func (v *VMM) event(e qmpEvent) {
	v.mu.Lock()
	switch e.Name {
	case "STOP":
		v.state.Paused = true
	case "RESUME":
		v.state.Paused, v.state.DiskFull = false, false
	case "SHUTDOWN":
		var d struct {
			Reason string `json:"reason"`
		}
		_ = json.Unmarshal(e.Data, &d) // no reason: an empty one
		if v.shutdown == "" {
			v.shutdown = d.Reason
		}
	case "BLOCK_IO_ERROR":
		v.blockError(e.Data)
	}
	v.mu.Unlock()
	select {
	case v.changed <- struct{}{}:
	default:
	}
}

// blockError is called with mu held.
func (v *VMM) blockError(data json.RawMessage) {
	var d struct {
		Node    string `json:"node-name"`
		Action  string `json:"action"`
		NoSpace bool   `json:"nospace"`
		Reason  string `json:"reason"`
	}
	if json.Unmarshal(data, &d) != nil {
		return
	}
	if d.NoSpace && d.Action == "stop" {
		v.state.DiskFull = true
		return
	}
	if d.Action == "report" {
		v.state.DiskError = fmt.Sprintf("drive %q: %s", d.Node, d.Reason)
	}
}

// PID is QEMU's process id.
func (v *VMM) PID() int { return v.child.PID() }

// State is what QEMU last told of itself.
func (v *VMM) State() driver.State {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.state
}

// Changed receives after State has changed; several changes may come as one.
func (v *VMM) Changed() <-chan struct{} { return v.changed }

// Done is closed when QEMU is gone.
func (v *VMM) Done() <-chan struct{} { return v.done }

// Exit is how QEMU ended; valid after Done.
func (v *VMM) Exit() driver.Exit {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.exit
}

// Agent returns a connection to the guest's virtio-serial port. Closing it leaves the port open: the next one
// goes on in the same byte stream. Only one may be in use.
func (v *VMM) Agent() (net.Conn, error) {
	conn, err := net.FileConn(v.agent)
	if err != nil {
		return nil, fmt.Errorf("open the agent's port: %w", err)
	}
	return conn, nil
}

// Pause stops the guest's CPUs.
func (v *VMM) Pause(ctx context.Context) error { return v.qmp.execute(ctx, "stop", nil, nil) }

// Resume lets them go on.
func (v *VMM) Resume(ctx context.Context) error { return v.qmp.execute(ctx, "cont", nil, nil) }

// ResizeDrive tells the guest the size its drive's file has now.
func (v *VMM) ResizeDrive(ctx context.Context, id string) error {
	for _, d := range v.spec.Drives {
		if d.ID != id {
			continue
		}
		path := d.Path
		if !filepath.IsAbs(path) {
			path = filepath.Join(v.dir, path)
		}
		st, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("resize drive %q: %w", id, err)
		}
		args := map[string]any{"node-name": id, "size": st.Size()}
		if err := v.qmp.execute(ctx, "block_resize", args, nil); err != nil {
			return fmt.Errorf("resize drive %q: %w", id, err)
		}
		return nil
	}
	return fmt.Errorf("resize drive %q: no such drive", id)
}

// Kill ends QEMU at once; Done tells when it is gone.
func (v *VMM) Kill() { v.child.Kill() }
