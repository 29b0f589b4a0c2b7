package user

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// How long a UDP flow may be idle.
const (
	udpIdle    = 90 * time.Second
	udpIdleDNS = 10 * time.Second
)

// waitingDatagrams is how many datagrams of a flow wait while its socket is being made.
const waitingDatagrams = 16

// maxDatagram is the longest payload of UDP over IPv4, in bytes.
const maxDatagram = 65507

// udpKey is a flow of one guest.
type udpKey struct {
	srcPort uint16
	dst     netip.AddrPort
}

// udpTable holds the flows of one guest.
type udpTable struct {
	mu     sync.Mutex
	closed bool                // guarded by mu
	flows  map[udpKey]*udpFlow // guarded by mu
}

// udpFlow is a guest's port talking to one address outside, through a socket of its own.
type udpFlow struct {
	port *Port
	key  udpKey
	// original is the start of the flow's first packet, for ICMP errors about it.
	original []byte
	last     atomic.Int64 // when it was used, Unix nanoseconds

	mu      sync.Mutex
	conn    *net.UDPConn    // guarded by mu; nil while it is being made
	raw     syscall.RawConn // guarded by mu
	waiting [][]byte        // guarded by mu: until conn is there
	closed  bool            // guarded by mu
}

// handleUDP takes a datagram of a guest. It runs in the goroutine that reads the guest's frames and must not wait.
func (s *netStack) handleUDP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	p := s.port(id)
	if p == nil {
		return true
	}
	dst := local(id)
	size := pkt.Data().Size()
	payload, ok := pkt.Data().PullUp(size)
	if !ok && size > 0 || size > maxDatagram {
		return true
	}
	if dst.Addr() == p.net.cfg.Gateway && !p.leadsToHost(dst) {
		if dst.Port() != dnsPort || p.net.cfg.DNS == nil {
			return false // the stack says that the port is closed
		}
		p.answerUDP(id.RemotePort, payload)
		return true
	}
	f := p.udpFlow(udpKey{id.RemotePort, dst}, pkt)
	if f != nil {
		f.send(payload)
	}
	return true
}

// udpFlow finds or makes a flow; nil where the guest may not have another.
func (p *Port) udpFlow(key udpKey, pkt *stack.PacketBuffer) *udpFlow {
	t := &p.udp
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.flows[key]; f != nil || t.closed {
		return f
	}
	if len(t.flows) >= p.net.sockets.share(maxUDP) || !p.net.sockets.take() {
		p.c.refused.Add(1)
		return nil
	}
	f := &udpFlow{port: p, key: key, original: beginning(pkt)}
	f.touch()
	t.flows[key] = f
	go f.run()
	return f
}

// beginning is a copy of what an ICMP error quotes of a packet: its IP header and 8 bytes.
func beginning(pkt *stack.PacketBuffer) []byte {
	return append(append(make([]byte, 0, 28), pkt.NetworkHeader().Slice()...), pkt.TransportHeader().Slice()...)
}

func (t *udpTable) open() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.flows)
}

func (t *udpTable) close() {
	t.mu.Lock()
	t.closed = true
	list := make([]*udpFlow, 0, len(t.flows))
	for _, f := range t.flows {
		list = append(list, f)
	}
	t.mu.Unlock()
	for _, f := range list {
		f.close()
	}
}

func (f *udpFlow) touch() { f.last.Store(time.Now().UnixNano()) }

// idleAt is when the flow ends if it is not used before.
func (f *udpFlow) idleAt() time.Time {
	idle := udpIdle
	if f.key.dst.Port() == dnsPort {
		idle = udpIdleDNS
	}
	return time.Unix(0, f.last.Load()).Add(idle)
}

// send sends a datagram of the guest, or keeps it until the socket is there.
func (f *udpFlow) send(payload []byte) {
	f.touch()
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
	case f.conn == nil:
		if len(f.waiting) < waitingDatagrams {
			f.waiting = append(f.waiting, append([]byte(nil), payload...))
		}
	default:
		f.sendLocked(payload)
	}
}

// sendLocked sends without waiting; the caller holds f.mu. A datagram that does not fit is lost, as on a wire.
func (f *udpFlow) sendLocked(payload []byte) {
	var failure error
	err := f.raw.Write(func(fd uintptr) bool {
		// the error that a port is closed is told once, by whichever call comes first
		for range 2 {
			failure = unix.Sendto(int(fd), payload, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
			if !errors.Is(failure, unix.ECONNREFUSED) {
				return true
			}
			f.port.sendUnreachable(header.ICMPv4PortUnreachable, f.original)
		}
		return true
	})
	if err == nil && errors.Is(failure, unix.EMSGSIZE) {
		f.port.c.invalid.Add(1)
	}
}

// run makes the socket and carries datagrams to the guest until the flow has been idle for long enough.
func (f *udpFlow) run() {
	defer f.remove()
	p := f.port
	err := p.allow("udp", f.key.dst)
	var conn *net.UDPConn
	if err == nil {
		conn, err = p.dialUDP(p.ctx, f.key.dst)
	}
	if err != nil {
		code := header.ICMPv4HostUnreachable
		if p.refused("udp", f.key.dst, err) {
			code = header.ICMPv4AdminProhibited
		}
		p.sendUnreachable(code, f.original)
		return
	}
	raw, err := conn.SyscallConn()
	if err != nil || !f.open(conn, raw) {
		_ = conn.Close() // nothing was sent
		return
	}
	p.c.flows.Add(1)
	for f.receive(raw) {
	}
}

// open sends what has waited for the socket; false where the flow has been closed since.
func (f *udpFlow) open(conn *net.UDPConn, raw syscall.RawConn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.conn, f.raw = conn, raw
	for _, d := range f.waiting {
		f.sendLocked(d)
	}
	f.waiting = nil
	return true
}

// datagrams are buffers that a datagram is read into; none is held while nothing arrives.
var datagrams = sync.Pool{New: func() any { return new([maxDatagram + 1]byte) }}

// receive waits for datagrams and sends them to the guest; false once the flow has ended.
func (f *udpFlow) receive(raw syscall.RawConn) bool {
	_ = f.conn.SetReadDeadline(f.idleAt()) // fails only where the read does
	err := raw.Read(func(fd uintptr) bool {
		if !ready(int(fd), unix.POLLIN) {
			return false
		}
		buf := datagrams.Get().(*[maxDatagram + 1]byte)
		defer datagrams.Put(buf)
		n, err := ignoreEINTR(func() (int, error) {
			n, _, err := unix.Recvfrom(int(fd), buf[:], unix.MSG_DONTWAIT)
			return n, err
		})
		switch {
		case errors.Is(err, unix.EAGAIN):
			return false
		case errors.Is(err, unix.ECONNREFUSED):
			f.port.sendUnreachable(header.ICMPv4PortUnreachable, f.original)
		case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
			f.port.sendUnreachable(header.ICMPv4HostUnreachable, f.original)
		case err == nil && n <= maxDatagram:
			f.touch()
			f.port.sendUDP(f.key.dst, f.key.srcPort, buf[:n])
		}
		return true
	})
	if err == nil {
		return true
	}
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout() && time.Now().Before(f.idleAt())
}

// close ends the flow's socket, and by that run.
func (f *udpFlow) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.waiting = nil
	if f.conn != nil {
		_ = f.conn.Close() // datagrams have no last word
	}
}

// remove takes the flow out of the table; a datagram after that makes another.
func (f *udpFlow) remove() {
	f.close()
	t := &f.port.udp
	t.mu.Lock()
	delete(t.flows, f.key)
	t.mu.Unlock()
	f.port.net.sockets.give()
}
