package bridge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostexec"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// families are those of nft that banger has a table of.
var families = []string{"inet", "bridge"}

// may tells whether this process may change the network and has what it takes.
func may(run hostexec.Runner) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read this process's capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return api.Errorf(api.KindUnavailable, "change the host's network: this takes root, or CAP_NET_ADMIN").
			WithHint("sudo banger net setup, or teardown")
	}
	if _, err := run.LookPath("nft"); err != nil {
		return api.Errorf(api.KindUnavailable, "change the host's firewall rules: nft: %w", err).
			WithHint("install nftables: apt-get install nftables, dnf install nftables, pacman -S nftables")
	}
	return nil
}

// script is what nft is given: both tables anew, in one transaction. A table is declared before it is deleted so that it may be absent.
func script(c Config, subnets []netip.Prefix) (text, revisionName string) {
	inet, bridge := ruleset(c, subnets)
	revisionName = revision(inet + bridge)
	var b strings.Builder
	for i, body := range []string{inet, bridge} {
		table := families[i] + " " + tableName(c.Name)
		fmt.Fprintf(&b, "table %s\ndelete table %s\ntable %s {\n\tchain %s {\n\t}\n%s}\n\n", table, table, table, revisionName, body)
	}
	return b.String(), revisionName
}

// rules replaces the rules by those of the configuration, all at once, unless they are there.
func (s *setup) rules(ctx context.Context) error {
	subnets, err := hostSubnets(s.cfg)
	if err != nil {
		return err
	}
	if s.guarded, err = s.guard(); err != nil {
		return err
	}
	text, revisionName := script(s.guarded, subnets)
	before, err := s.tables(ctx)
	if err != nil {
		return err
	}
	if current(before, revisionName) {
		return nil
	}
	if err := s.nft(ctx, text); err != nil {
		return err
	}
	s.undo = append(s.undo, func(ctx context.Context) error { return s.restoreRules(ctx, before) })
	s.say("firewall tables inet and bridge %s", tableName(s.cfg.Name))
	return nil
}

// restoreRules has the tables as they were listed before, or none where there was none, all at once.
func (s *setup) restoreRules(ctx context.Context, before map[string]string) error {
	if len(before) == 0 {
		return (&setup{cfg: s.cfg}).removeRules(ctx)
	}
	var b strings.Builder
	for _, family := range families {
		table := family + " " + tableName(s.cfg.Name)
		fmt.Fprintf(&b, "table %s\ndelete table %s\n%s\n", table, table, before[family])
	}
	return s.nft(ctx, b.String())
}

// guard is the configuration that the rules are for: the pool reaches to the last TAP that a VM has, also where it was made smaller since.
func (s *setup) guard() (Config, error) {
	c := s.cfg
	all, err := taps(c.Name)
	if err != nil {
		return c, err
	}
	for _, t := range all {
		if i, ok := tapIndex(c.Name, t.Attrs().Name); ok && attached(t) && i < Addresses(c.CIDR) {
			c.Taps = max(c.Taps, i+1)
		}
	}
	return c, nil
}

// nft applies a script.
func (s *setup) nft(ctx context.Context, text string) error {
	err := s.run.Run(ctx, hostexec.Cmd{Argv: []string{"nft", "-f", "-"}, Stdin: strings.NewReader(text)})
	if err == nil {
		return nil
	}
	e := api.Errorf(api.KindUnavailable, "set firewall rules: %w", err)
	for text, hint := range map[string]string{
		"Operation not supported":   "this kernel lacks parts of nf_tables: sudo modprobe -a nf_tables nft_nat nft_masq nft_reject_inet nft_fib_inet",
		"No such file or directory": "this kernel lacks parts of nf_tables: sudo modprobe -a nf_tables nft_nat nft_masq nft_reject_inet nft_fib_inet",
		"Operation not permitted":   "sudo banger net setup; where a service has CAP_NET_ADMIN, it must be an ambient capability, for nft to have it, too",
	} {
		if strings.Contains(err.Error(), text) {
			return e.WithHint("%s", hint)
		}
	}
	return e
}

// tables are the tables of banger's that are there, by family, each as nft lists it.
func (s *setup) tables(ctx context.Context) (map[string]string, error) {
	list, err := s.run.Output(ctx, hostexec.Cmd{Argv: []string{"nft", "list", "tables"}})
	if err != nil {
		return nil, api.Errorf(api.KindUnavailable, "list firewall tables: %w", err).
			WithHint("this kernel may lack nf_tables: sudo modprobe nf_tables")
	}
	out := map[string]string{}
	lines := strings.Split(string(list), "\n")
	for _, family := range families {
		if !slices.Contains(lines, "table "+family+" "+tableName(s.cfg.Name)) {
			continue
		}
		text, err := s.run.Output(ctx, hostexec.Cmd{Argv: []string{"nft", "list", "table", family, tableName(s.cfg.Name)}})
		if err != nil {
			return nil, fmt.Errorf("list firewall table: %w", err)
		}
		out[family] = string(text)
	}
	return out, nil
}

// current tells whether the tables that are there are both of a revision.
func current(tables map[string]string, revisionName string) bool {
	for _, family := range families {
		if !strings.Contains(tables[family], "chain "+revisionName+" {") {
			return false
		}
	}
	return true
}

// removeRules removes both tables.
func (s *setup) removeRules(ctx context.Context) error {
	there, err := s.tables(ctx)
	if err != nil || len(there) == 0 {
		return err
	}
	var b strings.Builder
	for family := range there {
		fmt.Fprintf(&b, "delete table %s %s\n", family, tableName(s.cfg.Name))
	}
	if err := s.nft(ctx, b.String()); err != nil {
		return err
	}
	s.say("removed firewall tables %s", tableName(s.cfg.Name))
	return nil
}

// hostSubnets are the networks that the host is directly on, without the bridge's.
func hostSubnets(c Config) ([]netip.Prefix, error) {
	if c.AllowPrivate {
		return nil, nil
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	for try := 0; try < 8 && errors.Is(err, netlink.ErrDumpInterrupted); try++ {
		addrs, err = netlink.AddrList(nil, netlink.FAMILY_V4)
	}
	if err != nil {
		return nil, fmt.Errorf("list addresses of the host: %w", err)
	}
	var out []netip.Prefix
	for _, a := range addrs {
		p, ok := prefix(a.IPNet)
		if ok && p.Bits() > 0 && !p.Overlaps(c.CIDR) {
			out = append(out, p.Masked())
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(out), nil
}
