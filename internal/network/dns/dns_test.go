package dns

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// vms are the VMs of the tests.
var vms = map[string]netip.Addr{"web": netip.MustParseAddr("172.16.0.7"), "db1": netip.MustParseAddr("172.16.0.8"), "dev": netip.MustParseAddr("172.16.0.9")}

// testServer is a Server of the tests' VMs, and what it logged.
func testServer(t testing.TB, change func(*Config)) (*Server, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	cfg := Config{
		Gateway: netip.MustParseAddr("172.16.0.1"),
		CIDR:    netip.MustParsePrefix("172.16.0.0/24"),
		Lookup: func(name string) (netip.Addr, bool) {
			a, ok := vms[name]
			return a, ok
		},
		Reverse: func(addr netip.Addr) (string, bool) {
			for name, a := range vms {
				if a == addr {
					return name, true
				}
			}
			return "", false
		},
		ResolvConf: "/nonexistent/resolv.conf",
		Log:        slog.New(slog.NewTextHandler(&log, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	return New(cfg), &log
}

// question packs a question.
func question(t testing.TB, name, qtype string, change ...func(*dns.Msg)) []byte {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, dns.StringToType[qtype])
	m.Id = 4711
	for _, c := range change {
		c(m)
	}
	raw, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// parse reads an answer, which must have the id of question.
func parse(t testing.TB, raw []byte) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(raw); err != nil {
		t.Fatalf("the answer %x: %v", raw, err)
	}
	if !m.Response || m.Id != 4711 {
		t.Errorf("the answer's id is %d, response %v", m.Id, m.Response)
	}
	return m
}

// summary is an answer in a line: its code and the data of its records.
func summary(m *dns.Msg) string {
	out := []string{dns.RcodeToString[m.Rcode]}
	for _, rr := range m.Answer {
		out = append(out, dns.TypeToString[rr.Header().Rrtype]+"="+strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return strings.Join(out, " ")
}

func TestLocal(t *testing.T) {
	s, log := testServer(t, func(c *Config) { c.Dial = failDial(t) })
	tests := []struct{ name, qtype, want string }{
		{"web.vm.", "A", "NOERROR A=172.16.0.7"},
		{"WeB.Vm.", "A", "NOERROR A=172.16.0.7"},
		{"web.", "A", "NOERROR A=172.16.0.7"},
		{"web.vm.", "AAAA", "NOERROR"},
		{"web.vm.", "MX", "NOERROR"},
		{"web.vm.", "HTTPS", "NOERROR"},
		{"web.vm.", "DS", "NOERROR"},
		{"web.vm.", "ANY", "NOERROR A=172.16.0.7"},
		{"web.", "AAAA", "NOERROR"},
		{"nope.vm.", "A", "NXDOMAIN"},
		{"nope.vm.", "AAAA", "NXDOMAIN"},
		{"nope.vm.", "NS", "NXDOMAIN"},
		{"a.web.vm.", "A", "NXDOMAIN"},
		{"_http._tcp.web.vm.", "SRV", "NXDOMAIN"},
		{"vm.", "A", "NOERROR"},
		{"vm.", "SOA", "NOERROR"},
		{"gateway.vm.", "A", "NOERROR A=172.16.0.1"},
		{"host.vm.", "A", "NOERROR A=172.16.0.1"},
		{"host.vm.", "AAAA", "NOERROR"},
		{"host.banger.vm.", "A", "NOERROR A=172.16.0.1"},
		{"Host.Banger.VM.", "AAAA", "NOERROR"},
		{"banger.vm.", "A", "NOERROR"},
		{"x.banger.vm.", "A", "NXDOMAIN"},
		{"x.host.banger.vm.", "A", "NXDOMAIN"},
		{"host.docker.internal.", "A", "NOERROR A=172.16.0.1"},
		{"host.docker.internal.", "AAAA", "NOERROR"},
		{"HOST.docker.internal.", "A", "NOERROR A=172.16.0.1"},
		{"printer.", "A", "NXDOMAIN"},
		{"printer.", "AAAA", "NXDOMAIN"},
		{"com.", "MX", "NXDOMAIN"},
		{"localhost.", "A", "NOERROR A=127.0.0.1"},
		{"localhost.", "AAAA", "NOERROR"},
		{"my.app.localhost.", "A", "NOERROR A=127.0.0.1"},
		{"x.invalid.", "A", "NXDOMAIN"},
		{"abc.onion.", "A", "NXDOMAIN"},
		{"example.com.", "ANY", `NOERROR HINFO="RFC8482" ""`},
		{"7.0.16.172.in-addr.arpa.", "PTR", "NOERROR PTR=web.vm."},
		{"7.0.16.172.IN-ADDR.arpa.", "PTR", "NOERROR PTR=web.vm."},
		{"7.0.16.172.in-addr.arpa.", "A", "NOERROR"},
		{"1.0.16.172.in-addr.arpa.", "PTR", "NOERROR PTR=gateway.vm."},
		{"99.0.16.172.in-addr.arpa.", "PTR", "NXDOMAIN"},
		{"x.7.0.16.172.in-addr.arpa.", "PTR", "NXDOMAIN"},
		{"0.16.172.in-addr.arpa.", "SOA", "NOERROR"},
		{"1.0.0.127.in-addr.arpa.", "PTR", "NOERROR PTR=localhost."},
		{"2.0.0.127.in-addr.arpa.", "PTR", "NXDOMAIN"},
		{"example.com.", "AXFR", "REFUSED"},
	}
	for _, tt := range tests {
		for _, udp := range []bool{true, false} {
			raw := question(t, tt.name, tt.qtype)
			m := parse(t, s.Answer(t.Context(), "x", udp, raw))
			if got := summary(m); got != tt.want {
				t.Errorf("%s %s gives %s, want %s", tt.name, tt.qtype, got, tt.want)
			}
			if len(m.Question) != 1 || m.Question[0].Name != tt.name || !m.RecursionAvailable || m.IsEdns0() != nil {
				t.Errorf("%s %s gives\n%s", tt.name, tt.qtype, m)
			}
			for _, rr := range m.Answer {
				if h := rr.Header(); h.Name != tt.name || strings.HasSuffix(strings.ToLower(tt.name), "vm.") && (h.Ttl < 5 || h.Ttl > 30) {
					t.Errorf("%s %s gives %s", tt.name, tt.qtype, rr)
				}
			}
		}
	}
	if log.Len() > 0 {
		t.Errorf("it logged %s", log)
	}
}

// TestOutside lists what is not banger's to answer.
func TestOutside(t *testing.T) {
	up := startUpstream(t, echo)
	s, _ := testServer(t, func(c *Config) { c.Upstreams = []netip.AddrPort{up.addr} })
	for i, q := range []struct{ name, qtype string }{
		{"example.com.", "A"}, {"example.com.", "TXT"}, {"example.com.", "HTTPS"}, {"_http._tcp.deb.debian.org.", "SRV"},
		{".", "NS"}, {".", "DNSKEY"}, {"com.", "DS"}, {"com.", "NS"}, {"dev.", "DNSKEY"}, {"foo.dev.", "A"}, {"web.vm.example.com.", "A"},
		{"7.1.16.172.in-addr.arpa.", "PTR"}, {"172.in-addr.arpa.", "SOA"}, {"16.172.in-addr.arpa.", "NS"}, {"in-addr.arpa.", "NS"},
		{"x.0.16.172.in-addr.arpa.", "PTR"}, {"300.0.16.172.in-addr.arpa.", "PTR"},
		{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.ip6.arpa.", "PTR"},
	} {
		m := parse(t, s.Answer(t.Context(), "x", true, question(t, q.name, q.qtype)))
		if len(m.Extra) != 1 || up.count() != i+1 {
			t.Errorf("%s %s gives %s after %d questions outside", q.name, q.qtype, m, up.count())
		}
	}
}

func TestMalformed(t *testing.T) {
	s, _ := testServer(t, func(c *Config) { c.Dial = failDial(t) })
	ok := question(t, "web.vm.", "A")
	with := func(change func([]byte) []byte) []byte { return change(bytes.Clone(ok)) }
	tests := map[string]struct {
		msg  []byte
		want string // the code; empty for silence
	}{
		"empty":              {nil, ""},
		"short":              {ok[:11], ""},
		"an answer":          {with(func(b []byte) []byte { b[2] |= 0x80; return b }), ""},
		"header only":        {ok[:12], "FORMERR"},
		"no question":        {with(func(b []byte) []byte { b[5] = 0; return b[:12] }), "FORMERR"},
		"two questions":      {with(func(b []byte) []byte { b[5] = 2; return append(b, b[12:]...) }), "FORMERR"},
		"cut":                {ok[:len(ok)-3], "FORMERR"},
		"name in a loop":     {with(func(b []byte) []byte { return append(b[:12], 0xc0, 12, 0, 1, 0, 1) }), "FORMERR"},
		"with answers":       {with(func(b []byte) []byte { b[7] = 1; return b }), "FORMERR"},
		"more than it holds": {with(func(b []byte) []byte { b[11] = 9; return b }), "FORMERR"},
		"huge":               {with(func(b []byte) []byte { return append(b, make([]byte, maxQuery)...) }), "FORMERR"},
		"two OPTs": {question(t, "web.vm.", "A", func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			m.SetEdns0(1232, false)
		}), "FORMERR"},
		"update":   {question(t, "web.vm.", "SOA", func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), "NOTIMP"},
		"notify":   {question(t, "web.vm.", "SOA", func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), "NOTIMP"},
		"chaos":    {question(t, "version.bind.", "TXT", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), "REFUSED"},
		"any":      {question(t, "web.vm.", "A", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassANY }), "REFUSED"},
		"edns 1":   {question(t, "web.vm.", "A", func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }), "BADVERS"},
		"trailing": {with(func(b []byte) []byte { return append(b, 1, 2, 3) }), "NOERROR"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			out := s.Answer(t.Context(), "x", true, tt.msg)
			if tt.want == "" {
				if out != nil {
					t.Fatalf("it answers %x", out)
				}
				return
			}
			if m := parse(t, out); dns.RcodeToString[m.Rcode] != tt.want && (tt.want != "BADVERS" || m.Rcode != dns.RcodeBadVers) {
				t.Errorf("it answers %s", m)
			}
		})
	}
}

func TestNoResolver(t *testing.T) {
	s, log := testServer(t, func(c *Config) { c.Dial = failDial(t) })
	for range 3 {
		m := parse(t, s.Answer(t.Context(), "web", true, question(t, "example.com.", "A", func(m *dns.Msg) { m.SetEdns0(1232, true) })))
		opt := m.IsEdns0()
		if m.Rcode != dns.RcodeServerFailure || opt == nil || !opt.Do() || len(opt.Option) != 1 || !strings.Contains(opt.String(), "resolv.conf") {
			t.Errorf("it answers %s", m)
		}
		if m := parse(t, s.Answer(t.Context(), "web", true, question(t, "example.com.", "A"))); m.Rcode != dns.RcodeServerFailure || len(m.Extra) > 0 {
			t.Errorf("without EDNS it answers %s", m)
		}
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings:\n%s", n, log)
	}
}

func TestNamesOf(t *testing.T) {
	up := startUpstream(t, func(_ string, q *dns.Msg) []byte {
		m := new(dns.Msg).SetReply(q)
		for _, line := range map[string][]string{
			"www.example.com.": {"www.Example.com. 60 CNAME cdn.example.net.", "cdn.example.net. 60 CNAME edge.example.org.",
				"edge.example.org. 60 A 192.0.2.1", "edge.example.org. 60 A 192.0.2.2", "other.example.org. 60 A 192.0.2.66"},
			"img.example.com.":  {"img.example.com. 60 A 192.0.2.1"},
			"loop.example.com.": {"loop.example.com. 60 CNAME loop.example.com.", "x.example.com. 60 A 192.0.2.77"},
		}[q.Question[0].Name] {
			rr, err := dns.NewRR(line)
			if err != nil {
				panic(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		return mustPack(m)
	})
	s, _ := testServer(t, func(c *Config) { c.Upstreams = []netip.AddrPort{up.addr} })
	for _, name := range []string{"www.example.com.", "img.example.com.", "loop.example.com.", "web.vm."} {
		s.Answer(t.Context(), "x", true, question(t, name, "A"))
	}
	for addr, want := range map[string][]string{
		"192.0.2.1":         {"img.example.com", "www.example.com", "cdn.example.net", "edge.example.org"},
		"192.0.2.2":         {"www.example.com", "cdn.example.net", "edge.example.org"},
		"::ffff:192.0.2.2":  {"www.example.com", "cdn.example.net", "edge.example.org"},
		"172.16.0.7":        {"web.vm"},
		"192.0.2.66":        nil,
		"192.0.2.77":        nil,
		"198.51.100.1":      nil,
		"fe80::1%something": nil,
	} {
		if diff := cmp.Diff(want, s.NamesOf("x", netip.MustParseAddr(addr))); diff != "" {
			t.Errorf("names of %s: %s", addr, diff)
		}
		if got := s.NamesOf("y", netip.MustParseAddr(addr)); got != nil {
			t.Errorf("another VM got %s: %v", addr, got)
		}
	}
	s.Forget("x")
	if got := s.NamesOf("x", netip.MustParseAddr("192.0.2.1")); got != nil {
		t.Errorf("after Forget: %v", got)
	}
}

func TestNamesAreBounded(t *testing.T) {
	s := &Server{}
	n := &s.names
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}) }
	for i := range maxAddrs + 10 {
		n.add("x", []string{fmt.Sprintf("n%d", i)}, []netip.Addr{addr(i), addr(0)})
	}
	a := n.vms["x"]
	if len(a.byAddr) != maxAddrs || a.order.Len() != maxAddrs {
		t.Errorf("%d addresses, %d in order", len(a.byAddr), a.order.Len())
	}
	if got := s.NamesOf("x", addr(0)); len(got) != maxNames || got[0] != fmt.Sprintf("n%d", maxAddrs+9) {
		t.Errorf("the address that is asked for again and again has %v", got)
	}
	if got := s.NamesOf("x", addr(1)); got != nil {
		t.Errorf("the oldest is still there: %v", got)
	}
	if got := s.NamesOf("x", addr(maxAddrs+9)); len(got) != 1 {
		t.Errorf("the latest has %v", got)
	}
}

func TestResolvConf(t *testing.T) {
	text := "# nameserver 192.0.2.9\nsearch example.com\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # x\nnameserver fe80::1%eth0\nnameserver\nnameserver nonsense\nNAMESERVER 192.0.2.8\n"
	want := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("[2001:db8::1]:53"), netip.MustParseAddrPort("[fe80::1%eth0]:53")}
	if diff := cmp.Diff(want, ParseResolvConf([]byte(text)), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if got := ParseResolvConf([]byte(strings.Repeat("nameserver 192.0.2.1\n", 20))); len(got) != maxResolvers {
		t.Errorf("%d resolvers", len(got))
	}
}

// clock is a clock a test moves.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func newClock() *clock { return &clock{time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }
