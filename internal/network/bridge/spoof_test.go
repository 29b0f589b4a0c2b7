package bridge

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/network/nettest"
	"git.thaloco.com/thaloco/banger/internal/network/tap"
)

// virtioHeader is the length of struct virtio_net_hdr, which is before each frame of a TAP.
const virtioHeader = 10

// port is the guest's end of a TAP, by hand: it sends what no kernel would, and sees all that a VM would be given.
type port struct {
	file *os.File
	got  chan []byte // frames with their headers
}

// openPort attaches to a TAP until the test ends.
func openPort(t testing.TB, host *nettest.NS, name string) port {
	t.Helper()
	p := port{got: make(chan []byte, 1024)}
	host.Do(t, func() (err error) {
		if p.file, err = tap.Open(name); err != nil {
			return err
		}
		// The kernel tells the bridge in its own time that somebody is there; frames before that are lost.
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for end := time.Now().Add(patience); ; <-tick.C {
			link, err := netlink.LinkByName(name)
			if err != nil || link.Attrs().OperState == netlink.OperUp {
				return err
			}
			if time.Now().After(end) {
				return fmt.Errorf("%q is %s", name, link.Attrs().OperState)
			}
		}
	})
	go func() {
		b := make([]byte, virtioHeader+1<<16)
		for {
			n, err := p.file.Read(b)
			if err != nil {
				close(p.got)
				return
			}
			p.got <- bytes.Clone(b[:n])
		}
	}()
	t.Cleanup(func() {
		_ = p.file.Close()
		for range p.got { // its end
		}
	})
	return p
}

func (p port) send(t testing.TB, frame []byte) {
	t.Helper()
	if _, err := p.file.Write(append(make([]byte, virtioHeader), frame...)); err != nil {
		t.Errorf("send % x: %v", frame, err)
	}
}

// until returns the frames that arrive before the last, which must come, but for those the host asks for addresses with.
func (p port) until(t testing.TB, last []byte) [][]byte {
	t.Helper()
	var out [][]byte
	end := time.After(patience)
	for {
		select {
		case b := <-p.got:
			if b = b[virtioHeader:]; bytes.Equal(b, last) {
				return out
			}
			if !asksForHost(b) {
				out = append(out, b)
			}
		case <-end:
			t.Fatalf("% x does not arrive; what did: % x", last, out)
		}
	}
}

// asksForHost tells whether the host asks with a frame which hardware address a guest has.
func asksForHost(f []byte) bool {
	gw := testConfig().IP
	return len(f) >= 42 && bytes.Equal(f[6:12], MAC(gw)) && bytes.Equal(f[12:14], []byte{8, 6}) && bytes.Equal(f[20:32], append(append([]byte{0, 1}, MAC(gw)...), gw.AsSlice()...))
}

// packets are the frames that the host's own side of an interface takes.
func packets(t testing.TB, host *nettest.NS, name string) port {
	t.Helper()
	p := port{got: make(chan []byte, 1024)}
	host.Do(t, func() error {
		i, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		proto := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(proto))
		if err != nil {
			return err
		}
		p.file = os.NewFile(uintptr(fd), name)
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: i.Index})
	})
	go func() {
		b := make([]byte, virtioHeader+1<<16)
		for {
			n, err := p.file.Read(b[virtioHeader:])
			if err != nil {
				close(p.got)
				return
			}
			if !bytes.Equal(b[virtioHeader+6:virtioHeader+12], MAC(testConfig().IP)) || bytes.Equal(b[virtioHeader:virtioHeader+6], MAC(testConfig().IP)) { // not what the host sends
				p.got <- bytes.Clone(b[:virtioHeader+n])
			}
		}
	}()
	t.Cleanup(func() {
		_ = p.file.Close()
		for range p.got { // its end
		}
	})
	return p
}

var everybody = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ether is a frame.
func ether(dst, src net.HardwareAddr, kind uint16, payload []byte) []byte {
	return append(binary.BigEndian.AppendUint16(append(append([]byte{}, dst...), src...), kind), payload...)
}

// datagram is a packet with an empty datagram for port 9.
func datagram(from, to netip.Addr) []byte { return datagramTo(from, netip.AddrPortFrom(to, 9)) }

func datagramTo(from netip.Addr, to netip.AddrPort) []byte {
	ip := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0}
	ip = append(append(ip, from.AsSlice()...), to.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(ip[10:], ^sum(ip))
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(ip, 12345<<16|uint32(to.Port())), 8<<16)
}

