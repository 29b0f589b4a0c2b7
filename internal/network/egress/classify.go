package egress

import (
	"net/netip"
	"slices"
)

// rule is a network and what it is called.
type rule struct {
	prefix netip.Prefix
	name   string
}

// never are the networks that are never dialled.
var never = []rule{
	{netip.MustParsePrefix("0.0.0.0/8"), "unspecified"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved"},
	{netip.MustParsePrefix("::/128"), "unspecified"},
	{netip.MustParsePrefix("::1/128"), "loopback"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// private are the networks of Config.AllowPrivate (RFC 1918, 6598, 6890, 2544, 4193, 3879).
var private = []rule{
	{netip.MustParsePrefix("10.0.0.0/8"), "private network"},
	{netip.MustParsePrefix("172.16.0.0/12"), "private network"},
	{netip.MustParsePrefix("192.168.0.0/16"), "private network"},
	{netip.MustParsePrefix("100.64.0.0/10"), "shared address space"},
	{netip.MustParsePrefix("192.0.0.0/24"), "protocol assignments"},
	{netip.MustParsePrefix("198.18.0.0/15"), "benchmarking network"},
	{netip.MustParsePrefix("fc00::/7"), "private network"},
	{netip.MustParsePrefix("fec0::/10"), "site-local"},
}

// Networks are the IPv4 networks that guests do not reach whatever the host is like, for those who have a firewall say so.
func Networks(allowPrivate bool) []netip.Prefix {
	rules := never
	if !allowPrivate {
		rules = append(slices.Clip(rules), private...)
	}
	var out []netip.Prefix
	for _, r := range rules {
		if r.prefix.Addr().Is4() {
			out = append(out, r.prefix)
		}
	}
	return out
}

// classify names the fixed rule that forbids a; empty where none does.
func (p *Policy) classify(a netip.Addr) string {
	if !a.IsValid() {
		return "no address"
	}
	if name := p.match(a); name != "" {
		return name
	}
	if a.Is4() {
		return ""
	}
	for _, inner := range embedded(a) {
		if name := p.match(inner); name != "" {
			return name + " inside " + a.String()
		}
	}
	return "IPv6 is not forwarded yet"
}

// match names the rule whose network a is in, taking a as it is.
func (p *Policy) match(a netip.Addr) string {
	for _, r := range never {
		if r.prefix.Contains(a) {
			return r.name
		}
	}
	if p.cidr.Contains(a) {
		return "banger's own network"
	}
	if p.allowPrivate {
		return ""
	}
	for _, r := range private {
		if r.prefix.Contains(a) {
			return r.name
		}
	}
	return ""
}

// Networks whose IPv6 addresses carry an IPv4 one.
var (
	compatible = netip.MustParsePrefix("::/96")           // RFC 4291 2.5.5.1
	translated = netip.MustParsePrefix("::ffff:0:0:0/96") // RFC 2765
	nat64      = netip.MustParsePrefix("64:ff9b::/96")    // RFC 6052
	nat64Local = netip.MustParsePrefix("64:ff9b:1::/48")  // RFC 8215
	sixToFour  = netip.MustParsePrefix("2002::/16")       // RFC 3056
	teredo     = netip.MustParsePrefix("2001::/32")       // RFC 4380
)

// embedded returns the IPv4 addresses an IPv6 address carries, in every reading there is.
func embedded(a netip.Addr) []netip.Addr {
	b := a.As16()
	v4 := func(i, j, k, l int) netip.Addr { return netip.AddrFrom4([4]byte{b[i], b[j], b[k], b[l]}) }
	last := v4(12, 13, 14, 15)
	switch {
	case compatible.Contains(a), translated.Contains(a), nat64.Contains(a):
		return []netip.Addr{last}
	case nat64Local.Contains(a):
		// RFC 6052 2.2: where it lies depends on the length of the prefix (48, 56, 64, 96); byte 8 is not part of it
		return []netip.Addr{v4(6, 7, 9, 10), v4(7, 9, 10, 11), v4(9, 10, 11, 12), last}
	case sixToFour.Contains(a):
		return []netip.Addr{v4(2, 3, 4, 5)}
	case teredo.Contains(a):
		return []netip.Addr{v4(4, 5, 6, 7), netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]})}
	case b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe: // ISATAP, RFC 5214
		return []netip.Addr{last}
	}
	return nil
}
