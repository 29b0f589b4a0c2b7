// Package egress decides which addresses a guest may reach through the host, and opens the host's sockets for them.
// It is the only place of the daemon that opens sockets on behalf of a guest: Policy's Dial methods check and dial in one
// place, and check the address once more when the kernel is about to be given it.
//
// What is refused whatever the configuration: the unspecified network, loopback, link-local, multicast, broadcast and
// reserved addresses, banger's own network, and every address of the host itself, as the kernel's routing sees it at that
// moment. Config.AllowPrivate false refuses private networks and every subnet the host is directly on as well.
// An IPv6 address is judged as such and by the IPv4 address it carries (mapped, NAT64, 6to4, Teredo); IPv6 is not dialled yet.
//
// The one way to the host itself is DialHostTCP and DialHostUDP, to ports that the user has given to a guest.
//
// classify.go holds the fixed rules, host.go what the kernel says, dial.go and loopback.go the sockets.
package egress

import (
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// Config is what a Policy needs.
type Config struct {
	// CIDR is banger's own network, none of which is dialled.
	CIDR netip.Prefix
	// AllowPrivate allows private networks and the subnets the host is directly on.
	AllowPrivate bool
	// Exempt are destinations allowed whatever the rules say: package mirrors of tests.
	Exempt []netip.AddrPort
}

// Policy says where guests may connect to. Its methods may be called from several goroutines.
type Policy struct {
	cidr         netip.Prefix
	allowPrivate bool
	exempt       map[netip.AddrPort]bool
	host         host

	mu        sync.Mutex
	addresses []netip.Prefix // guarded by mu: of the host's interfaces, each the address with the length of its subnet
	readAt    time.Time      // guarded by mu: when addresses was read
}

// hostAge is how long the list of the host's addresses is good for.
const hostAge = time.Second

// New makes a policy.
func New(cfg Config) (*Policy, error) {
	if !cfg.CIDR.IsValid() || !cfg.CIDR.Addr().Is4() {
		return nil, fmt.Errorf("egress policy: network %q is not an IPv4 one", cfg.CIDR)
	}
	p := &Policy{cidr: cfg.CIDR.Masked(), allowPrivate: cfg.AllowPrivate, exempt: map[netip.AddrPort]bool{}, host: kernel{}}
	for _, a := range cfg.Exempt {
		p.exempt[plain(a)] = true
	}
	return p, nil
}

// RefusedError is a destination that is not dialled.
type RefusedError struct {
	Dst netip.AddrPort
	// Rule is why, as "loopback".
	Rule string
}

// Error names the destination and the rule.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("dial %q: not allowed: %s", e.Dst, e.Rule)
}

// Check says whether a guest may reach dst: nil, a *RefusedError, or why the host does not know a way there.
func (p *Policy) Check(dst netip.AddrPort) error {
	dst = plain(dst)
	if p.exempt[dst] {
		return nil
	}
	if err := p.fixed(dst); err != nil {
		return err
	}
	return p.ask(dst)
}

// plain is dst without a zone, and an IPv4 address as such.
func plain(dst netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(dst.Addr().Unmap().WithZone(""), dst.Port())
}

// fixed applies the rules that need not know the host.
func (p *Policy) fixed(dst netip.AddrPort) error {
	if dst.Port() == 0 {
		return &RefusedError{dst, "port 0"}
	}
	if rule := p.classify(dst.Addr()); rule != "" {
		return &RefusedError{dst, rule}
	}
	return nil
}

// ask applies the rules about the host's own addresses and subnets.
func (p *Policy) ask(dst netip.AddrPort) error {
	own, err := p.hostAddresses()
	if err != nil {
		return fmt.Errorf("dial %q: %w", dst, err)
	}
	for _, prefix := range own {
		if prefix.Addr() == dst.Addr() {
			return &RefusedError{dst, "an address of the host"}
		}
		if !p.allowPrivate && prefix.Bits() > 0 && prefix.Contains(dst.Addr()) {
			return &RefusedError{dst, "a subnet of the host"}
		}
	}
	kind, err := p.host.route(dst.Addr())
	if err != nil {
		return fmt.Errorf("dial %q: %w", dst, err)
	}
	if rule := kind.refused(); rule != "" {
		return &RefusedError{dst, rule}
	}
	return nil
}

// hostAddresses returns the addresses of the host's interfaces, at most hostAge old.
func (p *Policy) hostAddresses() ([]netip.Prefix, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.readAt.IsZero() && time.Since(p.readAt) < hostAge {
		return p.addresses, nil
	}
	list, err := p.host.addresses()
	if err != nil {
		return nil, err
	}
	p.addresses, p.readAt = list, time.Now()
	return list, nil
}
