package egress

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// fakeHost is a host with two interfaces whose default route leads anywhere.
type fakeHost struct {
	own   []netip.Prefix
	kinds map[netip.Addr]routeKind
	asked int
}

func (h *fakeHost) addresses() ([]netip.Prefix, error) {
	h.asked++
	return h.own, nil
}

func (h *fakeHost) route(a netip.Addr) (routeKind, error) {
	if k, ok := h.kinds[a]; ok {
		if k == unix.RTN_UNREACHABLE {
			return 0, unix.EHOSTUNREACH
		}
		return k, nil
	}
	return unix.RTN_UNICAST, nil
}

func testPolicy(t testing.TB, private bool) *Policy {
	t.Helper()
	p, err := New(Config{
		CIDR: netip.MustParsePrefix("172.16.0.0/24"), AllowPrivate: private,
		Exempt: []netip.AddrPort{netip.MustParseAddrPort("10.9.9.9:3128"), netip.MustParseAddrPort("[::ffff:127.0.0.1]:8080")},
	})
	if err != nil {
		t.Fatal(err)
	}
	p.host = &fakeHost{
		own: []netip.Prefix{netip.MustParsePrefix("203.0.113.20/24"), netip.MustParsePrefix("10.1.2.3/8"), netip.MustParsePrefix("2001:db8::5/64")},
		kinds: map[netip.Addr]routeKind{
			netip.MustParseAddr("203.0.113.255"): unix.RTN_BROADCAST, netip.MustParseAddr("10.255.255.255"): unix.RTN_BROADCAST,
			netip.MustParseAddr("198.51.100.7"): unix.RTN_LOCAL, netip.MustParseAddr("198.51.100.8"): unix.RTN_BLACKHOLE,
			netip.MustParseAddr("198.51.100.9"): unix.RTN_UNREACHABLE,
		},
	}
	return p
}

// verdicts of TestCheck.
const (
	allowed = ""
	noRoute = "no route"
)

