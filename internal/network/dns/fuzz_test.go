package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// FuzzAnswer has guests send anything: no panic, and an answer that can be read, to what was asked.
func FuzzAnswer(f *testing.F) {
	for _, q := range [][2]string{{"web.vm.", "A"}, {"7.0.16.172.in-addr.arpa.", "PTR"}, {".", "NS"}, {"example.com.", "AAAA"}, {`a\.b\000.vm.`, "A"}} {
		f.Add(question(f, q[0], q[1]), true)
		f.Add(question(f, q[0], q[1], edns(1232)), false)
	}
	s, _ := testServer(f, func(c *Config) {
		c.Upstreams = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}
		c.Dial = func(context.Context, string, netip.AddrPort) (net.Conn, error) { return nil, errors.New("refused") }
	})
	f.Fuzz(func(t *testing.T, msg []byte, udp bool) {
		out := s.Answer(t.Context(), "x", udp, msg)
		if out == nil {
			if len(msg) >= headerSize && msg[2]&0x80 == 0 {
				t.Error("a question got no answer")
			}
			return
		}
		var m dns.Msg
		if err := m.Unpack(out); err != nil {
			t.Fatalf("the answer %x: %v", out, err)
		}
		if !m.Response || m.Id != binary.BigEndian.Uint16(msg) || udp && len(out) > maxUDP {
			t.Errorf("the answer has %d bytes: %s", len(out), &m)
		}
		s.Forget("x")
	})
}

// scripted is a connection to a resolver that answers every question with the same bytes behind its id.
type scripted struct {
	net.Conn
	stream bool
	answer []byte
	out    []byte
}

func (c *scripted) Write(p []byte) (int, error) {
	id := p
	if c.stream {
		id = p[2:]
	}
	c.out = append([]byte(nil), c.answer...)
	if len(c.out) >= 2 {
		copy(c.out, id[:2])
	}
	if c.stream {
		c.out = append(binary.BigEndian.AppendUint16(nil, uint16(len(c.out))), c.out...)
	}
	return len(p), nil
}

func (c *scripted) Read(p []byte) (int, error) {
	if len(c.out) == 0 {
		return 0, errors.New("nothing more")
	}
	n := copy(p, c.out)
	c.out = c.out[n:]
	if !c.stream {
		c.out = nil
	}
	return n, nil
}

func (c *scripted) SetDeadline(time.Time) error     { return nil }
func (c *scripted) SetReadDeadline(time.Time) error { return nil }
func (c *scripted) Close() error                    { return nil }

// FuzzUpstream has the host's resolver send anything.
func FuzzUpstream(f *testing.F) {
	q := new(dns.Msg)
	if err := q.Unpack(question(f, "example.com.", "A")); err != nil {
		f.Fatal(err)
	}
	for _, n := range []int{1, 30, 400} {
		f.Add(addresses(n)("udp", q), true)
		f.Add(addresses(n)("tcp", q), false)
		f.Add(addresses(n)("tcp", q), true)
	}
	f.Add(code(dns.RcodeServerFailure)("udp", q), true)
	f.Fuzz(func(t *testing.T, answer []byte, udp bool) {
		if len(answer) > dns.MaxMsgSize {
			return
		}
		s, _ := testServer(t, func(c *Config) {
			c.Upstreams = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}
			c.Dial = func(_ context.Context, network string, _ netip.AddrPort) (net.Conn, error) {
				return &scripted{stream: network == "tcp", answer: answer}, nil
			}
		})
		out := s.Answer(t.Context(), "x", udp, question(t, "example.com.", "A"))
		if len(out) < headerSize || udp && len(out) > dns.MinMsgSize || binary.BigEndian.Uint16(out) != 4711 || out[2]&0x80 == 0 {
			t.Errorf("the guest gets %x", out)
		}
	})
}

func FuzzParseResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 192.0.2.1\nnameserver fe80::1%eth0\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, a := range ParseResolvConf(text) {
			if !a.IsValid() || a.Port() != dnsPort {
				t.Errorf("%q gives %s", text, a)
			}
		}
	})
}
