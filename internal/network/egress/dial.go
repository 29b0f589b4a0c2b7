package egress

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// keepAlive finds peers that are gone, unhurriedly: the connection is somebody else's.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 2 * time.Minute, Interval: 30 * time.Second, Count: 6}

// DialTCP connects to dst, where the policy allows it.
func (p *Policy) DialTCP(ctx context.Context, dst netip.AddrPort) (*net.TCPConn, error) {
	conn, err := p.dial(ctx, "tcp4", dst)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// DialUDP returns a socket connected to dst, where the policy allows it.
func (p *Policy) DialUDP(ctx context.Context, dst netip.AddrPort) (*net.UDPConn, error) {
	conn, err := p.dial(ctx, "udp4", dst)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

// dial checks the fixed rules, and everything once more at the moment the kernel is given the address.
func (p *Policy) dial(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
	dst = plain(dst)
	if !p.exempt[dst] {
		if err := p.fixed(dst); err != nil {
			return nil, err
		}
	}
	d := net.Dialer{KeepAliveConfig: keepAlive, Control: func(_, address string, _ syscall.RawConn) error {
		final, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		return p.Check(final)
	}}
	conn, err := d.DialContext(ctx, network, dst.String())
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// DialPing returns a socket that sends ICMP echo requests to dst and receives their replies, both as ICMP messages
// without IP header; the kernel sets their identifier. An error with syscall.EACCES means that
// net.ipv4.ping_group_range does not let the daemon's groups do that.
func (p *Policy) DialPing(_ context.Context, dst netip.Addr) (net.Conn, error) {
	// an echo has no port; 7 is that of the echo service
	target := plain(netip.AddrPortFrom(dst, 7))
	if err := p.Check(target); err != nil {
		return nil, err
	}
	if !target.Addr().Is4() {
		return nil, &RefusedError{target, "IPv6 is not forwarded yet"}
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		return nil, fmt.Errorf("ping %q: %w", target.Addr(), err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: target.Addr().As4()}); err != nil {
		_ = unix.Close(fd) // nothing was sent
		return nil, fmt.Errorf("ping %q: %w", target.Addr(), err)
	}
	f := os.NewFile(uintptr(fd), "ping")
	defer func() { _ = f.Close() }() // FileConn has its own copy
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("ping %q: %w", target.Addr(), err)
	}
	return conn, nil
}
