package forward

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of a forward of UDP.
const (
	maxFlows         = 512 // half of what may lead into a VM: peers can be made up
	flowIdle         = 90 * time.Second
	waitingDatagrams = 64       // of a flow
	waitingBytes     = 32 << 20 // of all flows: a guest may read nothing, and peers can be made up
	maxDatagram      = 65507    // bytes of payload, over IPv4
)

// udpSocket is the host's socket of a forward of UDP.
type udpSocket struct {
	conn *net.UDPConn
	// six tells that it is IPv6's; anywhere that it is bound to all addresses, so that each datagram must say to which it came.
	six, anywhere bool
}

func listenUDP(network string, at netip.AddrPort) (*udpSocket, error) {
	conn, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	s := &udpSocket{conn: conn, six: at.Addr().Is6(), anywhere: at.Addr().IsUnspecified()}
	if !s.anywhere {
		return s, nil
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		var errOpt error
		err = raw.Control(func(fd uintptr) {
			if s.six {
				errOpt = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
			} else {
				errOpt = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
			}
		})
		if err == nil {
			err = errOpt
		}
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return s, nil
}

// Close implements io.Closer.
func (s *udpSocket) Close() error { return s.conn.Close() }

// read returns a datagram, from whom it came, and to which of the host's addresses; none where the socket has but one.
func (s *udpSocket) read(buf, oob []byte) (n int, key flowKey, err error) {
	n, oobn, _, peer, err := s.conn.ReadMsgUDPAddrPort(buf, oob)
	key.peer = peer
	if err != nil || !s.anywhere {
		return n, key, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return n, key, nil // the answer leaves from the address that the kernel chooses
	}
	for _, m := range messages { // ip(7), ipv6(7): struct in_pktinfo, struct in6_pktinfo
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= 8:
			key.local, _ = netip.AddrFromSlice(m.Data[4:8])
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= 16:
			key.local, _ = netip.AddrFromSlice(m.Data[:16])
		}
	}
	return n, key, nil
}

// answer sends a datagram of the guest to a peer, from the address the peer wrote to.
func (s *udpSocket) answer(b []byte, key flowKey) {
	var oob []byte
	switch {
	case key.local.Is4():
		oob = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: key.local.As4()})
	case key.local.Is6():
		oob = unix.PktInfo6(&unix.Inet6Pktinfo{Addr: key.local.As16()})
	}
	_, _, _ = s.conn.WriteMsgUDPAddrPort(b, oob, key.peer) // a datagram may be lost
}

// flowKey is a peer of a forward, and to which of the host's addresses it writes.
type flowKey struct {
	peer  netip.AddrPort
	local netip.Addr
}

// flows are those of one forward.
type flows struct {
	port   *port
	socket *udpSocket
	idle   time.Duration
	// waiting are the bytes of the datagrams that the guest has not taken.
	waiting atomic.Int64

	mu  sync.Mutex
	all map[flowKey]*flow // guarded by mu
}

// flow is what one peer and the guest send each other.
type flow struct {
	key    flowKey
	in     chan []byte // datagrams for the guest
	cancel context.CancelFunc
	timer  *time.Timer // ends the flow
	last   atomic.Int64
}

// serveUDP takes datagrams until the socket is closed.
func (p *port) serveUDP(socket *udpSocket) {
	fs := &flows{port: p, socket: socket, idle: flowIdle, all: map[flowKey]*flow{}}
	buf, oob := make([]byte, maxDatagram+1), make([]byte, 128)
	rest := restFirst
	for {
		n, key, err := socket.read(buf, oob)
		if p.ctx.Err() != nil {
			return
		}
		if err != nil {
			if !p.wait(rest) {
				return
			}
			rest = min(2*rest, restLonger)
			continue
		}
		rest = restFirst
		fs.put(key, buf[:n])
	}
}

// put has a datagram of a peer wait for the guest. One that is too many is lost.
func (fs *flows) put(key flowKey, b []byte) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f, size := fs.of(key), int64(len(b))
	if fs.waiting.Load()+size > waitingBytes {
		return
	}
	select {
	case f.in <- slices.Clone(b):
		fs.waiting.Add(size)
	default:
	}
}

// of finds or makes the flow of a peer; the one unused for longest goes where there are too many. The caller holds mu.
func (fs *flows) of(key flowKey) *flow {
	if f := fs.all[key]; f != nil {
		f.touch(fs.idle)
		return f
	}
	if len(fs.all) >= maxFlows {
		var oldest *flow
		for _, f := range fs.all {
			if oldest == nil || f.last.Load() < oldest.last.Load() {
				oldest = f
			}
		}
		fs.drop(oldest)
	}
	ctx, cancel := context.WithCancel(fs.port.ctx)
	f := &flow{key: key, in: make(chan []byte, waitingDatagrams), cancel: cancel, timer: time.AfterFunc(fs.idle, cancel)}
	f.touch(fs.idle)
	fs.all[key] = f
	fs.port.open.Add(1)
	fs.port.tasks.Go(func() { fs.carry(ctx, f) })
	return f
}

func (f *flow) touch(idle time.Duration) {
	f.last.Store(time.Now().UnixNano())
	f.timer.Reset(idle)
}

// drop ends a flow. The caller holds mu.
func (fs *flows) drop(f *flow) {
	f.timer.Stop()
	f.cancel()
	if fs.all[f.key] == f {
		delete(fs.all, f.key)
		fs.port.open.Add(-1)
	}
}

// carry joins a peer with the guest.
func (fs *flows) carry(ctx context.Context, f *flow) {
	defer func() {
		fs.mu.Lock()
		defer fs.mu.Unlock()
		fs.drop(f)
		for len(f.in) > 0 { // nothing is put there any more
			fs.waiting.Add(-int64(len(<-f.in)))
		}
	}()
	p := fs.port
	dial, cancel := context.WithTimeout(ctx, dialWithin)
	conn, err := p.guest.vm.Dial(dial, "udp", p.f.GuestPort)
	cancel()
	if err != nil {
		p.guest.log.Debug("datagrams for the guest", "forward", p.f.String(), "err", err)
		return
	}
	defer conn.Close()                                          // ends answers
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // a write may stand
	defer stop()
	p.tasks.Go(func() {
		defer f.cancel()
		fs.answers(f, conn)
	})
	for {
		select {
		case b := <-f.in:
			_, err := conn.Write(b)
			fs.waiting.Add(-int64(len(b)))
			if err != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// answers sends a peer what the guest says, until that ends.
func (fs *flows) answers(f *flow, conn net.Conn) {
	buf := make([]byte, maxDatagram+1)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		f.touch(fs.idle)
		fs.socket.answer(buf[:n], f.key)
	}
}
