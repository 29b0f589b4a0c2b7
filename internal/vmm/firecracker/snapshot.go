package firecracker

import (
	"context"
	"fmt"

	"git.thaloco.com/thaloco/banger/internal/paths"
)

// Restore is a snapshot a VM starts from.
type Restore struct {
	// State and Memory are the files Snapshot wrote, absolute or relative to Config.Dir. The memory is mapped privately: the
	// file must stay as it is for as long as the VM runs. Drives are opened by the paths they had in Config.Spec of the VM that was
	// snapshotted: there is no way to say otherwise, which is why those are relative.
	State, Memory string
}

// snapshotCreate is the body of PUT /snapshot/create.
type snapshotCreate struct {
	Type   string `json:"snapshot_type"`
	State  string `json:"snapshot_path"`
	Memory string `json:"mem_file_path"`
}

// Snapshot writes the state of a paused VM and its memory to files, which are synced to disk. The guest's vsock connections are
// reset when it goes on; what listens there goes on listening.
func (v *VMM) Snapshot(ctx context.Context, state, memory string) error {
	err := v.request(ctx, snapshotTimeout, func(ctx context.Context) error {
		return v.api.put(ctx, "/snapshot/create", snapshotCreate{"Full", state, memory})
	})
	if err != nil {
		return fmt.Errorf("take a snapshot: %w", err)
	}
	return nil
}

// snapshotLoad is the body of PUT /snapshot/load.
type snapshotLoad struct {
	State         string        `json:"snapshot_path"`
	Memory        memoryBackend `json:"mem_backend"`
	ResumeVM      bool          `json:"resume_vm"`
	Vsock         vsockOverride `json:"vsock_override"`
	ClockRealtime bool          `json:"clock_realtime"`
	// Interfaces say which TAPs of the host the network devices are on now.
	Interfaces []netOverride `json:"network_overrides,omitempty"`
}

type netOverride struct {
	ID          string `json:"iface_id"`
	HostDevName string `json:"host_dev_name"`
}

type memoryBackend struct {
	Path string `json:"backend_path"`
	Type string `json:"backend_type"`
}

type vsockOverride struct {
	UDSPath string `json:"uds_path"`
}

// load loads the snapshot of Config.Restore into a Firecracker that was started with nothing, and lets it run. One that refuses ends by itself.
func (v *VMM) load(ctx context.Context) error {
	r := v.cfg.Restore
	var interfaces []netOverride
	if name := v.cfg.Spec.TAP; name != "" {
		interfaces = []netOverride{{ID: netDeviceID, HostDevName: name}}
	}
	return v.request(ctx, snapshotTimeout, func(ctx context.Context) error {
		return v.api.put(ctx, "/snapshot/load", snapshotLoad{
			State: r.State, Memory: memoryBackend{Path: r.Memory, Type: "File"}, ResumeVM: true,
			Vsock: vsockOverride{UDSPath: paths.VMVsock}, ClockRealtime: true, Interfaces: interfaces,
		})
	})
}
