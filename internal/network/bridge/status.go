package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/network/tap"
)

// State is how something of a bridge is.
type State string

// States.
const (
	OK      State = "ok"
	Missing State = "missing"
	// Off is what is not there and need not be.
	Off State = "off"
	// Unknown is what this process may not look at.
	Unknown State = "unknown"
)

// Check is one thing of a bridge.
type Check struct {
	Name   string `json:"name"`
	State  State  `json:"state"`
	Detail string `json:"detail"`
	// Hint is what to do about it; it may have several lines.
	Hint string `json:"hint,omitempty"`
}

// Report is what of a bridge is there.
type Report struct {
	Bridge string  `json:"bridge"`
	Checks []Check `json:"checks"`
}

// Failed tells whether anything is missing.
func (r Report) Failed() bool {
	return slices.ContainsFunc(r.Checks, func(c Check) bool { return c.State == Missing })
}

const setupHint = "sudo banger net setup"

// Status looks what is there of what Setup makes for cfg, and of what b has done at boot. It takes no privilege, but for the firewall's rules.
func (b Boot) Status(ctx context.Context, cfg Config) (Report, error) {
	if err := cfg.Check(); err != nil {
		return Report{}, err
	}
	s := &setup{cfg: cfg, boot: &b}
	r := Report{Bridge: cfg.Name}
	for _, c := range []struct {
		name string
		look func(context.Context) Check
	}{
		{"bridge", s.seeBridge},
		{"taps", s.seeTAPs},
		{"device", s.seeDevice},
		{"rules", s.seeRules},
		{"other firewalls", s.seeOtherFirewalls},
		{"forwarding", s.seeForwarding},
		{"names", s.seeResolver},
		{"boot", s.seeBoot},
	} {
		if err := context.Cause(ctx); err != nil {
			return Report{}, err
		}
		check := c.look(ctx)
		check.Name = c.name
		r.Checks = append(r.Checks, check)
	}
	return r, nil
}

func good(format string, args ...any) Check {
	return Check{State: OK, Detail: fmt.Sprintf(format, args...)}
}

func missing(hint, format string, args ...any) Check {
	return Check{State: Missing, Detail: fmt.Sprintf(format, args...), Hint: hint}
}

// failed is what could not be looked at.
func failed(err error) Check {
	e := api.AsError(err)
	return Check{State: Missing, Detail: err.Error(), Hint: e.Hint}
}

// asRoot is what only root sees.
func asRoot(what string) Check {
	return Check{State: Unknown, Detail: what + " can be seen by root only", Hint: "sudo banger net status"}
}

func (s *setup) seeBridge(context.Context) Check {
	is, err := s.inspect()
	want := s.cfg.mark()
	switch {
	case err != nil:
		return failed(err)
	case is.link == nil:
		return missing(setupHint, "%s is not there", s.cfg.Name)
	case is.mark.uid != want.uid:
		return missing("sudo banger net teardown; then "+setupHint, "%s is set up for %s, not for %s", s.cfg.Name, userName(is.mark.uid), userName(want.uid))
	case is.mark.ip != want.ip:
		return missing(setupHint, "%s was set up with %s, the configuration says %s", s.cfg.Name, is.mark.ip, want.ip)
	case is.link.Attrs().Flags&net.FlagUp == 0:
		return missing(setupHint, "%s is down", s.cfg.Name)
	}
	if iface, err := net.InterfaceByName(s.cfg.Name); err == nil {
		if addrs, err := iface.Addrs(); err == nil && !slices.ContainsFunc(addrs, func(a net.Addr) bool { return a.String() == want.ip.String() }) {
			return missing(setupHint, "%s has lost its address %s", s.cfg.Name, want.ip)
		}
	}
	return good("%s with %s, for %s", s.cfg.Name, want.ip, userName(want.uid))
}

func (s *setup) seeTAPs(context.Context) Check {
	all, err := taps(s.cfg.Name)
	if err != nil {
		return failed(err)
	}
	bridge := 0
	if link, err := find(s.cfg.Name); err == nil && link != nil {
		bridge = link.Attrs().Index
	}
	have, used := map[string]netlink.Link{}, 0
	for _, t := range all {
		have[t.Attrs().Name] = t
		if attached(t) {
			used++
		}
	}
	var absent, strangers, idle []string
	for i := range s.cfg.Taps {
		name := tapName(s.cfg.Name, i)
		t, ok := have[name].(*netlink.Tuntap)
		switch {
		case !ok:
			absent = append(absent, name)
		case t.Owner != uint32(s.cfg.OwnerUID):
			strangers = append(strangers, name)
		case t.MasterIndex != bridge || t.LinkAttrs.Flags&net.FlagUp == 0:
			idle = append(idle, name)
		}
	}
	switch {
	case len(absent) == s.cfg.Taps:
		return missing(setupHint, "none of %d is there", s.cfg.Taps)
	case len(strangers) > 0:
		return missing("sudo banger net teardown; then "+setupHint, "%d of %d are not for %s, %s first", len(strangers), s.cfg.Taps, userName(s.cfg.OwnerUID), strangers[0])
	case len(absent) > 0:
		return missing(setupHint, "%d of %d are not there, %s first", len(absent), s.cfg.Taps, absent[0])
	case len(idle) > 0:
		return missing(setupHint, "%d of %d are down or not on %s, %s first", len(idle), s.cfg.Taps, s.cfg.Name, idle[0])
	}
	return good("%d for %s, of which VMs use %d", s.cfg.Taps, userName(s.cfg.OwnerUID), used)
}

