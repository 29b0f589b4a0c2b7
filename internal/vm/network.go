package vm

import (
	"context"
	"slices"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// plugWithin is how long the engine may take to hand over a VM's frames; a busy host may fail that, so it is asked
// again after plugAgain, and then ever more rarely, down to plugRarely.
const (
	plugWithin = 10 * time.Second
	plugAgain  = 200 * time.Millisecond
	plugRarely = time.Minute
	// resetWithin is how long a guest may take to reset its connections before it is joined all the same.
	resetWithin = 5 * time.Second
)

// plug joins a running VM to the network, in the background: nothing of the host depends on it, and the guest's
// frames are thrown away until then. unplugged is closed once no more of that happens.
func (s *Service) plug(rec store.VM, l *live) {
	if !rec.Address.IsValid() || rec.TAP != "" {
		close(l.unplugged) // started by a banger that knew no network, or on a TAP of the host
		return
	}
	s.tasks.Go(func() {
		defer close(l.unplugged)
		s.keepPlugged(rec, l)
	})
}

// keepPlugged joins a VM to the network, and again whenever its frames were lost while it runs: the way to its supervisor
// may break. They are lost to another daemon too, which does the same: so each time they do not last the next attempt waits longer.
func (s *Service) keepPlugged(rec store.VM, l *live) {
	told := false
	for wait := plugAgain; ; wait = min(2*wait, plugRarely) {
		s.resetGuest(rec, l)
		lost, err := s.join(rec, l)
		switch {
		case err == nil:
			if told {
				s.cfg.Log.Info("the vm has its network now", "vm", rec.Name)
				s.emit("vm.network", rec.Name, "it has its network now")
				told = false
			}
			since := s.cfg.Host.Now()
			if !s.pause(l, lost) {
				return
			}
			s.cfg.Log.Info("the vm's frames were lost, joining it again", "vm", rec.Name)
			if s.cfg.Host.Now().Sub(since) > 2*plugRarely {
				wait = plugAgain
			}
		case s.ctx.Err() != nil, l.isEnding():
			return
		case settled(err):
			s.cfg.Log.Warn("the vm has no network until it is started again", "vm", rec.Name, "err", err)
			return
		case !told:
			s.cfg.Log.Error("the vm has no network", "vm", rec.Name, "err", err)
			s.emit("vm.network", rec.Name, "no network: "+err.Error())
			told = true
		}
		again := make(chan struct{})
		stop := time.AfterFunc(wait, func() { close(again) })
		on := s.pause(l, again)
		stop.Stop()
		if !on {
			return
		}
	}
}

// pause waits until something happens; false where the VM or the service ended before.
func (s *Service) pause(l *live, until <-chan struct{}) bool {
	select {
	case <-until:
		return true
	case <-l.ending:
	case <-s.ctx.Done():
	}
	return false
}

// portDNS is where the gateway itself answers.
const portDNS = 53

// checkHostPorts reports what is wrong with the ports of the host's loopback that a VM is to reach.
func checkHostPorts(ports []uint16) error {
	for i, p := range ports {
		switch {
		case p == 0:
			return api.Errorf(api.KindInvalid, "host port 0 is not possible").WithHint("use a port from 1 to 65535, such as --host-port 5432")
		case p == portDNS:
			return api.Errorf(api.KindInvalid, "host port %d is not possible: the gateway answers DNS there", p).
				WithHint("have the host's service listen on another port too")
		case slices.Contains(ports[:i], p):
			return api.Errorf(api.KindInvalid, "host port %d is given twice", p)
		}
	}
	return nil
}

// settled reports whether an attempt need not be repeated: the VM was started without a network or in another one, or its
// supervisor is another banger's.
func settled(err error) bool {
	kind := api.KindOf(err)
	return kind == api.KindConflict || kind == api.KindInvalid || kind == api.KindVersion
}

// join makes one attempt to join a running VM to the network; lost is closed once its frames are.
func (s *Service) join(rec store.VM, l *live) (lost <-chan struct{}, err error) {
	ctx, cancel := s.whileLive(l)
	defer cancel()
	ctx, cancel = context.WithTimeout(ctx, plugWithin)
	defer cancel()
	link, err := l.machine.OpenLink(ctx)
	if err != nil {
		return nil, err
	}
	lost, err = s.cfg.Network.Attach(NetworkVM{ID: rec.ID, Name: rec.Name, Address: rec.Address, HostPorts: rec.HostPorts}, link)
	if err != nil {
		_ = link.Close()
		return nil, err
	}
	return lost, nil
}

// resetGuest has a guest that ran before this network knew it reset its connections through it: who carried them is gone, and a
// program that only reads would never learn of it. That must be before it is joined, or connections through this network would be reset
// as well; so one that is paused is waited for. A guest that does not do it learns with whatever it sends next.
func (s *Service) resetGuest(rec store.VM, l *live) {
	if _, attached := s.cfg.Network.Stats(rec.ID); attached {
		return // its connections go on
	}
	ctx, cancel := s.whileLive(l)
	defer cancel()
	st, err := l.until(ctx, func(st vmm.Status) bool { return st.Seq > 0 && st.Phase != vmm.PhasePaused })
	if err != nil || st.Phase != vmm.PhaseRunning || !st.Mark.Reached(api.MarkAgent) {
		return // one that begins has no connections
	}
	ctx, cancel = context.WithTimeout(ctx, resetWithin)
	defer cancel()
	switch n, err := s.guest(l).ResetOutside(ctx); {
	case err != nil:
		s.cfg.Log.Info("the guest did not reset its connections, which end when it sends something", "vm", rec.Name, "err", err)
	case n > 0:
		s.cfg.Log.Info("the guest reset the connections of an earlier daemon", "vm", rec.Name, "count", n)
	}
}

// whileLive is a context that ends when the service is closed or the watcher has seen the VM's end.
func (s *Service) whileLive(l *live) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(s.ctx)
	go func() {
		select {
		case <-l.ending:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// isEnding reports whether the watcher has seen the VM's end.
func (l *live) isEnding() bool {
	select {
	case <-l.ending:
		return true
	default:
		return false
	}
}
