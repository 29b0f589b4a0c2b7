package egress

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// DialHostTCP connects to a port of the host's own loopback: 127.0.0.1, and where nobody listens there ::1. No rule is asked: whoever
// calls it knows that the user gave this port to this guest.
func (p *Policy) DialHostTCP(ctx context.Context, port uint16) (*net.TCPConn, error) {
	conn, err := dialHost(ctx, "tcp4", netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	if errors.Is(err, syscall.ECONNREFUSED) {
		if six, e := dialHost(ctx, "tcp6", netip.IPv6Loopback(), port); e == nil {
			conn, err = six, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// DialHostUDP returns a socket connected to a port of the host's 127.0.0.1; see DialHostTCP.
func (p *Policy) DialHostUDP(ctx context.Context, port uint16) (*net.UDPConn, error) {
	conn, err := dialHost(ctx, "udp4", netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

func dialHost(ctx context.Context, network string, host netip.Addr, port uint16) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: keepAlive}
	return d.DialContext(ctx, network, netip.AddrPortFrom(host, port).String())
}
