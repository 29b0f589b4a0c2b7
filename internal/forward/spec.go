package forward

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
)

const specForm = "use [HOSTIP:]HOST:GUEST[/udp], for example 8080:80, 127.0.0.1:5353:53/udp or 3000; a HOST of 0 is one that is free"

// Parse reads a forward as flags have it: [HOSTIP:]HOST:GUEST[/tcp|/udp], an IPv6 address in brackets; PORT alone is the same on both
// sides. A HOST of 0 asks for a port that is free. What is left out is 127.0.0.1 and tcp.
func Parse(spec string) (api.Forward, error) {
	p, err := split(spec)
	if err != nil {
		return api.Forward{}, err
	}
	f := api.Forward{Protocol: p.protocol}
	switch len(p.ports) {
	case 1:
		if f.GuestPort, err = parsePort(spec, p.ports[0], 1); err != nil {
			return f, err
		}
		f.HostPort = f.GuestPort
	case 2:
		if f.HostPort, err = parsePort(spec, p.ports[0], 0); err != nil {
			return f, err
		}
		if f.GuestPort, err = parsePort(spec, p.ports[1], 1); err != nil {
			return f, err
		}
	}
	if p.address != "" {
		if len(p.ports) != 2 {
			return f, bad(spec, "the port of the VM is missing")
		}
		if f.HostAddress, err = netip.ParseAddr(p.address); err != nil {
			return f, notAddress(spec, p.address)
		}
	}
	return Normal(f)
}

// ParseRemoval reads which forward is to go: its HOST port, [HOSTIP:]HOST[/udp], or all of it, as Parse takes it.
func ParseRemoval(spec string) (api.RemoveForward, error) {
	p, err := split(spec)
	if err != nil {
		return api.RemoveForward{}, err
	}
	if len(p.ports) == 2 {
		if _, err := netip.ParseAddr(p.ports[0]); p.address != "" || err != nil {
			f, err := Parse(spec)
			if err == nil && f.HostPort == 0 {
				err = bad(spec, "which port of the host is it?")
			}
			return api.RemoveForward{Protocol: f.Protocol, HostAddress: f.HostAddress, HostPort: f.HostPort}, err
		}
		p.address, p.ports = p.ports[0], p.ports[1:] // 127.0.0.1:8080
	}
	r := api.RemoveForward{Protocol: p.protocol}
	if r.HostPort, err = parsePort(spec, p.ports[0], 1); err != nil {
		return r, err
	}
	if p.address != "" {
		if r.HostAddress, err = netip.ParseAddr(p.address); err != nil {
			return r, notAddress(spec, p.address)
		}
		r.HostAddress = r.HostAddress.Unmap()
	}
	return r, nil
}

// parts are the pieces of a spec: one or two ports, or what stands in their places.
type parts struct {
	address, protocol string
	ports             []string
}

func split(spec string) (parts, error) {
	var p parts
	rest, protocol, given := strings.Cut(spec, "/")
	if p.protocol = strings.ToLower(protocol); given && p.protocol != api.TCP && p.protocol != api.UDP {
		return p, bad(spec, "the protocol is tcp or udp, not %q", protocol)
	}
	if inside, ok := strings.CutPrefix(rest, "["); ok {
		address, after, ok := strings.Cut(inside, "]")
		if !ok || !strings.HasPrefix(after, ":") || address == "" {
			return p, bad(spec, "an IPv6 address stands in brackets, with :HOST:GUEST behind")
		}
		p.address, rest = address, after[1:]
	}
	p.ports = strings.Split(rest, ":")
	switch n := len(p.ports); {
	case p.address == "" && n == 3:
		p.address, p.ports = p.ports[0], p.ports[1:]
		if p.address == "" {
			return p, bad(spec, "the address of the host is empty")
		}
	case n > 3 && p.address == "":
		return p, bad(spec, "an IPv6 address stands in brackets: [::1]:8080:80")
	case n > 2:
		return p, bad(spec, "it has too many parts")
	}
	return p, nil
}

// parsePort reads a port of at least least.
func parsePort(spec, s string, least uint64) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	switch {
	case s == "":
		return 0, bad(spec, "a port is missing")
	case isRange(s):
		return 0, api.Errorf(api.KindInvalid, "forward %q: ranges of ports are not supported", spec).
			WithHint("give each port a forward of its own: -p 8080:80 -p 8081:81")
	case err != nil && netip.Addr{} != parsed(s):
		return 0, bad(spec, "the port of the VM is missing")
	case err != nil || strings.HasPrefix(s, "+"):
		return 0, bad(spec, "%q is not a port, a number from %d to 65535", s, least)
	case n < least:
		return 0, bad(spec, "port %d is not possible here", n)
	}
	return uint16(n), nil
}

