package nettest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestServers(t *testing.T) {
	Run(t, func(t *testing.T, in *Internet) {
		seen := in.Host.NewCapture(t, HostInterface)
		t.Run("http", func(t *testing.T) {
			r, err := http.Get("http://" + HTTP.String() + "/x")
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(r.Body)
			_ = r.Body.Close()
			if err != nil || string(body) != "hello from 203.0.113.10:80 /x\n" {
				t.Errorf("got %q, %v", body, err)
			}
		})
		t.Run("echo", func(t *testing.T) {
			for _, a := range []string{"tcp " + Echo.String(), "udp " + Echo.String(), "tcp " + PrivatePeer.String()} {
				network, addr, _ := strings.Cut(a, " ")
				c := dial(t, network, addr)
				_, _ = c.Write([]byte("hello"))
				got := make([]byte, 5)
				if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
					t.Errorf("%s: got %q, %v", a, got, err)
				}
			}
		})
		t.Run("bulk", func(t *testing.T) {
			if _, err := io.CopyN(io.Discard, dial(t, "tcp", Chargen.String()), 10<<20); err != nil {
				t.Error(err)
			}
			if _, err := io.CopyN(dial(t, "tcp", Discard.String()), zeros{}, 10<<20); err != nil {
				t.Error(err)
			}
		})
		t.Run("failures", func(t *testing.T) {
			if _, err := net.Dial("tcp", Refused.String()); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("closed port: %v", err)
			}
			u := dial(t, "udp", Refused.String())
			_, _ = u.Write([]byte("x"))
			if _, err := u.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("closed UDP port: %v", err)
			}
			r := dial(t, "tcp", Reset.String())
			_, _ = r.Write([]byte("x"))
			if _, err := r.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("reset: %v", err)
			}
			s := dial(t, "tcp", Silent.String())
			_ = s.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			if n, err := s.Read(make([]byte, 1)); n != 0 || !isTimeout(err) {
				t.Errorf("silent: %d, %v", n, err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if _, err := new(net.Dialer).DialContext(ctx, "tcp", Blackhole.String()); !isTimeout(err) {
				t.Errorf("blackhole: %v", err)
			}
		})
		if !slices.ContainsFunc(seen.Packets(), func(p Packet) bool { return p.Src == HostAddr && p.Dst == Echo.Addr() && p.DstPort == Echo.Port() }) {
			t.Error("the capture saw nothing of it")
		}
	})
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

func dial(t *testing.T, network, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func TestZone(t *testing.T) {
	Run(t, func(t *testing.T, _ *Internet) {
		for _, tc := range []struct {
			network, name string
			kind          uint16
			code, answers int
			cut           bool
		}{
			{"udp", NameHTTP, dns.TypeA, dns.RcodeSuccess, 1, false},
			{"tcp", NameHTTP, dns.TypeA, dns.RcodeSuccess, 1, false},
			{"udp", NameHTTP, dns.TypeAAAA, dns.RcodeSuccess, 0, false},
			{"udp", NameBoth, dns.TypeAAAA, dns.RcodeSuccess, 1, false},
			{"udp", NameAlias, dns.TypeA, dns.RcodeSuccess, 2, false},
			{"udp", NamePrivate, dns.TypeA, dns.RcodeSuccess, 1, false},
			{"udp", NameLoopback, dns.TypeA, dns.RcodeSuccess, 1, false},
			{"udp", NameEcho, dns.TypeA, dns.RcodeSuccess, 1, false},
			{"udp", NameMissing, dns.TypeA, dns.RcodeNameError, 0, false},
			{"udp", NameBroken, dns.TypeA, dns.RcodeServerFailure, 0, false},
			{"tcp", NameBig, dns.TypeA, dns.RcodeSuccess, 100, false},
			{"udp", NameBig, dns.TypeA, dns.RcodeSuccess, -1, true},
		} {
			q := new(dns.Msg).SetQuestion(tc.name, tc.kind)
			c := dns.Client{Net: tc.network, Timeout: 20 * time.Second}
			m, _, err := c.Exchange(q, DNS.String())
			if err != nil {
				t.Errorf("%s %s: %v", tc.network, tc.name, err)
				continue
			}
			if m.Rcode != tc.code || m.Truncated != tc.cut || tc.answers >= 0 && len(m.Answer) != tc.answers {
				t.Errorf("%s %s: code %d, truncated %t, %d answers", tc.network, tc.name, m.Rcode, m.Truncated, len(m.Answer))
			}
		}
		c := dns.Client{Timeout: 50 * time.Millisecond}
		if m, _, err := c.Exchange(new(dns.Msg).SetQuestion(NameSilent, dns.TypeA), DNS.String()); err == nil {
			t.Errorf("the silent name answers: %v", m)
		}
	})
}

// TestStart runs a program of its own inside the host's namespace.
func TestStart(t *testing.T) {
	in := NewInternet(t)
	cat, err := exec.LookPath("cat")
	if err != nil {
		t.Skip("no cat")
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), cat, "/proc/self/net/dev")
	cmd.Stdout = &out
	if err := in.Host.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), HostInterface+":") {
		t.Errorf("the program sees other interfaces:\n%s", out.String())
	}
	if _, err := net.InterfaceByName(HostInterface); err == nil {
		t.Error("the interface is in the test's own namespace")
	}
}

func TestPattern(t *testing.T) {
	if got, want := pattern("TestA/b=(c)"), `^TestA$/^b=\(c\)$`; got != want {
		t.Errorf("pattern = %s, want %s", got, want)
	}
}

func TestParse(t *testing.T) {
	for _, b := range [][]byte{nil, make([]byte, 20), {0x60}} {
		if p, ok := parse(b); ok {
			t.Errorf("%x is the packet %+v", b, p)
		}
	}
	b := append([]byte{0x45, 0, 0, 24, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 2, 8, 8, 8, 8}, 1, 2, 0, 53)
	if p, ok := parse(b); !ok || p != (Packet{HostAddr, netip.MustParseAddr("8.8.8.8"), 17, 53}) {
		t.Errorf("got %+v", p)
	}
}
