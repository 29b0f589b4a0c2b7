package nettest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
)

// The host's side. Its default route leads through Gateway to everything else; Private is a subnet it is directly on.
var (
	HostAddr = netip.MustParseAddr("192.0.2.2")
	Gateway  = netip.MustParseAddr("192.0.2.1")
	// PrivateAddr is the host's address in its private subnet, PrivatePeer another address there, where TCP echo listens.
	PrivateAddr = netip.MustParseAddr("10.77.0.2")
	PrivatePeer = netip.MustParseAddrPort("10.77.0.1:7")
)

// What listens outside.
var (
	// HTTP answers any request with "hello from HOST PATH\n".
	HTTP = netip.MustParseAddrPort("203.0.113.10:80")
	// DNS serves the zone example.test, over UDP and TCP; see ZoneNames.
	DNS = netip.MustParseAddrPort("203.0.113.53:53")
	// Echo is TCP and UDP.
	Echo = netip.MustParseAddrPort("203.0.113.7:7")
	// Discard reads and throws away, Chargen writes zeros for ever.
	Discard = netip.MustParseAddrPort("203.0.113.7:9")
	Chargen = netip.MustParseAddrPort("203.0.113.7:19")
	// Silent accepts and never says anything, Reset accepts and resets at the first byte.
	Silent = netip.MustParseAddrPort("198.51.100.1:10")
	Reset  = netip.MustParseAddrPort("198.51.100.1:11")
	// Refused is closed for TCP and for UDP, Blackhole is an address that never answers anything.
	Refused   = netip.MustParseAddrPort("198.51.100.1:12")
	Blackhole = netip.MustParseAddrPort("198.51.100.66:80")
)

// Interfaces of the namespaces.
const (
	// HostInterface is the host's, OutsideInterface the one at its other end.
	HostInterface    = "up0"
	OutsideInterface = "down0"
)

// Internet is a host and all that is not the host.
type Internet struct {
	// Host is where the daemon under test is, Outside where the servers are.
	Host, Outside *NS
}

// NewInternet makes both namespaces, joins them and starts the servers. They go with the test.
func NewInternet(t testing.TB) *Internet {
	t.Helper()
	in := &Internet{Host: NewNS(t), Outside: NewNS(t)}
	in.Host.Do(t, func() error {
		veth := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: HostInterface, MTU: 1500, TxQLen: 1000}, PeerName: OutsideInterface,
			PeerNamespace: netlink.NsFd(int(in.Outside.file.Fd())),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add veth: %w", err)
		}
		return errors.Join(address(HostInterface, HostAddr.String()+"/30"), address(HostInterface, PrivateAddr.String()+"/24"), setUp(HostInterface))
	})
	in.Outside.Do(t, func() error {
		err := errors.Join(address(OutsideInterface, Gateway.String()+"/30"), address(OutsideInterface, PrivatePeer.Addr().String()+"/24"), setUp(OutsideInterface))
		seen := map[netip.Addr]bool{}
		for _, a := range []netip.AddrPort{HTTP, DNS, Echo, Silent} {
			if !seen[a.Addr()] {
				seen[a.Addr()] = true
				err = errors.Join(err, address("lo", a.Addr().String()+"/32"))
			}
		}
		return err
	})
	in.Host.Do(t, func() error {
		return netlink.RouteAdd(&netlink.Route{Gw: net.IP(Gateway.AsSlice())})
	})
	in.serve(t)
	return in
}

// TellAlways has the host refuse every datagram in words. Of its own accord it sends six ICMP errors to one address at once, and then
// one in a second, and fifty to all (net.ipv4.icmp_ratelimit, icmp_msgs_burst).
func (in *Internet) TellAlways(t testing.TB) {
	t.Helper()
	in.Host.Do(t, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/icmp_ratemask", []byte("0"), 0o644)
	})
}

// AllowPing lets every group of the host send ICMP echo requests through ping sockets, which is up to the host's
// administrator otherwise.
func (in *Internet) AllowPing(t testing.TB) {
	t.Helper()
	in.Host.Do(t, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0o644)
	})
}
