package fakefc

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
)

// snapshotCreate is the body of PUT /snapshot/create.
type snapshotCreate struct {
	Type   string `json:"snapshot_type" enum:"Full|Diff"`
	State  string `json:"snapshot_path" fc:"required"`
	Memory string `json:"mem_file_path" fc:"required"`
}

// snapshotLoad is the body of PUT /snapshot/load.
type snapshotLoad struct {
	State            string            `json:"snapshot_path" fc:"required"`
	MemoryFile       *string           `json:"mem_file_path,omitempty"`
	Memory           *memoryBackend    `json:"mem_backend,omitempty"`
	EnableDiff       bool              `json:"enable_diff_snapshots"`
	TrackDirtyPages  bool              `json:"track_dirty_pages"`
	ResumeVM         bool              `json:"resume_vm"`
	NetworkOverrides []networkOverride `json:"network_overrides"`
	Vsock            *vsockOverride    `json:"vsock_override,omitempty"`
	ClockRealtime    bool              `json:"clock_realtime"`
	HugePages        string            `json:"huge_pages,omitempty" enum:"Snapshot|None|Transparent|2M"`
}

type memoryBackend struct {
	Path string `json:"backend_path" fc:"required"`
	Type string `json:"backend_type" fc:"required" enum:"File|Uffd"`
}

type networkOverride struct {
	Interface string `json:"iface_id" fc:"required"`
	HostDev   string `json:"host_dev_name" fc:"required"`
}

type vsockOverride struct {
	UDSPath string `json:"uds_path" fc:"required"`
}

// snapshot is a state file of the fake.
type snapshot struct {
	Version string     `json:"version"`
	Config  config     `json:"config"`
	Guest   guestState `json:"guest"`
}

func (f *fake) createSnapshot(text []byte) error {
	c, err := body[snapshotCreate](text)
	switch {
	case err != nil:
		return err
	case f.state == stateNotStarted:
		return errPreBoot
	case f.state == stateRunning:
		return faultf("Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore unavailable while running")
	}
	guest, err := f.guest.save()
	if err != nil {
		return faultf("Create snapshot error: %w", err)
	}
	conf := f.res.config
	conf.Logger, conf.Metrics = nil, nil // are not in it
	state, err := json.Marshal(snapshot{Version: SnapshotVersion, Config: conf, Guest: guest})
	if err == nil {
		err = os.WriteFile(c.State, state, 0o644)
	}
	if err != nil {
		return faultf("Create snapshot error: Cannot write the microVM state: %s", osError(err))
	}
	mem, err := os.Create(c.Memory)
	if err == nil {
		err = mem.Truncate(int64(f.res.MachineConfig.MemSizeMiB) << 20)
		if cerr := mem.Close(); err == nil {
			err = cerr
		}
	}
	if err != nil {
		return faultf("Create snapshot error: Cannot write memory file: Cannot perform Open on the memory backing file: %s", osError(err))
	}
	return nil
}

// loadSnapshot starts the VM of a snapshot. What goes wrong with the snapshot itself is the end of the process.
func (f *fake) loadSnapshot(text []byte) error {
	l, err := body[snapshotLoad](text)
	if err != nil {
		return err
	}
	switch {
	case l.MemoryFile == nil && l.Memory == nil:
		return faultf("missing field: either `mem_backend` or `mem_file_path` is required")
	case l.MemoryFile != nil && l.Memory != nil:
		return faultf("too many fields: either `mem_backend` or `mem_file_path` exclusively is required")
	case f.state != stateNotStarted:
		return errPostBoot
	case f.res.bootSpecific:
		return errLoadNotAllowed
	}
	if l.MemoryFile != nil {
		violation("PUT /snapshot/load: mem_file_path is deprecated")
	}
	if err := f.restore(l); err != nil {
		f.log.errorf("RunWithApiError error: Failed to build MicroVM: Loading snapshot failed.")
		fmt.Fprintln(os.Stderr, "Error: RunWithApi(BuildMicroVMFromRequests(LoadSnapshot))")
		f.dieAfterAnswer = 1
		return faultf("Load snapshot error: %w", err)
	}
	return nil
}

func (f *fake) restore(l snapshotLoad) error {
	text, err := os.ReadFile(l.State)
	if err != nil {
		return faultf("Failed to restore from snapshot: Failed to get snapshot state from file: Failed to open snapshot file: %s", osError(err))
	}
	var s snapshot
	if err := json.Unmarshal(text, &s); err != nil {
		return faultf("Failed to restore from snapshot: Failed to get snapshot state from file: Failed to load snapshot state from file: CRC64 validation failed: 0")
	}
	if s.Version != SnapshotVersion {
		return faultf("Failed to restore from snapshot: Failed to get snapshot state from file: Failed to load snapshot state from file: Invalid data version: %s", s.Version)
	}
	memory := ""
	if l.MemoryFile != nil {
		memory = *l.MemoryFile
	} else {
		memory = l.Memory.Path
	}
	size := int64(s.Config.MachineConfig.MemSizeMiB) << 20
	if info, err := os.Stat(memory); err != nil {
		return faultf("Failed to restore from snapshot: Failed to load guest memory: Error creating guest memory from file: %s", osError(err))
	} else if info.Size() < size {
		return faultf("Failed to restore from snapshot: Failed to load guest memory: Error creating guest memory from file: the file is smaller than the guest's memory")
	}
	if err := kvmError(f.knobs.KVM); err != nil {
		return err
	}
	for _, d := range s.Config.Drives {
		if err := openDrive(*d.PathOnHost, d.readOnly()); err != nil {
			return faultf("Failed to restore from snapshot: Failed to build microVM from snapshot: Failed to restore devices: Block restore error: %w", err)
		}
	}
	for _, o := range l.NetworkOverrides {
		i := slices.IndexFunc(s.Config.Interfaces, func(n netDevice) bool { return n.ID == o.Interface })
		if i < 0 {
			return faultf("Failed to restore from snapshot: Failed to load guest memory: Unknown Network Device.")
		}
		s.Config.Interfaces[i].HostDevName = o.HostDev
	}
	given := s.Config.Interfaces
	s.Config.Interfaces = nil
	for _, n := range given {
		if err := f.res.setInterface(n); err != nil {
			return faultf("Failed to restore from snapshot: Failed to build microVM from snapshot: Failed to restore devices: %w", err)
		}
	}
	s.Config.Interfaces = given
	if v := s.Config.Vsock; v != nil {
		if l.Vsock != nil {
			v.UDSPath = l.Vsock.UDSPath
		}
		if err := f.bind(*v); err != nil {
			return faultf("Failed to restore from snapshot: Failed to build microVM from snapshot: Failed to restore devices: Vsock restore error: Error binding to the host-side Unix socket: %s", osError(err))
		}
	}
	logger, metrics := f.res.Logger, f.res.Metrics
	f.res.config = s.Config
	f.res.Logger, f.res.Metrics = logger, metrics
	return f.resumeGuest(s.Guest, l.ResumeVM)
}

// describe is the version of the format of a snapshot.
func describe(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", faultf("Unable to open snapshot state file: %s", osError(err))
	}
	var s snapshot
	if err := json.Unmarshal(text, &s); err != nil {
		return "", faultf("Invalid data format version of snapshot file: %w", err)
	}
	return s.Version, nil
}