// sum is the Internet checksum's (RFC 1071), before it is inverted.
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// arp is what is in a frame of ARP: that the sender has an address, said to, or asked of, whose.
func arp(op byte, sender net.HardwareAddr, from netip.Addr, whose netip.Addr) []byte {
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, op}, sender...)
	b = append(append(b, from.AsSlice()...), make([]byte, 6)...)
	return append(b, whose.AsSlice()...)
}

func tagged(kind uint16, id uint16, frame []byte) []byte {
	tag := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, kind), id)
	return slices.Concat(frame[:12], tag, frame[12:])
}

// lies are frames that no guest of TAP 1 may send to the one of TAP 0, or to the host.
func lies(cfg Config, to netip.Addr) map[string][]byte {
	own, other, gateway := Addr(cfg, 1), Addr(cfg, 2), cfg.IP
	peer, me := MAC(to), MAC(own)
	truth := ether(peer, me, 0x800, datagram(own, to))
	v6 := append([]byte{0x60, 0, 0, 0, 0, 8, 17, 64, 0xfe, 0x80, 14: 0, 15: 1}, make([]byte, 32)...)
	out := map[string][]byte{
		"a neighbour's hardware address":  ether(peer, MAC(other), 0x800, datagram(own, to)),
		"the gateway's hardware address":  ether(peer, MAC(gateway), 0x800, datagram(own, to)),
		"no hardware address":             ether(peer, make(net.HardwareAddr, 6), 0x800, datagram(own, to)),
		"everybody's hardware address":    ether(peer, everybody, 0x800, datagram(own, to)),
		"a neighbour's address":           ether(peer, me, 0x800, datagram(other, to)),
		"the receiver's address":          ether(peer, me, 0x800, datagram(to, to)),
		"the gateway's address":           ether(peer, me, 0x800, datagram(gateway, to)),
		"both addresses of a neighbour":   ether(peer, MAC(other), 0x800, datagram(other, to)),
		"both addresses of the gateway":   ether(peer, MAC(gateway), 0x800, datagram(gateway, to)),
		"no address":                      ether(peer, me, 0x800, datagram(netip.IPv4Unspecified(), to)),
		"an address of the loopback":      ether(peer, me, 0x800, datagram(netip.MustParseAddr("127.0.0.1"), to)),
		"an address of the internet":      ether(peer, me, 0x800, datagram(nettest.Echo.Addr(), to)),
		"DHCP":                            ether(everybody, me, 0x800, datagramTo(netip.IPv4Unspecified(), netip.MustParseAddrPort("255.255.255.255:67"))),
		"everybody":                       ether(everybody, me, 0x800, datagram(own, netip.MustParseAddr("172.16.0.255"))),
		"everybody's frame for one":       ether(everybody, me, 0x800, datagram(own, to)),
		"multicast":                       ether(net.HardwareAddr{1, 0, 0x5e, 0, 0, 0xfb}, me, 0x800, datagram(own, netip.MustParseAddr("224.0.0.251"))),
		"IPv6":                            ether(peer, me, 0x86dd, v6),
		"IPv6 to all":                     ether(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, me, 0x86dd, v6),
		"a VLAN":                          tagged(0x8100, 7, truth),
		"a priority":                      tagged(0x8100, 5<<13, truth),
		"a VLAN of a provider":            tagged(0x88a8, 7, truth),
		"a VLAN in a VLAN":                tagged(0x8100, 7, tagged(0x8100, 8, truth)),
		"a VLAN with ARP":                 tagged(0x8100, 0, ether(everybody, me, 0x806, arp(1, me, own, to))),
		"PPPoE":                           ether(peer, me, 0x8864, append([]byte{0x11, 0, 0, 1, 0, 30, 0, 0x21}, datagram(own, to)...)),
		"MPLS":                            ether(peer, me, 0x8847, append([]byte{0, 1, 1, 64}, datagram(own, to)...)),
		"a spanning tree":                 ether(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, me, 38, append([]byte{0x42, 0x42, 3}, make([]byte, 50)...)),
		"an unknown protocol":             ether(peer, me, 0x88b5, make([]byte, 46)),
		"no protocol":                     ether(peer, me, 46, make([]byte, 46)),
		"ARP: a neighbour asks":           ether(everybody, me, 0x806, arp(1, me, other, to)),
		"ARP: the neighbour itself asks":  ether(everybody, MAC(other), 0x806, arp(1, MAC(other), other, to)),
		"ARP: a neighbour in the frame":   ether(everybody, MAC(other), 0x806, arp(1, me, own, to)),
		"ARP: a neighbour in the message": ether(everybody, me, 0x806, arp(1, MAC(other), own, to)),
		"ARP: I am the gateway":           ether(peer, me, 0x806, arp(2, me, gateway, to)),
		"ARP: I am the gateway, to all":   ether(everybody, me, 0x806, arp(2, me, gateway, gateway)),
		"ARP: I am the neighbour":         ether(peer, me, 0x806, arp(2, me, other, to)),
		"ARP: the gateway is elsewhere":   ether(peer, me, 0x806, arp(2, MAC(other), gateway, to)),
		"ARP: who has mine":               ether(everybody, me, 0x806, arp(1, me, netip.IPv4Unspecified(), own)),
		"RARP":                            ether(everybody, me, 0x806, arp(3, me, own, to)),
		"ARP: cut":                        ether(everybody, me, 0x806, arp(1, me, own, to)[:14]),
		"ARP: of another length":          ether(everybody, me, 0x806, append([]byte{0, 1, 8, 0, 7, 4, 0, 1}, arp(1, me, own, to)[8:]...)),
		"ARP: of other lengths":           ether(everybody, me, 0x806, append([]byte{0, 1, 8, 0, 6, 16, 0, 1}, arp(1, me, own, to)[8:]...)),
		"ARP: of other hardware":          ether(everybody, me, 0x806, append([]byte{0, 6, 8, 0, 6, 4, 0, 1}, arp(1, me, own, to)[8:]...)),
		"IPv4: cut":                       ether(peer, me, 0x800, datagram(own, to)[:10]),
	}
	return out
}

