package gateway

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/network/nettest"
)

// echo is an Answerer that says who asked what.
type echo struct{ hold chan struct{} }

func (e echo) Answer(ctx context.Context, vm string, udp bool, msg []byte) []byte {
	if e.hold != nil {
		select {
		case <-e.hold:
		case <-ctx.Done():
			return nil
		}
	}
	way := "tcp"
	if udp {
		way = "udp"
	}
	return []byte(way + " " + vm + " " + string(msg))
}

// open opens a gateway on the loopback, whose VM "a" has 127.0.0.9 and may reach one port of the host: the one that
// the returned server echoes on.
func open(t *testing.T, change ...func(*Config)) (*Gateway, uint16) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	port := ln.Addr().(*net.TCPAddr).AddrPort().Port()
	cfg := Config{
		Address: netip.MustParseAddr("127.0.0.1"), DNS: echo{}, Log: slog.New(slog.DiscardHandler),
		VM:       func(a netip.Addr) (string, bool) { return "a", a == netip.MustParseAddr("127.0.0.9") },
		HostPort: func(id string, p uint16) bool { return id == "a" && p == port },
		Destination: func(*net.TCPConn) (netip.AddrPort, error) {
			return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), nil
		},
	}
	for _, c := range change {
		c(&cfg)
	}
	g, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g, port
}

// dial connects to a listener as the guest with an address.
func dial(t *testing.T, from string, to net.Addr) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp4", &net.TCPAddr{IP: net.ParseIP(from)}, to.(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func TestDNS(t *testing.T) {
	g, _ := open(t)
	u, err := net.DialUDP("udp4", nil, g.udp.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	_ = u.SetDeadline(time.Now().Add(20 * time.Second))
	for _, long := range []bool{true, false} { // one that is too long is not answered, and what follows is
		q := []byte("q")
		if long {
			q = make([]byte, maxUDPQuestion+1)
		}
		if _, err := u.Write(q); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 100)
	if n, err := u.Read(buf); err != nil || string(buf[:n]) != "udp  q" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	c := dial(t, "127.0.0.1", g.tcp.Addr())
	for range 3 {
		if _, err := c.Write([]byte("\x00\x02qq")); err != nil {
			t.Fatal(err)
		}
		want := "\x00\x07tcp  qq"
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
			t.Fatalf("%q, %v", got, err)
		}
	}
}

// TestDNSWhoAsks: that it takes long to tell whose a question is holds nobody else up.
func TestDNSWhoAsks(t *testing.T) {
	ns := nettest.NewNS(t)
	own, vm := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.9")
	asked, hold := make(chan netip.Addr, 10), make(chan struct{})
	defer close(hold)
	var g *Gateway
	var guest, host *net.UDPConn
	ns.Do(t, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, a := range []netip.Addr{own, vm} {
			if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}}); err != nil {
				return err
			}
		}
		g, _ = open(t, func(c *Config) {
			c.Address = own
			c.VM = func(a netip.Addr) (string, bool) {
				asked <- a
				<-hold
				return "", false
			}
		})
		to := g.udp.LocalAddr().(*net.UDPAddr)
		if guest, err = net.DialUDP("udp4", &net.UDPAddr{IP: vm.AsSlice()}, to); err != nil {
			return err
		}
		host, err = net.DialUDP("udp4", nil, to)
		return err
	})
	defer guest.Close()
	defer host.Close()
	if _, err := guest.Write([]byte("q")); err != nil {
		t.Fatal(err)
	}
	if a := <-asked; a != vm {
		t.Fatalf("%s asked", a)
	}
	_ = host.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := host.Write([]byte("q")); err != nil {
		t.Fatal(err)
	}
	if _, err := host.Read(make([]byte, 100)); err != nil {
		t.Error(err)
	}
}

