package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// testClock is a clock that a test moves.
type testClock struct {
	mu  sync.Mutex
	now time.Time
}

func newTestClock() *testClock { return &testClock{now: time.Unix(1_700_000_000, 0)} }

func (c *testClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *testClock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func (c *testClock) set(cfg *Config) { cfg.Now = c.Now }

// records answers with what lines of a zone file say, "CODE" first; a line that begins with "!" is of the authority, one with "+" of the
// additional section. @ is the question's name.
func records(text string) func(string, *dns.Msg) []byte {
	lines := strings.Split(text, "\n")
	return func(_ string, q *dns.Msg) []byte {
		m := new(dns.Msg).SetRcode(q, dns.StringToRcode[lines[0]])
		m.Compress = true
		for _, line := range lines[1:] {
			kind := line[0]
			rr, err := dns.NewRR(strings.ReplaceAll(strings.TrimLeft(line, "!+"), "@", q.Question[0].Name))
			if err != nil {
				panic(err)
			}
			switch kind {
			case '!':
				m.Ns = append(m.Ns, rr)
			case '+':
				m.Extra = append(m.Extra, rr)
			default:
				m.Answer = append(m.Answer, rr)
			}
		}
		if o := q.IsEdns0(); o != nil {
			m.SetEdns0(4096, o.Do())
		}
		return mustPack(m)
	}
}

// both applies several changes to a Config.
func both(changes ...func(*Config)) func(*Config) {
	return func(c *Config) {
		for _, f := range changes {
			f(c)
		}
	}
}

const soa = "example. %d IN SOA ns.example. admin.example. 1 7200 3600 1209600 %d"

func TestHowLongAnswersAreKept(t *testing.T) {
	for name, tt := range map[string]struct {
		qtype, answer string
		keep          time.Duration // 0 for not at all
	}{
		"an address":                   {"A", "NOERROR\n@ 60 IN A 192.0.2.1", time.Minute},
		"the least of all counts":      {"A", "NOERROR\n@ 60 IN A 192.0.2.1\n@ 90 IN A 192.0.2.2\n!example. 50 IN NS ns.example.\n+ns.example. 7 IN A 192.0.2.3", 7 * time.Second},
		"a week is a day":              {"A", "NOERROR\n@ 604800 IN A 192.0.2.1", 24 * time.Hour},
		"TTL 0":                        {"A", "NOERROR\n@ 0 IN A 192.0.2.1", 0},
		"a TTL below 0":                {"A", "NOERROR\n@ 2147483648 IN A 192.0.2.1", 0},
		"an alias":                     {"A", "NOERROR\n@ 60 IN CNAME b.example.\nb.example. 30 IN A 192.0.2.1", 30 * time.Second},
		"an alias of nothing":          {"A", "NOERROR\n@ 60 IN CNAME b.example.\n!" + fmt.Sprintf(soa, 100, 200), time.Minute},
		"an alias without a word more": {"A", "NOERROR\n@ 60 IN CNAME b.example.", 0},
		"an alias asked for":           {"CNAME", "NOERROR\n@ 60 IN CNAME b.example.", time.Minute},
		"no such name":                 {"A", "NXDOMAIN\n!" + fmt.Sprintf(soa, 100, 20), 20 * time.Second},
		"no such name, by its TTL":     {"A", "NXDOMAIN\n!" + fmt.Sprintf(soa, 10, 20), 10 * time.Second},
		"no such name for a day":       {"A", "NXDOMAIN\n!" + fmt.Sprintf(soa, 86400, 86400), 5 * time.Minute},
		"no such name, minimum 0":      {"A", "NXDOMAIN\n!" + fmt.Sprintf(soa, 100, 0), 0},
		"no such name, nobody says":    {"A", "NXDOMAIN", 0},
		"no such record":               {"MX", "NOERROR\n!" + fmt.Sprintf(soa, 100, 20), 20 * time.Second},
		"no such record, nobody says":  {"MX", "NOERROR", 0},
		"a referral":                   {"A", "NOERROR\n!example. 50 IN NS ns.example.", 0},
		"no help":                      {"A", "SERVFAIL\n!" + fmt.Sprintf(soa, 100, 20), 0},
		"refused":                      {"A", "REFUSED", 0},
		"an IPv6 address":              {"AAAA", "NOERROR\n@ 60 IN AAAA 2001:db8::1", time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			up, now := startUpstream(t, records(tt.answer)), newTestClock()
			s, _ := testServer(t, both(using(up), now.set))
			ask := func() string {
				return summary(parse(t, s.Answer(t.Context(), "x", true, question(t, "a.example.", tt.qtype))))
			}
			first := ask()
			want := func(n int) {
				t.Helper()
				if again := ask(); again != first || up.count() != n {
					t.Errorf("%q then %q with %d questions outside, want %d", first, again, up.count(), n)
				}
			}
			if tt.keep == 0 {
				want(2)
				return
			}
			now.pass(tt.keep - time.Nanosecond)
			want(1)
			now.pass(time.Nanosecond)
			want(2)
			now.pass(-time.Hour) // a clock that was set back
			want(3)
		})
	}
}

