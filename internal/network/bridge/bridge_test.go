package bridge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/network/nettest"
	"git.thaloco.com/thaloco/banger/internal/network/tap"
)

// patience bounds what is to happen at once; silence is how long nothing must have happened.
const (
	patience = 30 * time.Second
	silence  = 300 * time.Millisecond
)

func testConfig() Config {
	return Config{Name: "bt0", IP: netip.MustParseAddr("172.16.0.1"), CIDR: netip.MustParsePrefix("172.16.0.0/24"), Taps: 3, AllowPrivate: true}
}

// newHost is a namespace for what Setup makes; it skips where the host lacks what that takes.
func newHost(t testing.TB) *nettest.NS {
	t.Helper()
	for _, program := range []string{"nft", "iptables"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%v: ./scripts/host-packages test installs it", err)
		}
	}
	return nettest.NewNS(t)
}

// setUpIn sets a host up.
func setUpIn(t testing.TB, ns *nettest.NS, cfg Config) []string {
	t.Helper()
	var done []string
	ns.Do(t, func() (err error) {
		done, err = Setup(t.Context(), cfg)
		return err
	})
	return done
}

// run runs a program of the thread's namespace.
func run(argv ...string) string {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%v: %v\n%s", argv, err, out)
	}
	return string(out)
}

var volatile = regexp.MustCompile(`(?m)^#.*\n|valid_lft .*|\[\d+:\d+\]|packets \d+ bytes \d+|qlen \d+| +link-netnsid \d+|^\d+: |@if\d+`)

// state is all of a host that Setup touches, as text.
func state(t testing.TB, ns *nettest.NS) string {
	t.Helper()
	var b strings.Builder
	ns.Do(t, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			at := l.Attrs()
			fmt.Fprintf(&b, "link %s %s %s mtu %d alias %q\n", at.Name, l.Type(), at.Flags, at.MTU, at.Alias)
			addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
			if err != nil {
				return err
			}
			for _, a := range addrs {
				fmt.Fprintf(&b, "  %s\n", a.IPNet)
			}
		}
		routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		for _, r := range routes {
			by, err := netlink.LinkByIndex(r.LinkIndex)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "route %s by %s\n", r.Dst, by.Attrs().Name)
		}
		on, err := forwards()
		fmt.Fprintf(&b, "forwarding %v\n", on)
		b.WriteString(volatile.ReplaceAllString(run("nft", "list", "ruleset"), ""))
		return err
	})
	return b.String()
}

func TestSetup(t *testing.T) {
	ns := newHost(t)
	ns.Do(t, func() error { return setForwarding("0") })
	before := state(t, ns)
	cfg := testConfig()
	done := setUpIn(t, ns, cfg)
	for _, want := range []string{"bridge bt0 with 172.16.0.1/24", "3 TAPs for user root, bt0-t0 to bt0-t2", "firewall tables inet and bridge banger_bt0", "net.ipv4.ip_forward = 1"} {
		if !strings.Contains(strings.Join(done, "\n"), want) {
			t.Errorf("it does not tell %q: %q", want, done)
		}
	}
	made := state(t, ns)
	if again := setUpIn(t, ns, cfg); len(again) > 0 {
		t.Errorf("the second time it did %q", again)
	}
	if diff := cmp.Diff(made, state(t, ns)); diff != "" {
		t.Errorf("the second time changed %s", diff)
	}
	ns.Do(t, func() error { return Ready(cfg) })

	// A change of what VMs may reach changes the rules, and nothing else.
	cfg.AllowPrivate = false
	if changed := setUpIn(t, ns, cfg); len(changed) != 1 || !strings.HasPrefix(changed[0], "firewall tables") {
		t.Errorf("a change of the rules did %q", changed)
	}
	// A larger pool, a smaller one, another address.
	cfg.Taps = 5
	if changed := setUpIn(t, ns, cfg); !strings.Contains(strings.Join(changed, "\n"), "2 TAPs") {
		t.Errorf("two more did %q", changed)
	}
	cfg.Taps = 2
	if changed := setUpIn(t, ns, cfg); !strings.Contains(strings.Join(changed, "\n"), "removed bt0-t2\nremoved bt0-t3\nremoved bt0-t4") {
		t.Errorf("three less did %q", changed)
	}
	cfg.IP, cfg.CIDR = netip.MustParseAddr("10.5.0.254"), netip.MustParsePrefix("10.5.0.0/24")
	if changed := setUpIn(t, ns, cfg); !strings.Contains(strings.Join(changed, "\n"), "bridge bt0 with 10.5.0.254/24") {
		t.Errorf("other addresses did %q", changed)
	}
	ns.Do(t, func() error {
		if _, err := Teardown(t.Context(), "bt0", false); err != nil {
			return err
		}
		again, err := Teardown(t.Context(), "bt0", false)
		if len(again) > 0 {
			t.Errorf("a second teardown did %q", again)
		}
		return err
	})
	if diff := cmp.Diff(before, state(t, ns)); diff != "" {
		t.Errorf("teardown left %s", diff)
	}
}

