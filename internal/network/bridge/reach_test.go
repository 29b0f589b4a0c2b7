package bridge

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/network/nettest"
)

// serveDestinations tells whoever connects in a namespace where they were going, as a daemon learns it.
func serveDestinations(t testing.TB, ns *nettest.NS, at string) {
	t.Helper()
	var l *net.TCPListener
	ns.Do(t, func() (err error) {
		l, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.MustParseAddrPort(at)))
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			to, err := OriginalDst(c)
			_, _ = fmt.Fprintf(c, "to %s, %v", to, err)
			_ = c.Close()
		}
	}()
}

// servePackets answers each datagram with a greeting, and returns the greeted.
func servePackets(t testing.TB, ns *nettest.NS, at, greeting string) <-chan netip.AddrPort {
	t.Helper()
	var c *net.UDPConn
	ns.Do(t, func() (err error) {
		c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at)))
		return err
	})
	t.Cleanup(func() { _ = c.Close() })
	seen := make(chan netip.AddrPort, 100)
	go func() {
		for b := make([]byte, 1500); ; {
			_, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			seen <- from
			_, _ = c.WriteToUDPAddrPort([]byte(greeting), from) // lost, as a datagram may be
		}
	}()
	return seen
}

// ask sends a datagram from a namespace and returns the answer of whom it was sent to, or the error.
func ask(ns *nettest.NS, network, to string, request []byte, within time.Duration) string {
	var out string
	err := ns.Try(func() error {
		c, err := net.Dial(network, to)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(within))
		if _, err := c.Write(request); err != nil {
			return err
		}
		b := make([]byte, 1500)
		n, err := c.Read(b)
		out = string(b[:n])
		return err
	})
	if err != nil {
		return err.Error()
	}
	return out
}

// ping is "" where an address answers an ICMP echo request.
func ping(ns *nettest.NS, to string, within time.Duration) string {
	request := []byte{8, 0, 0, 0, 0x12, 0x34, 0, 1, 'h', 'i'}
	binary.BigEndian.PutUint16(request[2:], ^sum(request))
	got := ask(ns, "ip4:icmp", to, request, within)
	if len(got) > 28 && got[20] == 0 && got[len(got)-2:] == "hi" {
		return ""
	}
	return fmt.Sprintf("%q", got)
}

// connect is what a TCP server that a namespace connects to says first, or the error.
func connect(ns *nettest.NS, to string, within time.Duration) string {
	return guest{Guest: &nettest.Guest{NS: ns}}.get(to, within)
}

// TestGateway has a guest ask the host for all it might have: it gets names, a ping, and the daemon's two ports.
func TestGateway(t *testing.T) {
	newHost(t) // or skips
	in := nettest.NewInternet(t)
	in.TellAlways(t)
	cfg := testConfig()
	setUpIn(t, in.Host, cfg)
	vm := newGuest(t, in.Host, cfg, 0, 0)
	gw := cfg.IP.String()
	serveDestinations(t, in.Host, fmt.Sprintf("%s:%d", gw, ProxyPort))
	serveIn(t, in.Host, fmt.Sprintf("%s:%d", gw, DNSPort), "names")
	servePackets(t, in.Host, fmt.Sprintf("%s:%d", gw, DNSPort), "names")
	serveIn(t, in.Host, ":22", "the host")
	wrong := servePackets(t, in.Host, "0.0.0.0:5353", "the host")

	for port, want := range map[int]string{
		53: "names", 22: "to 172.16.0.1:22, <nil>", 1: "to 172.16.0.1:1, <nil>", 65535: "to 172.16.0.1:65535, <nil>",
		// The daemon's own: one is a port like any other, the other would lead to itself.
		DNSPort: "to 172.16.0.1:10053, <nil>", ProxyPort: "connection refused",
	} {
		if got := vm.get(fmt.Sprintf("%s:%d", gw, port), patience); !strings.HasSuffix(got, want) {
			t.Errorf("TCP %d: %q, want %q", port, got, want)
		}
	}
	if got := ask(vm.NS, "udp4", gw+":53", []byte("?"), patience); got != "names" {
		t.Errorf("UDP 53: %q", got)
	}
	for _, to := range []string{gw + ":5353", gw + ":10053", gw + ":10054", "192.0.2.2:53", "192.0.2.2:5353", "10.77.0.2:10053"} {
		if got := ask(vm.NS, "udp4", to, []byte("?"), patience); !strings.Contains(got, "no route to host") && !strings.Contains(got, "connection refused") {
			t.Errorf("UDP %s: %q", to, got)
		}
	}
	for _, to := range []string{"192.0.2.2:22", "192.0.2.2:53", "192.0.2.2:10053", "192.0.2.2:10054", "10.77.0.2:22"} {
		if got := vm.get(to, patience); !strings.Contains(got, "connection refused") {
			t.Errorf("TCP %s: %q", to, got)
		}
	}
	if got := ping(vm.NS, gw, patience); got != "" {
		t.Errorf("ping: %s", got)
	}
	for _, to := range []string{"192.0.2.2", "10.77.0.2"} {
		if got := ping(vm.NS, to, silence); got == "" {
			t.Errorf("%s answers a ping", to)
		}
	}
	// The host's own programs: names, and what listens on the bridge's address for them.
	if got := connect(in.Host, gw+":53", patience); got != "names" {
		t.Errorf("TCP 53 of the host: %q", got)
	}
	if got := ask(in.Host, "udp4", gw+":53", []byte("?"), patience); got != "names" {
		t.Errorf("UDP 53 of the host: %q", got)
	}
	if got := connect(in.Host, gw+":22", patience); got != "the host" {
		t.Errorf("TCP 22 of the host: %q", got)
	}
	if got := ping(in.Host, vm.addr.String(), patience); got != "" {
		t.Errorf("the host's ping of a guest: %s", got)
	}
	if len(wrong) > 0 {
		t.Errorf("the host heard %s", <-wrong)
	}
}

