package bridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/user"
	"strconv"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/network/tap"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// mtu is that of the bridge and the TAPs, in bytes.
const mtu = 1500

// inspect finds the bridge; what has its name and is not banger's is a KindConflict.
func (s *setup) inspect() (existing, error) { return inspect(s.cfg.Name) }

func inspect(name string) (existing, error) {
	link, err := find(name)
	if err != nil || link == nil {
		return existing{}, err
	}
	hint := "set another bridge_name in the configuration, or remove it: sudo ip link delete " + name
	if link.Type() != "bridge" {
		return existing{}, api.Errorf(api.KindConflict, "bridge_name %q: there is an interface of that name, and it is no bridge (%s)", name, link.Type()).WithHint("%s", hint)
	}
	m, ok := readMark(link.Attrs().Alias)
	if !ok {
		return existing{}, api.Errorf(api.KindConflict, "bridge_name %q: there is a bridge of that name, and banger did not make it", name).WithHint("%s", hint)
	}
	return existing{link, m}, nil
}

// find is the interface of a name, nil for none.
func find(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up interface %q: %w", name, err)
	}
	return link, nil
}

// makeWay removes a bridge of banger's that was made for something else, where no VM minds, and refuses addresses that are the host's already.
func (s *setup) makeWay(old existing) error {
	if err := s.overlap(); err != nil {
		return err
	}
	want := s.cfg.mark()
	want.forwarding = old.mark.forwarding
	if s.forwardingWasOff = old.mark.forwarding; old.link == nil || old.mark == want {
		return nil
	}
	if old.mark.uid != want.uid {
		return api.Errorf(api.KindConflict, "bridge %q is set up for %s", s.cfg.Name, userName(old.mark.uid)).
			WithHint("sudo banger net teardown; then set it up again")
	}
	if err := s.notInUse("change", false); err != nil {
		return err
	}
	was, err := s.before(old)
	if err != nil {
		return err
	}
	s.undo = append(s.undo, func(ctx context.Context) error {
		return errors.Join(was.bridge(ctx), was.taps(ctx), was.resolver(ctx))
	})
	return s.removeLinks(old)
}

// before is the setup of a bridge that is there, as far as its links go.
func (s *setup) before(old existing) (*setup, error) {
	c := Config{Name: s.cfg.Name, IP: old.mark.ip.Addr(), CIDR: old.mark.ip.Masked(), OwnerUID: old.mark.uid}
	all, err := taps(c.Name)
	if err != nil {
		return nil, err
	}
	for _, t := range all {
		if i, ok := tapIndex(c.Name, t.Attrs().Name); ok {
			c.Taps = max(c.Taps, i+1)
		}
	}
	return &setup{cfg: c, forwardingWasOff: old.mark.forwarding}, nil
}

// notInUse refuses where VMs are on the TAPs, unless force is set.
func (s *setup) notInUse(verb string, force bool) error {
	if force {
		return nil
	}
	all, err := taps(s.cfg.Name)
	if err != nil {
		return err
	}
	var used []string
	for _, t := range all {
		if attached(t) {
			used = append(used, t.Attrs().Name)
		}
	}
	if len(used) == 0 {
		return nil
	}
	return api.Errorf(api.KindConflict, "%s bridge %q: VMs that run are on it, by %s", verb, s.cfg.Name, strings.Join(used, ", ")).
		WithHint("banger vm list shows them; stop them first, or end their network: sudo banger net teardown --force")
}

// attached tells whether a program has a TAP open.
func attached(link netlink.Link) bool { return link.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 }

// overlap refuses addresses that the host has a route for, but by the bridge itself.
func (s *setup) overlap() error {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list the host's routes: %w", err)
	}
	own := -1
	if link, err := find(s.cfg.Name); err == nil && link != nil {
		own = link.Attrs().Index
	}
	for _, r := range routes {
		to, ok := prefix(r.Dst)
		// The default route is no obstacle, nor are the two halves of everywhere that VPNs lay over it.
		if !ok || r.LinkIndex == own || to.Bits() <= 1 || !to.Overlaps(s.cfg.CIDR) {
			continue
		}
		by := "an interface"
		if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			by = l.Attrs().Name
		}
		return api.Errorf(api.KindConflict, "cidr %s overlaps the host's route to %s by %s: in bridge mode the host would lose one of the two", s.cfg.CIDR, to, by).
			WithHint("set another cidr in the configuration; banger doctor proposes one that is free")
	}
	return nil
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits), ok
}

