package vm

import (
	"context"
	"net/netip"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/probe"
)

// Records is what the service keeps across restarts of the daemon.
type Records interface {
	InsertVM(ctx context.Context, vm store.VM) error
	UpdateVM(ctx context.Context, id string, change func(*store.VM) error) (store.VM, error)
	VM(ctx context.Context, nameOrID string) (store.VM, error)
	VMs(ctx context.Context) ([]store.VM, error)
	DeleteVM(ctx context.Context, id string) error
	AddEvent(ctx context.Context, ev api.Event) (api.Event, error)
	InsertSession(ctx context.Context, v store.Session) error
	UpdateSession(ctx context.Context, vm, name string, change func(*store.Session) error) (store.Session, error)
	Session(ctx context.Context, vm, name string) (store.Session, error)
	Sessions(ctx context.Context, vm string) ([]store.Session, error)
	DeleteSession(ctx context.Context, vm, name string) error
}

// Image is a local image: its record and its file.
type Image struct {
	api.Image
	Rootfs string
}

// Kernel is a local kernel: its record and its files.
type Kernel struct {
	api.Kernel
	Vmlinux, BootArchive, ModulesDrive string
}

// Supplies finds what a VM is made of.
type Supplies interface {
	// EnsureImage makes the image of that name local, pulling it where it is not.
	EnsureImage(ctx context.Context, name string, rep progress.Reporter) (Image, error)
	// EnsureKernel does the same for a kernel.
	EnsureKernel(ctx context.Context, name string, rep progress.Reporter) (Kernel, error)
	// CheckKernel reports whether EnsureKernel knows a kernel of that name.
	CheckKernel(ctx context.Context, name string) error
	// ImageByDigest and KernelByDigest find what a VM is pinned to, and check cheaply that it is undamaged.
	ImageByDigest(ctx context.Context, digest string) (Image, error)
	KernelByDigest(ctx context.Context, digest string) (Kernel, error)
	// RemoveUnused removes the images and kernels that have neither a name nor a VM any more.
	RemoveUnused(ctx context.Context) error
	// AgentArchive is the path of the cpio archive with the agent.
	AgentArchive(ctx context.Context) (string, error)
	// Engine says which engine to start VMs on; it fetches one where that must be.
	Engine(ctx context.Context, rep progress.Reporter) (probe.Decision, error)
	// EngineFailed remembers that the VMM of an engine ended at its start, because of cause, and says which one to try instead; false
	// where there is none.
	EngineFailed(ctx context.Context, d probe.Decision, cause error) (probe.Decision, bool)
}

// NetworkVM is a VM as the network knows it.
type NetworkVM struct {
	ID, Name string
	Address  netip.Addr
	// HostPorts are the ports of the host's loopback it may reach, beside those all VMs may.
	HostPorts []uint16
}

// Lease is what a VM has of the network.
type Lease struct {
	// Network is what its guest must know; its device is the engine's to say.
	wire.Network
	// TAP is the TAP of the host that the VM is to be on; empty where it joins by its frames.
	TAP string
}

// Network is the network of all VMs.
type Network interface {
	// Lease gives the VM of this id an address where it has none, records it, and returns what its guest must know.
	Lease(ctx context.Context, id string) (Lease, error)
	// Warning is what the user should know of the network, once; empty where there is nothing, or it was said.
	Warning() string
	// Attach joins a running VM by its frames. It owns the link from then on; after an error the link is the caller's still. lost is
	// closed once the link has ended; what goes through it goes on where the VM is attached again soon.
	Attach(v NetworkVM, link vmm.Link) (lost <-chan struct{}, err error)
	// Detach says that the VM of this id has ended, whether it was attached or not: its connections are reset.
	Detach(id string)
	// Stats are the counters of a VM; false where there are none.
	Stats(id string) (api.NetworkStats, bool)
}

// Defaults are the configured values for what a request leaves out.
type Defaults struct {
	Image string
	// CPUs is how many a VM gets, depending on whether its CPUs are emulated; more than the host has counts as all of them.
	CPUs func(emulated bool) int
	// MemoryBytes and DiskBytes are in bytes.
	MemoryBytes, DiskBytes int64
}