// TestSpoofing has a guest send what it may not: neither a neighbour nor the host sees any of it.
func TestSpoofing(t *testing.T) {
	for _, netfilter := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+netfilter, func(t *testing.T) {
			ns := newHost(t)
			cfg := testConfig()
			setUpIn(t, ns, cfg)
			callIptables(t, ns, netfilter)
			liar, honest, host := openPort(t, ns, "bt0-t1"), openPort(t, ns, "bt0-t0"), packets(t, ns, "bt0")
			testLies(t, cfg, liar, Addr(cfg, 0), honest)
			testLies(t, cfg, liar, cfg.IP, host)
			ns.Do(t, func() error {
				neighs, err := netlink.NeighList(0, netlink.FAMILY_V4)
				for _, n := range neighs {
					if a, _ := netip.AddrFromSlice(n.IP.To4()); len(n.HardwareAddr) == 6 && cfg.CIDR.Contains(a) && n.HardwareAddr.String() != MAC(a).String() {
						t.Errorf("the host believes that %s is %s", a, n.HardwareAddr)
					}
				}
				return err
			})
		})
	}
}

// testLies has TAP 1 send lies to where they would be seen, and then the truth, which is seen.
func testLies(t *testing.T, cfg Config, liar port, to netip.Addr, seen port) {
	t.Helper()
	own := Addr(cfg, 1)
	truths := [][]byte{
		ether(everybody, MAC(own), 0x806, arp(1, MAC(own), own, to)),
		ether(MAC(to), MAC(own), 0x806, arp(2, MAC(own), own, to)),
		ether(MAC(to), MAC(own), 0x800, datagram(own, to)),
	}
	for _, truth := range truths {
		liar.send(t, truth)
		seen.until(t, truth)
	}
	for what, lie := range lies(cfg, to) {
		liar.send(t, lie)
		liar.send(t, truths[2]) // what one TAP sends stays in order
		if got := seen.until(t, truths[2]); len(got) > 0 {
			t.Errorf("%s arrived at %s: % x", what, to, got)
		}
	}
}

// callIptables has what crosses a bridge pass iptables too, as Docker does; it skips where the kernel cannot.
func callIptables(t *testing.T, ns *nettest.NS, on string) {
	t.Helper()
	const file = "/proc/sys/net/bridge/bridge-nf-call-iptables"
	err := ns.Try(func() error { return os.WriteFile(file, []byte(on), 0o644) })
	if os.IsNotExist(err) && on == "1" {
		t.Skip("this kernel has no br_netfilter: ", file)
	}
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
}

// TestGuestWithAnothersAddress is a guest, of a real kernel, that took its neighbour's addresses.
func TestGuestWithAnothersAddress(t *testing.T) {
	ns := newHost(t)
	cfg := testConfig()
	setUpIn(t, ns, cfg)
	serveIn(t, ns, fmt.Sprintf("%s:%d", cfg.IP, ProxyPort), "the proxy")
	liar := newGuest(t, ns, cfg, 2, 1) // on TAP 2 with the addresses of TAP 1
	honest := newGuest(t, ns, cfg, 0, 0)
	if got := liar.get(cfg.IP.String()+":80", silence); !unanswered(got) {
		t.Errorf("with its neighbour's addresses it hears %q", got)
	}
	if got := honest.get(cfg.IP.String()+":80", patience); got != "the proxy" {
		t.Errorf("with its own it hears %q", got)
	}
}