// TestFailures has every step fail: nothing is left of those before.
func TestFailures(t *testing.T) {
	ns := newHost(t)
	ns.Do(t, func() error {
		run("iptables", "-P", "FORWARD", "DROP")
		return setForwarding("0")
	})
	before := state(t, ns)
	failure := errors.New("failure")
	for _, step := range []string{"change", "rules", "bridge", "taps", "other firewalls", "forwarding", "resolver", "boot", "surplus"} {
		ns.Do(t, func() error {
			asked := false
			s := &setup{cfg: testConfig(), fault: func(at string) error {
				if at == step {
					asked = true
					return failure
				}
				return nil
			}}
			if _, err := s.setUp(t.Context()); !errors.Is(err, failure) || !asked {
				t.Errorf("%s: %v, asked %v", step, err, asked)
			}
			return nil
		})
		if diff := cmp.Diff(before, state(t, ns)); diff != "" {
			t.Errorf("a failure at %q left %s", step, diff)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ns.Do(t, func() error {
		if _, err := Setup(ctx, testConfig()); !errors.Is(err, context.Canceled) {
			t.Errorf("interrupted: %v", err)
		}
		return nil
	})
	if diff := cmp.Diff(before, state(t, ns)); diff != "" {
		t.Errorf("an interrupt left %s", diff)
	}
}

// TestAtOnce has two set up the same host at the same time: one of them may fail, and a third finds all there.
func TestAtOnce(t *testing.T) {
	ns := newHost(t)
	results := make(chan error, 2)
	for range 2 {
		go func() {
			results <- ns.Try(func() error {
				_, err := Setup(context.Background(), testConfig())
				return err
			})
		}()
	}
	first, second := <-results, <-results
	if first != nil && second != nil {
		t.Errorf("both failed: %v and %v", first, second)
	}
	setUpIn(t, ns, testConfig())
	ns.Do(t, func() error { return Ready(testConfig()) })
}

func veth(name string) netlink.Link {
	return &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "peer"}
}

// TestRefusals: what is in the way is named, and stays as it was.
func TestRefusals(t *testing.T) {
	for name, tt := range map[string]struct {
		prepare func(t *testing.T) error
		change  func(*Config)
		kind    api.ErrorKind
		want    string
		hint    string
	}{
		"a bridge of somebody's": {
			prepare: func(*testing.T) error {
				return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "bt0"}})
			},
			kind: api.KindConflict, want: "banger did not make it", hint: "another bridge_name",
		},
		"an interface of that name": {
			prepare: func(*testing.T) error {
				return netlink.LinkAdd(veth("bt0"))
			},
			kind: api.KindConflict, want: "it is no bridge", hint: "another bridge_name",
		},
		"an interface with a TAP's name": {
			prepare: func(*testing.T) error {
				return netlink.LinkAdd(veth("bt0-t1"))
			},
			kind: api.KindConflict, want: `"bt0-t1" is in the way`, hint: "ip link delete bt0-t1",
		},
		"another user's bridge": {
			prepare: func(t *testing.T) error {
				c := testConfig()
				c.OwnerUID = 12345
				_, err := Setup(t.Context(), c)
				return err
			},
			kind: api.KindConflict, want: "uid 12345", hint: "teardown",
		},
		"a route": {
			prepare: func(*testing.T) error {
				if err := netlink.LinkAdd(veth("eth9")); err != nil {
					return err
				}
				link, err := netlink.LinkByName("eth9")
				if err != nil {
					return err
				}
				a, _ := netlink.ParseAddr("172.16.0.77/26")
				return errors.Join(netlink.AddrAdd(link, a), netlink.LinkSetUp(link))
			},
			kind: api.KindConflict, want: "cidr 172.16.0.0/24 overlaps the host's route to 172.16.0.64/26 by eth9", hint: "another cidr",
		},
		"a name that is too long": {change: func(c *Config) { c.Name = "banger-bridge" }, kind: api.KindInvalid, want: "longer than 9", hint: "15 characters"},
		"a name that is none":     {change: func(c *Config) { c.Name = "a/b" }, kind: api.KindInvalid, want: "letters"},
		"too many TAPs":           {change: func(c *Config) { c.CIDR, c.Taps = netip.MustParsePrefix("172.16.0.0/29"), 6 }, kind: api.KindInvalid, want: "addresses for: 5", hint: "tap_pool_size = 5"},
		"no TAPs":                 {change: func(c *Config) { c.Taps = 0 }, kind: api.KindInvalid, want: "tap_pool_size 0", hint: "at once"},
		"a gateway elsewhere":     {change: func(c *Config) { c.IP = netip.MustParseAddr("10.0.0.1") }, kind: api.KindInvalid, want: "bridge_ip 10.0.0.1"},
		"IPv6":                    {change: func(c *Config) { c.CIDR = netip.MustParsePrefix("fd00::/64") }, kind: api.KindInvalid, want: "IPv4"},
	} {
		t.Run(name, func(t *testing.T) {
			ns := newHost(t)
			if tt.prepare != nil {
				ns.Do(t, func() error { return tt.prepare(t) })
			}
			before := state(t, ns)
			cfg := testConfig()
			if tt.change != nil {
				tt.change(&cfg)
			}
			ns.Do(t, func() error {
				_, err := Setup(t.Context(), cfg)
				e := api.AsError(err)
				if err == nil || e.Kind != tt.kind || !strings.Contains(err.Error(), tt.want) || !strings.Contains(e.Hint, tt.hint) {
					t.Errorf("%v: %v, hint %q", e.Kind, err, e.Hint)
				}
				return nil
			})
			if diff := cmp.Diff(before, state(t, ns)); diff != "" {
				t.Errorf("it changed %s", diff)
			}
		})
	}
}

