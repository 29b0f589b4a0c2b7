package vm

import (
	"context"
	"net"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/guestapi"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/store"
)

// guest is a client of the agent in a running VM.
func (s *Service) guest(l *live) *guestapi.Client {
	return &guestapi.Client{Dial: l.machine.Dial}
}

// alive finds a VM that runs.
func (s *Service) alive(ctx context.Context, nameOrID string) (*live, store.VM, error) {
	rec, err := s.cfg.Records.VM(ctx, nameOrID)
	if err != nil {
		return nil, rec, err
	}
	l := s.running(rec.ID)
	if l == nil && rec.State == api.StateDeleting {
		return nil, rec, api.Errorf(api.KindConflict, "vm %q is being deleted", rec.Name)
	}
	if l == nil {
		return nil, rec, api.Errorf(api.KindConflict, "vm %q is %s", rec.Name, rec.State).WithHint("start it: banger vm start %s", rec.Name)
	}
	return l, rec, nil
}

// reachable finds a VM whose agent answers.
func (s *Service) reachable(ctx context.Context, nameOrID string) (*live, store.VM, error) {
	l, rec, err := s.alive(ctx, nameOrID)
	if err != nil {
		return nil, rec, err
	}
	if !l.now().Mark.Reached(api.MarkAgent) {
		return nil, rec, api.Errorf(api.KindConflict, "vm %q is %s: its agent does not answer yet", rec.Name, rec.State).
			WithHint("wait for it: banger vm start --wait agent %s", rec.Name)
	}
	return l, rec, nil
}

// DialExec connects to the exec port of a VM's agent.
func (s *Service) DialExec(ctx context.Context, nameOrID string) (net.Conn, error) {
	l, rec, err := s.reachable(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	return dialGuest(ctx, l, rec, wire.PortExec)
}

// dialGuest connects to a port of a VM's agent.
func dialGuest(ctx context.Context, l *live, rec store.VM, port uint32) (net.Conn, error) {
	conn, err := l.machine.Dial(ctx, port)
	if err != nil {
		return nil, api.Errorf(api.KindGuest, "connect to the agent of vm %q: %w", rec.Name, err).
			WithHint("banger vm logs --source vmm %s may say why", rec.Name)
	}
	return conn, nil
}

// ExecOwnerGone tells the agent that the client of a process is gone for good: the process is hung up.
func (s *Service) ExecOwnerGone(ctx context.Context, nameOrID, execID string) error {
	l, _, err := s.reachable(ctx, nameOrID)
	if err != nil {
		return err
	}
	return s.guest(l).OwnerGone(ctx, execID)
}
