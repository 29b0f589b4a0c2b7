package vm

import (
	"context"
	"fmt"
	"os"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/store"
)

// Delete removes a VM and its data. A VM that runs is refused unless req forces it; it is killed then.
func (s *Service) Delete(ctx context.Context, nameOrID string, req api.DeleteVM) error {
	rec, err := s.cfg.Records.VM(ctx, nameOrID)
	if err != nil {
		return err
	}
	if s.running(rec.ID) != nil && !req.Force {
		return api.Errorf(api.KindConflict, "vm %q is %s", rec.Name, rec.State).
			WithHint("stop it first (banger vm stop %s), or delete it as it is: banger vm delete --force %s", rec.Name, rec.Name)
	}
	if !req.Force && !req.Discard {
		if err := s.keepsWork(ctx, rec); err != nil {
			return err
		}
	}
	return s.delete(ctx, rec.ID, req.Force)
}

// keepsWork is an error where commits would be lost with a VM.
func (s *Service) keepsWork(ctx context.Context, rec store.VM) error {
	work, err := s.unpulled(ctx, rec)
	if err != nil {
		return api.Errorf(api.KindConflict, "delete vm %q: it is not known whether commits would be lost with it: %w", rec.Name, err).
			WithHint("delete it all the same: banger vm delete --force %s", rec.Name)
	}
	if len(work) == 0 {
		return nil
	}
	var what []string
	for _, w := range work {
		what = append(what, fmt.Sprintf("%s (%s)", w.GuestPath, strings.Join(w.Refs, ", ")))
	}
	return api.Errorf(api.KindConflict, "vm %q has commits that were not pulled: %s", rec.Name, strings.Join(what, "; ")).
		WithHint("start it and pull them (banger vm start %s, banger vm workspace pull %s), or delete it with them: banger vm delete --force %s", rec.Name, rec.Name, rec.Name)
}

func (s *Service) delete(ctx context.Context, id string, force bool) error {
	if force {
		if err := s.killLive(ctx, id); err != nil {
			return err
		}
	}
	unlock, err := s.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if l := s.running(id); l != nil { // started again while this waited for the lock
		if !force {
			return api.Errorf(api.KindConflict, "vm %q was started meanwhile", id)
		}
		if err := s.killMachine(ctx, id, l); err != nil {
			return err
		}
	}
	rec, err := s.cfg.Records.VM(ctx, id)
	if api.KindOf(err) == api.KindNotFound {
		return nil // somebody else was faster
	}
	if err != nil {
		return err
	}
	return s.remove(context.WithoutCancel(ctx), rec)
}

// remove deletes a VM that does not run: first the record says so, then the files go, then the record. A crash
// in between is finished by Recover.
func (s *Service) remove(ctx context.Context, rec store.VM) error {
	if _, err := s.move(ctx, rec.ID, evDelete, ""); err != nil {
		return err
	}
	if err := os.RemoveAll(s.cfg.Paths.VM(rec.ID)); err != nil {
		return fmt.Errorf("delete vm %q: %w", rec.Name, err)
	}
	if err := s.cfg.Records.DeleteVM(ctx, rec.ID); err != nil {
		return err
	}
	if err := s.cfg.Supplies.RemoveUnused(ctx); err != nil { // the next one to be deleted tries again
		s.cfg.Log.Warn("cannot remove what no vm uses any more", "vm", rec.Name, "error", err.Error())
	}
	s.syncKnownHosts(ctx)
	s.cfg.Log.Info("vm deleted", "vm", rec.Name, "id", rec.ID)
	s.emit("vm.deleted", rec.Name, "")
	return nil
}

// Release says that the owner of a --rm VM is done with it: the VM is deleted, or with Keep an ordinary one from now on. A VM that is not such a
// VM, or has another owner, is left alone with an error.
func (s *Service) Release(ctx context.Context, nameOrID string, req api.Release) error {
	rec, err := s.cfg.Records.VM(ctx, nameOrID)
	if api.KindOf(err) == api.KindNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	if !rec.RemoveOnExit || rec.Owner == nil || *rec.Owner != req.Owner {
		return api.Errorf(api.KindConflict, "vm %q does not belong to process %d", rec.Name, req.Owner.PID).
			WithHint("remove it with banger vm delete --force %s", rec.Name)
	}
	if !req.Keep {
		return s.delete(ctx, rec.ID, true)
	}
	_, err = s.cfg.Records.UpdateVM(ctx, rec.ID, func(r *store.VM) error {
		r.RemoveOnExit, r.Owner = false, nil
		return nil
	})
	return err
}