// TestHitIsForWhoAsks: its id, its way to write the name, its EDNS, its size, and the time that is left.
func TestHitIsForWhoAsks(t *testing.T) {
	up, now := startUpstream(t, records("NOERROR\n@ 60 IN CNAME b.example.\nb.example. 90 IN A 192.0.2.1\n!"+fmt.Sprintf(soa, 100, 20))), newTestClock()
	s, _ := testServer(t, both(using(up), now.set))
	parse(t, s.Answer(t.Context(), "x", true, question(t, "www.example.", "A", edns(1400))))
	now.pass(10*time.Second + time.Millisecond)
	raw := s.Answer(t.Context(), "y", true, question(t, "wWw.EXAMPLE.", "A"))
	m := parse(t, raw)
	if m.Question[0].Name != "wWw.EXAMPLE." || m.IsEdns0() != nil {
		t.Errorf("a hit without EDNS is %s", m)
	}
	var ttls []uint32
	for _, rr := range append(m.Answer, m.Ns...) {
		ttls = append(ttls, rr.Header().Ttl)
	}
	if diff := cmp.Diff([]uint32{50, 80, 90}, ttls); diff != "" {
		t.Errorf("the TTLs (-want +got):\n%s", diff)
	}
	m = parse(t, s.Answer(t.Context(), "y", false, question(t, "www.example.", "A", edns(512))))
	if o := m.IsEdns0(); o == nil || o.UDPSize() != maxUDP || o.Do() || len(o.Option) > 0 {
		t.Errorf("a hit with EDNS is %s", m)
	}
	if up.count() != 1 {
		t.Errorf("%d questions outside, want 1", up.count())
	}
	if got := s.NamesOf("y", netip.MustParseAddr("192.0.2.1")); !cmp.Equal(got, []string{"www.example", "b.example"}) {
		t.Errorf("y has that address of %v", got)
	}
	if got := s.NamesOf("z", netip.MustParseAddr("192.0.2.1")); got != nil {
		t.Errorf("z, which did not ask, has that address of %v", got)
	}
}

func TestLargeHit(t *testing.T) {
	up := startUpstream(t, addresses(100))
	s, _ := testServer(t, using(up))
	if m := parse(t, s.Answer(t.Context(), "x", true, question(t, "a.example.", "A"))); !m.Truncated {
		t.Error("a hundred addresses fit")
	}
	asked := up.count()
	if m := parse(t, s.Answer(t.Context(), "x", false, question(t, "a.example.", "A"))); m.Truncated || len(m.Answer) != 100 {
		t.Errorf("by TCP: %d addresses, truncated %v", len(m.Answer), m.Truncated)
	}
	raw := s.Answer(t.Context(), "x", true, question(t, "a.example.", "A", edns(1232)))
	if m := parse(t, raw); !m.Truncated || len(raw) > 1232 || m.IsEdns0() == nil {
		t.Errorf("by UDP: %d bytes, truncated %v", len(raw), m.Truncated)
	}
	if up.count() != asked {
		t.Errorf("%d more questions outside", up.count()-asked)
	}
}

