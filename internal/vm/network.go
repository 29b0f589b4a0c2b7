package vm

import (
	"context"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/store"
)

// plugWithin is how long the engine may take to hand over a VM's frames; a busy host may fail that, so it is asked
// again after plugAgain, and then ever more rarely, down to plugRarely.
const (
	plugWithin = 10 * time.Second
	plugAgain  = 200 * time.Millisecond
	plugRarely = time.Minute
)

// plug joins a running VM to the network, in the background: nothing of the host depends on it, and the guest's
// frames are thrown away until then.
func (s *Service) plug(rec store.VM, l *live) {
	if !rec.Address.IsValid() || rec.TAP != "" {
		return // started by a banger that knew no network, or on a TAP of the host
	}
	s.tasks.Go(func() {
		told := false
		for wait := plugAgain; ; wait = min(2*wait, plugRarely) {
			err := s.join(rec, l)
			switch {
			case err == nil && told:
				s.cfg.Log.Info("the vm has its network now", "vm", rec.Name)
				s.emit("vm.network", rec.Name, "it has its network now")
				return
			case err == nil, s.ctx.Err() != nil, l.hasEnded():
				return
			case settled(err):
				s.cfg.Log.Warn("the vm has no network until it is started again", "vm", rec.Name, "err", err)
				return
			case !told:
				s.cfg.Log.Error("the vm has no network", "vm", rec.Name, "err", err)
				s.emit("vm.network", rec.Name, "no network: "+err.Error())
				told = true
			}
			select {
			case <-time.After(wait):
			case <-l.ended:
				return
			case <-s.ctx.Done():
				return
			}
		}
	})
}

// settled reports whether an attempt need not be repeated: the VM was started without a network or in another one, or its
// supervisor is another banger's.
func settled(err error) bool {
	kind := api.KindOf(err)
	return kind == api.KindConflict || kind == api.KindInvalid || kind == api.KindVersion
}

// join makes one attempt to join a running VM to the network.
func (s *Service) join(rec store.VM, l *live) error {
	ctx, cancel := context.WithTimeout(s.ctx, plugWithin)
	defer cancel()
	link, err := l.machine.OpenLink(ctx)
	if err != nil {
		return err
	}
	if err := s.cfg.Network.Attach(NetworkVM{ID: rec.ID, Name: rec.Name, Address: rec.Address}, link); err != nil {
		_ = link.Close()
		return err
	}
	return nil
}

// hasEnded reports whether the watcher has recorded the VM's end.
func (l *live) hasEnded() bool {
	select {
	case <-l.ended:
		return true
	default:
		return false
	}
}
