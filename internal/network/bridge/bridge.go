// Package bridge is the host's side of bridge mode: a bridge with the gateway's address, a pool of TAPs that the user may
// attach VMs to, and the rules that keep guests to their own addresses and away from the host. Setup brings the host to
// that state, Teardown takes it back, Status looks; all three may be repeated, and none of them is needed by a daemon
// whose TAPs are there: to open one (package tap) takes no privilege.
//
// A TAP belongs to one address for ever (Addr, TAPOf, MAC). So everything that keeps a guest from posing as another one is
// static: who may send what from which TAP is a set of the firewall, which port a hardware address is behind is a fixed
// entry of the bridge, and nothing is learnt.
//
// What was made is known by the bridge itself: its alias says that it is banger's, whose it is, and whether forwarding was
// switched on for it. It goes with the bridge and with a reboot, as what it speaks of does.
//
// The files: address.go has addresses, names and checks; links.go bridge and TAPs; rules.go the firewall's rules as
// text and nft.go what applies them; iptables.go the rules beside other firewalls; sysctl.go forwarding; resolved.go the
// names on the host; mark.go the alias; tap.go what a daemon asks of a TAP; ready.go and status.go whether all is there; boot.go what
// outlives a reboot; lock.go lets one at a time change a host.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// Ports of the gateway that the daemon listens on in bridge mode, where it may not listen on lower ones.
const (
	// DNSPort is where the rules send what guests and the host ask the gateway at port 53, UDP and TCP.
	DNSPort = 10053
	// ProxyPort is where the rules send TCP connections of guests to any other port of the gateway: OriginalDst tells which.
	ProxyPort = 10054
)

// setup is one run of Setup or Teardown.
type setup struct {
	cfg Config
	run hostexec.Runner
	// fault, where it is not nil, is asked before each step whether it is to fail: for tests.
	fault func(step string) error
	undo  []func(context.Context) error
	done  []string
	boot  *Boot // nil: nothing is to outlive a reboot
	// forwardingWasOff: before banger made the bridge that was there already.
	forwardingWasOff bool
	// guarded is what the rules were made for; see guard.
	guarded Config
}

// Setup makes what is not there yet and corrects what is, so that the host is as cfg says, and returns a line for each thing
// it did; none where all was there. It takes CAP_NET_ADMIN. Where it fails, what it made is gone again. Errors are
// *api.Error with hints: KindInvalid for a cfg that cannot be, KindConflict where the name is something else's, addresses are
// the host's already or VMs are in the way of a change, KindUnavailable where the host lacks something or the caller the right.
func Setup(ctx context.Context, cfg Config) (done []string, err error) {
	s := &setup{cfg: cfg}
	return s.setUp(ctx)
}

func (s *setup) setUp(ctx context.Context) ([]string, error) {
	if err := errors.Join(s.cfg.Check(), may(s.run)); err != nil {
		return nil, err
	}
	unlock, err := lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	old, err := s.inspect()
	if err != nil {
		return nil, err
	}
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"change", func(context.Context) error { return s.makeWay(old) }},
		{"rules", s.rules}, // before there is anything they are for
		{"bridge", s.bridge},
		{"taps", s.taps},
		{"other firewalls", s.otherFirewalls},
		{"forwarding", s.forwarding},
		{"resolver", s.resolver},
		{"boot", func(ctx context.Context) error {
			unlock() // the unit is started, and finds all there
			return s.forBoot(ctx)
		}},
		{"surplus", s.surplus}, // last: it cannot be taken back
	}
	for _, step := range steps {
		err := context.Cause(ctx)
		if err == nil && s.fault != nil {
			err = s.fault(step.name)
		}
		if err == nil {
			err = step.do(ctx)
		}
		if err != nil {
			return nil, errors.Join(err, s.takeBack(ctx))
		}
	}
	return s.done, nil
}

// takeBack undoes what was done, the last first, whether or not the caller still waits.
func (s *setup) takeBack(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	var err error
	for _, f := range slices.Backward(s.undo) {
		err = errors.Join(err, f(ctx))
	}
	return err
}

// say notes what was done.
func (s *setup) say(format string, args ...any) {
	s.done = append(s.done, fmt.Sprintf(format, args...))
}

// Teardown takes away the bridge of a name with all that Setup made for it, and returns a line for each thing it did; none
// where nothing was there. It takes CAP_NET_ADMIN. A bridge that is not banger's is a KindConflict, and so are VMs on its
// TAPs unless force is set: their network then ends.
func Teardown(ctx context.Context, name string, force bool) (done []string, err error) {
	s := &setup{cfg: Config{Name: name}}
	if err := errors.Join(checkName(name), may(s.run)); err != nil {
		return nil, err
	}
	return s.tearDown(ctx, force)
}

func (s *setup) tearDown(ctx context.Context, force bool) ([]string, error) {
	unlock, err := lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	was, err := s.inspect()
	if err != nil {
		return nil, err
	}
	if err := s.notInUse("remove", force); err != nil {
		return nil, err
	}
	err = errors.Join(
		s.notForBoot(ctx), // first: nothing makes it again meanwhile
		s.removeOtherFirewalls(ctx),
		s.removeLinks(was), // before the rules: no guest is ever without
		s.removeRules(ctx),
		s.restoreForwarding(ctx, was),
	)
	return s.done, err
}