func TestCheck(t *testing.T) {
	for _, tc := range []struct {
		addr string
		// strict and private are the rule without and with AllowPrivate.
		strict, private string
	}{
		{"8.8.8.8", allowed, allowed},
		{"::ffff:8.8.8.8", allowed, allowed},
		{"192.0.2.1", allowed, allowed},
		{"0.0.0.0", "unspecified", "unspecified"},
		{"0.1.2.3", "unspecified", "unspecified"},
		{"127.0.0.1", "loopback", "loopback"},
		{"127.255.255.255", "loopback", "loopback"},
		{"::ffff:127.0.0.1", "loopback", "loopback"},
		{"169.254.169.254", "link-local", "link-local"},
		{"224.0.0.1", "multicast", "multicast"},
		{"239.255.255.255", "multicast", "multicast"},
		{"255.255.255.255", "broadcast", "broadcast"},
		{"240.0.0.1", "reserved", "reserved"},
		{"172.16.0.1", "banger's own network", "banger's own network"},
		{"172.16.0.99", "banger's own network", "banger's own network"},
		{"203.0.113.20", "an address of the host", "an address of the host"},
		{"10.1.2.3", "private network", "an address of the host"},
		{"198.51.100.7", "an address of the host", "an address of the host"},
		{"203.0.113.255", "a subnet of the host", "broadcast"},
		{"10.255.255.255", "private network", "broadcast"},
		{"198.51.100.8", "no unicast route", "no unicast route"},
		{"198.51.100.9", noRoute, noRoute},
		{"203.0.113.21", "a subnet of the host", allowed},
		{"10.0.0.1", "private network", allowed},
		{"172.16.1.1", "private network", allowed},
		{"172.31.255.255", "private network", allowed},
		{"172.32.0.0", allowed, allowed},
		{"192.168.255.255", "private network", allowed},
		{"100.64.0.0", "shared address space", allowed},
		{"100.127.255.255", "shared address space", allowed},
		{"100.128.0.0", allowed, allowed},
		{"192.0.0.170", "protocol assignments", allowed},
		{"192.0.1.0", allowed, allowed},
		{"198.18.0.0", "benchmarking network", allowed},
		{"198.19.255.255", "benchmarking network", allowed},
		{"198.20.0.0", allowed, allowed},
		{"::", "unspecified", "unspecified"},
		{"::1", "loopback", "loopback"},
		{"fe80::1", "link-local", "link-local"},
		{"fe80::1%eth0", "link-local", "link-local"},
		{"febf::1", "link-local", "link-local"},
		{"ff02::1", "multicast", "multicast"},
		{"fc00::1", "private network", "IPv6 is not forwarded yet"},
		{"fdff::1", "private network", "IPv6 is not forwarded yet"},
		{"fec0::1", "site-local", "IPv6 is not forwarded yet"},
		{"2606:4700::1111", "IPv6 is not forwarded yet", "IPv6 is not forwarded yet"},
		{"::7f00:1", "loopback inside ::7f00:1", "loopback inside ::7f00:1"},
		{"::ffff:0:7f00:1", "loopback inside ::ffff:0:7f00:1", "loopback inside ::ffff:0:7f00:1"},
		{"64:ff9b::a9fe:a9fe", "link-local inside 64:ff9b::a9fe:a9fe", "link-local inside 64:ff9b::a9fe:a9fe"},
		{"64:ff9b::a00:1", "private network inside 64:ff9b::a00:1", "IPv6 is not forwarded yet"},
		{"64:ff9b:1:7f00:0:100::", "loopback inside 64:ff9b:1:7f00:0:100::", "loopback inside 64:ff9b:1:7f00:0:100::"},
		{"64:ff9b:1:17f:0:1::", "loopback inside 64:ff9b:1:17f:0:1::", "loopback inside 64:ff9b:1:17f:0:1::"},
		{"2002:7f00:1::1", "loopback inside 2002:7f00:1::1", "loopback inside 2002:7f00:1::1"},
		{"2002:ac10:1::", "banger's own network inside 2002:ac10:1::", "banger's own network inside 2002:ac10:1::"},
		{"2001:0:7f00:1::", "loopback inside 2001:0:7f00:1::", "loopback inside 2001:0:7f00:1::"},
		{"2001::f7f7:f7f7:80ff:fffe", "unspecified inside 2001::f7f7:f7f7:80ff:fffe", "unspecified inside 2001::f7f7:f7f7:80ff:fffe"},
		{"2001:0:808:808:0:f7f7:80ff:fffe", "loopback inside 2001:0:808:808:0:f7f7:80ff:fffe", "loopback inside 2001:0:808:808:0:f7f7:80ff:fffe"},
		{"2a00::5efe:7f00:1", "loopback inside 2a00::5efe:7f00:1", "loopback inside 2a00::5efe:7f00:1"},
		{"2a00::200:5efe:7f00:1", "loopback inside 2a00::200:5efe:7f00:1", "loopback inside 2a00::200:5efe:7f00:1"},
	} {
		for _, private := range []bool{false, true} {
			want := tc.strict
			if private {
				want = tc.private
			}
			err := testPolicy(t, private).Check(netip.AddrPortFrom(netip.MustParseAddr(tc.addr), 80))
			if got := verdict(err); got != want {
				t.Errorf("%s, private networks allowed %t: %q, want %q", tc.addr, private, got, want)
			}
		}
	}
}

func verdict(err error) string {
	if r, ok := errors.AsType[*RefusedError](err); ok {
		return r.Rule
	}
	if err != nil {
		return noRoute
	}
	return allowed
}

