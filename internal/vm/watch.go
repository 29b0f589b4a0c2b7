package vm

import (
	"context"
	"errors"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// watch follows a started VM until it ends or the service closes, keeps its record true, and joins it to the network.
func (s *Service) watch(rec store.VM, m vmm.Machine) *live {
	first := m.Status()
	first.Seq, first.Mark = 0, api.MarkNone // a mark is told once the record says it too
	if first.Phase == vmm.PhaseEnded {
		first.Phase = vmm.PhaseRunning
	}
	l := &live{machine: m, status: first, ending: make(chan struct{}), unplugged: make(chan struct{}), ended: make(chan struct{}), change: make(chan struct{}),
		sessions: make(chan struct{}, 1), unfollowed: make(chan struct{})}
	s.mu.Lock()
	s.live[rec.ID] = l
	s.mu.Unlock()
	s.tasks.Go(func() { s.follow(rec.ID, rec.Name, l) })
	s.tasks.Go(func() { s.followSessions(rec, l) })
	s.plug(rec, l)
	return l
}

func (s *Service) follow(id, name string, l *live) {
	st := l.machine.Status()
	for {
		s.record(id, name, st)
		if st.Phase == vmm.PhaseEnded {
			s.finish(id, name, l, st)
			return
		}
		l.set(st)
		newer, err := l.machine.Next(s.ctx, st.Seq)
		switch {
		case s.ctx.Err() != nil:
			return
		case err != nil:
			s.cfg.Log.Error("watch vm", "vm", name, "err", err)
			newer = vmm.Status{Seq: st.Seq + 1, Phase: vmm.PhaseEnded, Boots: st.Boots,
				End: &vmm.End{Cause: vmm.EndLost, Detail: err.Error(), At: s.cfg.Host.Now()}}
		}
		st = newer
	}
}

// finish records that a VM is no longer live, then tells who waits for its end.
func (s *Service) finish(id, name string, l *live, st vmm.Status) {
	close(l.ending)
	<-l.unplugged
	<-l.unfollowed
	s.endSessions(id, sessionReason(st.End))
	s.cfg.Network.Detach(id) // before another start may join
	s.forwards.Close(id)     // before another start may open them
	s.mu.Lock()
	delete(s.live, id)
	s.mu.Unlock()
	_ = l.machine.Close()
	close(l.ended)
	l.set(st)
	s.cfg.Log.Info("vm ended", "vm", name, "cause", st.End.Cause, "detail", st.End.Detail)
	rec, err := s.cfg.Records.VM(context.WithoutCancel(s.ctx), id)
	if err == nil && rec.RemoveOnExit && rec.Owner == nil && removable(rec) {
		s.tasks.Go(func() { s.removeQuietly(id, name) })
	}
}

func (s *Service) removeQuietly(id, name string) {
	if err := s.delete(context.WithoutCancel(s.ctx), id, true); err != nil {
		s.cfg.Log.Error("remove vm", "vm", name, "err", err)
	}
}

// errUnchanged keeps a record as it is, without a write.
var errUnchanged = errors.New("nothing changed")

// record writes what derive makes of a status, where it differs from what is recorded: a write is one to the disk.
func (s *Service) record(id, name string, st vmm.Status) {
	moved := false
	rec, err := s.cfg.Records.UpdateVM(context.WithoutCancel(s.ctx), id, func(r *store.VM) error {
		state, reason := derive(r.State, st)
		ready := r.WasReady || st.Mark.Reached(api.MarkReady)
		if state == r.State && reason == r.Reason && ready == r.WasReady {
			return errUnchanged
		}
		moved = state != r.State
		r.State, r.Reason, r.WasReady = state, reason, ready
		return nil
	})
	if errors.Is(err, errUnchanged) {
		return
	}
	if err != nil {
		if api.KindOf(err) != api.KindNotFound {
			s.cfg.Log.Error("record state", "vm", name, "err", err)
		}
		return
	}
	if moved {
		s.emit("vm.state", rec.Name, string(rec.State))
	}
}

// watchOwner deletes a --rm VM when the process it lives for is gone.
func (s *Service) watchOwner(rec store.VM) {
	if !rec.RemoveOnExit || rec.Owner == nil {
		return
	}
	gone := s.cfg.Host.OwnerGone(s.ctx, *rec.Owner)
	s.tasks.Go(func() {
		select {
		case <-s.ctx.Done():
			return
		case <-gone:
		}
		if s.ctx.Err() != nil {
			return
		}
		now, err := s.cfg.Records.VM(s.ctx, rec.ID)
		if err != nil || !now.RemoveOnExit || now.Owner == nil || !removable(now) {
			return
		}
		s.cfg.Log.Info("owner is gone, removing vm", "vm", rec.Name, "owner_pid", rec.Owner.PID)
		s.removeQuietly(rec.ID, rec.Name)
	})
}

// removable reports whether a --rm VM may go without a word from its owner: one that broke before its guest was ready stays
// for its logs. One that was stopped or powered off has no reason recorded.
func removable(rec store.VM) bool {
	broke := rec.State == api.StateFailed || (rec.State == api.StateStopped && rec.Reason != "")
	return !broke || rec.StartedAt == nil || rec.WasReady
}

// waitEnd waits until the watcher has recorded the end of a VM, for at most d.
func waitEnd(ctx context.Context, l *live, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-l.ended:
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}
