package egress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// host is what the policy asks about the machine it runs on.
type host interface {
	// addresses are those of all interfaces, each with the length of its subnet; a point-to-point peer counts as an address.
	addresses() ([]netip.Prefix, error)
	// route is how the kernel would treat a packet for a.
	route(a netip.Addr) (routeKind, error)
}

// routeKind is the kernel's type of a route (rtnetlink(7), rtm_type).
type routeKind int

// refused names why a destination with such a route is not dialled.
func (k routeKind) refused() string {
	switch k {
	case unix.RTN_UNICAST:
		return ""
	case unix.RTN_LOCAL:
		return "an address of the host"
	case unix.RTN_BROADCAST, unix.RTN_ANYCAST:
		return "broadcast"
	case unix.RTN_MULTICAST:
		return "multicast"
	default:
		return "no unicast route"
	}
}

// kernel asks over rtnetlink, which needs no privilege.
type kernel struct{}

func (kernel) addresses() ([]netip.Prefix, error) {
	return addressesFrom(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
}

// dumpTries is how often a list is asked for that changed while it was read, as it does where containers come and go.
const dumpTries = 8

// addressesFrom returns what list does, once that is whole.
func addressesFrom(list func() ([]netlink.Addr, error)) ([]netip.Prefix, error) {
	all, err := list()
	for try := 1; try < dumpTries && errors.Is(err, netlink.ErrDumpInterrupted); try++ {
		all, err = list()
	}
	if err != nil {
		return nil, fmt.Errorf("list addresses of the host: %w", err)
	}
	var out []netip.Prefix
	for _, a := range all {
		for _, n := range []*net.IPNet{a.IPNet, a.Peer} {
			if p, ok := prefixOf(n); ok {
				out = append(out, p)
			}
		}
	}
	return out, nil
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if !ok || size == 0 {
		return netip.Prefix{}, false
	}
	a = a.Unmap()
	if a.Is4() && size == 128 {
		bits -= 96
	}
	p := netip.PrefixFrom(a, bits)
	return p, p.IsValid()
}

func (kernel) route(a netip.Addr) (routeKind, error) {
	routes, err := netlink.RouteGet(net.IP(a.AsSlice()))
	if err != nil {
		return 0, fmt.Errorf("route to %s: %w", a, err)
	}
	if len(routes) == 0 {
		return 0, fmt.Errorf("route to %s: %w", a, unix.ENETUNREACH)
	}
	return routeKind(routes[0].Type), nil
}
