package bridge

import (
	"net"
	"net/netip"

	"git.thaloco.com/thaloco/banger/api"

	"golang.org/x/sys/unix"
)

// Privileged tells whether this process may change the host's network: whether Setup can work.
func Privileged() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0
}

// Ready tells whether the bridge and the TAPs of a configuration are there, and its owner's: nil, or an *api.Error with what to do. It takes
// no privilege, and 0.2 ms; whether the rules are in force only Status tells.
func Ready(cfg Config) error {
	if err := cfg.Check(); err != nil {
		return err
	}
	is, err := inspect(cfg.Name)
	if err != nil {
		return err
	}
	const hint = "sudo banger net setup"
	want := cfg.mark()
	switch {
	case is.link == nil:
		return api.Errorf(api.KindUnavailable, "bridge %q is not there, which network = \"bridge\" needs", cfg.Name).WithHint(hint)
	case is.mark.uid != want.uid:
		return api.Errorf(api.KindConflict, "bridge %q is set up for %s", cfg.Name, userName(is.mark.uid)).
			WithHint("another bridge_name and cidr in config.toml, then " + hint)
	case is.mark.ip != want.ip:
		return api.Errorf(api.KindConflict, "bridge %q was set up with %s, the configuration says %s", cfg.Name, is.mark.ip, want.ip).WithHint(hint)
	case is.link.Attrs().Flags&net.FlagUp == 0:
		return api.Errorf(api.KindUnavailable, "bridge %q is down", cfg.Name).WithHint(hint)
	}
	last := tapName(cfg.Name, cfg.Taps-1)
	tap, err := find(last)
	if err != nil {
		return err
	}
	if tap == nil {
		return api.Errorf(api.KindUnavailable, "TAP %q is not there: the bridge was set up with fewer than tap_pool_size = %d", last, cfg.Taps).WithHint(hint)
	}
	return nil
}

// Last is the last address that has a TAP.
func Last(cfg Config) netip.Addr { return Addr(cfg, cfg.Taps-1) }
