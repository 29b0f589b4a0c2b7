package forward

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"

	"git.thaloco.com/thaloco/banger/api"
)

// maxChoices is how often the kernel is asked for a port that nobody else wants.
const maxChoices = 32

// bindAll binds all of list or none. Where it asks for any port it is given one that avoid does not name.
func (s *Service) bindAll(list []api.Forward, avoid func(api.Forward) bool) ([]io.Closer, []api.Forward, error) {
	var sockets, rejected []io.Closer
	defer func() { closeAll(rejected) }() // held until then, or the kernel might offer them again
	out := make([]api.Forward, 0, len(list))
	for _, f := range list {
		for {
			socket, got, err := s.bind(f)
			if err != nil {
				closeAll(sockets)
				return nil, nil, err
			}
			if f.HostPort == 0 && avoid(got) && len(rejected) < maxChoices {
				rejected = append(rejected, socket)
				continue
			}
			sockets, out = append(sockets, socket), append(out, got)
			break
		}
	}
	return sockets, out, nil
}

func closeAll(sockets []io.Closer) {
	for _, c := range sockets {
		_ = c.Close()
	}
}

// bind makes the host's socket of a forward, and returns the forward with its port. The socket is nil after an error.
func (s *Service) bind(f api.Forward) (io.Closer, api.Forward, error) {
	version := "4"
	if f.HostAddress.Is6() {
		version = "6"
	}
	at := netip.AddrPortFrom(f.HostAddress, f.HostPort)
	if f.Protocol == api.UDP {
		socket, err := listenUDP("udp"+version, at)
		if err != nil {
			return nil, f, s.explain(f, err)
		}
		f.HostPort = socket.conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		return socket, f, nil
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)                                              // its resets are none of TCP's
	ln, err := lc.Listen(context.Background(), "tcp"+version, at.String()) // an address needs no resolver: it does not wait
	if err != nil {
		return nil, f, s.explain(f, err)
	}
	f.HostPort = ln.Addr().(*net.TCPAddr).AddrPort().Port()
	return ln, f, nil
}

// explain makes of the error of a socket one that says what to do.
func (s *Service) explain(f api.Forward, err error) error {
	at := netip.AddrPortFrom(f.HostAddress, f.HostPort)
	where := at.String() + "/" + f.Protocol
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		if vm := s.ownerOf(f); vm != "" {
			return api.Errorf(api.KindConflict, "listen on %s: the port is used by vm %s", where, vm).
				WithHint("banger vm forward %s remove %d/%s frees it; or use another port, 0 for one that is free", vm, f.HostPort, f.Protocol)
		}
		used := "the port is in use"
		if who := s.cfg.Who(f.Protocol, at); who != "" {
			used = "the port is used by " + who
		}
		return api.Errorf(api.KindConflict, "listen on %s: %s", where, used).WithHint("use another port of the host, 0 for one that is free")
	case errors.Is(err, syscall.EACCES) && f.HostPort < 1024:
		return api.Errorf(api.KindInvalid, "listen on %s: ports below 1024 are not for every user", where).
			WithHint("use a higher one, such as %d; sysctl net.ipv4.ip_unprivileged_port_start says from where on they are free", int(f.HostPort)+8000)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return api.Errorf(api.KindUnavailable, "listen on %s: this host has no address %s", where, f.HostAddress).
			WithHint("ip -brief address shows which it has; 127.0.0.1 is this host alone, 0.0.0.0 all of its addresses")
	case errors.Is(err, syscall.EAFNOSUPPORT):
		return api.Errorf(api.KindUnavailable, "listen on %s: this host has no IPv6", where).WithHint("use an IPv4 address, such as 127.0.0.1")
	}
	return api.Errorf(api.KindUnavailable, "listen on %s: %w", where, innermost(err))
}

// innermost is the error of the system, without the addresses that the message around it names.
func innermost(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}