// bridge makes the bridge where it is not there and sees to it that it is as it should be.
func (s *setup) bridge(context.Context) error {
	name, ip := s.cfg.Name, netip.PrefixFrom(s.cfg.IP, s.cfg.CIDR.Bits())
	link, err := find(name)
	if err != nil {
		return err
	}
	if link == nil {
		if link, err = s.addBridge(); err != nil {
			return err
		}
		s.say("bridge %s with %s", name, ip)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip.Addr().AsSlice(), Mask: net.CIDRMask(ip.Bits(), 32)}}
	err = errors.Join(noIPv6(name), netlink.LinkSetMTU(link, mtu), netlink.AddrReplace(link, addr), netlink.LinkSetUp(link))
	if err != nil {
		return fmt.Errorf("set up bridge %q: %w", name, err)
	}
	return nil
}

func (s *setup) addBridge() (netlink.Link, error) {
	snooping := false
	made := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: s.cfg.Name, MTU: mtu, TxQLen: -1, HardwareAddr: MAC(s.cfg.IP)}, MulticastSnooping: &snooping}
	if err := netlink.LinkAdd(made); err != nil {
		e := api.Errorf(api.KindUnavailable, "make bridge %q: %w", s.cfg.Name, err)
		if errors.Is(err, unix.EOPNOTSUPP) {
			e = e.WithHint("this kernel has no bridges: sudo modprobe bridge")
		}
		return nil, e
	}
	s.undo = append(s.undo, func(context.Context) error { return remove(s.cfg.Name) })
	link, err := netlink.LinkByName(s.cfg.Name)
	if err == nil {
		m := s.cfg.mark()
		m.forwarding = s.forwardingWasOff
		err = netlink.LinkSetAlias(link, m.String())
	}
	if err != nil {
		return nil, fmt.Errorf("mark bridge %q: %w", s.cfg.Name, err)
	}
	return link, nil
}

// taps brings the pool to its size.
func (s *setup) taps(ctx context.Context) error {
	bridge, err := netlink.LinkByName(s.cfg.Name)
	if err != nil {
		return fmt.Errorf("look up bridge %q: %w", s.cfg.Name, err)
	}
	added := 0
	for i := range s.cfg.Taps {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		made, err := s.tap(bridge, i)
		if err != nil {
			return err
		}
		if made {
			added++
		}
	}
	if added > 0 {
		s.say("%d TAPs for %s, %s to %s", added, userName(s.cfg.OwnerUID), tapName(s.cfg.Name, 0), tapName(s.cfg.Name, s.cfg.Taps-1))
	}
	return nil
}

// surplus removes TAPs beyond the pool, but for those that are used and that the rules know.
func (s *setup) surplus(context.Context) error {
	all, err := taps(s.cfg.Name)
	if err != nil {
		return err
	}
	for _, t := range all {
		name := t.Attrs().Name
		i, ok := tapIndex(s.cfg.Name, name)
		if !ok || i < s.cfg.Taps {
			continue
		}
		if i < s.guarded.Taps && attached(t) {
			s.say("%s stays until its VM has stopped and net setup runs again", name)
			continue
		}
		if err := netlink.LinkDel(t); err != nil {
			return fmt.Errorf("remove tap %q: %w", name, err)
		}
		s.say("removed %s", name)
	}
	return nil
}

