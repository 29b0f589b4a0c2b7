package bridge

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// A packet must be let pass by every table. Docker (FORWARD is DROP) and ufw (so is INPUT) refuse what they do not know, so
// banger says in their chains that they are to leave the bridge's traffic to its own rules.

// chains are banger's in iptables' table filter, each with what jumps to it.
func chains(bridge string) []chain {
	return []chain{
		{name: "BANGER-FORWARD-" + bridge, from: []string{"FORWARD", "DOCKER-USER"}, rules: []string{
			"-i " + bridge + " -o " + bridge + " -j ACCEPT",
			"-i " + bridge + " ! -o " + bridge + " -j ACCEPT",
			"-o " + bridge + " -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		}},
		{name: "BANGER-INPUT-" + bridge, from: []string{"INPUT"}, rules: []string{"-i " + bridge + " -j ACCEPT"}},
	}
}

type chain struct {
	name  string
	from  []string
	rules []string
}

// iptables runs it; the lock of other runs is waited for.
func (s *setup) iptables(ctx context.Context, args ...string) (string, error) {
	out, err := s.run.Output(ctx, hostexec.Cmd{Argv: append([]string{"iptables", "-w", "10"}, args...)})
	return string(out), err
}

// hasIptables tells whether there is any.
func (s *setup) hasIptables() bool {
	_, err := s.run.LookPath("iptables")
	return err == nil
}

// needed are the chains that should jump to c: those that are there and refuse anything.
func (s *setup) needed(ctx context.Context, c chain) ([]string, error) {
	var out []string
	for _, from := range c.from {
		text, err := s.iptables(ctx, "-S", from)
		if err != nil {
			if from == "DOCKER-USER" {
				continue // no Docker
			}
			return nil, fmt.Errorf("list the chain %s: %w", from, err)
		}
		if from == "DOCKER-USER" || refuses(text, c.name) {
			out = append(out, from)
		}
	}
	return out, nil
}

// refuses tells whether a chain may refuse packets: its policy does, or it has rules of others.
func refuses(listing, own string) bool {
	for line := range strings.Lines(listing) {
		f := strings.Fields(line)
		switch {
		case len(f) == 3 && f[0] == "-P" && f[2] == "ACCEPT":
		case len(f) == 4 && f[0] == "-A" && f[3] == own:
		case len(f) > 0 && f[0] != "-N":
			return true
		}
	}
	return false
}

// otherFirewalls makes iptables' rules let the bridge's traffic pass, where there are any that may refuse it.
func (s *setup) otherFirewalls(ctx context.Context) error {
	if !s.hasIptables() {
		return nil
	}
	for _, c := range chains(s.cfg.Name) {
		from, err := s.needed(ctx, c)
		if err != nil {
			return err
		}
		if len(from) == 0 {
			continue
		}
		if err := s.chain(ctx, c); err != nil {
			return err
		}
		for _, f := range from {
			if _, err := s.iptables(ctx, "-C", f, "-j", c.name); err == nil {
				continue
			}
			if _, err := s.iptables(ctx, "-I", f, "-j", c.name); err != nil {
				return fmt.Errorf("let the chain %s ask %s: %w", f, c.name, err)
			}
			s.say("iptables: %s asks %s first", f, c.name)
		}
	}
	return nil
}

// chain fills a chain of banger's, in one transaction.
func (s *setup) chain(ctx context.Context, c chain) error {
	if _, err := s.iptables(ctx, "-S", c.name); err != nil { // new
		s.undo = append(s.undo, func(ctx context.Context) error { return (&setup{cfg: s.cfg}).removeChain(ctx, c) })
	}
	var b strings.Builder
	fmt.Fprintf(&b, "*filter\n:%s - [0:0]\n", c.name)
	for _, r := range c.rules {
		fmt.Fprintf(&b, "-A %s %s\n", c.name, r)
	}
	b.WriteString("COMMIT\n")
	err := s.run.Run(ctx, hostexec.Cmd{Argv: []string{"iptables-restore", "-w", "10", "--noflush"}, Stdin: strings.NewReader(b.String())})
	if err != nil {
		return fmt.Errorf("fill the chain %s: %w", c.name, err)
	}
	return nil
}

// removeOtherFirewalls removes what otherFirewalls made.
func (s *setup) removeOtherFirewalls(ctx context.Context) error {
	if !s.hasIptables() {
		return nil
	}
	var err error
	for _, c := range chains(s.cfg.Name) {
		err = errors.Join(err, s.removeChain(ctx, c))
	}
	return err
}

func (s *setup) removeChain(ctx context.Context, c chain) error {
	if _, err := s.iptables(ctx, "-S", c.name); err != nil {
		return nil // it is not there, and then nothing jumps to it
	}
	for _, f := range c.from {
		for {
			if _, err := s.iptables(ctx, "-D", f, "-j", c.name); err != nil {
				break // no more
			}
		}
	}
	_, err1 := s.iptables(ctx, "-F", c.name)
	_, err2 := s.iptables(ctx, "-X", c.name)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("remove the chain %s: %w", c.name, err)
	}
	s.say("iptables: removed %s", c.name)
	return nil
}
