package vm

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/guestapi"
	"git.thaloco.com/thaloco/banger/internal/guest/tunnel"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

const (
	// dialWithin is how long a guest whose agent is there may take to connect to one of its ports.
	dialWithin = 20 * time.Second
	// portsWithin is how long a guest may take to say what listens in it.
	portsWithin = 10 * time.Second
	// startPoll is how often it is looked whether a VM that is starting has been started.
	startPoll = 20 * time.Millisecond
	// maxTunnels is how many connections to ports of a VM there may be at a time: fewer than the 1023 streams that its channel has, or a flood of
	// them would keep commands, ssh and its own shutdown out.
	maxTunnels = 1008
	// maxProcess is the longest name of a process that is believed, in bytes: the kernel's own have 15.
	maxProcess = 64
)

// DialPort connects to what listens on a port of a VM's guest, on whichever of its addresses; network is "tcp" or "udp". A VM that is starting,
// or whose guest boots, is waited for until ctx ends. The connection is a tunnel.Conn. The error is an *api.Error, with vmm.ErrRefused in its chain
// where nobody listens on that port.
func (s *Service) DialPort(ctx context.Context, nameOrID, network string, port uint16) (net.Conn, error) {
	return s.dialGuest(ctx, nameOrID, network, port, func(ctx context.Context, stream net.Conn) (*tunnel.Conn, error) {
		return tunnel.Open(ctx, stream, network, port)
	})
}

// beginPort is DialPort for one who has something to write, or can do nothing else than read: that nobody listens may be known only then, if
// the network is TCP.
func (s *Service) beginPort(ctx context.Context, nameOrID, network string, port uint16) (net.Conn, error) {
	if network != api.TCP {
		return s.DialPort(ctx, nameOrID, network, port)
	}
	return s.dialGuest(ctx, nameOrID, network, port, func(ctx context.Context, stream net.Conn) (*tunnel.Conn, error) {
		return tunnel.Begin(ctx, stream, port)
	})
}

