package bridge

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
)

// TestShrinkUnderVM makes the pool smaller than the TAP of a VM that runs: the VM stays on the network, and is kept to its addresses.
func TestShrinkUnderVM(t *testing.T) {
	ns := newHost(t)
	cfg := testConfig()
	setUpIn(t, ns, cfg)
	peer, vm := openPort(t, ns, "bt0-t0"), openPort(t, ns, "bt0-t2")
	small := cfg
	small.Taps = 1
	b := Boot{Root: t.TempDir()}
	for range 2 { // the second time nothing is to be done, and is said
		done := strings.Join(setUpIn(t, ns, small), "\n")
		if !strings.Contains(done, "bt0-t2 stays until its VM has stopped") {
			t.Errorf("it did %q", done)
		}
		own, to := Addr(cfg, 2), Addr(cfg, 0)
		vm.send(t, ether(MAC(to), MAC(Addr(cfg, 1)), 0x800, datagram(own, to)))
		vm.send(t, ether(MAC(to), MAC(own), 0x800, datagram(cfg.IP, to)))
		vm.send(t, ether(everybody, MAC(own), 0x806, arp(1, MAC(own), cfg.IP, to)))
		truth := ether(MAC(to), MAC(own), 0x800, datagram(own, to))
		vm.send(t, truth)
		if got := peer.until(t, truth); len(got) > 0 {
			t.Errorf("of its lies % x arrived", got)
		}
		ns.Do(t, func() error {
			if c := see(t, b, small, "rules"); c.State != OK {
				t.Errorf("%+v", c)
			}
			return nil
		})
	}
	if err := vm.file.Close(); err != nil {
		t.Fatal(err)
	}
	if done := strings.Join(setUpIn(t, ns, small), "\n"); !strings.Contains(done, "removed bt0-t2") {
		t.Errorf("after the VM it did %q", done)
	}
	if done := setUpIn(t, ns, small); len(done) > 0 {
		t.Errorf("at the end it did %q", done)
	}
}

// TestFailedChange has a change of a host that is set up fail at the first step, amid them and at the last: the host is as it was set up before.
func TestFailedChange(t *testing.T) {
	ns := newHost(t)
	ns.Do(t, func() error {
		run("iptables", "-P", "FORWARD", "DROP")
		return setForwarding("0")
	})
	cfg := testConfig()
	setUpIn(t, ns, cfg)
	before := state(t, ns)
	failure := errors.New("failure")
	for what, change := range map[string]func(*Config){
		"another address":         func(c *Config) { c.IP = netip.MustParseAddr("172.16.0.254") },
		"another network":         func(c *Config) { c.CIDR, c.IP = netip.MustParsePrefix("10.9.0.0/16"), netip.MustParseAddr("10.9.0.1") },
		"no private networks":     func(c *Config) { c.AllowPrivate = false },
		"a larger pool":           func(c *Config) { c.Taps = 5 },
		"all of it":               func(c *Config) { c.IP, c.AllowPrivate, c.Taps = netip.MustParseAddr("172.16.0.9"), false, 6 },
		"a smaller pool, at once": func(c *Config) { c.Taps, c.IP = 2, netip.MustParseAddr("172.16.0.254") },
	} {
		changed := cfg
		change(&changed)
		for _, step := range []string{"rules", "taps", "surplus"} {
			ns.Do(t, func() error {
				s := &setup{cfg: changed, fault: func(at string) error {
					if at == step {
						return failure
					}
					return nil
				}}
				if _, err := s.setUp(t.Context()); !errors.Is(err, failure) {
					t.Errorf("%s, %s: %v", what, step, err)
				}
				return nil
			})
			if diff := cmp.Diff(before, state(t, ns)); diff != "" {
				t.Fatalf("%s: a failure at %q changed %s", what, step, diff)
			}
		}
	}
	if done := setUpIn(t, ns, cfg); len(done) > 0 {
		t.Errorf("to set up as before did %q", done)
	}
	ns.Do(t, func() error {
		run("nft", "flush", "ruleset")
		_, err := Teardown(t.Context(), cfg.Name, false)
		on, ferr := forwards()
		if on {
			t.Error("the host forwards, which it did not at first")
		}
		return errors.Join(err, ferr)
	})
}

