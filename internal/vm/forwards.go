package vm

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/forward"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/store"
)

// Forwards returns the forwards of a VM and how they are, in the order they were asked for.
func (s *Service) Forwards(ctx context.Context, nameOrID string) ([]api.ForwardStatus, error) {
	rec, err := s.cfg.Records.VM(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	return s.forwardsOf(rec), nil
}

func (s *Service) forwardsOf(rec store.VM) []api.ForwardStatus {
	open := s.forwards.Status(rec.ID)
	out := make([]api.ForwardStatus, 0, len(rec.Forwards))
	for _, f := range rec.Forwards {
		st := api.ForwardStatus{Forward: f}
		if i := slices.IndexFunc(open, func(o api.ForwardStatus) bool { return o.Forward == f }); i >= 0 {
			st = open[i]
		}
		out = append(out, st)
	}
	return out
}

// AddForward gives a VM one more forward, whatever its state: where it runs the port is open when this returns, else it was seen to be free. One
// of HostPort 0 is given a port.
func (s *Service) AddForward(ctx context.Context, nameOrID string, f api.Forward) (api.ForwardStatus, error) {
	f, err := forward.Normal(f)
	if err != nil {
		return api.ForwardStatus{}, err
	}
	s.forwarding.Lock()
	defer s.forwarding.Unlock()
	rec, err := s.cfg.Records.VM(ctx, nameOrID)
	if err != nil {
		return api.ForwardStatus{}, err
	}
	if rec.State == api.StateDeleting {
		return api.ForwardStatus{}, api.Errorf(api.KindConflict, "vm %q is being deleted", rec.Name)
	}
	if slices.Contains(rec.Forwards, f) { // asked for twice
		return s.forwardStatus(rec, f), nil
	}
	if i := slices.IndexFunc(rec.Forwards, func(o api.Forward) bool { return forward.Overlap(o, f) }); i >= 0 {
		return api.ForwardStatus{}, api.Errorf(api.KindConflict, "vm %q has a forward of that port: %s", rec.Name, forward.Short(rec.Forwards[i])).
			WithHint("remove it first: banger vm forward %s remove %s", rec.Name, forward.Short(rec.Forwards[i]))
	}
	if _, err := forward.Normals(append(slices.Clone(rec.Forwards), f)); err != nil {
		return api.ForwardStatus{}, err
	}
	opened := true
	if f.HostPort != 0 {
		f, err = s.forwards.Add(rec.ID, f)
	} else if f, err = s.choosePort(ctx, f); err == nil {
		f, err = s.forwards.Add(rec.ID, f)
	}
	if errors.Is(err, forward.ErrNotOpen) {
		opened = false
		_, err = s.forwards.Check([]api.Forward{f}, noneAvoided)
	}
	if err != nil {
		return api.ForwardStatus{}, err
	}
	rec, err = s.cfg.Records.UpdateVM(context.WithoutCancel(ctx), rec.ID, func(r *store.VM) error {
		r.Forwards = append(r.Forwards, f)
		return nil
	})
	if err != nil {
		if opened {
			s.forwards.Remove(rec.ID, f)
		}
		return api.ForwardStatus{}, err
	}
	s.cfg.Log.Info("forward added", "vm", rec.Name, "forward", f.String())
	return s.forwardStatus(rec, f), nil
}

func (s *Service) forwardStatus(rec store.VM, f api.Forward) api.ForwardStatus {
	all := s.forwardsOf(rec)
	if i := slices.IndexFunc(all, func(st api.ForwardStatus) bool { return st.Forward == f }); i >= 0 {
		return all[i]
	}
	return api.ForwardStatus{Forward: f}
}

// RemoveForward takes a forward from a VM, and resets the connections through it. It returns the one that is meant.
func (s *Service) RemoveForward(ctx context.Context, nameOrID string, which api.RemoveForward) (api.Forward, error) {
	s.forwarding.Lock()
	defer s.forwarding.Unlock()
	rec, err := s.cfg.Records.VM(ctx, nameOrID)
	if err != nil {
		return api.Forward{}, err
	}
	f, err := pickForward(rec, which)
	if err != nil {
		return f, err
	}
	_, err = s.cfg.Records.UpdateVM(context.WithoutCancel(ctx), rec.ID, func(r *store.VM) error {
		r.Forwards = slices.DeleteFunc(r.Forwards, func(o api.Forward) bool { return o == f })
		return nil
	})
	if err != nil {
		return f, err
	}
	s.forwards.Remove(rec.ID, f)
	s.cfg.Log.Info("forward removed", "vm", rec.Name, "forward", f.String())
	return f, nil
}

// pickForward finds the one forward of a VM that is named.
func pickForward(rec store.VM, which api.RemoveForward) (api.Forward, error) {
	var hits []api.Forward
	for _, f := range rec.Forwards {
		if f.HostPort == which.HostPort && (which.Protocol == "" || strings.EqualFold(which.Protocol, f.Protocol)) &&
			(!which.HostAddress.IsValid() || which.HostAddress.Unmap() == f.HostAddress) {
			hits = append(hits, f)
		}
	}
	switch {
	case len(hits) == 1:
		return hits[0], nil
	case len(hits) > 1:
		return api.Forward{}, api.Errorf(api.KindInvalid, "vm %q has %d forwards of port %d: %s", rec.Name, len(hits), which.HostPort, shortAll(hits)).
			WithHint("name one of them in full: banger vm forward %s remove %s", rec.Name, forward.Short(hits[0]))
	case len(rec.Forwards) == 0:
		return api.Forward{}, api.Errorf(api.KindNotFound, "vm %q has no forwards", rec.Name).
			WithHint("banger vm forward %s add 8080:80 makes one", rec.Name)
	}
	return api.Forward{}, api.Errorf(api.KindNotFound, "vm %q has no forward of port %d", rec.Name, which.HostPort).
		WithHint("it has %s", shortAll(rec.Forwards))
}

func shortAll(list []api.Forward) string {
	texts := make([]string, len(list))
	for i, f := range list {
		texts[i] = forward.Short(f)
	}
	return strings.Join(texts, ", ")
}

func noneAvoided(api.Forward) bool { return false }

// chooseForwards checks the forwards of a VM that is to be made, and gives each a port that asks for any.
func (s *Service) chooseForwards(ctx context.Context, list []api.Forward) ([]api.Forward, error) {
	if len(list) == 0 {
		return nil, nil
	}
	recs, err := s.cfg.Records.VMs(ctx)
	if err != nil {
		return nil, err
	}
	return s.forwards.Check(list, func(f api.Forward) bool { // the port of a VM that is stopped now is no good choice
		return slices.ContainsFunc(recs, func(r store.VM) bool {
			return slices.ContainsFunc(r.Forwards, func(o api.Forward) bool { return forward.Overlap(o, f) })
		})
	})
}

func (s *Service) choosePort(ctx context.Context, f api.Forward) (api.Forward, error) {
	list, err := s.chooseForwards(ctx, []api.Forward{f})
	if err != nil {
		return f, err
	}
	return list[0], nil
}

// noteForwards tells what a user should know of a new VM's forwards: the ports that were chosen, and who else gets in.
func noteForwards(rec store.VM, asked []api.Forward, rep progress.Reporter) {
	for i, f := range rec.Forwards {
		if asked[i].HostPort == 0 {
			rep.Note(forward.Line(f, rec.Name))
		}
	}
	if w := forward.Exposed(rec.Forwards); w != "" {
		rep.Note(w)
	}
}

// openForwards listens for a VM that is about to start; up, closed, says that it can be dialled. After an error nothing listens.
func (s *Service) openForwards(ctx context.Context, id string, up <-chan struct{}) error {
	s.forwarding.Lock()
	defer s.forwarding.Unlock()
	rec, err := s.cfg.Records.VM(ctx, id)
	if err != nil {
		return err
	}
	_, err = s.forwards.Open(s.forwarded(rec, up), rec.Forwards)
	return err
}

// keepForwards listens for a VM that is found running. A port that somebody else has by now is tried again and again.
func (s *Service) keepForwards(rec store.VM, up <-chan struct{}) {
	s.forwarding.Lock()
	defer s.forwarding.Unlock()
	s.forwards.Keep(s.forwarded(rec, up), rec.Forwards, func(f api.Forward, err error) {
		if err == nil {
			s.cfg.Log.Info("the forward is back", "vm", rec.Name, "forward", f.String())
			s.emit("vm.forward", rec.Name, forward.Short(f)+": it listens now")
			return
		}
		s.cfg.Log.Warn("the forward does not listen", "vm", rec.Name, "forward", f.String(), "err", err)
		s.emit("vm.forward", rec.Name, forward.Short(f)+": "+err.Error())
	})
}

// forwarded is a VM as its forwards reach it: connections that come before up wait.
func (s *Service) forwarded(rec store.VM, up <-chan struct{}) forward.VM {
	return forward.VM{ID: rec.ID, Name: rec.Name, Dial: func(ctx context.Context, network string, port uint16) (net.Conn, error) {
		select {
		case <-up:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		return s.dialPort(ctx, rec.ID, network, port)
	}}
}
