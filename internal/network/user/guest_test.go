package user

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/network/egress"
)

var (
	testCIDR    = netip.MustParsePrefix("172.16.0.0/24")
	testGateway = netip.MustParseAddr("172.16.0.1")
)

// memLink is a link of memory; toGuest and fromGuest hold frames on their way.
type memLink struct {
	toGuest, fromGuest chan []byte
	once               sync.Once
	done               chan struct{}
}

func newMemLink() *memLink {
	return &memLink{toGuest: make(chan []byte, 256), fromGuest: make(chan []byte, 256), done: make(chan struct{})}
}

func (l *memLink) ReadFrame(p []byte) (int, error) {
	select {
	case f := <-l.fromGuest:
		return copy(p, f), nil
	case <-l.done:
		return 0, io.EOF
	}
}

func (l *memLink) WriteFrame(pieces [][]byte) error {
	var f []byte
	for _, p := range pieces {
		f = append(f, p...)
	}
	select {
	case l.toGuest <- f:
		return nil
	case <-l.done:
		return net.ErrClosed
	}
}

func (l *memLink) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// inject sends a frame as the guest.
func (l *memLink) inject(t testing.TB, frame []byte) {
	t.Helper()
	select {
	case l.fromGuest <- frame:
	case <-l.done:
		t.Fatal("the port has ended")
	}
}

// guest is a Linux of sorts: a second TCP/IP stack at the other end of a link.
type guest struct {
	vm    VM
	stack *stack.Stack
	nic   *channel.Endpoint
	link  *memLink
	port  *Port
	wired sync.WaitGroup // who carries frames between nic and link
}

func testVM(i byte) VM {
	return VM{
		ID: fmt.Sprintf("id-%d", i), Name: fmt.Sprintf("vm%d", i), Addr: netip.AddrFrom4([4]byte{172, 16, 0, 10 + i}),
		MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, i},
	}
}

// newGuest attaches a guest with a stack of its own.
func newGuest(t testing.TB, n *Network, i byte, change ...func(*VM)) *guest {
	t.Helper()
	g := &guest{vm: testVM(i)}
	for _, f := range change {
		f(&g.vm)
	}
	g.nic = channel.New(1024, wire.MaxEthernet, tcpip.LinkAddress(g.vm.MAC))
	g.stack = guestStack(t, ethernet.New(g.nic), g.vm.Addr)
	g.plugIn(t, n)
	t.Cleanup(func() {
		g.port.Close()
		g.wired.Wait()
		g.stack.Close()
	})
	return g
}

// plugIn attaches the guest by a new link.
func (g *guest) plugIn(t testing.TB, n *Network) {
	t.Helper()
	link := newMemLink()
	port, err := n.Attach(g.vm, link)
	if err != nil {
		t.Fatal(err)
	}
	g.wired.Wait() // the link before has ended
	g.link, g.port = link, port
	ctx, cancel := context.WithCancel(context.Background())
	g.wired.Go(func() {
		for {
			pkt := g.nic.ReadContext(ctx)
			if pkt == nil {
				return
			}
			f := append([]byte(nil), pkt.ToView().AsSlice()...)
			pkt.DecRef()
			select {
			case link.fromGuest <- f:
			case <-link.done:
				return
			}
		}
	})
	g.wired.Go(func() {
		defer cancel()
		for {
			select {
			case f := <-link.toGuest:
				pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(f)})
				g.nic.InjectInbound(0, pkt)
				pkt.DecRef()
			case <-link.done:
				return
			}
		}
	})
}

func guestStack(t testing.TB, link stack.LinkEndpoint, addr netip.Addr) *stack.Stack {
	t.Helper()
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	sack := tcpip.TCPSACKEnabled(true)
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 2 << 20, Max: 4 << 20}
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: 2 << 20, Max: 4 << 20}
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &rcv, &snd} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CreateNIC(1, link); err != nil {
		t.Fatal(err)
	}
	pa := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(addr.As4()), PrefixLen: 24}}
	if err := s.AddProtocolAddress(1, pa, stack.AddressProperties{}); err != nil {
		t.Fatal(err)
	}
	s.SetRouteTable([]tcpip.Route{
		{Destination: pa.AddressWithPrefix.Subnet(), NIC: 1},
		{Destination: mustSubnet(t), Gateway: tcpip.AddrFrom4(testGateway.As4()), NIC: 1},
	})
	return s
}

