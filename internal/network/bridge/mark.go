package bridge

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
)

// mark is what the alias of a bridge says of it.
type mark struct {
	uid int
	ip  netip.Prefix
	// forwarding: it was off, and was switched on for this bridge.
	forwarding bool
}

// markPrefix is the beginning of every alias of banger's, with the version of what follows.
const markPrefix = "banger 1 "

func (c Config) mark() mark {
	return mark{uid: c.OwnerUID, ip: netip.PrefixFrom(c.IP, c.CIDR.Bits())}
}

func (m mark) String() string {
	s := fmt.Sprintf("%suid=%d ip=%s", markPrefix, m.uid, m.ip)
	if m.forwarding {
		s += " forwarding=on"
	}
	return s
}

// readMark reads an alias; ok is false for one that is not banger's.
func readMark(alias string) (m mark, ok bool) {
	rest, ok := strings.CutPrefix(alias, markPrefix)
	if !ok {
		return mark{}, false
	}
	var ip string
	if _, err := fmt.Sscanf(rest, "uid=%d ip=%s", &m.uid, &ip); err != nil {
		return mark{}, false
	}
	var err error
	if m.ip, err = netip.ParsePrefix(ip); err != nil {
		return mark{}, false
	}
	m.forwarding = strings.HasSuffix(rest, " forwarding=on")
	return m, true
}

// existing is what is on the host under the bridge's name.
type existing struct {
	link netlink.Link // nil for nothing
	mark mark
}
