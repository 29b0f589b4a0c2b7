// Package vmm is the contract between banger and what runs a VM. It holds the
// interface, its types and its rules, and nothing else.
//
// An Engine starts VMs in directories of their own. What it starts outlives
// the process that called it: `bangerd vm-supervise`, one per VM, is the
// parent of the VMM (package supervise implements Engine by starting and finding
// supervisors; packages qemu and firecracker are the drivers a supervisor uses).
//
// Rules, checked by vmmtest.Run for every implementation:
//
//   - Start returns once the VMM runs, or an error; after an error nothing
//     is left: no process, no socket, no file that was not there before but logs.
//     Cancelling ctx during Start is such an error.
//   - A VM that was started goes on when the caller dies. Attach finds it again.
//   - Attach to a directory without a running VM returns a *GoneError, with the
//     End where one was recorded.
//   - Next blocks until Status.Seq exceeds after, or ctx ends. Seq only grows.
//     After PhaseEnded nothing changes any more.
//   - Kill ends the VM at once and returns when the VMM is gone; killing an
//     ended VM is fine.
//   - Dial reaches a port the guest listens on; ErrRefused where nobody listens there,
//     an error within ctx where the guest does not answer.
//   - The guest is hostile: a guest that floods its console, its channel or its call fills
//     neither memory nor disk of the host.
package vmm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// MinMemoryMiB is the least memory a VM starts with, in MiB.
const MinMemoryMiB = 128

// SpecVersion is the version of Spec as it is stored in a VM's directory.
const SpecVersion = 1

// Kinds of Spec.Engine and of Spec.Accel.
const (
	EngineQEMU        = "qemu"
	EngineFirecracker = "firecracker"

	AccelKVM = "kvm"
	AccelTCG = "tcg"
)

// Spec is all an engine must know to start a VM.
type Spec struct {
	Version int `json:"version"`
	// VM is the id, for logs; Name for messages.
	VM   string `json:"vm"`
	Name string `json:"name"`
	// Engine is the driver: EngineQEMU or EngineFirecracker.
	Engine string `json:"engine"`
	// Binary is the absolute path of the VMM's program.
	Binary string `json:"binary"`
	// Accel is AccelKVM or AccelTCG (software emulation; QEMU only).
	Accel string `json:"accel"`
	CPUs  int    `json:"cpus"`
	// MemoryMiB is the guest's memory in MiB, at least 128.
	MemoryMiB int `json:"memory_mib"`
	// Kernel is the absolute path of an ELF vmlinux.
	Kernel string `json:"kernel"`
	// Initramfs are cpio archives, joined in this order; the supervisor appends one with wire.Boot.
	Initramfs []string `json:"initramfs"`
	// Drives in the order base, data, modules.
	Drives   []Drive       `json:"drives"`
	Identity wire.Identity `json:"identity"`
	// TAP is the name of the host's TAP that is the guest's eth0, a DeviceVirtio; empty where OpenLink gives its frames.
	TAP string `json:"tap,omitempty"`
	// BootDeadline is how long after its start the VMM may take until the agent calls; then it is
	// killed and started once more, then the VM ends with EndBootTimeout. 0 for 120 s.
	BootDeadline time.Duration `json:"boot_deadline"`
	// Unsafe: the data drive need not survive a crash of the host (--rm VMs).
	Unsafe bool `json:"unsafe,omitempty"`
	// Jailer is the absolute path of Firecracker's jailer, which then puts the VMM into a jail of its own; that takes root.
	// Without one, supervisor and VMM confine themselves to what the VM consists of, unless Unconfined says not to. Firecracker only.
	Jailer     string `json:"jailer,omitempty"`
	Unconfined bool   `json:"unconfined,omitempty"`
	// Restore is the directory of a snapshot the VM goes on from instead of booting, absolute or relative to the VM's directory.
	// Everything else is as it was when the snapshot was taken, the drives' content included; the files stay for as long as the VM
	// runs. A reboot of the guest is a boot. Only with an engine that has Snapshotter.
	Restore string `json:"restore,omitempty"`
}

// Drive is a block device of the guest.
type Drive struct {
	// ID is wire.DriveBase, DriveData or DriveModules.
	ID string `json:"id"`
	// Path is absolute, or relative to the VM's directory.
	Path     string `json:"path"`
	ReadOnly bool   `json:"read_only,omitempty"`
}

// Phase is where a VM is, as its supervisor sees it.
type Phase string

// The phases of a VM.
const (
	// PhaseRunning: the VMM runs; Status.Mark says how far the guest is.
	PhaseRunning Phase = "running"
	PhasePaused  Phase = "paused"
	// PhaseEnded: the VMM is gone; Status.End says why.
	PhaseEnded Phase = "ended"
)

// EndCause is why a VM ended.
type EndCause string

