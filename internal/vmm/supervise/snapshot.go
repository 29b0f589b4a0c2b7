package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/driver"
)

// snapshotVersion is the version of snapshotInfo.
const snapshotVersion = 1

// snapshotInfo is snapshot.json: what a supervisor must know to go on with a guest that another one looked after.
type snapshotInfo struct {
	Version int `json:"version"`
	// VM is the id of the VM it was taken of, Engine what ran it.
	VM     string `json:"vm"`
	Engine string `json:"engine"`
	// Token is what the guest's agent will call with.
	Token string    `json:"token"`
	At    time.Time `json:"at"`
}

// timeout is how long the supervisor tries.
func (r request) timeout() time.Duration {
	if r.Op == opSnapshot {
		return snapshotTimeout
	}
	return opTimeout
}

// saver is what a driver can do that supports snapshots.
type saver interface {
	Snapshot(ctx context.Context, state, memory string) error
	SetBalloon(ctx context.Context, mib int) error
}

// saving returns the VMM of the moment where it can do that.
func (s *supervisor) saving(what string) (saver, driver.VMM, error) {
	v, err := s.current()
	if err != nil {
		return nil, nil, err
	}
	can, ok := v.(saver)
	if !ok {
		return nil, nil, api.Errorf(api.KindUnavailable, "%s: not with engine %q", what, s.spec.Engine)
	}
	return can, v, nil
}

// snapshot saves the VM in dir; what it has written there goes away again where that fails.
func (s *supervisor) snapshot(ctx context.Context, dir string) (err error) {
	if s.spec.Jailer != "" { // whose VMM has no way to dir
		return api.Errorf(api.KindUnavailable, "take a snapshot of VM %q: not in a jail", s.spec.Name).
			WithHint("jail = \"off\" in config.toml, then banger vm restart %s", s.spec.Name)
	}
	can, v, err := s.saving("take a snapshot")
	if err != nil {
		return err
	}
	b := s.ports.current()
	if !v.State().Paused || b == nil {
		return api.Errorf(api.KindConflict, "take a snapshot of VM %q: it is not paused", s.spec.Name)
	}
	info := snapshotInfo{Version: snapshotVersion, VM: s.spec.VM, Engine: s.spec.Engine, Token: b.calls.given(), At: time.Now().UTC()}
	if info.Token == "" {
		return api.Errorf(api.KindConflict, "take a snapshot of VM %q: its agent has not called yet", s.spec.Name)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, remove(dir, paths.SnapshotState, paths.SnapshotMemory, paths.SnapshotInfo))
		}
	}()
	if err := can.Snapshot(ctx, filepath.Join(dir, paths.SnapshotState), filepath.Join(dir, paths.SnapshotMemory)); err != nil {
		return err
	}
	for _, name := range []string{paths.SnapshotState, paths.SnapshotMemory} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Size() == 0 {
			return errors.Join(fmt.Errorf("take a snapshot: %q was not written", name), err)
		}
	}
	// Last, and durable: it says that the others are whole.
	return writeJSON(dir, paths.SnapshotInfo, info, true)
}

func (s *supervisor) setBalloon(ctx context.Context, mib int) error {
	can, _, err := s.saving("set the balloon")
	if err != nil {
		return err
	}
	if mib < 0 || mib >= s.spec.MemoryMiB {
		return api.Errorf(api.KindInvalid, "set the balloon to %d MiB: the VM has %d", mib, s.spec.MemoryMiB)
	}
	return can.SetBalloon(ctx, mib)
}

// readSnapshot reads what is to be restored.
func readSnapshot(spec vmm.Spec) (snapshotInfo, error) {
	var info snapshotInfo
	err := readJSON(spec.Restore, paths.SnapshotInfo, &info)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return info, api.Errorf(api.KindNotFound, "restore: %q holds no whole snapshot", spec.Restore)
	case err != nil:
		return info, fmt.Errorf("restore: %w", err)
	case info.Version != snapshotVersion || info.Token == "":
		return info, api.Errorf(api.KindInvalid, "restore: the snapshot has version %d, this banger knows %d", info.Version, snapshotVersion)
	case info.Engine != spec.Engine:
		return info, api.Errorf(api.KindInvalid, "restore: the snapshot is of engine %q, not %q", info.Engine, spec.Engine)
	}
	return info, nil
}

// Snapshot implements vmm.Snapshotter.
func (m *machine) Snapshot(ctx context.Context, dir string) error {
	return m.ask(ctx, request{Op: opSnapshot, Dir: dir})
}

// SetBalloon implements vmm.Snapshotter.
func (m *machine) SetBalloon(ctx context.Context, mib int) error {
	return m.ask(ctx, request{Op: opBalloon, MiB: mib})
}

var _ vmm.Snapshotter = (*machine)(nil)
