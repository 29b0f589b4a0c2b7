package user

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// pingIdle is how long an echo flow may be idle.
const pingIdle = 10 * time.Second

// pingKey is a guest's ping: the identifier it chose, and whom it pings.
type pingKey struct {
	ident uint16
	dst   netip.Addr
}

// pingTable holds the echo flows of one guest.
type pingTable struct {
	mu     sync.Mutex
	closed bool                  // guarded by mu
	flows  map[pingKey]*pingFlow // guarded by mu
}

// pingFlow sends echo requests of a guest through a socket of its own.
type pingFlow struct {
	port *Port
	key  pingKey
	// original is the start of the flow's first packet, for ICMP errors about it.
	original []byte
	requests chan []byte // ICMP messages
	last     atomic.Int64
}

// isEcho says whether an ICMP packet is a whole echo request.
func isEcho(packet []byte) bool {
	ip, msg := header.IPv4(packet), header.ICMPv4(packet[header.IPv4MinimumSize:])
	return !ip.More() && ip.FragmentOffset() == 0 && len(msg) >= header.ICMPv4MinimumSize && msg.Type() == header.ICMPv4Echo
}

// forwardEcho takes an echo request of the guest to an address outside and sends it on where the host lets the daemon do
// that; the stack must not see it, it would answer in the name of everybody. It must not wait.
func (p *Port) forwardEcho(dst netip.Addr, packet []byte) bool {
	msg := header.ICMPv4(packet[header.IPv4MinimumSize:])
	key := pingKey{msg.Ident(), dst}
	t := &p.ping
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	f := t.flows[key]
	if f == nil {
		if len(t.flows) >= maxPing || !p.net.sockets.take() {
			p.c.refused.Add(1)
			return true
		}
		f = &pingFlow{port: p, key: key, original: append([]byte(nil), packet[:header.IPv4MinimumSize+8]...), requests: make(chan []byte, 8)}
		f.last.Store(time.Now().UnixNano())
		t.flows[key] = f
		go f.run()
	}
	select {
	case f.requests <- append([]byte(nil), msg...):
	default: // faster than the host sends: lost, as on a wire
	}
	return true
}

func (t *pingTable) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true // run ends with the port's context
}

// run sends requests until the flow is idle.
func (f *pingFlow) run() {
	p := f.port
	defer func() {
		p.ping.mu.Lock()
		delete(p.ping.flows, f.key)
		p.ping.mu.Unlock()
		p.net.sockets.give()
	}()
	target := netip.AddrPortFrom(f.key.dst, 0)
	err := p.allow("icmp", target)
	var conn net.Conn
	if err == nil {
		conn, err = p.net.cfg.Policy.DialPing(p.ctx, f.key.dst)
	}
	if err != nil {
		// not permitted by the policy or by the host (ping_group_range): both are a prohibition to the guest
		p.refused("icmp", target, err)
		p.sendUnreachable(header.ICMPv4AdminProhibited, f.original)
		return
	}
	p.c.flows.Add(1)
	received := make(chan struct{})
	go func() {
		defer close(received)
		f.receive(conn)
	}()
	f.transmit(conn)
	_ = conn.Close() // ends receive
	<-received
}

func (f *pingFlow) transmit(conn net.Conn) {
	idle := time.NewTimer(pingIdle)
	defer idle.Stop()
	for {
		select {
		case <-f.port.ctx.Done():
			return
		case <-idle.C:
			return
		case msg := <-f.requests:
			idle.Reset(pingIdle)
			if _, err := conn.Write(msg); err != nil {
				f.port.sendUnreachable(header.ICMPv4HostUnreachable, f.original)
			}
		}
	}
}

// receive sends replies to the guest under the identifier it chose, until the connection is closed.
func (f *pingFlow) receive(conn net.Conn) {
	buf := make([]byte, maxDatagram)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			if f.port.ctx.Err() != nil || isClosed(err) {
				return
			}
			f.port.sendUnreachable(header.ICMPv4HostUnreachable, f.original)
			continue
		}
		h := header.ICMPv4(buf[:n])
		if n < header.ICMPv4MinimumSize || h.Type() != header.ICMPv4EchoReply {
			continue
		}
		binary.BigEndian.PutUint16(h[4:], f.key.ident)
		h.SetChecksum(0)
		h.SetChecksum(^checksum.Checksum(h, 0))
		f.port.sendIPv4(f.key.dst, header.ICMPv4ProtocolNumber, h, nil)
	}
}