// TestQuestionsOfTheirOwn are those another's answer does not serve.
func TestQuestionsOfTheirOwn(t *testing.T) {
	option := func(o dns.EDNS0) func(*dns.Msg) {
		return func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			m.IsEdns0().Option = append(m.IsEdns0().Option, o)
		}
	}
	do := func(m *dns.Msg) { m.SetEdns0(1232, true) }
	for name, tt := range map[string]struct {
		change func(*dns.Msg)
		kept   bool // by itself
	}{
		"subnet":        {option(&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: net.IPv4(192, 0, 2, 0)}), false},
		"cookie":        {option(&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"}), false},
		"no recursion":  {func(m *dns.Msg) { m.RecursionDesired = false }, false},
		"AD":            {func(m *dns.Msg) { m.AuthenticatedData = true }, true},
		"CD":            {func(m *dns.Msg) { m.CheckingDisabled = true }, true},
		"DO":            {do, true},
		"reserved flag": {func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().Hdr.Ttl |= 1 << 14 }, false},
		"another type":  {func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeMX }, true},
		"another name":  {func(m *dns.Msg) { m.Question[0].Name = "b.example." }, true},
	} {
		t.Run(name, func(t *testing.T) {
			up := startUpstream(t, records("NOERROR\n@ 60 IN A 192.0.2.1\n@ 60 IN MX 1 @"))
			s, _ := testServer(t, using(up))
			ask := func(change ...func(*dns.Msg)) {
				t.Helper()
				if m := parse(t, s.Answer(t.Context(), "x", true, question(t, "a.example.", "A", change...))); len(m.Answer) == 0 {
					t.Errorf("no answer: %s", m)
				}
			}
			ask()
			ask()
			ask(tt.change)
			if up.count() != 2 {
				t.Errorf("%d questions outside, want one for each", up.count())
			}
			ask(tt.change)
			if want := map[bool]int{true: 2, false: 3}[tt.kept]; up.count() != want {
				t.Errorf("%d questions outside, want %d", up.count(), want)
			}
			ask()
			if want := map[bool]int{true: 2, false: 3}[tt.kept]; up.count() != want {
				t.Errorf("%d questions outside after the first once more, want %d", up.count(), want)
			}
		})
	}
}

// TestOtherResolversOtherAnswers: when the host goes into a VPN, what was said outside of it counts no more.
func TestOtherResolversOtherAnswers(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	home := startUpstream(t, records("NOERROR\n@ 600 IN A 192.0.2.1"))
	vpn := startUpstream(t, records("NOERROR\n@ 600 IN A 192.0.2.2"))
	now := newTestClock()
	s, _ := testServer(t, both(now.set, func(c *Config) {
		c.ResolvConf = conf
		c.Dial = func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
			up := map[string]*upstream{"192.0.2.53": home, "192.0.2.54": vpn}[to.Addr().String()]
			return new(net.Dialer).DialContext(ctx, network, up.addr.String())
		}
	}))
	ask := func(want string) {
		t.Helper()
		if got := summary(parse(t, s.Answer(t.Context(), "x", true, question(t, "a.example.", "A")))); got != want {
			t.Errorf("the answer is %s, want %s", got, want)
		}
		now.pass(2 * time.Second)
	}
	write("nameserver 192.0.2.53\n")
	ask("NOERROR A=192.0.2.1")
	write("# the same\nnameserver 192.0.2.53\n")
	ask("NOERROR A=192.0.2.1")
	if home.count() != 1 {
		t.Errorf("%d questions where nothing changed", home.count())
	}
	write("nameserver 192.0.2.54\n")
	ask("NOERROR A=192.0.2.2")
	write("")
	ask("SERVFAIL")
	write("nameserver 192.0.2.53\n")
	ask("NOERROR A=192.0.2.1")
	if home.count() != 2 || vpn.count() != 1 {
		t.Errorf("%d and %d questions", home.count(), vpn.count())
	}
}

