package bridge

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// firewalld refuses what comes from an interface that has no zone which lets it pass. Its zones are the administrator's, so
// Setup leaves them alone, and Status says what to do.

// seeFirewalld looks whether firewalld lets the bridge's traffic pass; ok is false where there is nothing to say of it.
func (s *setup) seeFirewalld(ctx context.Context) (c Check, ok bool) {
	if _, err := s.run.LookPath("firewall-cmd"); err != nil {
		return Check{}, false
	}
	if _, err := s.firewalld(ctx, "--state"); err != nil {
		return Check{}, false // installed, and does not run
	}
	zone, err := s.firewalld(ctx, "--get-zone-of-interface="+s.cfg.Name)
	if exit := new(hostexec.ExitError); err != nil && !errors.As(err, &exit) {
		return failed(fmt.Errorf("ask firewalld: %w", err)), true
	}
	if zone == "" || err != nil { // "no zone" goes to stderr, and the exit status is 2
		return missing(firewalldHint(s.cfg.Name), "firewalld has %s in no zone, and refuses what comes from it", s.cfg.Name), true
	}
	return good("firewalld has %s in the zone %s", s.cfg.Name, zone), true
}

func (s *setup) firewalld(ctx context.Context, arg string) (string, error) {
	out, err := s.run.Output(ctx, hostexec.Cmd{Argv: []string{"firewall-cmd", arg}})
	return strings.TrimSpace(string(out)), err
}

// firewalldHint puts the bridge into the zone that lets all pass, now and after a reload: banger's own rules go on to refuse.
func firewalldHint(bridge string) string {
	return fmt.Sprintf("sudo firewall-cmd --zone=trusted --change-interface=%[1]s\n"+
		"sudo firewall-cmd --permanent --zone=trusted --change-interface=%[1]s\n"+
		"banger's own rules keep VMs from this host all the same", bridge)
}
