package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// Recover brings records and host together after a start of the daemon: VMs that run are
// watched again, what ended meanwhile is recorded, what was half made or half deleted is
// removed, and directories and processes without a record go.
func (s *Service) Recover(ctx context.Context) error {
	recs, err := s.cfg.Records.VMs(ctx)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	var errs []error
	for _, rec := range recs {
		known[rec.ID] = true
		if err := s.recoverVM(ctx, rec); err != nil {
			errs = append(errs, fmt.Errorf("recover vm %q: %w", rec.Name, err))
		}
	}
	s.syncKnownHosts(ctx)
	return errors.Join(append(errs, s.sweep(ctx, known))...)
}

func (s *Service) recoverVM(ctx context.Context, rec store.VM) error {
	switch rec.State {
	case api.StateCreating, api.StateDeleting:
		if err := s.killStray(ctx, s.cfg.Paths.VM(rec.ID)); err != nil {
			return err
		}
		return s.remove(ctx, rec)
	case api.StateStarting, api.StateRunning, api.StateStopping, api.StatePaused:
		return s.reattach(ctx, rec)
	default:
		return s.recoverStopped(ctx, rec)
	}
}

// recoverStopped makes sure that a VM recorded as stopped does not run, and deletes it where it was to go then.
func (s *Service) recoverStopped(ctx context.Context, rec store.VM) error {
	if err := s.killStray(ctx, s.cfg.Paths.VM(rec.ID)); err != nil {
		return err
	}
	s.endSessions(rec.ID, reasonUnseen)
	if rec.RemoveOnExit && rec.Owner == nil && rec.StartedAt != nil && removable(rec) {
		return s.remove(ctx, rec)
	}
	s.watchOwner(rec)
	return nil
}

func (s *Service) reattach(ctx context.Context, rec store.VM) error {
	m, err := s.cfg.Engine.Attach(ctx, s.cfg.Paths.VM(rec.ID))
	var gone *vmm.GoneError
	switch {
	case err == nil:
		if rec.State == api.StateStopping { // whoever waited for the stop is gone
			rec, err = s.cfg.Records.UpdateVM(ctx, rec.ID, func(r *store.VM) error {
				r.State, r.Reason = derive(api.StateRunning, m.Status())
				return nil
			})
			if err != nil {
				return err
			}
		}
		s.cfg.Log.Info("vm found running", "vm", rec.Name, "id", rec.ID)
		up := make(chan struct{})
		s.keepForwards(rec, up)
		l := s.watch(rec, m)
		close(up)
		s.watchOwner(rec)
		// Until its watcher has looked, its agent would not be known to answer, and a client that comes back to
		// a command in it be sent away.
		_, err = l.until(ctx, func(st vmm.Status) bool { return st.Seq > 0 })
		s.tasks.Go(func() { s.giveLater(rec, l) })
		return err
	case errors.As(err, &gone):
		end := gone.End
		if end == nil {
			end = &vmm.End{Cause: vmm.EndLost, At: s.cfg.Host.Now()}
		}
		rec, err = s.cfg.Records.UpdateVM(ctx, rec.ID, func(r *store.VM) error {
			r.State, r.Reason = ended(end)
			return nil
		})
		if err != nil {
			return err
		}
		s.endSessions(rec.ID, sessionReason(end))
		return s.recoverStopped(ctx, rec)
	default:
		return err
	}
}

// killStray ends what still runs in a VM's directory though no record says that it should.
func (s *Service) killStray(ctx context.Context, dir string) error {
	m, err := s.cfg.Engine.Attach(ctx, dir)
	var gone *vmm.GoneError
	if errors.As(err, &gone) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	return m.Kill(ctx)
}

// sweep removes the directories of VMs that have no record.
func (s *Service) sweep(ctx context.Context, known map[string]bool) error {
	entries, err := os.ReadDir(s.cfg.Paths.VMs())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the directory of the VMs: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if known[e.Name()] {
			continue
		}
		dir := filepath.Join(s.cfg.Paths.VMs(), e.Name())
		s.cfg.Log.Warn("a directory without a VM", "dir", dir)
		if err := s.killStray(ctx, dir); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, s.setAside(dir))
	}
	return errors.Join(errs...)
}

// Archives returns a function that reports whether a VM that runs was started from an initramfs archive, so that
// it needs it again when its guest reboots. A VM that could not be attached to may run.
func (s *Service) Archives(ctx context.Context) (inUse func(path string) bool, err error) {
	recs, err := s.cfg.Records.VMs(ctx)
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, rec := range recs {
		if s.running(rec.ID) == nil && !mayRun(rec.State) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(s.cfg.Paths.VM(rec.ID), paths.VMSpec))
		if errors.Is(err, os.ErrNotExist) { // it is there before the VMM is
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the spec of vm %q: %w", rec.Name, err)
		}
		var spec vmm.Spec
		if err := json.Unmarshal(b, &spec); err != nil {
			return nil, fmt.Errorf("read the spec of vm %q: %w", rec.Name, err)
		}
		for _, a := range spec.Initramfs {
			used[a] = true
		}
	}
	return func(path string) bool { return used[path] }, nil
}

// mayRun reports whether a VM recorded in a state has a VMM, as far as is known.
func mayRun(state api.VMState) bool {
	switch state {
	case api.StateStarting, api.StateRunning, api.StateStopping, api.StatePaused:
		return true
	}
	return false
}

// setAside takes a directory that no record mentions out of the way. A record is there before its directory and goes after it,
// so one with a data drive means that the database was lost or is an old one: its data is kept. Anything else is removed.
func (s *Service) setAside(dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, paths.VMData)); errors.Is(err, os.ErrNotExist) {
		return os.RemoveAll(dir)
	}
	if err := os.MkdirAll(s.cfg.Paths.Lost(), 0o700); err != nil {
		return err
	}
	to := filepath.Join(s.cfg.Paths.Lost(), filepath.Base(dir))
	if err := os.Rename(dir, to); err != nil {
		return fmt.Errorf("set aside a VM without a record: %w", err)
	}
	s.cfg.Log.Warn("the VM was set aside: its data drive is kept", "dir", to)
	return nil
}