// TestInUse: a bridge with a VM on it is neither changed nor removed, unless by force.
func TestInUse(t *testing.T) {
	ns := newHost(t)
	cfg := testConfig()
	setUpIn(t, ns, cfg)
	ns.Do(t, func() error {
		f, err := tap.Open("bt0-t1")
		if err != nil {
			return err
		}
		defer f.Close()
		other := cfg
		other.IP = netip.MustParseAddr("172.16.0.254")
		for what, err := range map[string]error{
			"change": func() error { _, err := Setup(t.Context(), other); return err }(),
			"remove": func() error { _, err := Teardown(t.Context(), "bt0", false); return err }(),
		} {
			if api.KindOf(err) != api.KindConflict || !strings.Contains(err.Error(), what+` bridge "bt0": VMs that run are on it, by bt0-t1`) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if again, err := Setup(t.Context(), cfg); err != nil || len(again) > 0 {
			t.Errorf("the same again: %q, %v", again, err)
		}
		_, err = Teardown(t.Context(), "bt0", true)
		return err
	})
}

// TestUnprivileged is Setup by one who may not.
func TestUnprivileged(t *testing.T) {
	ns := newHost(t)
	ns.Do(t, func() error { // the thread ends with it
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			return err
		}
		for what, err := range map[string]error{
			"set up":    func() error { _, err := Setup(t.Context(), testConfig()); return err }(),
			"tear down": func() error { _, err := Teardown(t.Context(), "bt0", true); return err }(),
		} {
			if api.KindOf(err) != api.KindUnavailable || !strings.Contains(api.AsError(err).Hint, "sudo") {
				t.Errorf("%s: %v", what, err)
			}
		}
		return nil
	})
}

// TestAddresses: TAPs and addresses are one to one, whatever the network.
func TestAddresses(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		bits := 8 + r.IntN(22)
		base := netip.AddrFrom4([4]byte{byte(1 + r.IntN(223)), byte(r.IntN(256)), byte(r.IntN(256)), byte(r.IntN(256))})
		c := Config{Name: "b", CIDR: netip.PrefixFrom(base, bits).Masked()}
		c.Taps = min(MaxTaps, Addresses(c.CIDR))
		n := number(c.CIDR.Addr()) + 1 + uint32(r.IntN(min(2000, Addresses(c.CIDR)+1)))
		c.IP = netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
		if err := c.Check(); err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		seen := map[netip.Addr]bool{}
		for i := range c.Taps {
			a := Addr(c, i)
			name, ok := TAPOf(c, a)
			if !usable(c.CIDR, a) || a == c.IP || seen[a] || !ok || name != tapName(c.Name, i) {
				t.Fatalf("%+v: TAP %d has %s, which has %q, %v", c, i, a, name, ok)
			}
			seen[a] = true
		}
		last := Addr(c, c.Taps-1)
		if last != Last(c) {
			t.Fatalf("%+v: the last is %s, not %s", c, Last(c), last)
		}
		for _, a := range []netip.Addr{c.IP, c.CIDR.Addr(), last.Next(), netip.MustParseAddr("224.0.0.1"), netip.MustParseAddr("::1")} {
			if name, ok := TAPOf(c, a); ok && !seen[a] {
				t.Fatalf("%+v: %s has %q", c, a, name)
			}
		}
	}
}

func FuzzReadMark(f *testing.F) {
	for _, s := range []string{"", "banger 1 uid=0 ip=172.16.0.1/24", "banger 1 uid=1000 ip=10.0.0.1/8 forwarding=on", "banger 1 uid=x", "banger 2 uid=1 ip=1.2.3.4/5"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, ok := readMark(s)
		if !ok {
			return
		}
		if again, ok := readMark(m.String()); !ok || again != m {
			t.Errorf("%q is %+v, which is %q", s, m, m.String())
		}
	})
}

// BenchmarkSetup is a host with 32 TAPs, from nothing.
func BenchmarkSetup(b *testing.B) {
	ns := newHost(b)
	cfg := testConfig()
	cfg.Taps = 32
	for b.Loop() {
		setUpIn(b, ns, cfg)
		b.StopTimer()
		ns.Do(b, func() error { _, err := Teardown(context.Background(), cfg.Name, true); return err })
		b.StartTimer()
	}
}
