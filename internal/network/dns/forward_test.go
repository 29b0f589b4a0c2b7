package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"git.thaloco.com/thaloco/banger/internal/hostports/hostportstest"
)

// upstream is a resolver on loopback, by UDP and TCP.
type upstream struct {
	addr     netip.AddrPort
	udp, tcp atomic.Int32 // questions
}

func (u *upstream) count() int { return int(u.udp.Load() + u.tcp.Load()) }

// startUpstream starts a resolver that answers with what handle makes of a question; nil is silence.
func startUpstream(t testing.TB, handle func(network string, q *dns.Msg) []byte) *upstream {
	t.Helper()
	l, pc := listenBoth(t)
	u := startOn(t, pc, handle)
	serve(t, &dns.Server{Listener: l, Handler: u.handler("tcp", &u.tcp, handle)})
	return u
}

// listenBoth listens at one port by TCP and UDP. What is free for the one may be taken for the other.
func listenBoth(t testing.TB) (net.Listener, net.PacketConn) {
	t.Helper()
	var err error
	for range 100 {
		l, tcpErr := net.Listen("tcp", "127.0.0.1:0")
		if tcpErr != nil {
			t.Fatal(tcpErr)
		}
		var pc net.PacketConn
		if pc, err = net.ListenPacket("udp", l.Addr().String()); err == nil {
			return l, pc
		}
		_ = l.Close()
	}
	t.Fatal(err)
	return nil, nil
}

// startUDP starts one that refuses TCP.
func startUDP(t testing.TB, handle func(network string, q *dns.Msg) []byte) *upstream {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return startOn(t, pc, handle)
}

func startOn(t testing.TB, pc net.PacketConn, handle func(network string, q *dns.Msg) []byte) *upstream {
	t.Helper()
	u := &upstream{addr: pc.LocalAddr().(*net.UDPAddr).AddrPort()}
	serve(t, &dns.Server{PacketConn: pc, Handler: u.handler("udp", &u.udp, handle)})
	return u
}

func (u *upstream) handler(network string, count *atomic.Int32, handle func(string, *dns.Msg) []byte) dns.HandlerFunc {
	return func(w dns.ResponseWriter, q *dns.Msg) {
		count.Add(1)
		if out := handle(network, q); out != nil {
			_, _ = w.Write(out)
		}
	}
}

func serve(t testing.TB, s *dns.Server) {
	t.Helper()
	started := make(chan struct{})
	done := make(chan error, 1)
	s.NotifyStartedFunc = func() { close(started) }
	go func() { done <- s.ActivateAndServe() }()
	select {
	case <-started:
	case err := <-done:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.Shutdown()
		<-done
	})
}

func mustPack(m *dns.Msg) []byte {
	out, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return out
}

// echo answers with a TXT record in the additional section that says by what it was asked.
func echo(network string, q *dns.Msg) []byte {
	m := new(dns.Msg).SetReply(q)
	m.Extra = append(m.Extra, &dns.TXT{Hdr: dns.RR_Header{Name: "by.", Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{network}})
	return mustPack(m)
}

// code answers with a code alone.
func code(rcode int) func(string, *dns.Msg) []byte {
	return func(_ string, q *dns.Msg) []byte { return mustPack(new(dns.Msg).SetRcode(q, rcode)) }
}

// addresses answers with n addresses, cut by UDP to what the asker takes.
func addresses(n int) func(string, *dns.Msg) []byte {
	return func(network string, q *dns.Msg) []byte {
		m := new(dns.Msg).SetReply(q)
		for i := range n {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60},
				A: net.IPv4(192, 0, 2, byte(i))})
		}
		size := dns.MaxMsgSize
		if network == "udp" {
			size = dns.MinMsgSize
			if o := q.IsEdns0(); o != nil {
				size = int(o.UDPSize())
			}
		}
		if o := q.IsEdns0(); o != nil {
			m.SetEdns0(4096, o.Do())
		}
		m.Compress = true
		m.Truncate(size)
		return mustPack(m)
	}
}

func failDial(t testing.TB) func(context.Context, string, netip.AddrPort) (net.Conn, error) {
	return func(_ context.Context, network string, to netip.AddrPort) (net.Conn, error) {
		t.Errorf("%s %s is dialled", network, to)
		return nil, errors.New("not in this test")
	}
}

