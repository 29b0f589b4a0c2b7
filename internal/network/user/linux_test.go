package user

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/network/egress"
	"git.thaloco.com/thaloco/banger/internal/network/nettest"
)

// realNetwork is a network that leaves through the sockets of this process, with banger's own policy.
func realNetwork(t *testing.T, private bool, change ...func(*Config)) *Network {
	t.Helper()
	p, err := egress.New(egress.Config{CIDR: testCIDR, AllowPrivate: private})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{CIDR: testCIDR, Gateway: testGateway, Policy: p}
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

// linuxGuest attaches a guest whose kernel is this machine's.
func linuxGuest(t testing.TB, n *Network, i byte) (*nettest.Guest, *Port) {
	t.Helper()
	vm := testVM(i)
	g := nettest.NewGuest(t, netip.PrefixFrom(vm.Addr, 24), vm.MAC, testGateway, wire.NetMTU)
	port, err := n.Attach(vm, g.Link)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(port.Close)
	return g, port
}

// dialIn dials inside a namespace.
func dialIn(g *nettest.Guest, network, addr string, timeout time.Duration) (c net.Conn, err error) {
	err = g.Try(func() error {
		d := net.Dialer{Timeout: timeout}
		c, err = d.Dial(network, addr)
		return err
	})
	return c, err
}

func mustDialIn(t testing.TB, g *nettest.Guest, network string, addr netip.AddrPort) net.Conn {
	t.Helper()
	c, err := dialIn(g, network, addr.String(), 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c
}

func TestForbiddenPacketsDoNotReachTheWire(t *testing.T) {
	for _, private := range []bool{false, true} {
		t.Run(fmt.Sprintf("private=%t", private), func(t *testing.T) {
			nettest.Run(t, func(t *testing.T, in *nettest.Internet) { forbidden(t, in, private) }, func(in *nettest.Internet) { in.AllowPing(t) })
		})
	}
}

func forbidden(t *testing.T, in *nettest.Internet, private bool) {
	n := realNetwork(t, private)
	up, lo := in.Host.NewCapture(t, nettest.HostInterface), in.Host.NewCapture(t, "lo")
	vm := testVM(1)
	link, neighbour, gone := newMemLink(), newMemLink(), newMemLink()
	port, err := n.Attach(vm, link)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Attach(testVM(2), neighbour); err != nil {
		t.Fatal(err)
	}
	left, err := n.Attach(testVM(3), gone)
	if err != nil {
		t.Fatal(err)
	}
	left.Close()
	targets := []netip.Addr{testVM(2).Addr, testVM(3).Addr, testVM(99).Addr, nettest.HostAddr, nettest.PrivateAddr, netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("10.77.0.255")}
	for _, s := range []string{
		"127.0.0.1", "127.255.255.254", "0.0.0.0", "0.255.1.1", "169.254.169.254", "224.0.0.251", "239.1.2.3", "240.0.0.1", "255.255.255.255",
		"172.16.0.0", "172.16.0.255",
	} {
		targets = append(targets, netip.MustParseAddr(s))
	}
	if !private {
		for _, s := range []string{"10.0.0.1", "172.16.1.1", "172.31.255.1", "192.168.0.1", "100.64.0.1", "100.127.255.1", "192.0.0.9", "198.18.0.1", "198.19.255.1"} {
			targets = append(targets, netip.MustParseAddr(s))
		}
		targets = append(targets, nettest.PrivatePeer.Addr(), nettest.Gateway)
	}
	var sent uint64
	for _, mac := range [][6]byte{gatewayMAC, [6]byte(testVM(2).MAC), [6]byte(testVM(3).MAC), broadcastMAC, {2, 9, 9, 9, 9, 9}} {
		for i, to := range targets {
			src := uint16(2000 + i)
			link.inject(t, ipFrame(mac, [6]byte(vm.MAC), vm.Addr, to, 6, syn(src, 7)))
			link.inject(t, ipFrame(mac, [6]byte(vm.MAC), vm.Addr, to, 17, udpTo(src, 7, []byte("x"))))
			link.inject(t, ipFrame(mac, [6]byte(vm.MAC), vm.Addr, to, 1, echoRequest()))
			sent += 3
			drainFrames(link, neighbour)
		}
	}
	eventually(t, "all frames taken", func() bool { return port.Stats().FramesFromGuest == sent })
	// what is allowed arrives, so the capture works and has seen what came before
	for i, proto := range []uint8{6, 17, 1} {
		payload := [][]byte{syn(9, nettest.Echo.Port()), udpTo(9, nettest.Echo.Port(), []byte("x")), echoRequest()}[i]
		link.inject(t, ipFrame(gatewayMAC, [6]byte(vm.MAC), vm.Addr, nettest.Echo.Addr(), proto, payload))
		eventually(t, "an allowed packet is seen", func() bool {
			for _, p := range up.Packets() {
				if p.Dst == nettest.Echo.Addr() && p.Proto == proto {
					return true
				}
			}
			return false
		})
	}
	for _, p := range up.Packets() {
		if p.Src == nettest.HostAddr && p.Dst == nettest.Echo.Addr() || p.Src == nettest.Echo.Addr() {
			continue
		}
		t.Errorf("on the wire: %+v", p)
	}
	if diff := cmp.Diff([]nettest.Packet(nil), lo.Packets(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("on the host's loopback (-want +got):\n%s", diff)
	}
}

func TestLinuxGuest(t *testing.T) {
	nettest.Run(t, func(t *testing.T, _ *nettest.Internet) {
		flows := make(chan Flow, 10)
		n := realNetwork(t, false, func(c *Config) {
			c.Names = func(string, netip.Addr) []string { return []string{"www.example.test"} }
			c.Allow = func(f Flow) error {
				if f.Proto == "tcp" && f.Dst == nettest.HTTP {
					flows <- f
				}
				if f.Dst.Port() == 666 {
					return errors.New("not that one")
				}
				return nil
			}
		})
		g, port := linuxGuest(t, n, 1)
		t.Run("http", func(t *testing.T) {
			c := mustDialIn(t, g, "tcp", nettest.HTTP)
			client := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}}
			defer client.CloseIdleConnections()
			r, err := client.Get("http://" + nettest.HTTP.Addr().String() + "/x")
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(r.Body)
			_ = r.Body.Close()
			if err != nil || string(body) != "hello from 203.0.113.10 /x\n" {
				t.Errorf("got %q, %v", body, err)
			}
			want := Flow{VM: "id-1", Name: "vm1", Proto: "tcp", Dst: nettest.HTTP, Names: []string{"www.example.test"}}
			if diff := cmp.Diff(want, <-flows, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
		})
		t.Run("half close", func(t *testing.T) { linuxHalfClose(t, g) })
		t.Run("failures", func(t *testing.T) { linuxFailures(t, g) })
		t.Run("udp", func(t *testing.T) { linuxUDP(t, g) })
		t.Run("ping", func(t *testing.T) { linuxPing(t, g) })
		eventually(t, "all connections end", func() bool { return port.Stats().OpenTCP == 0 })
	}, func(in *nettest.Internet) { in.AllowPing(t) })
}

func linuxHalfClose(t *testing.T, g *nettest.Guest) {
	c := mustDialIn(t, g, "tcp", nettest.Echo)
	data := make([]byte, 4<<20)
	_, _ = rand.Read(data)
	go func() {
		_, _ = c.Write(data)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d of %d bytes came back, %v", len(got), len(data), err)
	}
}

var errTimeout = errors.New("timeout")

func linuxFailures(t *testing.T, g *nettest.Guest) {
	for _, tc := range []struct {
		what    string
		dst     string
		timeout time.Duration
		want    error
	}{
		{"closed port", nettest.Refused.String(), 20 * time.Second, syscall.ECONNREFUSED},
		{"no answer", nettest.Blackhole.String(), 300 * time.Millisecond, errTimeout},
		{"policy", nettest.PrivatePeer.String(), 20 * time.Second, syscall.ECONNREFUSED},
		{"the hook", "203.0.113.7:666", 20 * time.Second, syscall.ECONNREFUSED},
		{"the host", netip.AddrPortFrom(nettest.HostAddr, 22).String(), 20 * time.Second, syscall.ECONNREFUSED},
		{"closed port of the gateway", "172.16.0.1:22", 20 * time.Second, syscall.ECONNREFUSED},
	} {
		c, err := dialIn(g, "tcp", tc.dst, tc.timeout)
		if err == nil {
			_ = c.Close()
		}
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			err = errTimeout // of which net has several
		}
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: err = %v, want %v", tc.what, err, tc.want)
		}
	}
	c := mustDialIn(t, g, "tcp", nettest.Reset)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("reset outside: err = %v, want a reset", err)
	}
}