func parsed(s string) netip.Addr {
	a, _ := netip.ParseAddr(s)
	return a
}

// isRange reports whether s is two numbers joined by a dash.
func isRange(s string) bool {
	from, to, ok := strings.Cut(s, "-")
	return ok && isNumber(from) && isNumber(to)
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

func bad(spec, format string, args ...any) *api.Error {
	return api.Errorf(api.KindInvalid, "forward %q: "+format, append([]any{spec}, args...)...).WithHint(specForm)
}

func notAddress(spec, address string) error {
	err := bad(spec, "%q is not an IP address", address)
	if address == "localhost" {
		return err.WithHint("127.0.0.1 is meant where no address is given")
	}
	return err
}

// Normal fills in what a forward leaves out (tcp, 127.0.0.1) and checks the rest.
func Normal(f api.Forward) (api.Forward, error) {
	if f.Protocol = strings.ToLower(f.Protocol); f.Protocol == "" {
		f.Protocol = api.TCP
	}
	if !f.HostAddress.IsValid() {
		f.HostAddress = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	f.HostAddress = f.HostAddress.Unmap()
	switch {
	case f.Protocol != api.TCP && f.Protocol != api.UDP:
		return f, api.Errorf(api.KindInvalid, "forward %s: the protocol is tcp or udp, not %q", f, f.Protocol)
	case f.GuestPort == 0:
		return f, api.Errorf(api.KindInvalid, "forward %s: the port of the VM is 0", f).WithHint(specForm)
	case f.HostAddress.IsMulticast() || f.HostAddress == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return f, api.Errorf(api.KindInvalid, "forward %s: %s is not an address of one host", f, f.HostAddress).WithHint("leave it out for 127.0.0.1")
	}
	return f, nil
}

// Normals is Normal of all of a VM's forwards, which must not be in each other's way, nor more than a VM may have.
func Normals(list []api.Forward) ([]api.Forward, error) {
	out := make([]api.Forward, 0, len(list))
	for _, f := range list {
		f, err := Normal(f)
		if err != nil {
			return nil, err
		}
		if i := slices.IndexFunc(out, func(o api.Forward) bool { return Overlap(o, f) }); i >= 0 {
			return nil, api.Errorf(api.KindInvalid, "forward %s: forward %s has that port already", Short(f), Short(out[i])).WithHint("give each its own port of the host")
		}
		out = append(out, f)
	}
	if len(out) > maxForwards {
		return nil, api.Errorf(api.KindInvalid, "%d forwards are more than a VM may have, which is %d", len(out), maxForwards)
	}
	return out, nil
}

// Overlap reports whether two forwards, both as Normal returns them, cannot listen at once.
func Overlap(a, b api.Forward) bool {
	x, y := a.HostAddress, b.HostAddress
	return a.Protocol == b.Protocol && a.HostPort == b.HostPort && a.HostPort != 0 && x.Is4() == y.Is4() &&
		(x == y || x.IsUnspecified() || y.IsUnspecified())
}

// Short is a forward as one would type it: without what goes without saying.
func Short(f api.Forward) string {
	s := strconv.Itoa(int(f.HostPort)) + ":" + strconv.Itoa(int(f.GuestPort))
	if f.HostAddress.IsValid() && f.HostAddress != netip.AddrFrom4([4]byte{127, 0, 0, 1}) {
		address := f.HostAddress.String()
		if f.HostAddress.Is6() {
			address = "[" + address + "]"
		}
		s = address + ":" + s
	}
	if f.Protocol == api.UDP {
		s += "/udp"
	}
	return s
}

// Line says where a forward of a VM leads, as "127.0.0.1:8080 → web:80", with /udp where it is that.
func Line(f api.Forward, vm string) string {
	s := netip.AddrPortFrom(f.HostAddress, f.HostPort).String() + " → " + vm + ":" + strconv.Itoa(int(f.GuestPort))
	if f.Protocol == api.UDP {
		s += "/udp"
	}
	return s
}

// Exposed says who else reaches the VM by forwards that listen on more than the loopback; empty where there are none.
func Exposed(list []api.Forward) string {
	var at []string
	for _, f := range list {
		if f.HostAddress.IsValid() && !f.HostAddress.IsLoopback() {
			at = append(at, netip.AddrPortFrom(f.HostAddress, f.HostPort).String())
		}
	}
	if len(at) == 0 {
		return ""
	}
	return "everybody who reaches this host at " + strings.Join(at, ", ") + " reaches the VM"
}