// TestHostAddresses has frames to the host's hardware address with whatever address in them: only the gateway's DNS hears any.
func TestHostAddresses(t *testing.T) {
	newHost(t) // or skips
	in := nettest.NewInternet(t)
	cfg := testConfig()
	setUpIn(t, in.Host, cfg)
	vm := openPort(t, in.Host, "bt0-t0")
	wild := servePackets(t, in.Host, "0.0.0.0:9", "")
	names := servePackets(t, in.Host, fmt.Sprintf("%s:%d", cfg.IP, DNSPort), "")
	wire := in.Host.NewCapture(t, nettest.HostInterface)
	own := Addr(cfg, 0)
	for _, to := range []string{"172.16.0.1", "192.0.2.2", "10.77.0.2", "127.0.0.1", "127.0.0.53", "172.16.0.0", "172.16.0.255", "192.0.2.3", "10.77.0.255",
		"255.255.255.255", "224.0.0.1", "224.0.0.251", "239.255.255.250", "0.0.0.0", "240.0.0.1", "169.254.169.254"} {
		vm.send(t, ether(MAC(cfg.IP), MAC(own), 0x800, datagram(own, netip.MustParseAddr(to))))
	}
	vm.send(t, ether(MAC(cfg.IP), MAC(own), 0x800, datagramTo(own, netip.AddrPortFrom(cfg.IP, 53))))
	select {
	case from := <-names:
		if from.Addr() != own {
			t.Errorf("a question of %s", from)
		}
	case <-time.After(patience):
		t.Error("a question does not arrive")
	}
	if len(wild) > 0 {
		t.Errorf("the host heard %s", <-wild)
	}
	for _, p := range wire.Packets() {
		t.Errorf("to the outside went %+v", p)
	}
}