func TestQuestionsAreBounded(t *testing.T) {
	hold := make(chan struct{})
	g, _ := open(t, func(c *Config) { c.DNS = echo{hold} })
	u, err := net.DialUDP("udp4", nil, g.udp.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	for range 3 * maxQuestions {
		if _, err := u.Write([]byte("q")); err != nil {
			t.Fatal(err)
		}
	}
	peer := netip.MustParseAddr("127.0.0.1")
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); ; <-tick.C {
		g.questions.mu.Lock()
		open := g.questions.open[peer]
		g.questions.mu.Unlock()
		if open == maxQuestions {
			break
		}
		if open > maxQuestions || time.Now().After(deadline) {
			t.Fatalf("%d questions are open", open)
		}
	}
	close(hold)
	_ = u.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := u.Read(make([]byte, 100)); err != nil {
		t.Error(err)
	}
}

func TestProxy(t *testing.T) {
	g, _ := open(t)
	c := dial(t, "127.0.0.9", g.proxy.Addr())
	data := make([]byte, 4<<20)
	_, _ = rand.Read(data)
	go func() {
		_, _ = c.Write(data)
		_ = c.CloseWrite()
	}()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
}

// TestProxyResets: what breaks on one side does not look like an end on the other.
func TestProxyResets(t *testing.T) {
	for _, breaks := range []string{"the host", "the guest"} {
		t.Run(breaks, func(t *testing.T) {
			ln, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			port := ln.Addr().(*net.TCPAddr).AddrPort().Port()
			g, _ := open(t, func(c *Config) {
				c.HostPort = func(string, uint16) bool { return true }
				c.Destination = func(*net.TCPConn) (netip.AddrPort, error) { return netip.AddrPortFrom(c.Address, port), nil }
			})
			guest := dial(t, "127.0.0.9", g.proxy.Addr())
			host, err := ln.AcceptTCP()
			if err != nil {
				t.Fatal(err)
			}
			defer host.Close()
			_ = host.SetDeadline(time.Now().Add(20 * time.Second))
			from, to := host, guest
			if breaks == "the guest" {
				from, to = to, from
			}
			if _, err := from.Write([]byte("half of it")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(to, make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
			_ = from.SetLinger(0)
			_ = from.Close()
			if n, err := to.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%d bytes, %v; want a reset", n, err)
			}
		})
	}
}

// TestProxyRefuses: strangers, ports nobody was let through to, other destinations, and ports where nobody listens.
func TestProxyRefuses(t *testing.T) {
	other := func(dst string) func(*Config) {
		return func(c *Config) {
			c.Destination = func(*net.TCPConn) (netip.AddrPort, error) { return netip.MustParseAddrPort(dst), nil }
		}
	}
	for name, tc := range map[string]struct {
		from   string
		change func(*Config)
	}{
		"a stranger":      {"127.0.0.8", func(*Config) {}},
		"the host":        {"127.0.0.1", func(*Config) {}},
		"another port":    {"127.0.0.9", other("127.0.0.1:1")},
		"another address": {"127.0.0.9", func(c *Config) { c.Address = netip.MustParseAddr("127.0.0.2") }},
		"nobody listens": {"127.0.0.9", func(c *Config) {
			other("127.0.0.1:1")(c)
			c.HostPort = func(string, uint16) bool { return true }
		}},
		"no destination": {"127.0.0.9", func(c *Config) {
			c.Destination = func(*net.TCPConn) (netip.AddrPort, error) { return netip.AddrPort{}, errors.New("none") }
		}},
	} {
		t.Run(name, func(t *testing.T) {
			g, _ := open(t, tc.change)
			c, err := net.DialTCP("tcp4", &net.TCPAddr{IP: net.ParseIP(tc.from)}, g.proxy.Addr().(*net.TCPAddr))
			if err == nil {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				_, err = c.Read(make([]byte, 1))
			}
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%v, want a reset", err)
			}
		})
	}
}

func TestListenErrors(t *testing.T) {
	g, _ := open(t)
	cfg := g.cfg
	cfg.DNSPort = g.udp.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	if _, err := Listen(cfg); api.KindOf(err) != api.KindConflict {
		t.Errorf("a port in use: %v", err)
	}
	cfg.Address, cfg.DNSPort = netip.MustParseAddr("203.0.113.1"), 0
	if _, err := Listen(cfg); api.KindOf(err) != api.KindUnavailable || api.AsError(err).Hint == "" {
		t.Errorf("no such address: %v", err)
	}
}
