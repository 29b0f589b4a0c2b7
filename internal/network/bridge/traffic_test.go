package bridge

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/internal/network/nettest"
	"git.thaloco.com/thaloco/banger/internal/network/tap"
)

// guest is a namespace that is on TAP i, as a VM's guest is.
type guest struct {
	*nettest.Guest
	addr netip.Addr
}

// newGuest plugs a namespace into TAP i. It has the address of another where as says so.
func newGuest(t testing.TB, host *nettest.NS, cfg Config, i, as int) guest {
	t.Helper()
	g := guest{addr: Addr(cfg, as)}
	g.Guest = nettest.NewGuest(t, netip.PrefixFrom(g.addr, cfg.CIDR.Bits()), MAC(g.addr), cfg.IP, mtu)
	var f *os.File
	host.Do(t, func() (err error) {
		f, err = tap.Open(tapName(cfg.Name, i))
		return err
	})
	t.Cleanup(func() { _ = f.Close() })
	const header = virtioHeader
	go func() {
		b := make([]byte, header+65536)
		for {
			n, err := g.Link.ReadFrame(b[header:])
			if err != nil {
				return
			}
			_, _ = f.Write(b[:header+n])
		}
	}()
	go func() {
		b := make([]byte, header+65536)
		for {
			n, err := f.Read(b)
			if err != nil {
				return
			}
			_ = g.Link.WriteFrame([][]byte{b[header:n]})
		}
	}()
	return g
}

// get is what a TCP server says first, or the error.
func (g guest) get(to string, within time.Duration) string {
	var out string
	err := g.Try(func() error {
		c, err := net.DialTimeout("tcp", to, within)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(within))
		_, _ = io.WriteString(c, "hello")
		var b [64]byte
		n, err := c.Read(b[:])
		out = string(b[:n])
		return err
	})
	if err != nil {
		return err.Error()
	}
	return out
}

// unanswered tells whether what get returned is that nobody said anything.
func unanswered(got string) bool {
	return strings.Contains(got, "timeout") || strings.Contains(got, "no route")
}

// serveIn greets whoever connects in a namespace.
func serveIn(t testing.TB, ns *nettest.NS, at, greeting string) {
	t.Helper()
	var l net.Listener
	ns.Do(t, func() (err error) {
		l, err = net.Listen("tcp", at)
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, greeting)
			_ = c.Close()
		}
	}()
}

// TestTraffic has guests on the bridge of a host whose firewall lets nothing pass that it does not know.
func TestTraffic(t *testing.T) {
	newHost(t) // or skips
	in := nettest.NewInternet(t)
	cfg := testConfig()
	in.Host.Do(t, func() error {
		for _, rule := range []string{"-P FORWARD DROP", "-P INPUT DROP", "-N DOCKER-USER", "-A DOCKER-USER -j RETURN", "-A FORWARD -j DOCKER-USER",
			"-A INPUT -i lo -j ACCEPT", "-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT"} {
			if out := run(append([]string{"iptables"}, strings.Fields(rule)...)...); out != "" {
				return errors.New(out)
			}
		}
		return nil
	})
	setUpIn(t, in.Host, cfg)
	one, two := newGuest(t, in.Host, cfg, 0, 0), newGuest(t, in.Host, cfg, 1, 1)
	serveIn(t, one.NS, ":80", "one")
	serveIn(t, two.NS, ":80", "two")
	for _, at := range []string{":22", fmt.Sprintf("%s:%d", cfg.IP, 8080)} {
		serveIn(t, in.Host, at, "the host")
	}
	serveIn(t, in.Host, fmt.Sprintf("%s:%d", cfg.IP, ProxyPort), "the proxy")
	echo, private := nettest.Echo.String(), nettest.PrivatePeer.String()

	look := func(what string) {
		t.Helper()
		for to, want := range map[string]string{
			two.addr.String() + ":80":         "two",
			echo:                              "hello",
			private:                           "hello",
			cfg.IP.String() + ":22":           "the proxy", // which says where it was for
			cfg.IP.String() + ":8080":         "the proxy",
			nettest.HostAddr.String() + ":22": "connection refused",
			"169.254.169.254:80":              "connection refused",
		} {
			if got := one.get(to, patience); !strings.Contains(got, want) {
				t.Errorf("%s, %s: %q, want %q", what, to, got, want)
			}
		}
	}
	look("at first")
	var said string
	in.Host.Do(t, func() error {
		c, err := net.DialTimeout("tcp", two.addr.String()+":80", patience)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		b, err := io.ReadAll(c)
		said = string(b)
		return err
	})
	if said != "two" {
		t.Errorf("the host hears %q of a guest", said)
	}
	// Nobody comes in from outside, even if the host forwards.
	in.Outside.Do(t, func() error {
		c, err := net.DialTimeout("tcp", two.addr.String()+":80", silence)
		if err == nil {
			_ = c.Close()
			t.Error("the outside reaches a guest")
		}
		return nil
	})
	// Firewalls that are started again flush what is banger's; to set up again mends it.
	in.Host.Do(t, func() error { run("iptables", "-F"); run("iptables", "-X"); run("nft", "flush", "ruleset"); return nil })
	in.Host.Do(t, func() error {
		for _, rule := range []string{"-P FORWARD DROP", "-P INPUT DROP", "-A INPUT -i lo -j ACCEPT", "-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT"} {
			if out := run(append([]string{"iptables"}, strings.Fields(rule)...)...); out != "" {
				return errors.New(out)
			}
		}
		return nil
	})
	if done := setUpIn(t, in.Host, cfg); len(done) == 0 {
		t.Error("the rules were flushed, and it did nothing")
	}
	look("after a flush")

	cfg.AllowPrivate = false
	setUpIn(t, in.Host, cfg)
	if got := one.get(private, patience); !strings.Contains(got, "connection refused") {
		t.Errorf("a private network, forbidden: %q", got)
	}
	if got := one.get(echo, patience); got != "hello" {
		t.Errorf("the internet, with private networks forbidden: %q", got)
	}
}
