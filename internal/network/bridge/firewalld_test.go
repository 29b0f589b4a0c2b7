package bridge

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// playFirewalld puts a firewall-cmd first in PATH that answers what is asked of it with a script, which may ask for "$1".
func playFirewalld(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "firewall-cmd"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestFirewalld(t *testing.T) {
	for name, tt := range map[string]struct {
		script string
		state  State // empty: nothing is said
		detail string
		hint   string
	}{
		"it does not run": {script: "echo not running >&2; exit 252"},
		"in no zone": {
			script: `case $1 in --state) echo running;; --get-zone-of-interface=bt0) echo no zone >&2; exit 2;; *) exit 9;; esac`,
			state:  Missing, detail: "bt0 in no zone", hint: "--permanent --zone=trusted --change-interface=bt0",
		},
		"in a zone": {
			script: `case $1 in --state) echo running;; --get-zone-of-interface=bt0) echo trusted;; *) exit 9;; esac`,
			state:  OK, detail: "in the zone trusted",
		},
	} {
		t.Run(name, func(t *testing.T) {
			playFirewalld(t, tt.script)
			c, ok := (&setup{cfg: testConfig()}).seeFirewalld(t.Context())
			if ok != (tt.state != "") || c.State != tt.state || !strings.Contains(c.Detail, tt.detail) || !strings.Contains(c.Hint, tt.hint) || (tt.hint == "") != (c.Hint == "") {
				t.Errorf("%v: %+v", ok, c)
			}
		})
	}
}

// TestStatusFirewalld: a host on which iptables refuses nothing is not in order where firewalld does.
func TestStatusFirewalld(t *testing.T) {
	ns := newHost(t)
	cfg := testConfig()
	setUpIn(t, ns, cfg)
	playFirewalld(t, `case $1 in --state) echo running;; *) echo no zone >&2; exit 2;; esac`)
	ns.Do(t, func() error {
		r, err := Boot{Root: t.TempDir()}.Status(t.Context(), cfg)
		for _, c := range r.Checks {
			if want := c.Name == "other firewalls"; want != (c.State == Missing) {
				t.Errorf("%+v", c)
			}
		}
		if !r.Failed() {
			t.Error("it did not fail")
		}
		return err
	})
}