// TestNetworks has a guest connect to networks that it may reach never, and to those that it may if allowed to.
func TestNetworks(t *testing.T) {
	newHost(t) // or skips
	in := nettest.NewInternet(t)
	cfg := testConfig()
	private := []string{"10.1.2.3", "10.77.0.1", "172.20.0.1", "172.31.255.254", "192.168.1.1", "100.64.0.1", "100.127.255.254", "192.0.0.9", "198.18.0.1"}
	never := []string{"169.254.169.254", "169.254.0.1", "0.1.2.3", "240.0.0.1", "224.0.0.5"}
	in.Outside.Do(t, func() error {
		lo, err := netlink.LinkByName("lo")
		for _, a := range append(append([]string{}, private...), never[:2]...) {
			if addr, _ := netlink.ParseAddr(a + "/32"); err == nil && a != nettest.PrivatePeer.Addr().String() {
				err = netlink.AddrAdd(lo, addr)
			}
		}
		return err
	})
	serveIn(t, in.Outside, ":8080", "outside")
	for _, a := range append([]string{nettest.HTTP.Addr().String(), nettest.Gateway.String()}, private...) {
		servePackets(t, in.Outside, a+":8080", "outside")
	}
	setUpIn(t, in.Host, cfg)
	vm := newGuest(t, in.Host, cfg, 0, 0)
	wire := in.Host.NewCapture(t, nettest.HostInterface)
	look := func(to string, may bool) {
		t.Helper()
		if !may { // how often a host says no to a datagram is bounded (icmp_ratelimit): whether it went out is looked for below
			ask(vm.NS, "udp4", to+":8080", []byte("?"), time.Millisecond)
		} else if got := ask(vm.NS, "udp4", to+":8080", []byte("?"), patience); got != "outside" {
			t.Errorf("%s, private networks allowed %v, UDP: %q", to, cfg.AllowPrivate, got)
		}
		if got := vm.get(to+":8080", patience); (got == "outside") != may || !may && !strings.Contains(got, "connection refused") {
			t.Errorf("%s, private networks allowed %v: %q", to, cfg.AllowPrivate, got)
		}
	}
	for _, cfg.AllowPrivate = range []bool{false, true} {
		setUpIn(t, in.Host, cfg)
		look(nettest.HTTP.Addr().String(), true)
		look(nettest.Gateway.String(), cfg.AllowPrivate) // on the host's own subnet, if not by its number
		for _, to := range private {
			look(to, cfg.AllowPrivate)
		}
		for _, to := range never[:3] {
			look(to, false)
		}
		for _, to := range never[3:] { // which the guest's own kernel may not even send to
			if got := vm.get(to+":8080", silence); got == "outside" {
				t.Errorf("%s answers", to)
			}
		}
		for _, p := range wire.Packets() {
			if p.Src == vm.addr || p.Dst == vm.addr {
				t.Errorf("the guest's own address is on the wire: %+v", p)
			}
			for _, to := range append(append([]string{}, never...), private...) {
				if p.Dst.String() == to && !cfg.AllowPrivate {
					t.Errorf("on the wire was %+v", p)
				}
			}
		}
	}
	for _, p := range wire.Packets() {
		for _, to := range never {
			if p.Dst.String() == to {
				t.Errorf("on the wire was %+v", p)
			}
		}
	}
}

// TestMasquerade has the guest use the internet: each protocol, and much of it.
func TestMasquerade(t *testing.T) {
	newHost(t) // or skips
	in := nettest.NewInternet(t)
	cfg := testConfig()
	cfg.AllowPrivate = false
	setUpIn(t, in.Host, cfg)
	one, two := newGuest(t, in.Host, cfg, 0, 0), newGuest(t, in.Host, cfg, 1, 1)
	seen := servePackets(t, in.Outside, nettest.HTTP.Addr().String()+":99", "outside")
	for _, g := range []guest{one, two} {
		if got := ask(g.NS, "udp4", nettest.HTTP.Addr().String()+":99", []byte("?"), patience); got != "outside" {
			t.Errorf("UDP: %q", got)
		} else if from := <-seen; from.Addr() != nettest.HostAddr {
			t.Errorf("the outside sees %s", from)
		}
		if got := ask(g.NS, "udp4", nettest.Echo.String(), []byte("hello"), patience); got != "hello" {
			t.Errorf("UDP echo: %q", got)
		}
		if got := ping(g.NS, nettest.Echo.Addr().String(), patience); got != "" {
			t.Errorf("ping: %s", got)
		}
		if got := g.get(nettest.Refused.String(), patience); !strings.Contains(got, "refused") {
			t.Errorf("a closed port: %q", got)
		}
		if got := ask(g.NS, "udp4", nettest.Refused.String(), []byte("?"), patience); !strings.Contains(got, "refused") {
			t.Errorf("a closed UDP port: %q", got)
		}
	}
	const much = 8 << 20
	one.Do(t, func() error {
		c, err := net.Dial("tcp4", nettest.Chargen.String())
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		n, err := io.CopyN(io.Discard, c, much)
		if err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		return nil
	})
	// A bridge that is set up again, with other rules even, interrupts nothing.
	two.Do(t, func() error {
		c, err := net.Dial("tcp4", nettest.Echo.String())
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		for i := range byte(3) {
			b := []byte{i}
			if _, err := c.Write(b); err != nil {
				return err
			}
			if _, err := io.ReadFull(c, b); err != nil || b[0] != i {
				t.Errorf("after %d changes: %v, %v", i, b, err)
			}
			cfg.AllowPrivate = !cfg.AllowPrivate
			setUpIn(t, in.Host, cfg)
		}
		return nil
	})
}