func blockDial(dialled chan<- struct{}, free <-chan struct{}) func(context.Context, string, netip.AddrPort) (net.Conn, error) {
	return func(ctx context.Context, _ string, _ netip.AddrPort) (net.Conn, error) {
		dialled <- struct{}{}
		select {
		case <-free:
			return nil, errors.New("refused")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func using(ups ...*upstream) func(*Config) {
	return func(c *Config) {
		for _, u := range ups {
			c.Upstreams = append(c.Upstreams, u.addr)
		}
	}
}

func edns(size uint16) func(*dns.Msg) { return func(m *dns.Msg) { m.SetEdns0(size, false) } }

func TestSizes(t *testing.T) {
	many, few := startUpstream(t, addresses(200)), startUpstream(t, addresses(50)) // some 3,200 and 830 bytes
	udpOnly := startUDP(t, addresses(200))
	tests := map[string]struct {
		up     *upstream
		udp    bool
		change []func(*dns.Msg)
		limit  int
		tc     bool
		n      int // records; 0 for some
	}{
		"udp, no edns":             {many, true, nil, 512, true, 0},
		"udp, small edns":          {many, true, []func(*dns.Msg){edns(600)}, 600, true, 0},
		"udp, tiny edns":           {many, true, []func(*dns.Msg){edns(100)}, 512, true, 0},
		"udp, large edns":          {many, true, []func(*dns.Msg){edns(4096)}, 1232, true, 0},
		"udp, huge edns":           {many, true, []func(*dns.Msg){edns(65535)}, 1232, true, 0},
		"udp, fits":                {few, true, []func(*dns.Msg){edns(1232)}, 1232, false, 50},
		"tcp":                      {many, false, nil, 65535, false, 200},
		"tcp, edns":                {many, false, []func(*dns.Msg){edns(1232)}, 65535, false, 200},
		"no tcp upstream, udp":     {udpOnly, true, nil, 512, true, 0},
		"no tcp upstream, tcp":     {udpOnly, false, nil, 65535, false, 200},
		"no tcp upstream, tcp 512": {udpOnly, false, []func(*dns.Msg){edns(512)}, 65535, true, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s, _ := testServer(t, using(tt.up))
			raw := question(t, "example.com.", "A", tt.change...)
			out := s.Answer(t.Context(), "x", tt.udp, raw)
			m := parse(t, out)
			if len(out) > tt.limit || m.Truncated != tt.tc || tt.n > 0 && len(m.Answer) != tt.n || m.Rcode != 0 {
				t.Errorf("%d bytes, cut short %v, %d records, %s", len(out), m.Truncated, len(m.Answer), dns.RcodeToString[m.Rcode])
			}
			if (m.IsEdns0() != nil) != (tt.change != nil) {
				t.Errorf("EDNS in the answer: %v", m.IsEdns0())
			}
		})
	}
}

// TestHugeDatagram has a resolver that does not keep to what a guest takes.
func TestHugeDatagram(t *testing.T) {
	up := startUDP(t, func(_ string, q *dns.Msg) []byte { return addresses(600)("tcp", q) })
	s, _ := testServer(t, using(up))
	for _, udp := range []bool{true, false} {
		m := parse(t, s.Answer(t.Context(), "x", udp, question(t, "example.com.", "A")))
		if !m.Truncated || m.Rcode != dns.RcodeSuccess || len(m.Question) != 1 {
			t.Errorf("it answers %s", m)
		}
	}
}

func TestLiars(t *testing.T) {
	change := func(f func(m *dns.Msg)) func(string, *dns.Msg) []byte {
		return func(_ string, q *dns.Msg) []byte {
			m := new(dns.Msg).SetReply(q)
			f(m)
			return mustPack(m)
		}
	}
	for name, lie := range map[string]func(string, *dns.Msg) []byte{
		"id":          change(func(m *dns.Msg) { m.Id++ }),
		"name":        change(func(m *dns.Msg) { m.Question[0].Name = "evil.com." }),
		"type":        change(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeMX }),
		"class":       change(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }),
		"no question": change(func(m *dns.Msg) { m.Question = nil }),
		"a question":  change(func(m *dns.Msg) { m.Response = false }),
		"short":       func(string, *dns.Msg) []byte { return []byte{1, 2, 3} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			liar, honest := startUpstream(t, lie), startUpstream(t, echo)
			for _, udp := range []bool{true, false} {
				s, _ := testServer(t, both(using(liar, honest), func(c *Config) {
					c.Dial = func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
						conn, err := new(net.Dialer).DialContext(ctx, network, to.String())
						if to == liar.addr {
							conn = hasty{conn}
						}
						return conn, err
					}
				}))
				s.within = time.Minute // for the honest one, whom a busy host holds up
				if m := parse(t, s.Answer(t.Context(), "x", udp, question(t, "example.com.", "A"))); len(m.Extra) != 1 {
					t.Errorf("udp %v: it answers %s", udp, m)
				}
			}
		})
	}
}