// TestCacheIsBounded asks for more names than it holds, and for larger answers.
func TestCacheIsBounded(t *testing.T) {
	var c cache
	at := time.Unix(1, 0)
	for i := range 3 * maxEntries {
		c.board(cacheKey{name: fmt.Sprint(i)}, resolversNow{}, &query{})
		c.land(&flight{key: cacheKey{name: fmt.Sprint(i)}, shared: &shared{wire: make([]byte, 100), keep: time.Hour, at: at}})
		c.get(cacheKey{name: "0"}, 0, at) // used all the time
	}
	if len(c.entries) != maxEntries || c.order.Len() != maxEntries || c.get(cacheKey{name: "0"}, 0, at) == nil || c.get(cacheKey{name: "1"}, 0, at) != nil {
		t.Errorf("%d entries are held", len(c.entries))
	}
	for i := range 200 {
		c.land(&flight{key: cacheKey{name: fmt.Sprint("large", i)}, shared: &shared{wire: make([]byte, 60000), keep: time.Hour, at: at}})
	}
	if c.bytes > maxBytes || c.bytes < maxBytes/2 || len(c.entries) != c.order.Len() {
		t.Errorf("%d bytes in %d entries are held", c.bytes, len(c.entries))
	}
	sum := 0
	for el := c.order.Front(); el != nil; el = el.Next() {
		sum += el.Value.(*entry).size()
	}
	if sum != c.bytes {
		t.Errorf("%d bytes are held, counted were %d", sum, c.bytes)
	}
}

// TestOneQuestionForAll: many ask the same while the resolver thinks.
func TestOneQuestionForAll(t *testing.T) {
	for what, reply := range map[string]string{"kept": "NOERROR\n@ 60 IN A 192.0.2.1", "not kept": "NOERROR\n@ 0 IN A 192.0.2.1", "no help": "SERVFAIL"} {
		t.Run(what, func(t *testing.T) {
			free := make(chan struct{})
			up := startUpstream(t, func(network string, q *dns.Msg) []byte {
				<-free
				return records(reply)(network, q)
			})
			s, _ := testServer(t, using(up))
			s.within = time.Hour
			const askers = 40
			names := []string{"a.example.", "A.example.", "a.eXample."}
			got := make(chan *dns.Msg, askers)
			for i := range askers {
				go func() {
					var changes []func(*dns.Msg)
					if i%2 == 0 {
						changes = append(changes, edns(1232))
					}
					m := parse(t, s.Answer(t.Context(), fmt.Sprint("vm", i%4), i%5 > 0, question(t, names[i%3], "A", changes...)))
					if m.Question[0].Name != names[i%3] || (m.IsEdns0() != nil) != (i%2 == 0) {
						t.Errorf("asker %d got %s", i, m)
					}
					got <- m
				}()
			}
			eventually(t, "all wait", func() bool { return s.cache.waits() == askers })
			// One that does not wait any longer changes nothing for the others.
			ctx, cancel := context.WithCancel(t.Context())
			gone := make(chan []byte)
			go func() { gone <- s.Answer(ctx, "vm9", true, question(t, "a.example.", "A")) }()
			eventually(t, "it waits", func() bool { return s.cache.waits() == askers+1 })
			cancel()
			if out := <-gone; out != nil {
				t.Errorf("it got %x", out)
			}
			close(free)
			want := summary(<-got)
			for range askers - 1 {
				if m := <-got; summary(m) != want {
					t.Errorf("one got %s, another %s", want, summary(m))
				}
			}
			if up.count() != 1 {
				t.Errorf("%d questions outside, want 1", up.count())
			}
		})
	}
}

// waits is how many wait for the only flight there is.
func (c *cache) waits() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, f := range c.flights {
		n += f.waiting
	}
	return n
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("never happened: " + what)
		}
	}
}

