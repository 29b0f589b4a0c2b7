package bridge

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// see is one check of a report. It may be called from any goroutine.
func see(t *testing.T, b Boot, cfg Config, name string) Check {
	t.Helper()
	r, err := b.Status(context.Background(), cfg)
	for _, c := range r.Checks {
		if c.Name == name {
			return c
		}
	}
	t.Errorf("there is no check %q in %+v: %v", name, r, err)
	return Check{}
}

// TestStatusOfTAPs: TAPs that are there and of no use are told apart, and setting up again helps where the hint says so.
func TestStatusOfTAPs(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil  func(t *testing.T) error
		detail string
		hint   string
		mends  bool
	}{
		"one is down": {
			spoil: func(*testing.T) error { return withLink("bt0-t1", netlink.LinkSetDown) }, detail: "1 of 3 are down or not on bt0, bt0-t1 first", hint: setupHint, mends: true,
		},
		"one is elsewhere": {
			spoil: func(*testing.T) error { return withLink("bt0-t2", netlink.LinkSetNoMaster) }, detail: "1 of 3 are down or not on bt0, bt0-t2 first", hint: setupHint, mends: true,
		},
		"two are gone": {
			spoil: func(*testing.T) error {
				return errors.Join(withLink("bt0-t0", netlink.LinkDel), withLink("bt0-t2", netlink.LinkDel))
			}, detail: "2 of 3 are not there, bt0-t0 first", hint: setupHint, mends: true,
		},
		"one is another user's": {
			spoil: func(*testing.T) error {
				return errors.Join(withLink("bt0-t1", netlink.LinkDel), addTAP("bt0-t1", 12345))
			}, detail: "1 of 3 are not for user root, bt0-t1 first", hint: "sudo banger net teardown",
		},
		"all are gone": {
			spoil: func(*testing.T) error {
				return errors.Join(withLink("bt0-t0", netlink.LinkDel), withLink("bt0-t1", netlink.LinkDel), withLink("bt0-t2", netlink.LinkDel))
			}, detail: "none of 3 is there", hint: setupHint, mends: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			ns := newHost(t)
			cfg, b := testConfig(), Boot{Root: t.TempDir()}
			setUpIn(t, ns, cfg)
			ns.Do(t, func() error {
				if c := see(t, b, cfg, "taps"); c.State != OK || c.Detail != "3 for user root, of which VMs use 0" {
					t.Errorf("before: %+v", c)
				}
				if err := tt.spoil(t); err != nil {
					return err
				}
				if c := see(t, b, cfg, "taps"); c.State != Missing || c.Detail != tt.detail || !strings.HasPrefix(c.Hint, tt.hint) {
					t.Errorf("%+v", c)
				}
				_, err := Setup(context.Background(), cfg)
				if (err == nil) != tt.mends {
					t.Errorf("setting up again: %v", err)
				}
				if c := see(t, b, cfg, "taps"); (c.State == OK) != tt.mends {
					t.Errorf("after: %+v", c)
				}
				return nil
			})
		})
	}
}

func withLink(name string, f func(netlink.Link) error) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return f(link)
}

// TestStatusUnprivileged is what a user sees who is not root: all but the rules, and that those are not seen.
func TestStatusUnprivileged(t *testing.T) {
	ns := newHost(t)
	cfg := testConfig()
	setUpIn(t, ns, cfg)
	names := (&setup{cfg: cfg}).seeResolver(t.Context()).State // of the host's, which does not know this namespace
	ns.Do(t, func() error {                                    // the thread ends with it
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			return err
		}
		r, err := Boot{Root: t.TempDir()}.Status(context.Background(), cfg)
		got := map[string]State{}
		for _, c := range r.Checks {
			got[c.Name] = c.State
			if c.State == Unknown && !strings.HasPrefix(c.Hint, "sudo ") {
				t.Errorf("%+v", c)
			}
		}
		want := map[string]State{"bridge": OK, "taps": OK, "device": OK, "rules": Unknown, "other firewalls": Unknown, "forwarding": OK, "names": names, "boot": Off}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		return err
	})
}

// TestBootFailure has systemd refuse the unit: what was there before is there again.
func TestBootFailure(t *testing.T) {
	for name, setBefore := range map[string]bool{"of the first": false, "of a change": true} {
		t.Run(name, func(t *testing.T) {
			ns := newHost(t)
			bin := t.TempDir()
			systemctl := func(script string) {
				if err := os.WriteFile(filepath.Join(bin, "systemctl"), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			b := Boot{Root: t.TempDir(), Program: "/usr/bin/banger"}
			for _, dir := range []string{"run/systemd/system", "etc/systemd/system/multi-user.target.wants"} {
				if err := os.MkdirAll(filepath.Join(b.Root, dir), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			cfg := testConfig()
			systemctl("exit 0")
			if setBefore {
				ns.Do(t, func() error { _, err := b.Setup(context.Background(), cfg); return err })
			}
			before := files(t, b.Root)
			systemctl(`[ "$1" != restart ] || { echo refused >&2; exit 1; }`)
			cfg.Taps = 5
			ns.Do(t, func() error {
				done, err := b.Setup(context.Background(), cfg)
				if err == nil || !strings.Contains(err.Error(), "refused") {
					t.Errorf("it did %q, %v", done, err)
				}
				return nil
			})
			if diff := cmp.Diff(before, files(t, b.Root)); diff != "" {
				t.Errorf("it changed %s", diff)
			}
		})
	}
}

// TestExposed: a program that others than root may write is not one to run as root at boot, and that is said.
func TestExposed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: files of other users are made")
	}
	root := t.TempDir()
	dir := filepath.Join(root, "dir")
	program := filepath.Join(dir, "banger")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(program, nil, 0o755)); err != nil {
		t.Fatal(err)
	}
	b := Boot{Program: program}
	if path := b.exposed(); path != "" {
		t.Skipf("%s is not root's alone, in which the test's directory is", path)
	}
	for name, tt := range map[string]struct {
		change func() error
		want   string
	}{
		"a user's program":                 {func() error { return os.Chown(program, 12345, 0) }, program},
		"a group's program":                {func() error { return errors.Join(os.Chown(program, 0, 12345), os.Chmod(program, 0o775)) }, program},
		"a program of root's group":        {func() error { return os.Chmod(program, 0o775) }, ""},
		"everybody's program":              {func() error { return os.Chmod(program, 0o757) }, program},
		"a user's directory":               {func() error { return os.Chown(dir, 12345, 0) }, dir},
		"everybody's directory":            {func() error { return os.Chmod(dir, 0o777) }, dir},
		"everybody's, for their own files": {func() error { return os.Chmod(dir, 0o777|os.ModeSticky) }, ""},
	} {
		if err := errors.Join(os.Chown(program, 0, 0), os.Chmod(program, 0o755), os.Chown(dir, 0, 0), os.Chmod(dir, 0o755), tt.change()); err != nil {
			t.Fatal(err)
		}
		if got := b.exposed(); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}
