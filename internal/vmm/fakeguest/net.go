package fakeguest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/vmm/frames"
)

// Lengths and numbers of ARP over Ethernet (RFC 826).
const (
	etherLen    = 14
	arpLen      = 28
	etherARP    = 0x0806
	etherIPv4   = 0x0800
	arpEthernet = 1
	arpRequest  = 1
	arpReply    = 2
)

// ARPRequest is the frame that asks who has target, on behalf of sender at mac.
func ARPRequest(mac net.HardwareAddr, sender, target netip.Addr) []byte {
	f := make([]byte, etherLen+arpLen)
	copy(f, bytes.Repeat([]byte{0xff}, 6))
	fillARP(f, arpRequest, mac, sender, make([]byte, 6), target)
	return f
}

// ParseARPReply returns the hardware address an ARP reply gives for target; nil where frame is no such reply.
func ParseARPReply(frame []byte, target netip.Addr) net.HardwareAddr {
	if !isARP(frame, arpReply) || !bytes.Equal(frame[etherLen+14:etherLen+18], target.AsSlice()) {
		return nil
	}
	return net.HardwareAddr(bytes.Clone(frame[etherLen+8 : etherLen+14]))
}

func isARP(f []byte, op uint16) bool {
	return len(f) >= etherLen+arpLen && binary.BigEndian.Uint16(f[12:]) == etherARP && binary.BigEndian.Uint16(f[etherLen+6:]) == op
}

func fillARP(f []byte, op uint16, mac []byte, sender netip.Addr, targetMAC []byte, target netip.Addr) {
	copy(f[6:], mac)
	binary.BigEndian.PutUint16(f[12:], etherARP)
	a := f[etherLen:]
	binary.BigEndian.PutUint16(a, arpEthernet)
	binary.BigEndian.PutUint16(a[2:], etherIPv4)
	a[4], a[5] = 6, 4
	binary.BigEndian.PutUint16(a[6:], op)
	copy(a[8:], mac)
	copy(a[14:], sender.AsSlice())
	copy(a[18:], targetMAC)
	copy(a[24:], target.AsSlice())
}

// ServeNetwork is all of a guest's network that the fake has: it answers ARP for its address, until the link ends.
func ServeNetwork(l *frames.Link, n wire.Network) error {
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		return err
	}
	own, err := netip.ParsePrefix(n.Address)
	if err != nil {
		return err
	}
	buf := make([]byte, wire.MaxEthernet)
	for {
		k, err := l.ReadFrame(buf)
		if err != nil {
			return err
		}
		f := buf[:k]
		if !isARP(f, arpRequest) || !bytes.Equal(f[etherLen+24:etherLen+28], own.Addr().AsSlice()) {
			continue
		}
		asker, _ := netip.AddrFromSlice(f[etherLen+14 : etherLen+18])
		answer := make([]byte, etherLen+arpLen)
		copy(answer, f[6:12])
		fillARP(answer, arpReply, mac, own.Addr(), f[6:12], asker)
		if err := l.WriteFrame([][]byte{answer}); err != nil {
			return err
		}
	}
}

// CarryNetwork is ServeNetwork for a guest whose eth0 is a TAP: over conn, a stream to the host's PortNet, until that or ctx ends. It owns
// conn; token is the one of the call.
func CarryNetwork(ctx context.Context, conn net.Conn, token string, n wire.Network) error {
	defer conn.Close()
	if err := wire.WriteLine(conn, wire.NetHello{Version: wire.Version, Token: token}); err != nil {
		return err
	}
	var r wire.CallReply
	if err := wire.ReadLine(conn, &r); err != nil {
		return err
	}
	if r.Type != wire.ReplyWelcome {
		return fmt.Errorf("%w: %s", ErrRefused, r.Reason)
	}
	host, vm, err := frames.Pair()
	if err != nil {
		return err
	}
	defer vm.Close()
	l, err := frames.NewLink(host, nil)
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- ServeNetwork(l, n) }()
	err = frames.Carry(ctx, conn, vm)
	_ = l.Close()
	if serr := <-served; !errors.Is(serr, net.ErrClosed) {
		err = errors.Join(err, serr)
	}
	return err
}