// hasty is a connection for which a minute passes in half a second.
type hasty struct{ net.Conn }

func sooner(at time.Time) time.Time { return time.Now().Add(time.Until(at) / 120) }

func (c hasty) SetDeadline(at time.Time) error     { return c.Conn.SetDeadline(sooner(at)) }
func (c hasty) SetReadDeadline(at time.Time) error { return c.Conn.SetReadDeadline(sooner(at)) }

// TestLiesBesideTruth sends a forged datagram ahead of the true one.
func TestLiesBesideTruth(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		forged := new(dns.Msg).SetReply(q)
		forged.Id++
		_, _ = w.Write(mustPack(forged))
		_, _ = w.Write(echo("udp", q))
	})})
	s, _ := testServer(t, func(c *Config) { c.Upstreams = []netip.AddrPort{pc.LocalAddr().(*net.UDPAddr).AddrPort()} })
	if m := parse(t, s.Answer(t.Context(), "x", true, question(t, "example.com.", "A"))); len(m.Extra) != 1 {
		t.Errorf("it answers %s", m)
	}
}

func TestCodes(t *testing.T) {
	for _, rcode := range []int{dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented} {
		bad, good := startUpstream(t, code(rcode)), startUpstream(t, echo)
		s, log := testServer(t, using(bad, good))
		if m := parse(t, s.Answer(t.Context(), "x", true, question(t, "example.com.", "A"))); m.Rcode != dns.RcodeSuccess {
			t.Errorf("it answers %s", m)
		}
		s, _ = testServer(t, using(bad))
		if m := parse(t, s.Answer(t.Context(), "x", true, question(t, "example.com.", "A"))); m.Rcode != rcode {
			t.Errorf("it answers %s", m)
		}
		if log.Len() > 0 {
			t.Errorf("it logged %s", log)
		}
	}
	for _, rcode := range []int{dns.RcodeNameError, dns.RcodeFormatError} { // these stand
		first, second := startUpstream(t, code(rcode)), startUpstream(t, echo)
		s, _ := testServer(t, using(first, second))
		if m := parse(t, s.Answer(t.Context(), "x", true, question(t, "example.com.", "A"))); m.Rcode != rcode || second.count() != 0 {
			t.Errorf("it answers %s", m)
		}
	}
	// An error without the question is given the question back.
	up := startUpstream(t, func(_ string, q *dns.Msg) []byte {
		m := new(dns.Msg).SetRcode(q, dns.RcodeFormatError)
		m.Question = nil
		return mustPack(m)
	})
	s, _ := testServer(t, using(up))
	if m := parse(t, s.Answer(t.Context(), "x", true, question(t, "example.com.", "A", edns(1232)))); m.Rcode != dns.RcodeFormatError || len(m.Question) != 1 {
		t.Errorf("it answers %s", m)
	}
}

// TestOrder has a first resolver that is away: it is asked again only after a while.
func TestOrder(t *testing.T) {
	port, err := hostportstest.Free()
	if err != nil {
		t.Fatal(err)
	}
	away := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
	up := startUpstream(t, echo)
	clk := newClock()
	var dialled []netip.AddrPort
	var d net.Dialer
	s, _ := testServer(t, func(c *Config) {
		c.Now = clk.now
		c.Upstreams = []netip.AddrPort{away, up.addr}
		c.Dial = func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
			dialled = append(dialled, to)
			return d.DialContext(ctx, network, to.String())
		}
	})
	ask := func() {
		t.Helper()
		if m := parse(t, s.Answer(t.Context(), "x", true, question(t, "example.com.", "A"))); m.Rcode != 0 {
			t.Fatalf("it answers %s", m)
		}
	}
	ask()
	ask()
	clk.at = clk.at.Add(stayWith - 1)
	ask()
	clk.at = clk.at.Add(1)
	ask()
	want := []netip.AddrPort{away, up.addr, up.addr, up.addr, away, up.addr}
	if diff := cmp.Diff(want, dialled, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestSilence(t *testing.T) {
	t.Parallel()
	silent, up := startUpstream(t, func(string, *dns.Msg) []byte { return nil }), startUpstream(t, echo)
	s, _ := testServer(t, using(silent, up))
	started := time.Now()
	if m := parse(t, s.Answer(t.Context(), "x", true, question(t, "example.com.", "A"))); m.Rcode != 0 {
		t.Errorf("it answers %s", m)
	}
	if d := time.Since(started); d < answersWithin || silent.udp.Load() != 2 {
		t.Errorf("it answered after %s and %d questions", d, silent.udp.Load())
	}
	s, log := testServer(t, using(silent))
	m := parse(t, s.Answer(t.Context(), "x", true, question(t, "example.com.", "A", edns(1232))))
	if m.Rcode != dns.RcodeServerFailure || !strings.Contains(m.IsEdns0().String(), "do not answer") {
		t.Errorf("it answers %s", m)
	}
	if strings.Count(log.String(), "level=WARN") != 1 {
		t.Errorf("it logged %s", log)
	}
}

func TestCancel(t *testing.T) {
	asked := make(chan struct{}, 4)
	silent := startUpstream(t, func(string, *dns.Msg) []byte {
		asked <- struct{}{}
		return nil
	})
	for _, udp := range []bool{true, false} {
		s, log := testServer(t, using(silent))
		ctx, cancel := context.WithCancel(t.Context())
		answered := make(chan []byte)
		go func() { answered <- s.Answer(ctx, "x", udp, question(t, "example.com.", "A")) }()
		<-asked
		cancel()
		if out := <-answered; out != nil {
			t.Errorf("it answers %x", out)
		}
		if log.Len() > 0 || s.total != 0 {
			t.Errorf("it logged %s", log)
		}
	}
}

func TestResolvConfChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o600), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	clk := newClock()
	r := resolvers{path: path, now: clk.now}
	expect := func(want ...string) {
		t.Helper()
		var got []string
		for _, a := range r.inOrder().list {
			got = append(got, a.Addr().String())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	expect()
	write("nameserver 192.0.2.1\nnameserver 192.0.2.2\n")
	expect() // not within a second
	clk.at = clk.at.Add(lookAgain)
	expect("192.0.2.1", "192.0.2.2")
	r.prefer(netip.MustParseAddrPort("192.0.2.2:53"))
	expect("192.0.2.2", "192.0.2.1")
	clk.at = clk.at.Add(lookAgain)
	expect("192.0.2.2", "192.0.2.1") // the same file
	write("nameserver 192.0.2.3\nnameserver 192.0.2.2\n")
	clk.at = clk.at.Add(lookAgain)
	expect("192.0.2.3", "192.0.2.2")
	r.prefer(netip.MustParseAddrPort("192.0.2.2:53"))
	r.prefer(netip.MustParseAddrPort("192.0.2.3:53"))
	expect("192.0.2.3", "192.0.2.2")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	clk.at = clk.at.Add(lookAgain)
	expect()
}

func TestRecovers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	up := startUpstream(t, echo)
	clk := newClock()
	var d net.Dialer
	s, log := testServer(t, func(c *Config) {
		c.ResolvConf, c.Now = path, clk.now
		c.Dial = func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
			if to != netip.MustParseAddrPort("192.0.2.1:53") {
				t.Errorf("%s is dialled", to)
			}
			return d.DialContext(ctx, network, up.addr.String())
		}
	})
	if m := parse(t, s.Answer(t.Context(), "x", true, question(t, "example.com.", "A"))); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("it answers %s", m)
	}
	if err := os.WriteFile(path, []byte("nameserver 192.0.2.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	clk.at = clk.at.Add(lookAgain)
	if m := parse(t, s.Answer(t.Context(), "x", true, question(t, "example.com.", "A"))); m.Rcode != dns.RcodeSuccess {
		t.Errorf("it answers %s", m)
	}
	if !strings.Contains(log.String(), "again") {
		t.Errorf("it logged %s", log)
	}
}

// TestNoAAAA: the addresses go, what else the answer says stays.
func TestNoAAAA(t *testing.T) {
	zone := startUpstream(t, func(_ string, q *dns.Msg) []byte {
		m := new(dns.Msg).SetReply(q)
		name := q.Question[0].Name
		hdr := func(name string, rrtype uint16) dns.RR_Header {
			return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: 60}
		}
		switch name {
		case "alias.example.":
			m.Answer = append(m.Answer, &dns.CNAME{Hdr: hdr(name, dns.TypeCNAME), Target: "six.example."})
			name = "six.example."
			fallthrough
		case "six.example.":
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: hdr(name, dns.TypeAAAA), AAAA: net.ParseIP("2001:db8::1")})
		case "broken.example.":
			m.Rcode = dns.RcodeServerFailure
		default:
			m.Rcode = dns.RcodeNameError
		}
		return mustPack(m)
	})
	s, _ := testServer(t, using(zone))
	for name, want := range map[string]string{
		"six.example.": "NOERROR", "alias.example.": "NOERROR CNAME=six.example.", "broken.example.": "SERVFAIL", "none.example.": "NXDOMAIN",
	} {
		if got := summary(parse(t, s.Answer(t.Context(), "x", true, question(t, name, "AAAA")))); got != want {
			t.Errorf("AAAA of %s: %s, want %s", name, got, want)
		}
	}
}