// tap makes TAP i where it is not there, and a port of the bridge that knows its guest and learns nothing.
func (s *setup) tap(bridge netlink.Link, i int) (made bool, err error) {
	name := tapName(s.cfg.Name, i)
	link, err := find(name)
	if err != nil {
		return false, err
	}
	if link == nil {
		if err := addTAP(name, s.cfg.OwnerUID); err != nil {
			return false, err
		}
		made = true
		s.undo = append(s.undo, func(context.Context) error { return remove(name) })
		if link, err = netlink.LinkByName(name); err != nil {
			return true, fmt.Errorf("look up tap %q: %w", name, err)
		}
	} else if t, ok := link.(*netlink.Tuntap); !ok || t.Mode != netlink.TUNTAP_MODE_TAP || t.Owner != uint32(s.cfg.OwnerUID) {
		return false, api.Errorf(api.KindConflict, "interface %q is in the way of a TAP of banger's", name).WithHint("sudo ip link delete %s", name)
	}
	if at := link.Attrs(); at.MasterIndex != bridge.Attrs().Index {
		if err := errors.Join(noIPv6(name), netlink.LinkSetMTU(link, mtu), netlink.LinkSetMaster(link, bridge)); err != nil {
			return made, fmt.Errorf("put tap %q on bridge %q: %w", name, s.cfg.Name, err)
		}
	}
	guest := &netlink.Neigh{LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, State: netlink.NUD_NOARP, HardwareAddr: MAC(Addr(s.cfg, i))}
	err = errors.Join(netlink.LinkSetLearning(link, false), netlink.LinkSetFlood(link, false), netlink.NeighSet(guest), netlink.LinkSetUp(link))
	if err != nil {
		return made, fmt.Errorf("set up tap %q: %w", name, err)
	}
	return made, nil
}

// addTAP makes a TAP that stays without a program that has it open, which uid may attach to. The owner is set even where it is
// root: a TAP without one is everybody's (tun_not_capable in drivers/net/tun.c of Linux).
func addTAP(name string, uid int) error {
	fd, err := openTun()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err = setIff(fd, name); err == nil {
		err = errors.Join(unix.IoctlSetInt(fd, unix.TUNSETOWNER, uid), unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
	}
	if err != nil {
		return fmt.Errorf("make tap %q: %w", name, err)
	}
	return nil
}

// openTun opens the device that makes TAPs.
func openTun() (fd int, err error) {
	fd, err = unix.Open(tap.Device, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == nil {
		return fd, nil
	}
	e := api.Errorf(api.KindUnavailable, "open %s: %w", tap.Device, err)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV):
		return -1, e.WithHint("this kernel has no TAPs: sudo modprobe tun")
	case errors.Is(err, fs.ErrPermission):
		return -1, e.WithHint("its mode is 0666 on usual hosts: sudo chmod 0666 %s", tap.Device)
	}
	return -1, e
}

// setIff makes fd a TAP or attaches it to the one that is there.
func setIff(fd int, name string) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(tap.Flags)
	return unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
}

// taps are the TAPs of a bridge, in no order.
func taps(bridge string) ([]netlink.Link, error) {
	all, err := netlink.LinkList()
	for try := 0; try < 8 && errors.Is(err, netlink.ErrDumpInterrupted); try++ {
		all, err = netlink.LinkList()
	}
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var out []netlink.Link
	for _, l := range all {
		if _, ours := tapIndex(bridge, l.Attrs().Name); ours && l.Type() == "tuntap" {
			out = append(out, l)
		}
	}
	return out, nil
}

// removeLinks removes the TAPs and the bridge.
func (s *setup) removeLinks(was existing) error {
	all, err := taps(s.cfg.Name)
	if err != nil {
		return err
	}
	for _, t := range all {
		if derr := netlink.LinkDel(t); derr != nil && !errors.Is(derr, unix.ENODEV) {
			err = errors.Join(err, fmt.Errorf("remove tap %q: %w", t.Attrs().Name, derr))
		}
	}
	if len(all) > 0 {
		s.say("removed %d TAPs", len(all))
	}
	if was.link == nil || err != nil {
		return err // the bridge's alias is needed until all is gone
	}
	if err := remove(s.cfg.Name); err != nil {
		return err
	}
	s.say("removed bridge %s", s.cfg.Name)
	return nil
}

// remove removes an interface; one that is gone is fine.
func remove(name string) error {
	link, err := find(name)
	if err != nil || link == nil {
		return err
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove interface %q: %w", name, err)
	}
	return nil
}

// noIPv6 keeps IPv6 from an interface, which no guest has.
func noIPv6(name string) error {
	err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nor has the kernel
	}
	return err
}

// userName is a user for people.
func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return "user " + u.Username
	}
	return fmt.Sprintf("uid %d", uid)
}