func TestCheckOddities(t *testing.T) {
	p := testPolicy(t, false)
	for _, tc := range []struct {
		dst  netip.AddrPort
		want string
	}{
		{netip.AddrPort{}, "port 0"},
		{netip.AddrPortFrom(netip.Addr{}, 80), "no address"},
		{netip.MustParseAddrPort("8.8.8.8:0"), "port 0"},
		{netip.MustParseAddrPort("10.9.9.9:3128"), allowed},
		{netip.MustParseAddrPort("[::ffff:10.9.9.9]:3128"), allowed},
		{netip.MustParseAddrPort("10.9.9.9:3129"), "private network"},
		{netip.MustParseAddrPort("127.0.0.1:8080"), allowed},
		{netip.MustParseAddrPort("127.0.0.2:8080"), "loopback"},
	} {
		if got := verdict(p.Check(tc.dst)); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.dst, got, tc.want)
		}
	}
}

func TestHostAddressesAreCached(t *testing.T) {
	p := testPolicy(t, false)
	for range 100 {
		_ = p.Check(netip.MustParseAddrPort("8.8.8.8:53"))
	}
	h := p.host.(*fakeHost)
	if h.asked > 3 { // a check may fall into a later second
		t.Errorf("the host's addresses were listed %d times", h.asked)
	}
	p.readAt = p.readAt.Add(-2 * hostAge)
	asked := h.asked
	_ = p.Check(netip.MustParseAddrPort("8.8.8.8:53"))
	if h.asked != asked+1 {
		t.Error("an old list was used")
	}
}

