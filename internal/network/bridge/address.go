package bridge

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
)

// Limits of a configuration.
const (
	// MaxTaps is the greatest size of a pool.
	MaxTaps = 1024
	// MaxName is the greatest length of a bridge's name: those of its TAPs, NAME-t1023 at most, are of 15 (IFNAMSIZ).
	MaxName = 9
)

// Config is what a host is to be like. All fields are required but AllowPrivate.
type Config struct {
	// Name is the bridge's, at most MaxName characters. TAPs are called NAME-t0, NAME-t1, ….
	Name string
	// IP is the host's address on the bridge, an address of CIDR, which is IPv4 and of 8 to 29 bits.
	IP   netip.Addr
	CIDR netip.Prefix
	// Taps is the size of the pool, 1 to MaxTaps.
	Taps int
	// OwnerUID is the user who may attach to the TAPs.
	OwnerUID int
	// AllowPrivate lets guests reach private networks and the host's subnets.
	AllowPrivate bool
}

var goodName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_-]*$`)

func checkName(name string) error {
	switch {
	case !goodName.MatchString(name):
		return api.Errorf(api.KindInvalid, "bridge_name %q is not a name of a bridge: letters, digits, _ and - only", name)
	case len(name) > MaxName:
		return api.Errorf(api.KindInvalid, "bridge_name %q is longer than %d characters", name, MaxName).
			WithHint("the names of its TAPs begin with it, and Linux allows them 15 characters")
	}
	return nil
}

// Check tells what is wrong with a configuration: nil or an *api.Error of KindInvalid, which calls things as config.toml does.
func (c Config) Check() error {
	if err := checkName(c.Name); err != nil {
		return err
	}
	switch {
	case !c.CIDR.IsValid() || !c.CIDR.Addr().Is4() || c.CIDR != c.CIDR.Masked() || c.CIDR.Bits() < 8 || c.CIDR.Bits() > 29:
		return api.Errorf(api.KindInvalid, "cidr %s is not an IPv4 network of 8 to 29 bits", c.CIDR)
	case !usable(c.CIDR, c.IP):
		return api.Errorf(api.KindInvalid, "bridge_ip %s is not an address that cidr %s has for a host", c.IP, c.CIDR)
	case c.Taps < 1 || c.Taps > MaxTaps:
		return api.Errorf(api.KindInvalid, "tap_pool_size %d is not between 1 and %d", c.Taps, MaxTaps).
			WithHint("bridge mode takes a TAP per VM, until it is deleted: set tap_pool_size to the most that are to be there at once")
	case c.Taps > Addresses(c.CIDR):
		return api.Errorf(api.KindInvalid, "tap_pool_size %d is more than cidr %s has addresses for: %d", c.Taps, c.CIDR, Addresses(c.CIDR)).
			WithHint("set tap_pool_size = %d, or a larger cidr", Addresses(c.CIDR))
	case c.OwnerUID < 0:
		return api.Errorf(api.KindInvalid, "uid %d is no user", c.OwnerUID)
	}
	return nil
}

// Addresses is how many addresses VMs can have in cidr: all but the network's, the broadcast address and the gateway's.
func Addresses(cidr netip.Prefix) int { return 1<<(32-cidr.Bits()) - 3 }

// usable tells whether a host may have the address: a network's first is its own, the last its broadcast address.
func usable(cidr netip.Prefix, a netip.Addr) bool {
	return cidr.Contains(a) && a != cidr.Masked().Addr() && cidr.Contains(a.Next())
}

// Addr is the address that belongs to TAP i, 0 to cfg.Taps-1: the i-th of cidr that a VM may have.
func Addr(cfg Config, i int) netip.Addr {
	n := number(cfg.CIDR.Masked().Addr()) + 1 + uint32(i)
	if n >= number(cfg.IP) {
		n++
	}
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// TAPOf is the TAP of an address; ok is false for one that has none: the gateway's, one outside cidr or beyond the pool.
func TAPOf(cfg Config, a netip.Addr) (name string, ok bool) {
	if !usable(cfg.CIDR, a) || a == cfg.IP {
		return "", false
	}
	i := number(a) - number(cfg.CIDR.Masked().Addr()) - 1
	if number(a) > number(cfg.IP) {
		i--
	}
	return tapName(cfg.Name, int(i)), i < uint32(cfg.Taps)
}

// MAC is the hardware address of a VM's eth0, and of the bridge: QEMU's prefix, locally administered, and the IPv4 address.
func MAC(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x52, 0x54, b[0], b[1], b[2], b[3]}
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func tapName(bridge string, i int) string { return fmt.Sprintf("%s-t%d", bridge, i) }

// tapIndex is the i of a name that tapName made.
func tapIndex(bridge, name string) (i int, ok bool) {
	digits, ok := strings.CutPrefix(name, bridge+"-t")
	i, err := strconv.Atoi(digits)
	return i, ok && err == nil && i >= 0 && tapName(bridge, i) == name
}
