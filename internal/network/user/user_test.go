package user

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"git.thaloco.com/thaloco/banger/internal/network/egress"
)

// ipFrame is a frame with an IPv4 packet.
func ipFrame(dst, src [6]byte, from, to netip.Addr, proto uint8, payload []byte) []byte {
	f := make([]byte, 14+20, 14+20+len(payload))
	copy(f, dst[:])
	copy(f[6:], src[:])
	binary.BigEndian.PutUint16(f[12:], typeIPv4)
	ip := header.IPv4(f[14:])
	f[14] = 0x45
	ip.SetTotalLength(uint16(20 + len(payload)))
	f[14+8], f[14+9] = 64, proto
	copy(f[14+12:], from.AsSlice())
	copy(f[14+16:], to.AsSlice())
	ip.SetChecksum(^ip.CalculateChecksum())
	return append(f, payload...)
}

// syn is a TCP SYN, udpTo a datagram; neither has a checksum.
func syn(srcPort, dstPort uint16) []byte {
	b := header.TCP(make([]byte, 20))
	b.Encode(&header.TCPFields{SrcPort: srcPort, DstPort: dstPort, SeqNum: 1, DataOffset: 20, Flags: header.TCPFlagSyn, WindowSize: 65535})
	return b
}

func udpTo(srcPort, dstPort uint16, payload []byte) []byte {
	b := header.UDP(make([]byte, 8))
	b.Encode(&header.UDPFields{SrcPort: srcPort, DstPort: dstPort, Length: uint16(8 + len(payload))})
	return append(b, payload...)
}

func echoRequest() []byte {
	b := header.ICMPv4(make([]byte, 16))
	b.SetType(header.ICMPv4Echo)
	b.SetChecksum(header.ICMPv4Checksum(b, 0))
	return b
}

// testOutside is allowed by realPolicy.
var testOutside = netip.MustParseAddrPort("203.0.113.9:80")

