package doctor

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/config"
)

// Route is where the host sends packets for some addresses.
type Route struct {
	To        netip.Prefix
	Interface string
}

// Overlap returns the routes of a host that share addresses with cidr, the narrowest first: what is there cannot be reached
// from guests, or guests not from the host. Routes to everywhere do not count, nor do the two halves of everywhere
// that VPNs lay over them.
func Overlap(cidr netip.Prefix, routes []Route) []Route {
	var out []Route
	for _, r := range routes {
		if r.To.Bits() > 1 && r.To.Overlaps(cidr) {
			out = append(out, r)
		}
	}
	slices.SortStableFunc(out, func(a, b Route) int { return b.To.Bits() - a.To.Bits() })
	return out
}

// freeCIDRs are networks to propose instead of one that is taken; few sites use them.
var freeCIDRs = []string{"172.16.0.0/24", "172.29.213.0/24", "10.213.0.0/24", "192.168.213.0/24", "198.18.213.0/24"}

// network looks whether the guests' addresses are free on the host.
func (o Observations) network() Check {
	const name = "network"
	c := o.Settings
	var taken []Route
	for _, r := range Overlap(c.CIDR, o.Routes) {
		if c.Network != config.NetworkBridge || r.Interface != c.BridgeName {
			taken = append(taken, r)
		}
	}
	if len(taken) == 0 {
		return ok(name, "mode %q, guests have %s", c.Network, c.CIDR)
	}
	var what []string
	for _, r := range taken {
		what = append(what, r.To.String()+" by "+r.Interface)
	}
	w := warn(name, "guests have %s, and this host reaches %s: guests cannot reach what is there", c.CIDR, strings.Join(what, ", "))
	for _, text := range freeCIDRs {
		if free := netip.MustParsePrefix(text); len(Overlap(free, o.Routes)) == 0 {
			return w.hint("set cidr = %q in %s", text, o.ConfigPath)
		}
	}
	return w.hint("set cidr in %s to addresses this host does not use", o.ConfigPath)
}

// bridge tells whether the host is set up for bridge mode, where the configuration asks for it.
func (o Observations) bridge() Check {
	const name = "bridge"
	switch err := o.Bridge; {
	case o.Settings.Network != config.NetworkBridge:
		return ok(name, "not used: network = %q", o.Settings.Network)
	case err != nil && o.BridgeByDaemon && api.KindOf(err) == api.KindUnavailable:
		return ok(name, "%s is not there yet: the daemon may make it, and does", o.Settings.BridgeName)
	case err != nil:
		e := api.AsError(err)
		return fail(name, "%s", err).hint("%s", e.Hint)
	}
	return ok(name, "%s with %d TAPs; more of it: sudo banger net status", o.Settings.BridgeName, o.Settings.TapPoolSize)
}

// resolver tells who answers guests' questions for names.
func (o Observations) resolver() Check {
	const name = "resolver"
	from, list := "resolv.conf", o.Resolvers
	if len(o.Settings.DefaultDNS) > 0 {
		from, list = "default_dns", o.Settings.DefaultDNS
	}
	if len(list) == 0 {
		return warn(name, "/etc/resolv.conf names no resolver: guests can resolve the names of VMs only").
			hint("name one with default_dns = [\"ADDRESS\"] in %s", o.ConfigPath)
	}
	var addrs []string
	for _, a := range list {
		if a.Port() == 53 {
			addrs = append(addrs, a.Addr().String())
		} else {
			addrs = append(addrs, a.String())
		}
	}
	return ok(name, "%s, from %s", strings.Join(addrs, ", "), from)
}

// ping tells whether guests can ping outside, which the daemon does for them with the kernel's unprivileged ping sockets.
func (o Observations) ping() Check {
	const name = "ping"
	if slices.ContainsFunc(o.Groups, func(g int) bool { return g >= o.PingGroups[0] && g <= o.PingGroups[1] }) {
		return ok(name, "guests can ping what is outside")
	}
	return ok(name, "guests can ping the gateway and other VMs only: this user is in no group of net.ipv4.ping_group_range").
		hint("sudo sysctl -w net.ipv4.ping_group_range='0 2147483647'")
}

// webPort tells whether the daemon's web port is where it is configured to be.
func (o Observations) webPort() Check {
	const name = "web port"
	at := o.Settings.WebListenAddr
	switch run := o.Running; {
	case run != nil && run.WebWarning != "":
		return warn(name, "%s", run.WebWarning).hint("set web_listen_addr in %s to what is free, then: banger daemon stop", o.ConfigPath)
	case run != nil && run.WebAddress != "":
		return ok(name, "%s", run.WebURL())
	case at == "":
		return ok(name, "none, as web_listen_addr is empty")
	case run != nil:
		return warn(name, "the daemon that runs has none").hint("banger daemon stop; the next command starts one that has (VMs go on)")
	case errors.Is(o.Web.Err, syscall.EADDRINUSE):
		by := cmp.Or(o.Web.By, "another program")
		return warn(name, "%s is used by %s: the daemon will take a port near it", at, by).
			hint("end what uses it, or set web_listen_addr in %s to what is free", o.ConfigPath)
	case o.Web.Err != nil:
		return warn(name, "%s cannot be opened: %v", at, o.Web.Err).hint("set web_listen_addr = %q in %s", "127.0.0.1:7777", o.ConfigPath)
	}
	return ok(name, "%s is free", at)
}
