package bridge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"git.thaloco.com/thaloco/banger/internal/hostexec"

	"github.com/vishvananda/netlink"
)

// forwardFile switches forwarding of IPv4 on and off.
const forwardFile = "/proc/sys/net/ipv4/ip_forward"

func forwards() (bool, error) {
	data, err := os.ReadFile(forwardFile)
	if err != nil {
		return false, fmt.Errorf("read whether the host forwards: %w", err)
	}
	return strings.TrimSpace(string(data)) != "0", nil
}

func setForwarding(on string) error {
	if err := os.WriteFile(forwardFile, []byte(on), 0o644); err != nil {
		return fmt.Errorf("switch forwarding: %w", err)
	}
	return nil
}

// forwarding switches it on; that it was off is marked before.
func (s *setup) forwarding(context.Context) error {
	on, err := forwards()
	if err != nil || on {
		return err
	}
	link, err := netlink.LinkByName(s.cfg.Name)
	if err != nil {
		return fmt.Errorf("look up bridge %q: %w", s.cfg.Name, err)
	}
	m := s.cfg.mark()
	m.forwarding = true
	if err := netlink.LinkSetAlias(link, m.String()); err != nil {
		return fmt.Errorf("mark bridge %q: %w", s.cfg.Name, err)
	}
	if err := setForwarding("1"); err != nil {
		return err
	}
	s.undo = append(s.undo, func(context.Context) error {
		return errors.Join(setForwarding("0"), netlink.LinkSetAlias(link, s.cfg.mark().String()))
	})
	s.say("net.ipv4.ip_forward = 1")
	return nil
}

// restoreForwarding switches it off where it was off and nothing else is seen to need it.
func (s *setup) restoreForwarding(ctx context.Context, was existing) error {
	if was.link == nil || !was.mark.forwarding {
		return nil
	}
	rules, err := s.run.Output(ctx, hostexec.Cmd{Argv: []string{"nft", "list", "ruleset"}})
	legacy, _ := os.ReadFile("/proc/thread-self/net/ip_tables_names") // not there without the old kernel module
	if err != nil || len(legacy) > 0 || strings.Contains(string(rules), "hook forward") || strings.Contains(string(rules), "hook postrouting") {
		s.say("net.ipv4.ip_forward stays 1: other firewall rules are there that may need it (it was 0 before: sysctl -w net.ipv4.ip_forward=0)")
		return nil
	}
	if err := setForwarding("0"); err != nil {
		return err
	}
	s.say("net.ipv4.ip_forward = 0, as it was")
	return nil
}