// realPolicy refuses what it refuses in the daemon.
func realPolicy(t testing.TB) *egress.Policy {
	t.Helper()
	p, err := egress.New(egress.Config{CIDR: testCIDR, Exempt: []netip.AddrPort{testOutside}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNothingForNeighbourOrHostLeaves(t *testing.T) {
	o := &outside{policy: realPolicy(t), tcp: map[uint16]string{80: serveTCP(t, echoTCP)}, udp: map[uint16]string{80: serveUDP(t)}}
	n := newNetwork(t, o, func(c *Config) {
		c.Allow = func(f Flow) error {
			if testCIDR.Contains(f.Dst.Addr()) {
				t.Errorf("asked about %s, which is inside the network", f.Dst)
			}
			return nil
		}
	})
	a := newMemLink()
	port, err := n.Attach(testVM(1), a)
	if err != nil {
		t.Fatal(err)
	}
	neighbour := newMemLink()
	if _, err := n.Attach(testVM(2), neighbour); err != nil {
		t.Fatal(err)
	}
	gone := newMemLink()
	gonePort, err := n.Attach(testVM(3), gone)
	if err != nil {
		t.Fatal(err)
	}
	gonePort.Close()
	never := testVM(99)
	targets := []netip.Addr{
		testVM(2).Addr, testVM(3).Addr, never.Addr, testVM(1).Addr, testGateway, netip.MustParseAddr("172.16.0.0"), netip.MustParseAddr("172.16.0.255"),
		netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.1.2.3"), netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("0.1.2.3"),
		netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("224.0.0.1"), netip.MustParseAddr("239.255.255.250"),
		netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("240.0.0.1"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("192.168.1.1"),
		netip.MustParseAddr("172.31.0.1"), netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("192.0.0.8"), netip.MustParseAddr("198.18.0.1"),
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range own {
		if p, err := netip.ParsePrefix(x.String()); err == nil && p.Addr().Is4() {
			targets = append(targets, p.Addr())
		}
	}
	vm := testVM(1)
	var sent, refused uint64
	for _, mac := range [][6]byte{gatewayMAC, [6]byte(testVM(2).MAC), [6]byte(testVM(3).MAC), [6]byte(never.MAC), broadcastMAC, {2, 9, 9, 9, 9, 9}} {
		for i, to := range targets {
			src := uint16(1000 + i)
			a.inject(t, ipFrame(mac, [6]byte(vm.MAC), vm.Addr, to, 6, syn(src, 80)))
			a.inject(t, ipFrame(mac, [6]byte(vm.MAC), vm.Addr, to, 17, udpTo(src, 80, []byte("x"))))
			a.inject(t, ipFrame(mac, [6]byte(vm.MAC), vm.Addr, to, 1, echoRequest()))
			sent += 3
			if mac == gatewayMAC && to.IsPrivate() && !testCIDR.Contains(to) {
				refused += 3 // these get as far as the policy; most others are dropped before
			}
			drainFrames(a, neighbour)
		}
	}
	eventually(t, "all frames taken", func() bool { return port.Stats().FramesFromGuest == sent })
	eventually(t, "all flows refused", func() bool { return port.Stats().Refused >= refused })
	// the way out is open for what is allowed
	a.inject(t, ipFrame(gatewayMAC, [6]byte(vm.MAC), vm.Addr, testOutside.Addr(), 17, udpTo(9, testOutside.Port(), nil)))
	eventually(t, "a flow let out", func() bool { return len(o.all()) > 0 })
	if diff := cmp.Diff([]string{"udp " + testOutside.String()}, o.all()); diff != "" {
		t.Errorf("left by the host's sockets (-want +got):\n%s", diff)
	}
}

// drainFrames throws away what waits for guests.
func drainFrames(links ...*memLink) {
	for _, l := range links {
		for len(l.toGuest) > 0 {
			<-l.toGuest
		}
	}
}

func TestTCP(t *testing.T) {
	o := &outside{tcp: map[uint16]string{80: serveTCP(t, echoTCP)}}
	g := newGuest(t, newNetwork(t, o), 1)
	c := g.mustDial(t, "203.0.113.5:80")
	data := make([]byte, 8<<20)
	_, _ = rand.Read(data)
	go func() {
		_, _ = c.Write(data)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, data) {
		t.Fatalf("%d bytes came back, not the %d sent", len(got), len(data))
	}
	eventually(t, "the flow ends", func() bool { return g.port.Stats().OpenTCP == 0 })
	if s := g.port.Stats(); s.Flows != 1 {
		t.Errorf("flows = %d, want 1", s.Flows)
	}
}

func TestTCPRefused(t *testing.T) {
	g := newGuest(t, newNetwork(t, &outside{}), 1)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err := g.dial(ctx, "203.0.113.5:81")
	if err == nil || ctx.Err() != nil {
		t.Fatalf("err = %v, want a refusal at once", err)
	}
}

func TestUDP(t *testing.T) {
	o := &outside{udp: map[uint16]string{7: serveUDP(t)}}
	g := newGuest(t, newNetwork(t, o), 1)
	c := g.dialUDP(t, "203.0.113.5:7")
	for _, size := range []int{0, 1, 1400, 9000, 65480, 65492, 65493, 65507} {
		msg := make([]byte, size)
		_, _ = rand.Read(msg)
		if _, err := c.Write(msg); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		buf := make([]byte, 1<<16)
		n, err := c.Read(buf)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if !bytes.Equal(buf[:n], msg) {
			t.Fatalf("%d bytes: got %d others", size, n)
		}
	}
	if s := g.port.Stats(); s.OpenUDP != 1 || s.Flows != 1 {
		t.Errorf("stats = %+v, want one flow", s)
	}
}

// answerFunc is an Answerer.
type answerFunc func(vm string, udp bool, msg []byte) []byte

func (f answerFunc) Answer(_ context.Context, vm string, udp bool, msg []byte) []byte {
	return f(vm, udp, msg)
}

func TestDNS(t *testing.T) {
	n := newNetwork(t, &outside{}, func(c *Config) {
		c.DNS = answerFunc(func(vm string, udp bool, msg []byte) []byte {
			if udp {
				return []byte("udp " + vm + " " + string(msg))
			}
			return []byte("tcp " + vm + " " + string(msg))
		})
	})
	g := newGuest(t, n, 1)
	u := g.dialUDP(t, "172.16.0.1:53")
	if _, err := u.Write([]byte("q")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	_ = u.SetReadDeadline(time.Now().Add(30 * time.Second))
	size, err := u.Read(buf)
	if err != nil || string(buf[:size]) != "udp id-1 q" {
		t.Fatalf("got %q, %v", buf[:size], err)
	}
	c := g.mustDial(t, "172.16.0.1:53")
	for range 3 {
		if _, err := c.Write([]byte{0, 2, 'q', 'q'}); err != nil {
			t.Fatal(err)
		}
		want := "\x00\x0btcp id-1 qq"
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
			t.Fatalf("got %q, %v", got, err)
		}
	}
}

func TestGuestToGuest(t *testing.T) {
	o := &outside{}
	n := newNetwork(t, o)
	a, b := newGuest(t, n, 1), newGuest(t, n, 2)
	c := b.dialUDP(t, netip.AddrPortFrom(a.vm.Addr, 9).String())
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	// nobody listens there: that guest's own stack says so
	if _, err := a.dial(ctx, netip.AddrPortFrom(b.vm.Addr, 80).String()); err == nil || ctx.Err() != nil {
		t.Fatalf("err = %v, want a refusal of the neighbour", err)
	}
	if d := o.all(); len(d) > 0 {
		t.Errorf("left by the host: %v", d)
	}
}
