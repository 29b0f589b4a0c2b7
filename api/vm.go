package api

import (
	"net/netip"
	"time"
)

// VMState is the state of a VM. The transitions are a table in internal/vm;
// docs/states.md is generated from it.
type VMState string

// The states of a VM.
const (
	StateCreating  VMState = "creating"
	StateStopped   VMState = "stopped"
	StateStarting  VMState = "starting"
	StateRunning   VMState = "running"
	StateStopping  VMState = "stopping"
	StatePaused    VMState = "paused"
	StateSuspended VMState = "suspended"
	StateFailed    VMState = "failed"
	StateDeleting  VMState = "deleting"
)

// Mark is how far a guest has come in its boot.
type Mark string

// The marks, in order.
const (
	// MarkNone: nothing was heard of the guest yet.
	MarkNone Mark = ""
	// MarkAgent: the agent answers (reachable).
	MarkAgent Mark = "agent"
	// MarkReady: the guest's init reached basic.target; without such an init the same as MarkAgent.
	MarkReady Mark = "ready"
	// MarkFull: the guest's boot is complete.
	MarkFull Mark = "full"
)

var markOrder = map[Mark]int{MarkNone: 0, MarkAgent: 1, MarkReady: 2, MarkFull: 3}

// Reached reports whether m is want or beyond it.
func (m Mark) Reached(want Mark) bool { return markOrder[m] >= markOrder[want] }

// Valid reports whether m is one of agent, ready and full.
func (m Mark) Valid() bool { return markOrder[m] > 0 }

// VM is one VM.
type VM struct {
	ID    string  `json:"id"`
	Name  string  `json:"name"`
	State VMState `json:"state"`
	// Reason says why the VM is stopped, failed or paused, where there is more to say than the state.
	Reason string `json:"reason,omitempty"`
	// Mark is how far the guest's boot has come; empty unless the VM runs.
	Mark Mark `json:"mark,omitempty"`
	// Image and Kernel are names; the digests are what the VM is pinned to for life.
	Image        string `json:"image"`
	ImageDigest  string `json:"image_digest"`
	Kernel       string `json:"kernel"`
	KernelDigest string `json:"kernel_digest"`
	// Engine is "qemu" or "firecracker"; Accel "kvm" or "tcg". Empty before the first start.
	Engine string `json:"engine,omitempty"`
	Accel  string `json:"accel,omitempty"`
	CPUs   int    `json:"cpus"`
	// MemoryBytes and DiskBytes are what the guest was promised; DiskUsedBytes is what its data drive takes on the host.
	MemoryBytes   int64      `json:"memory_bytes"`
	DiskBytes     int64      `json:"disk_bytes"`
	DiskUsedBytes int64      `json:"disk_used_bytes"`
	Env           []string   `json:"env,omitempty"`
	RemoveOnExit  bool       `json:"remove_on_exit,omitempty"`
	CreatedAt     time.Time  `json:"created_at"`
	StartedAt     *time.Time `json:"started_at,omitempty"`
	// Address is the VM's in the network of all VMs, from its first start on.
	Address netip.Addr `json:"address,omitzero"`
	// Forwards are ports of the host that lead to the VM; HostPorts those of the host's loopback that the VM may reach at its gateway,
	// beside the configured ones.
	Forwards  []Forward `json:"forwards,omitempty"`
	HostPorts []uint16  `json:"host_ports,omitempty"`
	// Restarts counts how often the guest rebooted since StartedAt.
	Restarts int `json:"restarts"`
	// VMMPID and SupervisorPID are 0 unless the VM runs.
	VMMPID        int `json:"vmm_pid,omitempty"`
	SupervisorPID int `json:"supervisor_pid,omitempty"`
}

// CreateVM asks for a new VM.
type CreateVM struct {
	// Name is empty for a generated one.
	Name string `json:"name,omitempty"`
	// Image is a name; empty for the configured default.
	Image string `json:"image,omitempty"`
	// Kernel is empty for the image's own.
	Kernel string `json:"kernel,omitempty"`
	// CPUs is 1 to the host's count; 0 for the default.
	CPUs int `json:"cpus,omitempty"`
	// Memory and Disk are sizes such as "2GiB"; empty for the default.
	Memory string `json:"memory,omitempty"`
	Disk   string `json:"disk,omitempty"`
	// Env is KEY=VALUE, given to every command run in the VM.
	Env []string `json:"env,omitempty"`
	// Start starts the VM, and the operation ends when the guest reached Wait (empty: ready).
	Start bool `json:"start,omitempty"`
	Wait  Mark `json:"wait,omitempty"`
	// NoFileSync leaves out the files that the configuration has every new VM get: for a VM that becomes an image.
	NoFileSync bool `json:"no_file_sync,omitempty"`
	// RemoveOnExit deletes the VM when Owner has released it or is gone, or, without
	// an Owner, when it stops.
	RemoveOnExit bool   `json:"remove_on_exit,omitempty"`
	Owner        *Owner `json:"owner,omitempty"`
	// Forwards are ports of the host that lead to the VM; one of HostPort 0 is given one that is free.
	Forwards []Forward `json:"forwards,omitempty"`
	// HostPorts are TCP and UDP ports of the host's 127.0.0.1 that the VM may reach, as host.banger.vm.
	HostPorts []uint16 `json:"host_ports,omitempty"`
}

// Owner is a host process a VM lives for.
type Owner struct {
	PID int `json:"pid"`
	// StartTime is field 22 of /proc/PID/stat, in clock ticks since boot.
	StartTime uint64 `json:"start_time"`
	// BootID is /proc/sys/kernel/random/boot_id.
	BootID string `json:"boot_id"`
}

// StartVM asks to start a VM and to wait for a mark (empty: ready).
type StartVM struct {
	Wait Mark `json:"wait,omitempty"`
}

// StopVM asks to stop a VM.
type StopVM struct {
	// TimeoutSeconds is how long the guest's init may take; 0 for the default of 30.
	TimeoutSeconds int `json:"timeout_seconds,omitempty" minimum:"0" maximum:"86400"`
	// Wait is what a restart waits for (empty: ready).
	Wait Mark `json:"wait,omitempty"`
}

// DeleteVM asks to delete a VM.
type DeleteVM struct {
	// Force deletes one that runs, too, and with all that is in it, as Discard does.
	Force bool `json:"force,omitempty"`
	// Discard deletes one with commits, too, that were not pulled.
	Discard bool `json:"discard,omitempty"`
}

// Release says that the owner of a VM is done with it.
type Release struct {
	Owner Owner `json:"owner"`
	// Keep lets the VM be: it belongs to nobody from now on, and stays until it is deleted.
	Keep bool `json:"keep,omitempty"`
}
