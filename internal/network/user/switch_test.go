package user

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// attach attaches a VM whose link is in the test's hands.
func attach(t testing.TB, n *Network, i byte) (*memLink, *Port) {
	t.Helper()
	l := newMemLink()
	p, err := n.Attach(testVM(i), l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return l, p
}

// expect waits for a frame to a guest.
func expect(t testing.TB, l *memLink) []byte {
	t.Helper()
	select {
	case f := <-l.toGuest:
		return f
	case <-time.After(20 * time.Second):
		t.Fatal("no frame came")
		return nil
	}
}

func mac(i byte) [6]byte { return [6]byte(testVM(i).MAC) }

func TestARP(t *testing.T) {
	n := newNetwork(t, &outside{})
	a, port := attach(t, n, 1)
	b, _ := attach(t, n, 2)
	c, _ := attach(t, n, 3)
	addr := func(i byte) netip.Addr { return testVM(i).Addr }
	ask := func(target netip.Addr) arpPacket {
		return arpPacket{op: arpRequest, senderMAC: mac(1), sender: addr(1), target: target}
	}
	a.inject(t, arpFrame(broadcastMAC, mac(1), ask(testGateway)))
	got, ok := parseARP(expect(t, a)[14:])
	if want := (arpPacket{op: arpReply, senderMAC: gatewayMAC, sender: testGateway, targetMAC: mac(1), target: addr(1)}); !ok || got != want {
		t.Errorf("for the gateway: %+v, want %+v", got, want)
	}
	a.inject(t, arpFrame(broadcastMAC, mac(1), ask(addr(2))))
	if got, ok = parseARP(expect(t, b)[14:]); !ok || got != ask(addr(2)) {
		t.Errorf("the neighbour sees %+v", got)
	}
	announce := ask(addr(1))
	a.inject(t, arpFrame(broadcastMAC, mac(1), announce))
	for _, l := range []*memLink{b, c} {
		if got, ok = parseARP(expect(t, l)[14:]); !ok || got != announce {
			t.Errorf("a neighbour sees %+v, want the announcement", got)
		}
	}
	before := port.Stats()
	bad := [][]byte{
		arpFrame(broadcastMAC, mac(1), ask(netip.MustParseAddr("172.16.0.77"))),                                                               // nobody
		arpFrame(broadcastMAC, mac(1), ask(netip.MustParseAddr("8.8.8.8"))),                                                                   // not here
		arpFrame(broadcastMAC, mac(2), ask(testGateway)),                                                                                      // another's frame
		arpFrame(broadcastMAC, mac(1), arpPacket{op: arpRequest, senderMAC: mac(2), sender: addr(1), target: testGateway}),                    // another's hardware address
		arpFrame(broadcastMAC, mac(1), arpPacket{op: arpReply, senderMAC: mac(1), sender: testGateway, target: addr(2)}),                      // as the gateway
		arpFrame(mac(2), mac(1), arpPacket{op: arpReply, senderMAC: mac(1), sender: addr(3), targetMAC: mac(2), target: addr(2)}),             // as a neighbour
		arpFrame(broadcastMAC, mac(1), arpPacket{op: arpRequest, senderMAC: mac(1), sender: netip.IPv4Unspecified(), target: addr(1)}),        // a probe
		arpFrame(gatewayMAC, mac(1), arpPacket{op: arpReply, senderMAC: mac(1), sender: addr(1), targetMAC: gatewayMAC, target: testGateway}), // the gateway asks nothing
		arpFrame(mac(3), mac(1), ask(addr(2))),                                                                                                // for another's port
		arpFrame(broadcastMAC, mac(1), arpPacket{op: 3, senderMAC: mac(1), sender: addr(1), target: testGateway}),                             // reverse ARP
		append(append(broadcastMAC[:6:6], testVM(1).MAC...), 0x08, 0x06, 0, 1, 8, 0, 6, 4),                                                    // cut
	}
	for _, f := range bad {
		a.inject(t, f)
	}
	eventually(t, "all dropped", func() bool { return port.Stats().Invalid == before.Invalid+uint64(len(bad)) })
	for _, l := range []*memLink{a, b, c} {
		if len(l.toGuest) > 0 {
			t.Errorf("a frame got through: %x", <-l.toGuest)
		}
	}
}

func TestOnlyOwnSourcesPass(t *testing.T) {
	o := &outside{}
	n := newNetwork(t, o)
	a, port := attach(t, n, 1)
	b, _ := attach(t, n, 2)
	good, me, out := udpTo(5, 80, []byte("x")), testVM(1).Addr, netip.MustParseAddr("203.0.113.5")
	vlan := append(append(append([]byte(nil), mac2bytes(mac(2))...), mac2bytes(mac(1))...), 0x81, 0, 0, 1, 8, 0)
	ipv6 := append(append(append([]byte(nil), mac2bytes(mac(2))...), mac2bytes(mac(1))...), 0x86, 0xdd, 0x60, 0, 0, 0)
	options := ipFrame(gatewayMAC, mac(1), me, out, 17, append(make([]byte, 4), good...))
	options[14] = 0x46
	long := ipFrame(gatewayMAC, mac(1), me, out, 17, good)
	binary.BigEndian.PutUint16(long[16:], 60000)
	unreachable := header.ICMPv4(make([]byte, 8+28))
	unreachable.SetType(header.ICMPv4DstUnreachable)
	fragment := ipFrame(gatewayMAC, mac(1), me, testGateway, 1, echoRequest())
	fragment[14+6] = 0x20 // more fragments
	bad := map[string][]byte{
		"empty": {}, "short": make([]byte, 13), "vlan": append(vlan, good...), "ipv6": append(ipv6, good...),
		"gateway's mac":      ipFrame(mac(2), gatewayMAC, me, testVM(2).Addr, 17, good),
		"neighbour's mac":    ipFrame(gatewayMAC, mac(2), me, out, 17, good),
		"neighbour's ip":     ipFrame(gatewayMAC, mac(1), testVM(2).Addr, out, 17, good),
		"gateway's ip":       ipFrame(mac(2), mac(1), testGateway, testVM(2).Addr, 17, good),
		"outside's ip":       ipFrame(mac(2), mac(1), out, testVM(2).Addr, 17, good),
		"dhcp":               ipFrame(broadcastMAC, mac(1), netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255"), 17, udpTo(68, 67, nil)),
		"broadcast":          ipFrame(broadcastMAC, mac(1), me, netip.MustParseAddr("172.16.0.255"), 17, good),
		"multicast":          ipFrame([6]byte{1, 0, 0x5e, 0, 0, 1}, mac(1), me, netip.MustParseAddr("224.0.0.1"), 17, good),
		"multicast to vm":    ipFrame(mac(2), mac(1), me, netip.MustParseAddr("224.0.0.1"), 17, good),
		"to itself":          ipFrame(mac(1), mac(1), me, me, 17, good),
		"options":            options,
		"longer than it is":  long,
		"another protocol":   ipFrame(gatewayMAC, mac(1), me, out, 47, good),
		"error about others": ipFrame(gatewayMAC, mac(1), me, testGateway, 1, unreachable),
		"echo in fragments":  fragment,
		"ip version":         append(ipFrame(gatewayMAC, mac(1), me, out, 17, nil)[:14], make([]byte, 20)...),
	}
	for _, f := range bad {
		a.inject(t, f)
	}
	eventually(t, "all dropped", func() bool { return port.Stats().Invalid == uint64(len(bad)) })
	if len(b.toGuest) > 0 || len(o.all()) > 0 {
		t.Errorf("the neighbour got %d frames, outside %v", len(b.toGuest), o.all())
	}
	a.inject(t, ipFrame(mac(2), mac(1), me, testVM(2).Addr, 17, good))
	if f := expect(t, b); [4]byte(f[26:30]) != me.As4() {
		t.Errorf("the neighbour got %x", f)
	}
}

func mac2bytes(m [6]byte) []byte { return m[:] }

func TestAttachChecks(t *testing.T) {
	n := newNetwork(t, &outside{})
	_, p := attach(t, n, 1)
	for what, change := range map[string]func(*VM){
		"mac of another":    func(v *VM) { v.MAC = testVM(1).MAC },
		"gateway":           func(v *VM) { v.Addr = testGateway },
		"gateway's mac":     func(v *VM) { v.MAC = gatewayMAC[:] },
		"network address":   func(v *VM) { v.Addr = netip.MustParseAddr("172.16.0.0") },
		"broadcast address": func(v *VM) { v.Addr = netip.MustParseAddr("172.16.0.255") },
		"outside":           func(v *VM) { v.Addr = netip.MustParseAddr("172.16.1.9") },
		"no address":        func(v *VM) { v.Addr = netip.Addr{} },
		"group mac":         func(v *VM) { v.MAC = net.HardwareAddr{1, 2, 3, 4, 5, 6} },
		"no mac":            func(v *VM) { v.MAC = nil },
		"no id":             func(v *VM) { v.ID = "" },
	} {
		vm := testVM(2)
		change(&vm)
		if _, err := n.Attach(vm, newMemLink()); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	// the same VM in another place is another
	moved := testVM(1)
	moved.Addr = netip.MustParseAddr("172.16.0.200")
	again, err := n.Attach(moved, newMemLink())
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	n.Detach("id-1")
	<-again.Done()
	if _, ok := n.Stats("id-1"); ok {
		t.Error("the VM is attached although it was detached")
	}
	n.Detach("id-1")
	n.Close()
	if _, err := n.Attach(testVM(5), newMemLink()); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestAddressGoesToItsNextVM: the lease of a VM that was deleted may be another's before its link has ended.
func TestAddressGoesToItsNextVM(t *testing.T) {
	o := &outside{tcp: map[uint16]string{80: serveTCP(t, echoTCP)}}
	n := newNetwork(t, o)
	deleted := newGuest(t, n, 1)
	old := deleted.mustDial(t, "203.0.113.5:80")
	eventually(t, "it is connected", func() bool { return deleted.port.Stats().OpenTCP == 1 })
	vm := testVM(1)
	vm.ID, vm.Name = "id-next", "next"
	link := newMemLink()
	next, err := n.Attach(vm, link)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(next.Close)
	<-deleted.port.Done()
	if s := deleted.port.Stats(); s.OpenTCP != 0 {
		t.Errorf("%d connections of the deleted VM are open", s.OpenTCP)
	}
	// A segment of the old connection is a stranger's now: it is reset, whoever sends it.
	port := old.LocalAddr().(*net.TCPAddr).AddrPort().Port()
	b := header.TCP(make([]byte, 20))
	b.Encode(&header.TCPFields{SrcPort: port, DstPort: 80, SeqNum: 1, AckNum: 1, DataOffset: 20, Flags: header.TCPFlagAck, WindowSize: 65535})
	link.inject(t, ipFrame(gatewayMAC, mac(1), vm.Addr, netip.MustParseAddr("203.0.113.5"), 6, b))
	if f := expect(t, link); header.TCP(f[34:]).Flags()&header.TCPFlagRst == 0 {
		t.Errorf("the answer is %s, want a reset", header.TCP(f[34:]).Flags())
	}
	// What the old port still does takes nothing from the new one.
	deleted.port.Close()
	if _, ok := n.Stats("id-next"); !ok || n.portByAddr(vm.Addr) != next {
		t.Error("the VM lost its place")
	}
}

// TestSlowGuestHarmsItselfOnly: a guest that reads nothing loses its frames, and its neighbour goes on.
func TestSlowGuestHarmsItselfOnly(t *testing.T) {
	o := &outside{tcp: map[uint16]string{80: serveTCP(t, echoTCP)}}
	n := newNetwork(t, o)
	slow, slowPort := attach(t, n, 1)
	_ = slow // its frames are never taken
	g := newGuest(t, n, 2)
	flood := make([]byte, 60000)
	f := ipFrame(mac(1), mac(2), testVM(2).Addr, testVM(1).Addr, 17, udpTo(1, 2, flood))
	for range 1000 {
		g.link.inject(t, f)
	}
	eventually(t, "frames are dropped", func() bool { return slowPort.Stats().Overrun > 100 })
	slowPort.out.mu.Lock()
	held := slowPort.out.bytes
	slowPort.out.mu.Unlock()
	if held > queueBytes {
		t.Errorf("%d bytes wait, more than %d", held, queueBytes)
	}
	transfer(t, g)
}

// transfer sends some bytes outside and has them come back.
func transfer(t *testing.T, g *guest) {
	t.Helper()
	c := g.mustDial(t, "203.0.113.5:80")
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	msg := make([]byte, 100000)
	go func() { _, _ = c.Write(msg) }()
	if _, err := io.ReadFull(c, msg); err != nil {
		t.Fatal(err)
	}
}

// TestFloodingGuest: SYNs and datagrams without end use up the guest's own share, and nobody else's.
func TestFloodingGuest(t *testing.T) {
	const sockets = 400
	o := &outside{tcp: map[uint16]string{80: serveTCP(t, echoTCP)}, udp: map[uint16]string{80: serveUDP(t)}, hang: make(chan struct{})}
	defer close(o.hang)
	n := newNetwork(t, o, func(c *Config) { c.Sockets = sockets })
	bad, badPort := attach(t, n, 1)
	g := newGuest(t, n, 2)
	stop, done := context.WithCancel(t.Context())
	go func() {
		for stop.Err() == nil {
			select {
			case <-bad.toGuest:
			case <-time.After(time.Millisecond):
			}
		}
	}()
	for i := range uint16(2000) {
		bad.inject(t, ipFrame(gatewayMAC, mac(1), testVM(1).Addr, netip.MustParseAddr("203.0.113.5"), 6, syn(i+1, 1)))
		bad.inject(t, ipFrame(gatewayMAC, mac(1), testVM(1).Addr, netip.MustParseAddr("203.0.113.5"), 17, udpTo(i+1, 80, []byte("x"))))
	}
	eventually(t, "the flood is over", func() bool { return badPort.Stats().FramesFromGuest == 4000 })
	n.sockets.mu.Lock()
	free := n.sockets.free
	n.sockets.mu.Unlock()
	if want := sockets - 2*sockets/8; free < want {
		t.Errorf("%d of %d sockets are left, want at least %d", free, sockets, want)
	}
	if s := badPort.Stats(); s.OpenUDP > sockets/8 || s.Refused == 0 {
		t.Errorf("stats = %+v, want its share of %d UDP flows and the rest refused", s, sockets/8)
	}
	transfer(t, g)
	done()
	badPort.Close()
	eventually(t, "its sockets come back", func() bool {
		n.sockets.mu.Lock()
		defer n.sockets.mu.Unlock()
		return n.sockets.free >= sockets-1
	})
}
