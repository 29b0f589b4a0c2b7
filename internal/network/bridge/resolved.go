package bridge

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// domain is what names of VMs end in.
const domain = "vm"

// resolvectlWithin is how long systemd-resolved may take to answer: a bus that waits for one that does not start says so after 25 s only.
const resolvectlWithin = 5 * time.Second

// resolvectl runs it.
func (s *setup) resolvectl(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, resolvectlWithin)
	defer cancel()
	out, err := s.run.Output(ctx, hostexec.Cmd{Argv: append([]string{"resolvectl"}, args...)})
	return string(out), err
}

// resolver has systemd-resolved, where it runs, ask the gateway for names of VMs. Without it that is the administrator's, and no error.
func (s *setup) resolver(ctx context.Context) error {
	if !s.resolvedRuns(ctx) || s.resolvedKnows(ctx) {
		return nil
	}
	for _, args := range [][]string{
		{"dns", s.cfg.Name, s.cfg.IP.String()},
		append([]string{"domain", s.cfg.Name}, routingDomains(s.cfg.CIDR)...),
		{"default-route", s.cfg.Name, "no"},
	} {
		if _, err := s.resolvectl(ctx, args...); err != nil {
			s.say("names of VMs are not known on the host: %v", err)
			return nil
		}
	}
	s.say("systemd-resolved asks %s for names that end in .%s", s.cfg.IP, domain)
	return nil
}

// routingDomains are the names that the gateway is to be asked for: those of VMs, and of addresses where their network ends at a byte.
func routingDomains(cidr netip.Prefix) []string {
	out := []string{"~" + domain}
	b := cidr.Addr().As4()
	switch cidr.Bits() {
	case 24:
		out = append(out, fmt.Sprintf("~%d.%d.%d.in-addr.arpa", b[2], b[1], b[0]))
	case 16:
		out = append(out, fmt.Sprintf("~%d.%d.in-addr.arpa", b[1], b[0]))
	}
	return out
}

// resolvedRuns tells whether systemd-resolved answers.
func (s *setup) resolvedRuns(ctx context.Context) bool {
	_, err := s.resolvectl(ctx, "dns")
	return err == nil
}

// resolvedKnows tells whether systemd-resolved has been told.
func (s *setup) resolvedKnows(ctx context.Context) bool {
	dns, err1 := s.resolvectl(ctx, "dns", s.cfg.Name)
	names, err2 := s.resolvectl(ctx, "domain", s.cfg.Name)
	return err1 == nil && err2 == nil && strings.HasSuffix(strings.TrimSpace(dns), " "+s.cfg.IP.String()) && strings.Contains(names, "~"+domain)
}

// resolverHint is what to add where systemd-resolved does not run.
func resolverHint(c Config) string {
	return fmt.Sprintf("to reach VMs by name from the host, have its resolver ask %[1]s for names in %[2]s.\n"+
		"dnsmasq, also below NetworkManager (/etc/NetworkManager/dnsmasq.d/banger.conf): server=/%[2]s/%[1]s\n"+
		"unbound: forward-zone: name: \"%[2]s\" forward-addr: %[1]s\n"+
		"without such a resolver: nameserver %[1]s as the first line of /etc/resolv.conf, which then answers for all names while banger runs, with default_dns set in banger's configuration", c.IP, domain)
}
