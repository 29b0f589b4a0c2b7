package user

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// nicID is the stack's only network interface.
const nicID = 1

// netStack is the TCP/IP stack behind the gateway. It sees packets without Ethernet headers: the switch answers ARP, and
// finds the port of a packet by its address, so the stack has no neighbours to be told lies about.
type netStack struct {
	net   *Network
	stack *stack.Stack
	ipID  atomic.Uint32 // of packets built by hand

	mu         sync.RWMutex
	dispatcher stack.NetworkDispatcher // guarded by mu
}

// newStack makes the stack with the gateway's address. It accepts packets for every address (promiscuous) and answers
// as it (spoofing): they are those of connections it forwards.
func newStack(n *Network) (*netStack, error) {
	s := &netStack{net: n, stack: stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})}
	if err := s.tune(); err != nil {
		return nil, err
	}
	if err := s.stack.CreateNIC(nicID, s); err != nil {
		return nil, fmt.Errorf("create interface: %s", err)
	}
	gateway := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{
		Address: tcpip.AddrFrom4(n.cfg.Gateway.As4()), PrefixLen: n.cfg.CIDR.Bits(),
	}}
	if err := s.stack.AddProtocolAddress(nicID, gateway, stack.AddressProperties{}); err != nil {
		return nil, fmt.Errorf("add address %s: %s", n.cfg.Gateway, err)
	}
	if err := s.stack.SetPromiscuousMode(nicID, true); err != nil {
		return nil, fmt.Errorf("set promiscuous: %s", err)
	}
	if err := s.stack.SetSpoofing(nicID, true); err != nil {
		return nil, fmt.Errorf("set spoofing: %s", err)
	}
	s.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}})
	s.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, s.handleTCP)
	s.stack.SetTransportProtocolHandler(udp.ProtocolNumber, s.handleUDP)
	return s, nil
}

// tune sets what a link of memory, and guests that open thousands of connections, want of TCP.
func (s *netStack) tune() error {
	sack := tcpip.TCPSACKEnabled(true)
	cc := tcpip.CongestionControlOption("cubic")
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 1 << 20, Max: 4 << 20}
	// a sender that holds less than a port's queue never overruns it alone
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: 1 << 20, Max: 2 << 20}
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	// frames do not stray: what a connection leaves behind need not be waited for, and guests use ports again soon
	wait := tcpip.TCPTimeWaitTimeoutOption(time.Second)
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &cc, &rcv, &snd, &moderate, &wait} {
		if err := s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("set %T: %s", o, err)
		}
	}
	return nil
}

// inject gives the stack a packet of a guest, which it owns from then on.
func (s *netStack) inject(packet *buffer.View) {
	s.mu.RLock()
	d := s.dispatcher
	s.mu.RUnlock()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(packet)})
	defer pkt.DecRef()
	if d != nil {
		d.DeliverNetworkPacket(ipv4.ProtocolNumber, pkt)
	}
}

// port is the guest a transport packet came from.
func (s *netStack) port(id stack.TransportEndpointID) *Port {
	if id.RemoteAddress.Len() != 4 {
		return nil
	}
	return s.net.portByAddr(netip.AddrFrom4(id.RemoteAddress.As4()))
}

// local is whom a transport packet is for.
func local(id stack.TransportEndpointID) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4(id.LocalAddress.As4()), id.LocalPort)
}

func (s *netStack) handleTCP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	p := s.port(id)
	if p == nil {
		return true // of a guest that has just gone
	}
	return p.tcp.HandlePacket(id, pkt)
}

// close ends the stack; its connections have been aborted with their ports.
func (s *netStack) close() { s.stack.Close() }

// The rest is stack.LinkEndpoint.

// WritePackets queues packets for the guests they are addressed to; it never waits.
func (s *netStack) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	for _, pkt := range list.AsSlice() {
		ip := header.IPv4(pkt.NetworkHeader().Slice())
		if len(ip) < header.IPv4MinimumSize {
			continue
		}
		p := s.net.portByAddr(netip.AddrFrom4([4]byte(ip[16:20])))
		if p == nil {
			continue // the guest has gone
		}
		f := outFrame{packet: pkt.Clone()}
		copy(f.header[:], p.mac[:])
		copy(f.header[6:], gatewayMAC[:])
		f.header[12] = typeIPv4 >> 8
		p.send(f)
	}
	return list.Len(), nil
}

// Attach is told the stack's side of the link.
func (s *netStack) Attach(d stack.NetworkDispatcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dispatcher = d
}

// IsAttached says whether Attach was called.
func (s *netStack) IsAttached() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.dispatcher != nil
}

// MTU is the guests'.
func (s *netStack) MTU() uint32 { return wire.NetMTU }

// SetMTU changes nothing.
func (s *netStack) SetMTU(uint32) {}

// MaxHeaderLength is 0: the switch adds the Ethernet header.
func (s *netStack) MaxHeaderLength() uint16 { return 0 }

// LinkAddress is empty, as the link has no addresses.
func (s *netStack) LinkAddress() tcpip.LinkAddress { return "" }

// SetLinkAddress changes nothing.
func (s *netStack) SetLinkAddress(tcpip.LinkAddress) {}

// Capabilities: checksums of guests are not verified, as the link is memory and loses no bits.
func (s *netStack) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// Wait returns at once: the link has no goroutines.
func (s *netStack) Wait() {}

// ARPHardwareType says that there is no ARP.
func (s *netStack) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// AddHeader adds nothing.
func (s *netStack) AddHeader(*stack.PacketBuffer) {}

// ParseHeader finds nothing to parse.
func (s *netStack) ParseHeader(*stack.PacketBuffer) bool { return true }

// Close does nothing: links belong to ports.
func (s *netStack) Close() {}

// SetOnCloseAction is not used.
func (s *netStack) SetOnCloseAction(func()) {}
