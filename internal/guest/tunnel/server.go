package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

const (
	// MaxTunnels is how many tunnels a Server has at once.
	MaxTunnels = 4096

	// askTimeout is how long the host may take to say what it wants, and to take the answer.
	askTimeout = 10 * time.Second
	// dialTimeout is how long a connection to one address may take: a program whose backlog is full lets it wait.
	dialTimeout = 5 * time.Second
	// maxAddresses is how many addresses of the guest are tried, of each family.
	maxAddresses = 32
)

var (
	loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	loopback6 = netip.IPv6Loopback()
)

// Server is the guest's end of all tunnels.
type Server struct {
	// UDPListeners are the addresses and ports where UDP sockets wait for whoever comes.
	UDPListeners func() ([]netip.AddrPort, error)
	// Addresses are the guest's own beside 127.0.0.1 and ::1; nil for those its interfaces have.
	Addresses func() []netip.Addr

	open atomic.Int32
}

// Serve connects to the port that the host asks for on stream, and carries the connection until it has ended, or ctx has. It owns
// the stream.
func (s *Server) Serve(ctx context.Context, stream net.Conn) error {
	defer stream.Close()
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	_ = stream.SetDeadline(time.Now().Add(askTimeout))
	var d wire.Dial
	if err := wire.ReadLine(stream, &d); err != nil {
		return fmt.Errorf("read what to dial: %w", err)
	}
	defer s.open.Add(-1)
	conn, err := s.dial(ctx, d, s.open.Add(1) > MaxTunnels)
	answer := wire.DialReply{Type: wire.DialOpen}
	switch {
	case errors.Is(err, ErrRefused):
		answer.Type = wire.DialRefused
	case err != nil:
		answer = wire.DialReply{Type: wire.DialFailed, Reason: err.Error()}
	}
	_ = stream.SetDeadline(time.Now().Add(askTimeout)) // dialling took its time
	if werr := wire.WriteLine(stream, answer); werr != nil && err == nil {
		conn.Close()
		return werr
	}
	if err != nil {
		return err
	}
	_ = stream.SetDeadline(time.Time{})
	if u, ok := conn.(*net.UDPConn); ok {
		return joinUDP(stream, u)
	}
	return joinTCP(stream, conn.(*net.TCPConn))
}

// dial connects to what listens on a port of the guest.
func (s *Server) dial(ctx context.Context, d wire.Dial, full bool) (net.Conn, error) {
	switch {
	case d.Version != wire.Version:
		return nil, fmt.Errorf("this agent speaks version %d, not %d", wire.Version, d.Version)
	case d.Port == 0:
		return nil, errors.New("there is no port 0")
	case full:
		return nil, fmt.Errorf("%d connections are open already", MaxTunnels)
	case d.Network == TCP:
		return dialFirst(ctx, TCP, s.targets(d.Port))
	case d.Network == UDP:
		var to []netip.AddrPort
		for tries := 0; tries < 2 && len(to) == 0; tries++ { // a socket that closes meanwhile may take another's place in the kernel's list
			listeners, err := s.UDPListeners()
			if err != nil {
				return nil, err
			}
			to = udpTargets(listeners, d.Port)
		}
		return dialFirst(ctx, UDP, slices.Values(to))
	}
	return nil, fmt.Errorf("network %q is not known to this agent", d.Network)
}

// targets are where something may listen on a TCP port, in the order they are tried. Nearly all do at the first: to find out about the
// others takes longer than to connect.
func (s *Server) targets(port uint16) iter.Seq[netip.AddrPort] {
	return func(yield func(netip.AddrPort) bool) {
		if !yield(netip.AddrPortFrom(loopback4, port)) {
			return
		}
		own := s.Addresses
		if own == nil {
			own = interfaceAddresses
		}
		var v4 []netip.Addr
		v6 := []netip.Addr{loopback6}
		for _, a := range own() {
			switch {
			case a.IsLoopback():
			case a.Is4() && len(v4) < maxAddresses:
				v4 = append(v4, a)
			case a.Is6() && len(v6) <= maxAddresses:
				v6 = append(v6, a)
			}
		}
		for _, a := range slices.Concat(v4, v6) {
			if !yield(netip.AddrPortFrom(a, port)) {
				return
			}
		}
	}
}

// interfaceAddresses are all addresses this machine has; those that are not without their link have it as zone.
func interfaceAddresses() []netip.Addr {
	var out []netip.Addr
	links, err := net.Interfaces()
	if err != nil {
		return nil // what listens on the loopback is found all the same
	}
	for _, link := range links {
		addrs, err := link.Addrs()
		if err != nil {
			continue // it has just gone
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				a := p.Addr()
				if a.IsLinkLocalUnicast() && a.Is6() {
					a = a.WithZone(link.Name)
				}
				out = append(out, a)
			}
		}
	}
	return out
}

// udpTargets are where UDP sockets listen on a port, as they can be reached from here, in the order they are tried: those of the loopback
// first. Connecting a UDP socket asks nobody, so only one with an address that the guest does not have makes room for the next.
func udpTargets(listeners []netip.AddrPort, port uint16) []netip.AddrPort {
	var found, last []netip.Addr
	for _, l := range listeners {
		switch a := l.Addr(); {
		case l.Port() != port || a.IsMulticast():
		case a == netip.IPv6Unspecified():
			found = append(found, loopback6)
			last = append(last, loopback4) // which it takes as well, if not told otherwise
		case a.IsUnspecified():
			found = append(found, loopback4)
		default:
			found = append(found, a)
		}
	}
	rank := func(a netip.Addr) int {
		switch {
		case a == loopback4:
			return 0
		case a.IsLoopback():
			return 1
		case a.Is4():
			return 2
		}
		return 3
	}
	slices.SortFunc(found, func(a, b netip.Addr) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), a.Compare(b)) })
	found = slices.Compact(append(found, last...))
	var out []netip.AddrPort
	for _, a := range found[:min(len(found), maxAddresses)] {
		out = append(out, netip.AddrPortFrom(a, port))
	}
	return out
}

// dialFirst connects to the first of targets that takes the connection. ErrRefused says that none of them did, and none failed in another way.
func dialFirst(ctx context.Context, network string, targets iter.Seq[netip.AddrPort]) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout, KeepAlive: -1} // who is in the same machine does not vanish
	var failed error
	for to := range targets {
		conn, err := net.Conn(nil), errLater
		if network == TCP && to.Addr() == loopback4 {
			conn, err = dialLoopback(to)
		}
		if errors.Is(err, errLater) {
			conn, err = d.DialContext(ctx, network, to.String())
		}
		if err == nil {
			return conn, nil
		}
		if !absent(err) {
			failed = cmp.Or(failed, err)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return nil, cmp.Or(failed, ErrRefused)
}

// absent tells whether an error says that nobody listens at an address, or that the guest does not have it (any more).
func absent(err error) bool {
	for _, e := range []error{syscall.ECONNREFUSED, syscall.EADDRNOTAVAIL, syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.EAFNOSUPPORT,
		syscall.EACCES, syscall.EINVAL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
