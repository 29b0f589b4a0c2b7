// Package driver is what a VM's supervisor needs of the program that runs the guest, the VMM, whichever it is: the interface
// that packages qemu and firecracker implement.
package driver

import (
	"context"
	"fmt"
	"syscall"
)

// State is what a VMM told of itself.
type State struct {
	// Paused: the CPUs stand still.
	Paused bool
	// DiskFull: they do because the host had no room for a write of the guest.
	DiskFull bool
	// DiskError is the last other error of a drive that was reported to the guest, a line for people.
	DiskError string
}

// Ending is how a VMM's process ended.
type Ending string

// The endings.
const (
	// GuestReset: the guest reset the machine: a reboot, a panic, or the end the agent makes of every verb.
	GuestReset Ending = "guest-reset"
	// GuestShutdown: the guest switched the machine off.
	GuestShutdown Ending = "guest-shutdown"
	// HostSignal: a signal of the host asked it to end, as all processes get at the shutdown of the host.
	HostSignal Ending = "host-signal"
	// Failed: none of these; Exit.Detail says more.
	Failed Ending = "failed"
)

// Exit is the end of a VMM.
type Exit struct {
	Ending Ending
	// Detail says how the process ended, for people: "qemu ended with exit status 1". Empty where the guest ended it.
	Detail string
}

// VMM is one running VMM. Its methods may be called from several goroutines.
type VMM interface {
	// PID is its process id.
	PID() int
	// State is what it last told of itself; Changed receives after a change, several of which may come as one.
	State() State
	Changed() <-chan struct{}
	// Done is closed when the process is gone; Exit is valid from then on.
	Done() <-chan struct{}
	Exit() Exit
	// Pause stops the guest's CPUs, Resume lets them go on. Both are idempotent.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// ResizeDrive tells the guest the size the file of a drive has now.
	ResizeDrive(ctx context.Context, id string) error
	// Kill ends the process at once; Done tells when it is gone.
	Kill()
}

// StartError is a VMM that ended, or was killed, before it ran the guest. What it said itself is in its log.
type StartError struct {
	// VMM is the program's name.
	VMM string
	// Status is the exit status, -1 where Signal ended it; 0 and no signal where the process could not be waited for.
	Status int
	Signal syscall.Signal
	// Gone: it ended by itself; else Cause is why it was killed.
	Gone  bool
	Cause error
}

// Error implements error.
func (e *StartError) Error() string {
	switch {
	case e.Gone && e.Status >= 0:
		return fmt.Sprintf("start %s: exit status %d", e.VMM, e.Status)
	case e.Gone:
		return fmt.Sprintf("start %s: ended by signal %s", e.VMM, e.Signal)
	}
	return fmt.Sprintf("start %s: %v", e.VMM, e.Cause)
}

// Unwrap returns the cause.
func (e *StartError) Unwrap() error { return e.Cause }
