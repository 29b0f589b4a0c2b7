package vm

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"path/filepath"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/ext4"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/workspace"
)

// boundHomes are the directories of a guest that lie on its data drive themselves, as guest/agent has them.
var boundHomes = []string{"/root", "/home"}

// onDrive is where a path of the guest is on its data drive: in a directory of its own, or in the upper layer of the overlay. What an image has
// at the path and no VM has changed is not there.
func onDrive(guestPath string) string {
	for _, home := range boundHomes {
		if guestPath == home || strings.HasPrefix(guestPath, home+"/") {
			return path.Join("/v1/bind", guestPath)
		}
	}
	return path.Join("/v1/upper", guestPath)
}

// drive is the data drive of a VM that does not run. Its journal is not replayed: after a crash it is as it was some seconds before.
type drive struct{ *ext4.Reader }

// Files implements workspace.Drive.
func (d drive) Files(ctx context.Context, dir string, fn func(name string) error) error {
	return d.WalkBelow(ctx, dir, func(name string, i ext4.Info) error {
		if i.Mode&0o170000 != 0o100000 {
			return nil
		}
		return fn(name)
	})
}

// refsOnDrive finds what the host lacks of a VM that does not run.
func (s *Service) refsOnDrive(ctx context.Context, cfg workspace.PullConfig, rec store.VM, m *workspace.Manifest) ([]string, error) {
	r, err := ext4.Open(filepath.Join(s.cfg.Paths.VM(rec.ID), paths.VMData))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if r.Super().NeedsRecovery {
		return nil, api.Errorf(api.KindConflict, "the VM was not shut down, so that its drive does not show all it holds").
			WithHint("start it and stop it: banger vm start %s, banger vm stop %s", rec.Name, rec.Name)
	}
	refs, err := workspace.DriveRefs(ctx, drive{r}, onDrive(m.GuestPath), m)
	if err != nil {
		return nil, err
	}
	return workspace.Missing(ctx, cfg, m, refs)
}
