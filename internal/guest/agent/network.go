package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

const (
	// ethName is the guest's interface to the outside.
	ethName = "eth0"
	// ethDeadline is how long it may take to appear after its driver was loaded.
	ethDeadline = 10 * time.Second

	resolvConf = "/etc/resolv.conf"
	// nmConf keeps NetworkManager, where the image has it, off what the agent has set up.
	nmDir  = "/etc/NetworkManager"
	nmConf = "/run/NetworkManager/conf.d/banger.conf"
)

// network is wire.Network, parsed.
type network struct {
	mac     net.HardwareAddr
	address netip.Prefix
	gateway netip.Addr
	mtu     int
}

func parseNetwork(n wire.Network) (network, error) {
	bad := func(err error) (network, error) { return network{}, fmt.Errorf("read the network's settings: %w", err) }
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		return bad(err)
	}
	address, err := netip.ParsePrefix(n.Address)
	if err != nil {
		return bad(err)
	}
	gateway, err := netip.ParseAddr(n.Gateway)
	if err != nil {
		return bad(err)
	}
	return network{mac: mac, address: address, gateway: gateway, mtu: n.MTU}, nil
}

// setUpNetwork sets the guest's eth0 up, and makes it first where that is the agent's to make.
func (a *agent) setUpNetwork(conf wire.Network) error {
	n, err := parseNetwork(conf)
	if err == nil && a.tap != nil {
		err = a.tap.set(n.mac)
	}
	if err == nil {
		err = setUpNetwork(n)
	}
	return err
}

// setUpNetwork gives eth0 its addresses and brings it up. What is as it should be is not touched, so it may be called again.
func setUpNetwork(n network) error {
	link, err := awaitLink(n.mac)
	if err != nil {
		return err
	}
	if err := bringUp(link, n); err != nil {
		return fmt.Errorf("set up %s: %w", ethName, err)
	}
	return nil
}

// awaitLink waits for the interface with a hardware address.
func awaitLink(mac net.HardwareAddr) (netlink.Link, error) {
	for end := time.Now().Add(ethDeadline); ; <-time.After(2 * time.Millisecond) {
		links, err := netlink.LinkList()
		if err != nil {
			return nil, fmt.Errorf("list network interfaces: %w", err)
		}
		for _, l := range links {
			if l.Attrs().HardwareAddr.String() == mac.String() {
				return l, nil
			}
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("find the network interface with address %s: none after %v", mac, ethDeadline)
		}
	}
}

func bringUp(link netlink.Link, n network) error {
	name := link.Attrs().Name
	if name != ethName {
		// Refused while it is up: then somebody has named it on purpose.
		if netlink.LinkSetName(link, ethName) == nil {
			name = ethName
		}
	}
	// IPv6 does not lead anywhere yet: without an address programs do not try it first.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1\n"), 0) // absent where the kernel has no IPv6
	if n.mtu > 0 && link.Attrs().MTU != n.mtu {
		if err := netlink.LinkSetMTU(link, n.mtu); err != nil {
			return fmt.Errorf("set mtu %d: %w", n.mtu, err)
		}
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: n.address.Addr().AsSlice(), Mask: net.CIDRMask(n.address.Bits(), 32)}}
	if err := replaceAddress(link, address); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring it up: %w", err)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: n.gateway.AsSlice(), Protocol: unix.RTPROT_STATIC}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("route by %s: %w", n.gateway, err)
	}
	return nil
}

// replaceAddress makes address the only IPv4 address of link.
func replaceAddress(link netlink.Link, address *netlink.Addr) error {
	old, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list its addresses: %w", err)
	}
	for _, a := range old {
		if !a.Equal(*address) {
			if err := netlink.AddrDel(link, &a); err != nil {
				return fmt.Errorf("remove address %s: %w", a.IPNet, err)
			}
		}
	}
	if err := netlink.AddrReplace(link, address); err != nil {
		return fmt.Errorf("add address %s: %w", address.IPNet, err)
	}
	return nil
}

// networkFiles tells the image's programs what the network is: the resolver, and NetworkManager to stay away. For
// systemd-networkd see networkUnits.
func networkFiles(n wire.Network) error {
	err := writeChanged(resolvConf, resolvText(n))
	if _, serr := os.Stat(nmDir); serr == nil {
		err = errors.Join(err, writeChanged(nmConf, "[keyfile]\nunmanaged-devices=interface-name:"+ethName+"\n"))
	}
	return err
}

func resolvText(n wire.Network) string {
	var b strings.Builder
	b.WriteString("# written by banger at every start\n")
	for _, d := range n.DNS {
		b.WriteString("nameserver " + d + "\n")
	}
	if n.Search != "" {
		b.WriteString("search " + n.Search + "\n")
	}
	return b.String()
}

// networkUnits tells systemd-networkd, where the image runs it, what the agent sets up anyway: it would wait for an
// interface it does not manage, and take away what it does not know.
func networkUnits(n wire.Network) []unitFile {
	units := []unitFile{{path: "network/00-banger.network", content: fmt.Sprintf(`[Match]
MACAddress=%s

[Link]
MTUBytes=%d

[Network]
Address=%s
Gateway=%s
DNS=%s
Domains=%s
LinkLocalAddressing=no
IPv6AcceptRA=no
KeepConfiguration=yes
`, n.MAC, n.MTU, n.Address, n.Gateway, strings.Join(n.DNS, " "), n.Search)}}
	if n.Device == wire.DeviceTAP {
		units = append(units, tapUnits()...)
	}
	return units
}