// TestNobodyWaits: the first to ask goes and another stays, then all go and the question is given up; the next one is asked anew.
func TestNobodyWaits(t *testing.T) {
	dialled, ended := make(chan struct{}, 10), make(chan struct{}, 10)
	s, _ := testServer(t, func(c *Config) {
		c.Upstreams = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}
		c.Dial = func(ctx context.Context, _ string, _ netip.AddrPort) (net.Conn, error) {
			dialled <- struct{}{}
			<-ctx.Done()
			ended <- struct{}{}
			return nil, ctx.Err()
		}
	})
	s.within = time.Hour
	ask := func() (leave context.CancelFunc, left chan struct{}) {
		ctx, cancel := context.WithCancel(t.Context())
		left = make(chan struct{})
		go func() {
			defer close(left)
			if out := s.Answer(ctx, "x", true, question(t, "a.example.", "A")); out != nil {
				t.Errorf("got %x", out)
			}
		}()
		return cancel, left
	}
	leave1, left1 := ask()
	<-dialled
	leave2, left2 := ask()
	eventually(t, "both wait", func() bool { return s.cache.waits() == 2 })
	leave1()
	<-left1
	select {
	case <-ended:
		t.Error("the question was given up though one waits")
	default:
	}
	leave2()
	<-left2
	<-ended
	leave3, left3 := ask()
	<-dialled
	leave3()
	<-left3
	<-ended
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total != 0 || len(s.inFlight) != 0 || len(s.cache.flights) != 0 {
		t.Errorf("%d questions wait still, %d flights", s.total, len(s.cache.flights))
	}
}

// FuzzCache has the host's resolver send anything, and whoever asks ask in any way: the second answer, which may be the first one's, is
// like one that was asked for anew.
func FuzzCache(f *testing.F) {
	q := new(dns.Msg)
	if err := q.Unpack(question(f, "example.com.", "A")); err != nil {
		f.Fatal(err)
	}
	for i, text := range []string{"NOERROR\n@ 60 IN A 192.0.2.1", "NOERROR\n@ 60 IN CNAME b.example.\nb.example. 30 IN A 192.0.2.1", "NXDOMAIN\n!" + fmt.Sprintf(soa, 100, 20),
		"NOERROR\n!" + fmt.Sprintf(soa, 100, 20), "NOERROR\n@ 5 IN TXT \"a\" \"b\"\n+x. 60 IN AAAA 2001:db8::1", "SERVFAIL"} {
		f.Add(records(text)("udp", q), uint8(i), uint8(i*7), uint16(i))
	}
	f.Add(addresses(30)("udp", q), uint8(1), uint8(0), uint16(3))
	f.Add(addresses(400)("tcp", q), uint8(0), uint8(7), uint16(3))
	f.Fuzz(func(t *testing.T, answer []byte, first, second uint8, seconds uint16) {
		if len(answer) > dns.MaxMsgSize {
			return
		}
		now := newTestClock()
		server := func() *Server {
			s, _ := testServer(t, both(now.set, func(c *Config) {
				c.Upstreams = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}
				c.Dial = func(_ context.Context, network string, _ netip.AddrPort) (net.Conn, error) {
					if network == "udp" && len(answer) > maxDatagram {
						return nil, errors.New("too large for this test")
					}
					return &scripted{stream: network == "tcp", answer: answer}, nil
				}
			}))
			return s
		}
		// bits: of the way (UDP), EDNS, DO, a name written otherwise
		ask := func(s *Server, bits uint8) []byte {
			name := "example.com."
			if bits&8 != 0 {
				name = "eXample.COM."
			}
			raw := question(t, name, "A", func(m *dns.Msg) {
				if bits&2 != 0 {
					m.SetEdns0(1232, bits&4 != 0)
				}
			})
			return s.Answer(t.Context(), "x", bits&1 != 0, raw)
		}
		used, fresh := server(), server()
		ask(used, first)
		now.pass(time.Duration(seconds) * time.Second)
		got, want := ask(used, second), ask(fresh, second)
		if len(got) < headerSize || second&1 != 0 && len(got) > maxUDP || binary.BigEndian.Uint16(got) != 4711 || got[2]&0x80 == 0 {
			t.Fatalf("the guest gets %x", got)
		}
		if a, b := withoutTTLs(got), withoutTTLs(want); a != b && got[2]&truncated == 0 && want[2]&truncated == 0 {
			t.Errorf("a second answer is\n%s\na fresh one\n%s", a, b)
		}
	})
}

// withoutTTLs is what a message says but for its TTLs, EDNS and capitals.
func withoutTTLs(raw []byte) string {
	m := new(dns.Msg)
	if err := m.Unpack(raw); err != nil {
		return "nothing that can be read"
	}
	m.Extra = withoutOPT(m.Extra)
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			rr.Header().Ttl = 0
		}
	}
	return strings.ToLower(m.String())
}