// hide makes a program one that is not there, for the thread of a Do, which ends with it.
func hide(program string) error {
	err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		if _, serr := os.Stat(filepath.Join(dir, program)); serr == nil && err == nil {
			err = unix.Mount("none", dir, "tmpfs", 0, "")
		}
	}
	return err
}

func TestNoNft(t *testing.T) {
	ns := newHost(t)
	before := state(t, ns)
	ns.Do(t, func() error {
		if err := hide("nft"); err != nil {
			return err
		}
		for what, err := range map[string]error{
			"set up":    func() error { _, err := Setup(t.Context(), testConfig()); return err }(),
			"tear down": func() error { _, err := Teardown(t.Context(), "bt0", true); return err }(),
		} {
			if api.KindOf(err) != api.KindUnavailable || !strings.Contains(err.Error(), "nft") || !strings.Contains(api.AsError(err).Hint, "apt-get install nftables") {
				t.Errorf("%s: %v, hint %q", what, err, api.AsError(err).Hint)
			}
		}
		r, err := Boot{Root: t.TempDir()}.Status(t.Context(), testConfig())
		for _, c := range r.Checks {
			if c.Name == "rules" && (c.State != Missing || !strings.Contains(c.Hint, "apt-get install nftables")) {
				t.Errorf("%+v", c)
			}
		}
		return err
	})
	if diff := cmp.Diff(before, state(t, ns)); diff != "" {
		t.Errorf("it changed %s", diff)
	}
}

// TestProgramsFail has programs of the host refuse: nothing is left, and where it is known why, it is said.
func TestProgramsFail(t *testing.T) {
	for name, tt := range map[string]struct {
		program, script string
		kind            api.ErrorKind
		want, hint      string
	}{
		"a kernel without nf_tables": {"nft", `[ "$1" != list ] || exit 1; exit 1`, api.KindUnavailable, "list firewall tables", "modprobe nf_tables"},
		"a kernel without masquerade": {"nft", `[ "$1" = list ] && exec /usr/sbin/nft "$@"
			echo "Error: Could not process rule: Operation not supported" >&2; exit 1`, api.KindUnavailable, "Operation not supported", "modprobe -a nf_tables"},
		"no right to": {"nft", `[ "$1" = list ] && exec /usr/sbin/nft "$@"
			echo "Error: Could not process rule: Operation not permitted" >&2; exit 1`, api.KindUnavailable, "Operation not permitted", "ambient"},
		"a chain cannot be filled": {"iptables-restore", "exit 1", api.KindInternal, "fill the chain BANGER-FORWARD-bt0", ""},
		"a chain cannot be asked": {"iptables", `case "$*" in *" -I "*) echo locked >&2; exit 4;; esac
			exec /usr/sbin/iptables "$@"`, api.KindInternal, "let the chain FORWARD ask BANGER-FORWARD-bt0: iptables: exit status 4: locked", ""},
		"the second chain cannot be asked": {"iptables", `case "$*" in *"-I INPUT"*) exit 4;; esac
			exec /usr/sbin/iptables "$@"`, api.KindInternal, "let the chain INPUT ask", ""},
	} {
		t.Run(name, func(t *testing.T) {
			ns := newHost(t)
			ns.Do(t, func() error {
				run("iptables", "-P", "FORWARD", "DROP")
				run("iptables", "-P", "INPUT", "DROP")
				return setForwarding("0")
			})
			before := state(t, ns)
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, tt.program), []byte("#!/bin/sh\n"+tt.script+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			path := os.Getenv("PATH")
			t.Setenv("PATH", dir+":"+path)
			ns.Do(t, func() error {
				_, err := Setup(t.Context(), testConfig())
				e := api.AsError(err)
				if err == nil || e.Kind != tt.kind || !strings.Contains(err.Error(), tt.want) || !strings.Contains(e.Hint, tt.hint) {
					t.Errorf("%v: %v, hint %q", e.Kind, err, e.Hint)
				}
				return nil
			})
			t.Setenv("PATH", path)
			if diff := cmp.Diff(before, state(t, ns)); diff != "" {
				t.Errorf("it changed %s", diff)
			}
		})
	}
}
