package forward

import (
	"net/netip"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
)

func fwd(protocol, host string, hostPort, guestPort uint16) api.Forward {
	return api.Forward{Protocol: protocol, HostAddress: netip.MustParseAddr(host), HostPort: hostPort, GuestPort: guestPort}
}

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		spec, short string
		want        api.Forward
	}{
		{"8080:80", "8080:80", fwd("tcp", "127.0.0.1", 8080, 80)},
		{"8080:80/tcp", "8080:80", fwd("tcp", "127.0.0.1", 8080, 80)},
		{"3000", "3000:3000", fwd("tcp", "127.0.0.1", 3000, 3000)},
		{"53/udp", "53:53/udp", fwd("udp", "127.0.0.1", 53, 53)},
		{"0:3000", "0:3000", fwd("tcp", "127.0.0.1", 0, 3000)},
		{"5353:53/UDP", "5353:53/udp", fwd("udp", "127.0.0.1", 5353, 53)},
		{"0.0.0.0:8080:80", "0.0.0.0:8080:80", fwd("tcp", "0.0.0.0", 8080, 80)},
		{"127.0.0.2:0:65535/udp", "127.0.0.2:0:65535/udp", fwd("udp", "127.0.0.2", 0, 65535)},
		{"[::1]:8080:80", "[::1]:8080:80", fwd("tcp", "::1", 8080, 80)},
		{"[::]:8080:80/udp", "[::]:8080:80/udp", fwd("udp", "::", 8080, 80)},
		{"[fe80::1%eth0]:8080:80", "[fe80::1%eth0]:8080:80", fwd("tcp", "fe80::1%eth0", 8080, 80)},
		{"[::ffff:127.0.0.1]:8080:80", "8080:80", fwd("tcp", "127.0.0.1", 8080, 80)},
		{"[127.0.0.1]:8080:80", "8080:80", fwd("tcp", "127.0.0.1", 8080, 80)},
	} {
		got, err := Parse(tc.spec)
		if err != nil || got != tc.want || Short(got) != tc.short {
			t.Errorf("Parse(%q) = %s (%s), %v", tc.spec, got, Short(got), err)
		}
		if again, err := Parse(got.String()); err != nil || again != got {
			t.Errorf("Parse(%q) = %s, %v", got.String(), again, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for spec, want := range map[string]string{
		"":                        "a port is missing",
		":80":                     "a port is missing",
		"8080:":                   "a port is missing",
		"127.0.0.1::80":           "a port is missing",
		"::80":                    "the address of the host is empty",
		"8080:0":                  "port 0 is not possible here",
		"0":                       "port 0 is not possible here",
		"65536:80":                `"65536" is not a port`,
		"-1:80":                   `"-1" is not a port`,
		"+1:80":                   `"+1" is not a port`,
		"http:80":                 `"http" is not a port`,
		"8000-8010:80":            "ranges of ports are not supported",
		"8000-8010:9000-9010/udp": "ranges of ports are not supported",
		"127.0.0.1:8080":          "the port of the VM is missing",
		"[::1]:8080":              "the port of the VM is missing",
		"localhost:8080:80":       `"localhost" is not an IP address`,
		"::1:8080:80":             "an IPv6 address stands in brackets",
		"[::1:8080:80":            "an IPv6 address stands in brackets",
		"[::1]8080:80":            "an IPv6 address stands in brackets",
		"[::1]:1:2:3":             "it has too many parts",
		"8080:80/sctp":            `the protocol is tcp or udp, not "sctp"`,
		"8080:80/":                `the protocol is tcp or udp, not ""`,
		"8080:80/tcp/udp":         `the protocol is tcp or udp, not "tcp/udp"`,
		"224.0.0.1:8080:80":       "is not an address of one host",
		"255.255.255.255:1:1":     "is not an address of one host",
		"10.0.0.256:8080:80":      "is not an IP address",
	} {
		got, err := Parse(spec)
		if err == nil || !strings.Contains(err.Error(), want) || api.KindOf(err) != api.KindInvalid || api.AsError(err).Hint == "" {
			t.Errorf("Parse(%q) = %s, %v; want an error with %q and a hint", spec, got, err, want)
		}
	}
}

func TestParseRemoval(t *testing.T) {
	for _, tc := range []struct {
		spec, protocol, host string
		port                 uint16
	}{
		{"8080", "", "", 8080},
		{"8080/udp", "udp", "", 8080},
		{"127.0.0.1:8080", "", "127.0.0.1", 8080},
		{"[::1]:8080/tcp", "tcp", "::1", 8080},
		{"8080:80", "tcp", "127.0.0.1", 8080},
		{"0.0.0.0:8080:80/udp", "udp", "0.0.0.0", 8080},
	} {
		got, err := ParseRemoval(tc.spec)
		want := api.RemoveForward{Protocol: tc.protocol, HostPort: tc.port}
		if tc.host != "" {
			want.HostAddress = netip.MustParseAddr(tc.host)
		}
		if err != nil || got != want {
			t.Errorf("ParseRemoval(%q) = %+v, %v", tc.spec, got, err)
		}
	}
	for _, spec := range []string{"", "0", "0:80", "x", "x:80", "8080/x", "1.2.3.4:", "[::1]:", "1:2:3:4", "1-2"} {
		if got, err := ParseRemoval(spec); api.KindOf(err) != api.KindInvalid {
			t.Errorf("ParseRemoval(%q) = %+v, %v", spec, got, err)
		}
	}
}

func TestNormals(t *testing.T) {
	list, err := Normals([]api.Forward{{HostPort: 80, GuestPort: 80}, {Protocol: "UDP", HostPort: 80, GuestPort: 80}, {GuestPort: 80}, {GuestPort: 80},
		fwd("tcp", "127.0.0.2", 80, 80), fwd("tcp", "::", 80, 80)})
	if err != nil || list[0] != fwd("tcp", "127.0.0.1", 80, 80) || list[1].Protocol != "udp" {
		t.Errorf("%v, %v", list, err)
	}
	for _, list := range [][]api.Forward{
		{{HostPort: 80, GuestPort: 80}, {HostPort: 80, GuestPort: 81}},
		{fwd("tcp", "0.0.0.0", 80, 80), {HostPort: 80, GuestPort: 81}},
		{fwd("tcp", "::1", 80, 80), fwd("tcp", "::", 80, 80)},
		{{HostPort: 80}},
		{{HostPort: 80, GuestPort: 1, Protocol: "icmp"}},
		make([]api.Forward, 1),
	} {
		if got, err := Normals(list); api.KindOf(err) != api.KindInvalid {
			t.Errorf("Normals(%v) = %v, %v", list, got, err)
		}
	}
	many := make([]api.Forward, maxForwards+1)
	for i := range many {
		many[i].GuestPort = 1
	}
	if _, err := Normals(many); api.KindOf(err) != api.KindInvalid {
		t.Errorf("%d forwards: %v", len(many), err)
	}
}

func TestTexts(t *testing.T) {
	if got := Line(fwd("udp", "::1", 41234, 53), "web"); got != "[::1]:41234 → web:53/udp" {
		t.Error(got)
	}
	if got := Exposed([]api.Forward{fwd("tcp", "127.0.0.1", 1, 1), fwd("tcp", "127.1.2.3", 1, 1), fwd("tcp", "::1", 1, 1), {}}); got != "" {
		t.Error(got)
	}
	if got := Exposed([]api.Forward{fwd("tcp", "0.0.0.0", 80, 1), fwd("tcp", "::", 81, 1)}); got != "everybody who reaches this host at 0.0.0.0:80, [::]:81 reaches the VM" {
		t.Error(got)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"8080:80", "0.0.0.0:8080:80/udp", "[::1]:8080:80/tcp", "3000", "8000-8010:80", "[fe80::1%e]:1:1", ":::", "[", "/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		got, err := Parse(spec)
		if err != nil {
			if api.KindOf(err) != api.KindInvalid {
				t.Errorf("Parse(%q): %v is no invalid request", spec, err)
			}
			return
		}
		if again, err := Parse(Short(got)); err != nil || again != got {
			t.Errorf("Parse(%q) is %s, which reads back as %s, %v", spec, Short(got), again, err)
		}
		r, err := ParseRemoval(Short(got))
		if (err == nil) != (got.HostPort != 0) || err == nil && (r.HostPort != got.HostPort || r.HostAddress != got.HostAddress || r.Protocol != got.Protocol) {
			t.Errorf("ParseRemoval(%q) = %+v, %v", Short(got), r, err)
		}
	})
}