func mustSubnet(t testing.TB) tcpip.Subnet {
	t.Helper()
	s, err := tcpip.NewSubnet(tcpip.AddrFrom4([4]byte{}), tcpip.MaskFromBytes(make([]byte, 4)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFrom4(a.Addr().As4()), Port: a.Port()}
}

// dial connects from the guest by TCP.
func (g *guest) dial(ctx context.Context, dst string) (*gonet.TCPConn, error) {
	return gonet.DialContextTCP(ctx, g.stack, full(netip.MustParseAddrPort(dst)), ipv4.ProtocolNumber)
}

// mustDial is dial that must succeed.
func (g *guest) mustDial(t testing.TB, dst string) *gonet.TCPConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := g.dial(ctx, dst)
	if err != nil {
		t.Fatalf("dial %s: %v", dst, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// dialUDP is a UDP socket of the guest connected to dst.
func (g *guest) dialUDP(t testing.TB, dst string) *gonet.UDPConn {
	t.Helper()
	a := full(netip.MustParseAddrPort(dst))
	c, err := gonet.DialUDP(g.stack, nil, &a, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// outside is an Egress that is asked about every address and leads all to servers on loopback: what is dialled is recorded.
// Addresses that policy refuses are refused, where there is one.
type outside struct {
	mu     sync.Mutex
	dialed []string // guarded by mu
	// tcp and udp are where connections lead, by port of the destination.
	tcp, udp map[uint16]string
	policy   *egress.Policy // also where ports of the host are dialled
	hang     chan struct{}  // port 1 is dialled until it is closed
}

func (o *outside) note(network string, dst fmt.Stringer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.dialed = append(o.dialed, network+" "+dst.String())
}

func (o *outside) all() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.dialed...)
}

func (o *outside) DialTCP(ctx context.Context, dst netip.AddrPort) (*net.TCPConn, error) {
	if o.policy != nil {
		if err := o.policy.Check(dst); err != nil {
			return nil, err
		}
	}
	o.note("tcp", dst)
	if dst.Port() == 1 {
		select {
		case <-o.hang:
		case <-ctx.Done():
		}
		return nil, context.DeadlineExceeded
	}
	to, ok := o.tcp[dst.Port()]
	if !ok {
		return nil, fmt.Errorf("dial %s: connection refused", dst)
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", to)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (o *outside) DialUDP(ctx context.Context, dst netip.AddrPort) (*net.UDPConn, error) {
	if o.policy != nil {
		if err := o.policy.Check(dst); err != nil {
			return nil, err
		}
	}
	o.note("udp", dst)
	to, ok := o.udp[dst.Port()]
	if !ok {
		return nil, fmt.Errorf("dial %s: network is unreachable", dst)
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "udp", to)
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

func (o *outside) DialHostTCP(ctx context.Context, port uint16) (*net.TCPConn, error) {
	o.note("host tcp", netip.AddrPortFrom(netip.IPv6Loopback(), port))
	return o.policy.DialHostTCP(ctx, port)
}

func (o *outside) DialHostUDP(ctx context.Context, port uint16) (*net.UDPConn, error) {
	o.note("host udp", netip.AddrPortFrom(netip.IPv6Loopback(), port))
	return o.policy.DialHostUDP(ctx, port)
}

func (o *outside) DialPing(_ context.Context, dst netip.Addr) (net.Conn, error) {
	if o.policy != nil {
		if err := o.policy.Check(netip.AddrPortFrom(dst, 7)); err != nil {
			return nil, err
		}
	}
	o.note("ping", dst)
	return nil, fmt.Errorf("ping %s: permission denied", dst)
}

// newNetwork makes a network that leads to o.
func newNetwork(t testing.TB, o *outside, change ...func(*Config)) *Network {
	t.Helper()
	cfg := Config{CIDR: testCIDR, Gateway: testGateway, Policy: o}
	for _, f := range change {
		f(&cfg)
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

// serveTCP accepts on loopback and runs handle for each connection.
func serveTCP(t testing.TB, handle func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go handle(c.(*net.TCPConn))
		}
	}()
	return l.Addr().String()
}

func echoTCP(c *net.TCPConn) {
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
	_ = c.Close()
}

// serveUDP echoes datagrams.
func serveUDP(t testing.TB) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(buf[:n], from)
		}
	}()
	return c.LocalAddr().String()
}

// eventually polls until ok says so.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	eventuallyIn(t, 20*time.Second, what, ok)
}

func eventuallyIn(t testing.TB, d time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(d)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("never happened: " + what)
		}
	}
}
