package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// dumpTries is how often the list of sockets is asked for where it changes while it is read.
const dumpTries = 3

// resetOutside ends the guest's TCP connections that lead out of banger's network, or to its gateway, and returns how many. The
// daemon that carried them is gone, and a program that only reads would wait for ever: nothing it does tells the host of it.
// Connections to other VMs go on, and so do those that do not leave by the guest's own address, as the ones to its containers.
func (a *agent) resetOutside(context.Context) (int, error) {
	conf := a.identity().Network
	if conf == nil {
		return 0, nil
	}
	n, err := parseNetwork(*conf)
	if err != nil {
		return 0, err
	}
	return resetConnections(n)
}

// resetConnections is resetOutside in the thread's network namespace.
func resetConnections(n network) (count int, err error) {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} { // the second has connections over IPv4 too
		sockets, lerr := tcpSockets(family)
		if lerr != nil {
			err = errors.Join(err, fmt.Errorf("list connections: %w", lerr))
		}
		for _, s := range sockets {
			if !n.leadsOutside(s) {
				continue
			}
			switch derr := destroy(s); {
			case derr == nil:
				count++
			case !errors.Is(derr, unix.ENOENT): // it has ended
				err = errors.Join(err, fmt.Errorf("reset a connection: %w", derr))
				return count, err // the others would fail alike
			}
		}
	}
	return count, err
}

// tcpSockets lists the TCP sockets of a family, as far as it goes.
func tcpSockets(family uint8) (list []*netlink.Socket, err error) {
	for range dumpTries {
		list, err = netlink.SocketDiagTCP(family)
		switch {
		case err == nil, family == unix.AF_INET6 && errors.Is(err, unix.ENOENT): // no IPv6 here
			return list, nil
		case !errors.Is(err, netlink.ErrDumpInterrupted):
			return nil, err
		}
	}
	return list, nil
}

// leadsOutside tells whether a socket is the guest's end of a connection that the daemon carries.
func (n network) leadsOutside(s *netlink.Socket) bool {
	switch s.State {
	case netlink.TCP_ESTABLISHED, netlink.TCP_FIN_WAIT1, netlink.TCP_FIN_WAIT2, netlink.TCP_CLOSE_WAIT, netlink.TCP_LAST_ACK, netlink.TCP_CLOSING:
	default:
		return false // one that begins goes on with its next attempt
	}
	local, ok := netip.AddrFromSlice(s.ID.Source)
	remote, ok2 := netip.AddrFromSlice(s.ID.Destination)
	if !ok || !ok2 || local.Unmap() != n.address.Addr() {
		return false
	}
	remote = remote.Unmap()
	return remote == n.gateway || !n.address.Contains(remote)
}

// destroy has the kernel reset a socket, by sock_diag(7) and struct inet_diag_req_v2: whoever uses it gets ECONNABORTED.
func destroy(s *netlink.Socket) error {
	b := make([]byte, 0, 56)
	b = append(b, s.Family, unix.IPPROTO_TCP, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, ^uint32(0)) // all states
	b = binary.BigEndian.AppendUint16(b, s.ID.SourcePort)
	b = binary.BigEndian.AppendUint16(b, s.ID.DestinationPort)
	for _, ip := range [][]byte{s.ID.Source, s.ID.Destination} {
		var field [16]byte
		a, _ := netip.AddrFromSlice(ip) // leadsOutside has looked at it
		if s.Family == unix.AF_INET {
			a4 := a.Unmap().As4()
			copy(field[:], a4[:])
		} else {
			field = a.As16()
		}
		b = append(b, field[:]...)
	}
	b = binary.NativeEndian.AppendUint32(b, s.ID.Interface)
	b = binary.NativeEndian.AppendUint32(b, s.ID.Cookie[0]) // this very socket, not another that took its place
	b = binary.NativeEndian.AppendUint32(b, s.ID.Cookie[1])
	req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	req.AddRawData(b)
	_, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	return err
}