func TestDialChecks(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	dst := netip.MustParseAddrPort(l.Addr().String())
	strict, err := New(Config{CIDR: netip.MustParsePrefix("172.16.0.0/24"), AllowPrivate: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := strict.DialTCP(t.Context(), dst); verdict(err) != "loopback" {
		t.Errorf("tcp: %v", err)
	}
	if _, err := strict.DialUDP(t.Context(), dst); verdict(err) != "loopback" {
		t.Errorf("udp: %v", err)
	}
	if _, err := strict.DialPing(t.Context(), dst.Addr()); verdict(err) != "loopback" {
		t.Errorf("ping: %v", err)
	}
	exempt, err := New(Config{CIDR: netip.MustParsePrefix("172.16.0.0/24"), Exempt: []netip.AddrPort{dst}})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.AddrPort{dst, netip.AddrPortFrom(netip.AddrFrom16(dst.Addr().As16()), dst.Port())} {
		c, err := exempt.DialTCP(t.Context(), a)
		if err != nil {
			t.Errorf("%s: %v", a, err)
			continue
		}
		_ = c.Close()
	}
	u, err := exempt.DialUDP(t.Context(), dst)
	if err != nil {
		t.Fatal(err)
	}
	_ = u.Close()
}

func TestDialChecksAtTheLastMoment(t *testing.T) {
	p := testPolicy(t, true)
	dst := netip.MustParseAddrPort("198.51.100.7:80")
	if err := p.fixed(dst); err != nil {
		t.Fatal(err) // only the host's routing forbids it
	}
	if _, err := p.DialTCP(t.Context(), dst); verdict(err) != "an address of the host" {
		t.Errorf("tcp: %v, want the refusal of the hook before connect", err)
	}
}

func TestNewRefusesIPv6Network(t *testing.T) {
	for _, p := range []netip.Prefix{{}, netip.MustParsePrefix("fd00::/64")} {
		if _, err := New(Config{CIDR: p}); err == nil {
			t.Errorf("%s: no error", p)
		}
	}
}

// FuzzSpellings: whatever carries a forbidden IPv4 address is refused, and what is allowed is an IPv4 address that no rule names.
func FuzzSpellings(f *testing.F) {
	for _, s := range []string{"127.0.0.1", "169.254.169.254", "10.0.0.1", "8.8.8.8", "172.16.0.7", "100.64.0.1", "255.255.255.255"} {
		a := netip.MustParseAddr(s).As4()
		f.Add(a[:], uint64(0))
	}
	f.Add([]byte{0x20, 0x02, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}, uint64(7))
	p := testPolicy(f, false)
	f.Fuzz(func(t *testing.T, raw []byte, salt uint64) {
		if len(raw) == 16 {
			a := netip.AddrFrom16([16]byte(raw))
			if err := p.Check(netip.AddrPortFrom(a, 80)); err == nil && !a.Is4In6() {
				t.Errorf("%s passes", a)
			}
		}
		if len(raw) < 4 {
			return
		}
		v4 := netip.AddrFrom4([4]byte(raw))
		if p.Check(netip.AddrPortFrom(v4, 80)) == nil {
			return
		}
		for _, s := range spellings([4]byte(raw), salt) {
			if err := p.Check(netip.AddrPortFrom(s, 80)); err == nil {
				t.Errorf("%s is forbidden, but %s passes", v4, s)
			}
			if err := p.Check(netip.AddrPortFrom(s.WithZone("eth0"), 80)); err == nil {
				t.Errorf("%s is forbidden, but %s with a zone passes", v4, s)
			}
		}
	})
}

// spellings are IPv6 addresses that carry an IPv4 one; salt fills what they leave open.
func spellings(a [4]byte, salt uint64) []netip.Addr {
	x := byte(salt)
	b0, b1, b2, b3 := a[0], a[1], a[2], a[3]
	var list []netip.Addr
	for _, b := range [][16]byte{
		{10: 0xff, 11: 0xff, 12: b0, 13: b1, 14: b2, 15: b3},
		{12: b0, 13: b1, 14: b2, 15: b3},
		{8: 0xff, 9: 0xff, 12: b0, 13: b1, 14: b2, 15: b3},
		{0, 0x64, 0xff, 0x9b, 12: b0, 13: b1, 14: b2, 15: b3},
		{0, 0x64, 0xff, 0x9b, 0, 1, b0, b1, 0, b2, b3, x, x, x, x, x},
		{0, 0x64, 0xff, 0x9b, 0, 1, x, b0, 0, b1, b2, b3, x, x, x, x},
		{0, 0x64, 0xff, 0x9b, 0, 1, x, x, 0, b0, b1, b2, b3, x, x, x},
		{0, 0x64, 0xff, 0x9b, 0, 1, x, x, x, x, x, x, b0, b1, b2, b3},
		{0x20, 0x02, b0, b1, b2, b3, x, x, x, x, x, x, x, x, x, x},
		{0x20, 0x01, 0, 0, b0, b1, b2, b3, x, x, x, x, x, x, x, x},
		{0x20, 0x01, 0, 0, x, x, x, x, x, x, x, x, ^b0, ^b1, ^b2, ^b3},
	} {
		list = append(list, netip.AddrFrom16(b))
	}
	return list
}

// A host whose addresses change while they are listed is asked again: half a list forbids too little, and none forbids all.
func TestAddressesThatChangeWhileTheyAreListed(t *testing.T) {
	whole := []netlink.Addr{{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 1), Mask: net.CIDRMask(24, 32)}},
		{IPNet: &net.IPNet{IP: net.IPv4(198, 51, 100, 1), Mask: net.CIDRMask(24, 32)}}}
	calls := 0
	got, err := addressesFrom(func() ([]netlink.Addr, error) {
		if calls++; calls < 3 {
			return whole[:1], netlink.ErrDumpInterrupted
		}
		return whole, nil
	})
	want := []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("198.51.100.1/24")}
	if err != nil || !slices.Equal(got, want) || calls != 3 {
		t.Errorf("got %v, %v after %d calls; want %v", got, err, calls, want)
	}
	calls = 0
	_, err = addressesFrom(func() ([]netlink.Addr, error) {
		calls++
		return whole[:1], netlink.ErrDumpInterrupted
	})
	if !errors.Is(err, netlink.ErrDumpInterrupted) || calls != dumpTries {
		t.Errorf("a list that is never whole: %v after %d calls", err, calls)
	}
}
