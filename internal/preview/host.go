package preview

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// target is what a Host header names.
type target struct {
	// vm is a VM's name, empty for the page of all; port is of the VM, 0 for its page.
	vm   string
	port uint16
	// host is the name or address without a port, in lower case and without brackets; web is the port behind it, 80 where there is none.
	host string
	web  uint16
}

// domain is what the names end in. Browsers take all of it for this host, without asking a resolver (RFC 6761, 6.3).
const domain = "localhost"

var errHost = errors.New("not a host")

// parseHost reads a Host header: [[PORT.]NAME.]localhost or a loopback address, each with a port or without one. The error is for who asked.
func parseHost(h string) (target, error) {
	host, web, err := splitHost(h)
	if err != nil {
		return target{}, fmt.Errorf("the request names the host %q, which is none", clip(h))
	}
	t := target{host: host, web: web}
	if a, err := netip.ParseAddr(host); err == nil {
		if a.IsLoopback() && a.Zone() == "" {
			return t, nil
		}
		return target{}, fmt.Errorf("the request is for the host %q: this port is served by names that end in %s, and at loopback addresses", clip(h), domain)
	}
	if host == domain {
		return t, nil
	}
	names, ok := strings.CutSuffix(host, "."+domain)
	if !ok {
		return target{}, fmt.Errorf("the request is for the host %q, which is not one that ends in %s", clip(h), domain)
	}
	port, name, two := strings.Cut(names, ".")
	if !two {
		port, name = "", names
	}
	if !isName(name) {
		return target{}, fmt.Errorf("the request is for the host %q: before %s stands the name of a VM, and before that a port: PORT.NAME.%s",
			clip(h), domain, domain)
	}
	t.vm = name
	if two {
		if t.port, ok = parsePort(port); !ok {
			return target{}, fmt.Errorf("the request is for the host %q: %q is not a port", clip(h), clip(port))
		}
	}
	return t, nil
}

// splitHost takes the port off a Host header.
func splitHost(h string) (host string, web uint16, err error) {
	host, web = h, 80
	if i := strings.LastIndexByte(h, ':'); i >= 0 && !strings.HasSuffix(h, "]") {
		var ok bool
		if web, ok = parsePort(h[i+1:]); !ok {
			return "", 0, errHost
		}
		host = h[:i]
	}
	if in, ok := strings.CutPrefix(host, "["); ok {
		in, ok = strings.CutSuffix(in, "]")
		if a, err := netip.ParseAddr(in); err != nil || !ok || !a.Is6() {
			return "", 0, errHost
		}
		return in, web, nil
	}
	if host == "" || len(host) > 253 || strings.Contains(host, ":") {
		return "", 0, errHost
	}
	return strings.ToLower(host), web, nil
}

// parsePort reads a port, 1 to 65535, as it is written in one way only.
func parsePort(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil && n > 0 && s == strconv.FormatUint(n, 10)
}

// isName reports whether a VM could be called so: a DNS label that is no number.
func isName(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' || strings.Trim(s, "0123456789") == "" {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// owns reports whether an origin or a URL, such as "http://3000.web.localhost:7777", is of the same VM at the same web port, or for the pages of
// all VMs of the same host. Other ports of the name localhost are other programs, of other users perhaps.
func (t target) owns(url string) bool {
	rest, ok := strings.CutPrefix(url, "http://")
	if !ok {
		return false
	}
	host, _, _ := strings.Cut(rest, "/")
	from, err := parseHost(host)
	if err != nil || from.vm != t.vm || from.web != t.web {
		return false
	}
	return t.vm != "" || from.host == t.host
}

// url is another name served at the same web port, as the client knows that port.
func (t target) url(vm string, port uint16) string {
	return URL(net.JoinHostPort(t.hostOr(), strconv.Itoa(int(t.web))), vm, port)
}

// hostOr is where the page of all VMs is: where it was asked for, or at the name that stands for this host.
func (t target) hostOr() string {
	if t.vm != "" {
		return domain
	}
	return t.host
}

// clip is text of a request, short enough to be repeated.
func clip(s string) string {
	const most = 80
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