// dialGuest makes a stream to a VM's agent and a connection to a port of its guest of that.
func (s *Service) dialGuest(ctx context.Context, nameOrID, network string, port uint16,
	open func(context.Context, net.Conn) (*tunnel.Conn, error),
) (net.Conn, error) {
	if network != api.TCP && network != api.UDP || port == 0 {
		return nil, api.Errorf(api.KindInvalid, "there is no port %d of %q in a VM", port, network)
	}
	l, rec, err := s.answering(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	if l.tunnels.Add(1) > maxTunnels {
		l.tunnels.Add(-1)
		return nil, tooMany(rec, port)
	}
	left := sync.OnceFunc(func() { l.tunnels.Add(-1) })
	stream, err := l.machine.Dial(ctx, wire.PortDial)
	if err != nil {
		left()
	}
	switch {
	case errors.Is(err, vmm.ErrRefused) && !l.carries.Load():
		return nil, api.Errorf(api.KindConflict, "vm %q runs with an agent that does not carry ports: an older banger started it", rec.Name).
			WithHint("restart it: banger vm restart %s", rec.Name)
	case errors.Is(err, vmm.ErrRefused):
		return nil, tooMany(rec, port)
	case err != nil:
		return nil, noPort(rec, port, err)
	}
	l.carries.Store(true)
	conn, err := open(ctx, &countedStream{stream, left})
	switch {
	case errors.Is(err, tunnel.ErrRefused):
		return nil, api.Errorf(api.KindUnavailable, "nobody listens on %s port %d of vm %q: %w", network, port, rec.Name, vmm.ErrRefused).
			WithHint("what does: banger vm ports %s", rec.Name)
	case err != nil:
		return nil, noPort(rec, port, err)
	}
	return conn, nil
}

// countedStream is a stream that is counted until it is closed.
type countedStream struct {
	net.Conn
	left func()
}

// Close implements net.Conn.
func (c *countedStream) Close() error {
	defer c.left()
	return c.Conn.Close()
}

func tooMany(rec store.VM, port uint16) error {
	return api.Errorf(api.KindUnavailable, "connect to port %d of vm %q: there are too many connections into it", port, rec.Name).
		WithHint("it has %d at most, through its forwards and its web pages: close some, or reach it by its own address in bridge mode", maxTunnels)
}

// noPort is the error of a guest that did not connect.
func noPort(rec store.VM, port uint16, err error) error {
	kind := api.KindGuest
	if k := api.KindOf(err); k == api.KindConflict || k == api.KindCancelled {
		kind = k
	}
	return api.Errorf(kind, "connect to port %d of vm %q: %w", port, rec.Name, err).
		WithHint("banger vm logs --source agent %s may say why", rec.Name)
}

// answering finds a VM whose agent answers, and waits for it where the VM is on its way there.
func (s *Service) answering(ctx context.Context, nameOrID string) (*live, store.VM, error) {
	l, rec, err := s.started(ctx, nameOrID)
	if err != nil {
		return nil, rec, err
	}
	st, err := l.until(ctx, func(st vmm.Status) bool {
		return st.Phase != vmm.PhaseRunning || st.Mark.Reached(api.MarkAgent)
	})
	switch {
	case err != nil:
		return nil, rec, api.Errorf(api.KindConflict, "vm %q boots, and its agent does not answer yet: %w", rec.Name, err).
			WithHint("wait for it: banger vm start --wait agent %s", rec.Name)
	case st.Phase == vmm.PhaseEnded:
		return nil, rec, api.Errorf(api.KindConflict, "vm %q has ended", rec.Name).WithHint("start it: banger vm start %s", rec.Name)
	case st.Phase == vmm.PhasePaused:
		return nil, rec, api.Errorf(api.KindConflict, "vm %q is paused (%s)", rec.Name, st.PauseReason)
	}
	return l, rec, nil
}

// started finds a VM that runs, and waits for one that is just being started.
func (s *Service) started(ctx context.Context, nameOrID string) (*live, store.VM, error) {
	tick := time.NewTicker(startPoll)
	defer tick.Stop()
	for {
		l, rec, err := s.alive(ctx, nameOrID)
		if err == nil || rec.State != api.StateStarting {
			return l, rec, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, rec, api.Errorf(api.KindConflict, "vm %q is being started: %w", rec.Name, context.Cause(ctx))
		}
	}
}

// Ports returns what listens in a VM's guest, which is what the guest says, with what leads there from the host.
func (s *Service) Ports(ctx context.Context, nameOrID string) ([]api.GuestPort, error) {
	l, rec, err := s.reachable(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, portsWithin)
	defer cancel()
	said, err := s.guest(l).Ports(ctx)
	if err != nil {
		return nil, api.Errorf(api.KindOf(err), "ask what listens in vm %q: %w", rec.Name, err)
	}
	out := make([]api.GuestPort, 0, len(said))
	for _, p := range said {
		if (p.Protocol == api.TCP || p.Protocol == api.UDP) && p.Address.IsValid() && p.Port != 0 {
			out = append(out, s.guestPort(rec, p))
		}
	}
	return out, nil
}

// guestPort is a port as it is shown.
func (s *Service) guestPort(rec store.VM, p guestapi.Port) api.GuestPort {
	out := api.GuestPort{Protocol: p.Protocol, Address: p.Address.WithZone(""), Port: p.Port, UID: p.UID, Process: harmless(p.Process), Agent: p.Agent}
	if p.Protocol == api.TCP && !p.Agent && s.cfg.PreviewURL != nil {
		out.URL = s.cfg.PreviewURL(rec.Name, p.Port)
	}
	for _, f := range rec.Forwards {
		if f.Protocol == p.Protocol && f.GuestPort == p.Port {
			out.Forwards = append(out.Forwards, f)
		}
	}
	return out
}

// harmless is a name of the guest's making, of bounded length and of characters that can be seen.
func harmless(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return -1
		}
		return r
	}, s[:min(len(s), maxProcess)])
	return strings.TrimSpace(s)
}