// seeDevice looks whether the owner may open TAPs.
func (s *setup) seeDevice(context.Context) Check {
	var st unix.Stat_t
	err := unix.Stat(tap.Device, &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		return missing("sudo modprobe tun", "%s is not there", tap.Device)
	case err != nil:
		return failed(fmt.Errorf("look at %s: %w", tap.Device, err))
	case s.cfg.OwnerUID == 0 || st.Mode&0o006 == 0o006 || int(st.Uid) == s.cfg.OwnerUID && st.Mode&0o600 == 0o600:
		return good("%s is for %s to use", tap.Device, userName(s.cfg.OwnerUID))
	case os.Geteuid() == s.cfg.OwnerUID && unix.Access(tap.Device, unix.R_OK|unix.W_OK) == nil: // by a group, or an access list
		return good("%s is for this user to use", tap.Device)
	}
	return missing("its mode is 0666 on usual hosts: sudo chmod 0666 "+tap.Device, "%s may not open %s", userName(s.cfg.OwnerUID), tap.Device)
}

func (s *setup) seeRules(ctx context.Context) Check {
	if _, err := s.run.LookPath("nft"); err != nil {
		return missing("install nftables: apt-get install nftables, dnf install nftables, pacman -S nftables", "nft, which sets them, is not installed")
	}
	if !Privileged() {
		return asRoot("the firewall's rules")
	}
	subnets, err := hostSubnets(s.cfg)
	if err != nil {
		return failed(err)
	}
	guarded, err := s.guard()
	if err != nil {
		return failed(err)
	}
	_, revisionName := script(guarded, subnets)
	have, err := s.tables(ctx)
	switch {
	case err != nil:
		return failed(err)
	case len(have) == 0:
		return missing(setupHint, "the tables %s are not there: VMs have no way out, and nothing keeps them to their addresses", tableName(s.cfg.Name))
	case !current(have, revisionName):
		return missing(setupHint, "the tables %s are not as the configuration and this host's networks want them", tableName(s.cfg.Name))
	}
	return good("tables inet and bridge %s", tableName(s.cfg.Name))
}

func (s *setup) seeOtherFirewalls(ctx context.Context) Check {
	_, err := s.run.LookPath("firewall-cmd")
	if !Privileged() && (err == nil || s.hasIptables()) {
		return asRoot("what other firewalls refuse")
	}
	c := s.seeIptables(ctx)
	if c.State != OK {
		return c
	}
	if zone, runs := s.seeFirewalld(ctx); runs {
		return zone
	}
	return c
}

func (s *setup) seeIptables(ctx context.Context) Check {
	if !s.hasIptables() {
		return good("no iptables here")
	}
	var asking []string
	for _, c := range chains(s.cfg.Name) {
		from, err := s.needed(ctx, c)
		if err != nil {
			return failed(err)
		}
		for _, f := range from {
			if _, err := s.iptables(ctx, "-C", f, "-j", c.name); err != nil {
				return missing(setupHint, "%s of iptables refuses what it does not know, and does not ask %s", f, c.name)
			}
			asking = append(asking, f)
		}
	}
	if len(asking) == 0 {
		return good("none refuses anything")
	}
	return good("%s ask banger's chains first", strings.Join(asking, ", "))
}

func (s *setup) seeForwarding(context.Context) Check {
	on, err := forwards()
	switch {
	case err != nil:
		return failed(err)
	case !on:
		return missing(setupHint, "net.ipv4.ip_forward is 0: VMs reach each other and the host, and nothing else")
	}
	return good("net.ipv4.ip_forward is 1")
}

func (s *setup) seeResolver(ctx context.Context) Check {
	switch {
	case !s.resolvedRuns(ctx):
		return Check{State: Off, Detail: "systemd-resolved does not run here, which would be told of the names of VMs", Hint: resolverHint(s.cfg)}
	case !s.resolvedKnows(ctx):
		return missing(setupHint, "systemd-resolved does not ask %s for names that end in .%s", s.cfg.IP, domain)
	}
	return good("systemd-resolved asks %s for names that end in .%s", s.cfg.IP, domain)
}

func (s *setup) seeBoot(context.Context) Check {
	b, name := *s.boot, s.cfg.Name
	is, err := b.Load(name)
	switch {
	case api.KindOf(err) == api.KindNotFound:
		return Check{State: Off, Detail: "a reboot takes all of this away", Hint: setupHint}
	case err != nil:
		return failed(err)
	case is != s.cfg:
		return missing(setupHint, "%s has another configuration", b.ConfigFile(name))
	}
	for _, path := range b.links(name) {
		if _, err := os.Stat(path); err != nil {
			return missing(setupHint, "%s is not enabled: %v", UnitName(name), err)
		}
	}
	if !b.systemdRuns() {
		return Check{State: Off, Detail: UnitName(name) + " is there, and systemd, which would start it, does not run here",
			Hint: fmt.Sprintf("have your init run at boot: %s net setup --boot %s", b.Program, name)}
	}
	c := good("%s sets it up", UnitName(name))
	if path := b.exposed(); path != "" {
		c.Hint = exposedHint(path)
	}
	return c
}
