package tunnel

import (
	"errors"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// errLater says that a connection was not decided at once.
var errLater = errors.New("not connected at once")

// dialLoopback connects to a TCP port of 127.0.0.1, where the answer is there when connect returns: what net.Dialer does to be able to wait for
// one takes longer than all the rest, where the guest is emulated. errLater says that there is none yet, because the listener's backlog is full.
func dialLoopback(to netip.AddrPort) (net.Conn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := connectAtOnce(fd, to); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	f := os.NewFile(uintptr(fd), to.String())
	defer f.Close()
	conn, err := net.FileConn(f) // of a duplicate
	if err != nil {
		return nil, err
	}
	_ = conn.(*net.TCPConn).SetNoDelay(true) // as net.Dialer does
	return conn, nil
}

// connectAtOnce connects a socket that does not block.
func connectAtOnce(fd int, to netip.AddrPort) error {
	peer := &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	err := unix.Connect(fd, peer)
	switch {
	case err == nil:
		return notItself(fd, peer)
	case !errors.Is(err, unix.EINPROGRESS):
		return os.NewSyscallError("connect", err)
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	if n, err := unix.Poll(poll, 0); n == 0 || err != nil {
		return errLater
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	switch {
	case err != nil:
		return err
	case code != 0:
		return os.NewSyscallError("connect", unix.Errno(code))
	}
	return notItself(fd, peer)
}

// notItself refuses a socket that is connected to itself: of the ports that the kernel gives away it got the one where it was to go, which
// succeeds where nobody listens (RFC 9293, simultaneous open), and would keep who is about to listen from the port.
func notItself(fd int, peer *unix.SockaddrInet4) error {
	own, err := unix.Getsockname(fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	if own, ok := own.(*unix.SockaddrInet4); ok && own.Port == peer.Port && own.Addr == peer.Addr {
		return os.NewSyscallError("connect", unix.ECONNREFUSED)
	}
	return nil
}
