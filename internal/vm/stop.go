package vm

import (
	"context"
	"fmt"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// DefaultStopTimeout is how long a guest's init may take to power off.
const DefaultStopTimeout = 30 * time.Second

// endGrace is how long the agent may take to sync and freeze the data drive, killGrace how long a
// killed VMM may take to be gone.
const (
	endGrace  = 10 * time.Second
	killGrace = 20 * time.Second
)

// Stop powers a VM off: its init is asked, after timeout (0 for DefaultStopTimeout) the agent syncs and
// freezes the data drive and ends the guest, and where that fails too the VMM is killed. Each step beyond the
// first is a note. Stopping a stopped VM is fine.
func (s *Service) Stop(ctx context.Context, nameOrID string, timeout time.Duration, rep progress.Reporter) (api.VM, error) {
	if timeout < 0 {
		return api.VM{}, api.Errorf(api.KindInvalid, "a timeout of %s is not possible", timeout).WithHint("use for example --timeout 30s")
	}
	rec, err := s.cfg.Records.VM(ctx, nameOrID)
	if err != nil {
		return api.VM{}, err
	}
	if err := s.stop(ctx, rec, timeout, rep); err != nil {
		return api.VM{}, err
	}
	return s.VM(ctx, rec.ID)
}

func (s *Service) stop(ctx context.Context, rec store.VM, timeout time.Duration, rep progress.Reporter) error {
	if timeout == 0 {
		timeout = DefaultStopTimeout
	}
	unlock, err := s.lock(ctx, rec.ID)
	if err != nil {
		return err
	}
	defer unlock()
	l := s.running(rec.ID)
	if l == nil {
		return nil
	}
	if _, err := s.move(ctx, rec.ID, evStop, ""); err != nil {
		if s.hasEnded(ctx, rec.ID) && waitEnd(ctx, l, killGrace) { // by itself, a moment ago
			return nil
		}
		return err
	}
	rep.Step("stop " + rec.Name)
	if s.stopSoftly(ctx, l, timeout, rep) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		s.stopAbandoned(rec.ID, l)
		return err
	}
	return s.killMachine(ctx, rec.Name, l)
}

// hasEnded reports whether the record says that a VM does not run.
func (s *Service) hasEnded(ctx context.Context, id string) bool {
	rec, err := s.cfg.Records.VM(ctx, id)
	return err == nil && (rec.State == api.StateStopped || rec.State == api.StateFailed)
}

// stopAbandoned gives a VM whose stop was cancelled the state it is really in.
func (s *Service) stopAbandoned(id string, l *live) {
	_, err := s.cfg.Records.UpdateVM(context.WithoutCancel(s.ctx), id, func(r *store.VM) error {
		if r.State == api.StateStopping {
			r.State, r.Reason = derive(api.StateRunning, l.now())
		}
		return nil
	})
	if err != nil {
		s.cfg.Log.Error("record state", "vm", id, "err", err)
	}
}

// stopSoftly reports whether the guest ended by itself when asked.
func (s *Service) stopSoftly(ctx context.Context, l *live, timeout time.Duration, rep progress.Reporter) bool {
	if !l.now().Mark.Reached(api.MarkAgent) {
		rep.Note("the guest's agent does not answer yet: killing the VM")
		return false
	}
	if l.now().Phase == vmm.PhasePaused {
		if err := l.machine.Resume(ctx); err != nil {
			rep.Note(fmt.Sprintf("the paused VM does not resume (%v): killing it", err))
			return false
		}
	}
	guest := s.guest(l)
	askCtx, cancel := context.WithTimeout(ctx, min(timeout, endGrace))
	err := guest.Shutdown(askCtx, "poweroff")
	cancel()
	if err == nil && waitEnd(ctx, l, timeout) {
		return true
	}
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		rep.Note(fmt.Sprintf("the guest could not be asked to power off (%v): syncing its disk and ending it", err))
	} else {
		rep.Note(fmt.Sprintf("the guest did not power off within %s: syncing its disk and ending it", timeout))
	}
	endCtx, cancel := context.WithTimeout(ctx, endGrace)
	defer cancel()
	if err := guest.End(endCtx); err == nil && waitEnd(ctx, l, endGrace) {
		return true
	}
	rep.Note("the guest's agent does not answer: killing the VM")
	return false
}

// Restart stops a VM where it runs, and starts it.
func (s *Service) Restart(ctx context.Context, nameOrID string, timeout time.Duration, want api.Mark, rep progress.Reporter) (api.VM, error) {
	if want != "" && !want.Valid() {
		return api.VM{}, badWait(want)
	}
	if _, err := s.Stop(ctx, nameOrID, timeout, rep); err != nil {
		return api.VM{}, err
	}
	return s.Start(ctx, nameOrID, want, rep)
}

// Kill ends a VM at once, without asking the guest. Killing a stopped VM is fine.
func (s *Service) Kill(ctx context.Context, nameOrID string) (api.VM, error) {
	rec, err := s.cfg.Records.VM(ctx, nameOrID)
	if err != nil {
		return api.VM{}, err
	}
	if err := s.killLive(ctx, rec.ID); err != nil {
		return api.VM{}, err
	}
	return s.VM(ctx, rec.ID)
}

// killLive kills the VM where it runs. It does not take the VM's lock: a kill must get through while a stop waits.
func (s *Service) killLive(ctx context.Context, id string) error {
	l := s.running(id)
	if l == nil {
		return nil
	}
	return s.killMachine(ctx, id, l)
}

func (s *Service) killMachine(ctx context.Context, name string, l *live) error {
	killCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killGrace)
	defer cancel()
	if err := l.machine.Kill(killCtx); err != nil {
		return fmt.Errorf("kill vm %q: %w", name, err)
	}
	if !waitEnd(killCtx, l, killGrace) {
		return api.Errorf(api.KindInternal, "kill vm %q: its end was not recorded within %s", name, killGrace)
	}
	return nil
}
