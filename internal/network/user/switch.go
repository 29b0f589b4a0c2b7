package user

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Ethernet types.
const (
	typeIPv4 = 0x0800
	typeARP  = 0x0806
)

var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

var broadcastMAC = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// receive decides where a frame of the guest goes. whole is the buffer that frame lies in, which receive owns; nil where
// frame is only lent.
func (p *Port) receive(frame []byte, whole *buffer.View) {
	ok := p.forward(frame, &whole)
	if whole != nil {
		whole.Release()
	}
	if !ok {
		p.c.invalid.Add(1)
	}
}

// forward is receive; it sets *whole to nil where it has handed it on. False where the frame was dropped.
func (p *Port) forward(frame []byte, whole **buffer.View) bool {
	if len(frame) < 14 || [6]byte(frame[6:12]) != p.mac {
		return false
	}
	dst := [6]byte(frame[:6])
	switch binary.BigEndian.Uint16(frame[12:]) {
	case typeARP:
		return p.forwardARP(dst, frame)
	case typeIPv4:
		return p.forwardIPv4(dst, frame, whole)
	}
	return false // VLAN tags, IPv6 and all else are not carried
}

// forwardARP answers for the gateway, and carries what concerns a neighbour to that one.
func (p *Port) forwardARP(dst [6]byte, frame []byte) bool {
	a, ok := parseARP(frame[14:])
	if !ok || a.senderMAC != p.mac || a.sender != p.vm.Addr {
		return false
	}
	switch {
	case a.target == p.net.cfg.Gateway:
		if a.op != arpRequest || dst != broadcastMAC && dst != gatewayMAC {
			return false
		}
		p.sendWhole(arpFrame(p.mac, gatewayMAC, arpPacket{op: arpReply, senderMAC: gatewayMAC, sender: a.target, targetMAC: p.mac, target: p.vm.Addr}))
		return true
	case dst == broadcastMAC && a.target == a.sender: // an announcement
		for _, o := range p.net.others(p) {
			o.sendWhole(frame)
		}
		return true
	}
	o := p.net.portByAddr(a.target)
	if o == nil || o == p || dst != broadcastMAC && dst != o.mac {
		return false
	}
	o.sendWhole(frame)
	return true
}

// forwardIPv4 carries a packet to a neighbour, or from the gateway on to the stack.
func (p *Port) forwardIPv4(dst [6]byte, frame []byte, whole **buffer.View) bool {
	ip := header.IPv4(frame[14:])
	if !validIPv4(ip) || [4]byte(ip[12:16]) != p.ip4 {
		return false
	}
	to := netip.AddrFrom4([4]byte(ip[16:20]))
	if to.IsMulticast() || to.IsLoopback() || to.As4()[0] == 0 || to == lastOf(p.net.cfg.CIDR) || to == limitedBroadcast {
		return false // no packet on a wire has such a destination, or it is for many
	}
	if dst != gatewayMAC {
		o := p.net.portByMAC(dst)
		if o == nil || o == p {
			return false
		}
		if *whole != nil {
			o.send(outFrame{whole: *whole})
			*whole = nil
		} else {
			o.sendWhole(frame)
		}
		return true
	}
	if to != p.net.cfg.Gateway && p.net.cfg.CIDR.Contains(to) {
		return false // a neighbour is reached by its own hardware address or not at all
	}
	packet := frame[14 : 14+int(ip.TotalLength())] // without the padding of short frames
	switch tcpip.TransportProtocolNumber(ip.Protocol()) {
	case header.TCPProtocolNumber, header.UDPProtocolNumber:
	case header.ICMPv4ProtocolNumber:
		if !isEcho(packet) {
			return false // an error could quote a connection of another guest, which the stack would believe
		}
		if to != p.net.cfg.Gateway {
			return p.forwardEcho(to, packet)
		}
	default:
		return false
	}
	if *whole == nil {
		p.net.stack.inject(buffer.NewViewWithData(packet))
		return true
	}
	view := *whole
	*whole = nil
	view.TrimFront(14)
	view.CapLength(len(packet))
	p.net.stack.inject(view)
	return true
}

// validIPv4 says whether b holds a whole packet without options: some of them are a route of the sender's choice.
func validIPv4(ip header.IPv4) bool {
	if len(ip) < header.IPv4MinimumSize || ip[0] != 4<<4|5 {
		return false
	}
	total := int(ip.TotalLength())
	return total >= header.IPv4MinimumSize && total <= len(ip)
}
