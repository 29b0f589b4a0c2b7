package user

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// Operations of ARP (RFC 826).
const (
	arpRequest = 1
	arpReply   = 2
)

// arpPacket is an ARP packet for IPv4 on Ethernet.
type arpPacket struct {
	op                   uint16
	senderMAC, targetMAC [6]byte
	sender, target       netip.Addr
}

// parseARP reads a packet; bytes after it are padding.
func parseARP(b []byte) (arpPacket, bool) {
	if len(b) < 28 || [6]byte(b[:6]) != [6]byte{0, 1, 8, 0, 6, 4} {
		return arpPacket{}, false
	}
	a := arpPacket{
		op: binary.BigEndian.Uint16(b[6:]), senderMAC: [6]byte(b[8:14]), sender: netip.AddrFrom4([4]byte(b[14:18])),
		targetMAC: [6]byte(b[18:24]), target: netip.AddrFrom4([4]byte(b[24:28])),
	}
	return a, a.op == arpRequest || a.op == arpReply
}

// arpFrame is an ARP packet in its frame.
func arpFrame(dst, src [6]byte, a arpPacket) []byte {
	b := make([]byte, 0, 42)
	b = append(b, dst[:]...)
	b = append(b, src[:]...)
	b = append(b, 0x08, 0x06, 0, 1, 8, 0, 6, 4)
	b = binary.BigEndian.AppendUint16(b, a.op)
	b = append(b, a.senderMAC[:]...)
	b = append(b, a.sender.AsSlice()...)
	b = append(b, a.targetMAC[:]...)
	return append(b, a.target.AsSlice()...)
}

// sendIPv4 sends the guest a packet from src, in fragments where it is longer than the MTU. head and payload together
// are what follows the IP header, 65,515 bytes at most.
func (p *Port) sendIPv4(src netip.Addr, proto tcpip.TransportProtocolNumber, head, payload []byte) {
	const room = (wire.NetMTU - header.IPv4MinimumSize) / 8 * 8
	id := uint16(p.net.stack.ipID.Add(1))
	body := make([]byte, 0, len(head)+len(payload))
	body = append(append(body, head...), payload...)
	for offset := 0; ; offset += room {
		part := body[offset:]
		var flags uint8
		if len(part) > room {
			part, flags = part[:room], header.IPv4FlagMoreFragments
		}
		frame := make([]byte, 14+header.IPv4MinimumSize+len(part))
		copy(frame, p.mac[:])
		copy(frame[6:], gatewayMAC[:])
		binary.BigEndian.PutUint16(frame[12:], typeIPv4)
		ip := header.IPv4(frame[14:])
		ip.Encode(&header.IPv4Fields{
			TotalLength: uint16(header.IPv4MinimumSize + len(part)), ID: id, TTL: 64, Protocol: uint8(proto),
			Flags: flags, FragmentOffset: uint16(offset),
			SrcAddr: tcpip.AddrFrom4(src.As4()), DstAddr: tcpip.AddrFrom4(p.ip4),
		})
		ip.SetChecksum(^ip.CalculateChecksum())
		copy(frame[14+header.IPv4MinimumSize:], part)
		p.sendWhole(frame)
		if flags == 0 {
			return
		}
	}
}

// sendUDP sends the guest a datagram.
func (p *Port) sendUDP(src netip.AddrPort, dstPort uint16, payload []byte) {
	head := header.UDP(make([]byte, header.UDPMinimumSize))
	length := uint16(len(head) + len(payload))
	head.Encode(&header.UDPFields{SrcPort: src.Port(), DstPort: dstPort, Length: length})
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, tcpip.AddrFrom4(src.Addr().As4()), tcpip.AddrFrom4(p.ip4), length)
	sum = ^head.CalculateChecksum(checksum.Checksum(payload, sum))
	if sum == 0 {
		sum = 0xffff // 0 says that there is none (RFC 768)
	}
	head.SetChecksum(sum)
	p.sendIPv4(src.Addr(), header.UDPProtocolNumber, head, payload)
}

// sendUnreachable tells the guest that its packet could not be delivered: an ICMP destination unreachable message of the
// code, from the gateway. original is the start of the packet: its IP header and 8 bytes.
func (p *Port) sendUnreachable(code header.ICMPv4Code, original []byte) {
	h := header.ICMPv4(make([]byte, header.ICMPv4MinimumSize))
	h.SetType(header.ICMPv4DstUnreachable)
	h.SetCode(code)
	h.SetChecksum(header.ICMPv4Checksum(h, checksum.Checksum(original, 0)))
	p.sendIPv4(p.net.cfg.Gateway, header.ICMPv4ProtocolNumber, h, original)
}