// TestOffload sends a segment that is larger than any frame, as a guest's driver leaves them to its device: who takes such
// gets it whole, and who does not gets it in pieces with checksums.
func TestOffload(t *testing.T) {
	const mss, pieces = 1448, 3
	for _, netfilter := range []string{"0", "1"} {
		for _, whole := range []bool{true, false} {
			t.Run(fmt.Sprintf("bridge-nf-call-iptables=%s, whole %v", netfilter, whole), func(t *testing.T) {
				ns := newHost(t)
				cfg := testConfig()
				setUpIn(t, ns, cfg)
				callIptables(t, ns, netfilter)
				from, to := openPort(t, ns, "bt0-t0"), openPort(t, ns, "bt0-t1")
				if whole {
					raw, err := to.file.SyscallConn()
					cerr := raw.Control(func(fd uintptr) {
						err = errors.Join(err, unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4))
					})
					if err := errors.Join(err, cerr); err != nil {
						t.Fatal(err)
					}
				}
				payload := bytes.Repeat([]byte("banger "), mss*pieces/7+1)[:mss*pieces]
				if _, err := from.file.Write(segment(Addr(cfg, 0), Addr(cfg, 1), mss, payload)); err != nil {
					t.Fatal(err)
				}
				var got []byte
				frames := 0
				for end := time.After(patience); len(got) < len(payload); {
					select {
					case b := <-to.got:
						b = b[virtioHeader:]
						if len(b) < 66 || b[23] != unix.IPPROTO_TCP {
							continue
						}
						if !whole && (len(b) > mtu+14 || tcpSum(b[14:]) != 0xffff) {
							t.Errorf("a piece of %d bytes, whose checksum adds up to %#x", len(b), tcpSum(b[14:]))
						}
						frames++
						got = append(got, b[66:]...)
					case <-end:
						t.Fatalf("%d of %d bytes arrived", len(got), len(payload))
					}
				}
				if !bytes.Equal(got, payload) || (frames == 1) != whole {
					t.Errorf("%d bytes in %d frames", len(got), frames)
				}
			})
		}
	}
}

// segment is a TCP segment of any size behind its virtio header, without a checksum, to be cut at mss bytes.
func segment(from, to netip.Addr, mss int, payload []byte) []byte {
	const head = 14 + 20 + 32 // Ethernet, IPv4, TCP with room for options
	b := []byte{unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, unix.VIRTIO_NET_HDR_GSO_TCPV4}
	for _, v := range []int{head, mss, 14 + 20, 16} { // of the host's byte order, as virtio before 1.0 has it
		b = binary.NativeEndian.AppendUint16(b, uint16(v))
	}
	ip := datagram(from, to)[:20]
	binary.BigEndian.PutUint16(ip[2:], uint16(52+len(payload)))
	ip[6], ip[9], ip[10], ip[11] = 0x40, unix.IPPROTO_TCP, 0, 0 // not to be fragmented
	binary.BigEndian.PutUint16(ip[10:], ^sum(ip))
	tcp := append([]byte{0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 8 << 4, 0x10, 0xff, 0xff}, make([]byte, 16)...)
	for i := 20; i < 32; i++ {
		tcp[i] = 1 // no-op
	}
	binary.BigEndian.PutUint16(tcp[16:], pseudo(ip, 32+len(payload)))
	return append(append(b, ether(MAC(to), MAC(from), 0x800, append(ip, tcp...))...), payload...)
}

// pseudo is the sum of what TCP's checksum covers of an IPv4 header.
func pseudo(ip []byte, length int) uint16 {
	return sum(append(append([]byte{}, ip[12:20]...), 0, unix.IPPROTO_TCP, byte(length>>8), byte(length)))
}

// tcpSum is 0xffff for a packet with the right checksum.
func tcpSum(ip []byte) uint16 {
	tcp := bytes.Clone(ip[20:binary.BigEndian.Uint16(ip[2:])])
	if len(tcp)%2 == 1 {
		tcp = append(tcp, 0)
	}
	return sum(binary.BigEndian.AppendUint16(tcp, pseudo(ip, int(binary.BigEndian.Uint16(ip[2:]))-20)))
}
