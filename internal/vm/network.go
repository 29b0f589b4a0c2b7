package vm

import (
	"context"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/store"
)

// plugWithin is how long the engine may take to hand over a VM's frames.
const plugWithin = 10 * time.Second

// plug joins a running VM to the network, in the background: nothing of the host depends on it, and the guest's
// frames are thrown away until then.
func (s *Service) plug(rec store.VM, l *live) {
	if !rec.Address.IsValid() {
		return // started by a banger that knew no network
	}
	s.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(s.ctx, plugWithin)
		defer cancel()
		link, err := l.machine.OpenLink(ctx)
		if err == nil {
			if err = s.cfg.Network.Attach(NetworkVM{ID: rec.ID, Name: rec.Name, Address: rec.Address}, link); err != nil {
				_ = link.Close()
			}
		}
		switch {
		case err == nil, s.ctx.Err() != nil:
		case l.hasEnded():
		case api.KindOf(err) == api.KindConflict:
			s.cfg.Log.Warn("the vm has no network until it is started again", "vm", rec.Name, "err", err)
		default:
			s.cfg.Log.Error("the vm has no network", "vm", rec.Name, "err", err)
			s.emit("vm.network", rec.Name, "no network: "+err.Error())
		}
	})
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
