package egress

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"git.thaloco.com/thaloco/banger/internal/hostports/hostportstest"
)

// TestDialHost reaches what listens on the host's loopback, on IPv4's first.
func TestDialHost(t *testing.T) {
	p := testPolicy(t, true)
	listen := func(network, addr, greeting string) uint16 {
		t.Helper()
		l, err := net.Listen(network, addr)
		if err != nil {
			t.Skipf("this host has no such loopback: %v", err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Write([]byte(greeting))
				_ = c.Close()
			}
		}()
		return netip.MustParseAddrPort(l.Addr().String()).Port()
	}
	for want, addr := range map[string]string{"four": "127.0.0.1:0", "six": "[::1]:0"} {
		t.Run(want, func(t *testing.T) {
			c, err := p.DialHostTCP(t.Context(), listen("tcp", addr, want))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got, err := io.ReadAll(c); err != nil || string(got) != want {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	port, err := hostportstest.Free()
	if err != nil {
		t.Fatal(err)
	}
	if c, err := p.DialHostTCP(t.Context(), port); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("where nobody listens: %v, %v", c, err)
	}
	u, err := p.DialHostUDP(t.Context(), port)
	if err != nil || u.RemoteAddr().String() != netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port).String() {
		t.Fatalf("by UDP: %v, %v", u, err)
	}
	_ = u.Close()
	// What is no port of the host it was given goes the usual way, and that does not lead there.
	if _, err := p.DialTCP(t.Context(), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)); err == nil {
		t.Error("the loopback is reached without")
	}
}