func linuxUDP(t *testing.T, g *nettest.Guest) {
	c := mustDialIn(t, g, "udp", nettest.Echo)
	for _, size := range []int{1, 1400, 20000, 65507} {
		msg := make([]byte, size)
		_, _ = rand.Read(msg)
		if _, err := c.Write(msg); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 1<<16)
		n, err := c.Read(got)
		if err != nil || !bytes.Equal(got[:n], msg) {
			t.Fatalf("%d bytes: got %d, %v", size, n, err)
		}
	}
	for _, tc := range []struct {
		what string
		dst  netip.AddrPort
		want error
	}{
		{"closed port", nettest.Refused, syscall.ECONNREFUSED},
		{"closed port of the gateway", netip.AddrPortFrom(testGateway, 99), syscall.ECONNREFUSED},
		{"policy", nettest.PrivatePeer, syscall.EHOSTUNREACH},
	} {
		c := mustDialIn(t, g, "udp", tc.dst)
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 10)); !errors.Is(err, tc.want) {
			t.Errorf("%s: err = %v, want %v", tc.what, err, tc.want)
		}
	}
}

func linuxPing(t *testing.T, g *nettest.Guest) {
	for _, tc := range []struct {
		dst  netip.Addr
		want uint8
		code uint8
	}{
		{testGateway, 0, 0},
		{nettest.Echo.Addr(), 0, 0},
		{nettest.PrivatePeer.Addr(), 3, 13},
	} {
		typ, code, err := ping(g, tc.dst)
		if err != nil || typ != tc.want || code != tc.code {
			t.Errorf("ping %s: type %d code %d, %v; want type %d code %d", tc.dst, typ, code, err, tc.want, tc.code)
		}
	}
}

// ping sends an echo request through a raw socket of the guest and returns what came first: its reply, or an error.
func ping(g *nettest.Guest, dst netip.Addr) (typ, code uint8, err error) {
	var f *os.File
	err = g.Try(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "icmp")
		return unix.Sendto(fd, echoRequest(), 0, &unix.SockaddrInet4{Addr: dst.As4()})
	})
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = f.Close() }()
	_ = f.SetReadDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, 1500)
	n, err := f.Read(buf)
	if err != nil || n < 28 {
		return 0, 0, fmt.Errorf("%d bytes: %w", n, err)
	}
	h := header.ICMPv4(buf[20:n])
	if h.Type() == header.ICMPv4EchoReply && h.Ident() != header.ICMPv4(echoRequest()).Ident() {
		return 0, 0, errors.New("a reply under another identifier")
	}
	return uint8(h.Type()), uint8(h.Code()), nil
}