// The causes of an end.
const (
	EndPoweroff    EndCause = "poweroff"     // the guest's init powered off (or a stop asked it to)
	EndHalt        EndCause = "halt"         // the guest halted
	EndKilled      EndCause = "killed"       // Kill
	EndUnexpected  EndCause = "unexpected"   // a reset nobody announced: a panic, or reboot -f
	EndCrashed     EndCause = "crashed"      // the VMM failed: exit status or signal in Detail
	EndBootTimeout EndCause = "boot_timeout" // the agent never called
	EndBadAgent    EndCause = "bad_agent"    // the agent spoke garbage or another version
	EndStart       EndCause = "start"        // the VMM could not be started (again)
	EndLost        EndCause = "lost"         // the supervisor vanished; whoever finds out says so
)

// End is how a VM ended.
type End struct {
	Cause EndCause `json:"cause"`
	// Detail is a line for people.
	Detail string    `json:"detail,omitempty"`
	At     time.Time `json:"at"`
}

// Status is a VM as its engine sees it.
type Status struct {
	// Seq grows with every change.
	Seq   uint64 `json:"seq"`
	Phase Phase  `json:"phase"`
	// PauseReason is set while paused: "asked" or "host disk full".
	PauseReason   string `json:"pause_reason,omitempty"`
	VMMPID        int    `json:"vmm_pid,omitempty"`
	SupervisorPID int    `json:"supervisor_pid,omitempty"`
	// Boots counts starts of the VMM, announced reboots included; at least 1.
	Boots int `json:"boots"`
	// Mark is how far the guest of the current boot is.
	Mark api.Mark `json:"mark,omitempty"`
	// Agent is the agent's build version, Init "systemd", "other" or "none"; empty before it called.
	Agent string `json:"agent,omitempty"`
	Init  string `json:"init,omitempty"`
	// Ending is the verb the guest announced: poweroff, reboot or halt.
	Ending string `json:"ending,omitempty"`
	// Notes are lines for the user, in order: a restart of a boot that hung, and the like. At most 16.
	Notes []string `json:"notes,omitempty"`
	End   *End     `json:"end,omitempty"`
}

// Engine starts VMs and finds them again.
type Engine interface {
	// Start starts a VM in dir, which holds its drives and nothing of another VM.
	Start(ctx context.Context, dir string, spec Spec) (Machine, error)
	// Attach finds the VM running in dir.
	Attach(ctx context.Context, dir string) (Machine, error)
}

// Machine is one started VM. Its methods may be called from several goroutines.
type Machine interface {
	// Status is the last known status.
	Status() Status
	// Next waits for a status with Seq > after.
	Next(ctx context.Context, after uint64) (Status, error)
	// Dial connects to a port in the guest.
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	// Pause stops the guest's CPUs, Resume lets them go on; both are idempotent.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// ResizeDrive tells the guest that a drive's file has grown.
	ResizeDrive(ctx context.Context, id string) error
	// Kill ends the VM at once.
	Kill(ctx context.Context) error
	// OpenLink takes over the VM's Ethernet frames, from whoever had them before: of this process or another. It stays
	// good across a reboot of the guest. An *api.Error of KindConflict for a VM without a network, or with a TAP of the host.
	OpenLink(ctx context.Context) (Link, error)
	// Close drops the caller's connections; the VM goes on.
	Close() error
}

// Snapshotter is a Machine that can be saved and go on later. An engine that cannot do one of these, as QEMU so far, gives an *api.Error
// of KindUnavailable.
type Snapshotter interface {
	// Snapshot saves the memory and the devices of a paused VM in the directory dir, which exists; for Spec.Restore. Its writable drives
	// the caller copies while the VM is paused: they are part of what is restored. The VM stays paused, and usable; its
	// guest's streams end when it goes on, which the host is told only when it writes. A VM that is not paused is a KindConflict.
	Snapshot(ctx context.Context, dir string) error
	// SetBalloon asks the guest for mib MiB of its memory, which the host can use meanwhile; 0 gives all back. The guest gives
	// what it can spare, and takes it back rather than run out.
	SetBalloon(ctx context.Context, mib int) error
}

// Link carries the Ethernet frames of one VM, none longer than wire.MaxEthernet. As on a wire, frames may be lost
// while nobody reads. One goroutine may read while several write.
type Link interface {
	// ReadFrame waits for a frame of the guest and copies it to p, of at least wire.MaxEthernet bytes. The guest decides
	// on every byte of it. An error is final: the VM has ended, or Close was called, or somebody else has taken the frames over.
	ReadFrame(p []byte) (int, error)
	// WriteFrame sends the frame whose bytes are those of the pieces one after another. Where the guest does not take
	// frames it waits; Close ends that.
	WriteFrame(pieces [][]byte) error
	Close() error
}

// ErrRefused says that nobody listens on the dialled port of the guest.
var ErrRefused = errors.New("connection refused by the guest")

// ErrStart is in the error of a Start whose VMM ended, or had to be ended, before it ran the guest: another engine may do better.
var ErrStart = errors.New("the VMM ended at its start")

// GoneError says that no VM runs in a directory.
type GoneError struct {
	Dir string
	// End is what was recorded; nil where the supervisor left nothing.
	End *End
}

// Error implements error.
func (e *GoneError) Error() string {
	if e.End != nil {
		return fmt.Sprintf("vm in %q ended: %s", e.Dir, e.End.Cause)
	}
	return fmt.Sprintf("no vm runs in %q", e.Dir)
}
