package cli

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/internal/doctor"
)

func TestDoctor(t *testing.T) {
	a := newTestApp(t) // which has no bangerd beside it, and fails the test where the daemon is started
	if err := os.MkdirAll(a.env["XDG_RUNTIME_DIR"], 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", "/usr/bin:/bin")
	if code := a.run("doctor", "-o", "json"); code != 1 || a.err.Len() > 0 {
		t.Errorf("status %d, %s", code, a.err.String())
	}
	var checks []doctor.Check
	if err := json.Unmarshal(a.out.Bytes(), &checks); err != nil {
		t.Fatalf("%s: %v", a.out.String(), err)
	}
	seen := map[string]doctor.Check{}
	for _, c := range checks {
		seen[c.Name] = c
	}
	if c := seen["programs"]; c.Status != doctor.Fail || c.Hint == "" {
		t.Errorf("without bangerd: %+v", c)
	}
	if c := seen["daemon"]; c.Status != doctor.OK || !strings.Contains(c.Detail, "not running") {
		t.Errorf("without a daemon: %+v", c)
	}
	if _, err := os.Lstat(filepath.Join(a.env["HOME"], ".local")); err == nil {
		t.Error("it made directories")
	}

	startFake(t, a.env)
	a.run("doctor", "-o", "json")
	if err := json.Unmarshal(a.out.Bytes(), &checks); err != nil {
		t.Fatal(err)
	}
	for _, c := range checks {
		if c.Name == "daemon" && strings.Contains(c.Detail, "not running") {
			t.Errorf("with a daemon: %+v", c)
		}
	}
}

func TestWriteChecks(t *testing.T) {
	checks := []doctor.Check{
		{Name: "engine", Status: doctor.OK, Detail: "qemu"},
		{Name: "disk space", Status: doctor.Warn, Detail: "a\x1b[1m\nb", Hint: "one\ntwo"},
		{Name: "git", Status: doctor.Fail, Detail: "none", Hint: "get it"},
	}
	const signs = "✓ engine      qemu\n! disk space  a\\x1b[1m\n              b\n              hint: one\n                    two\n" +
		"✗ git         none\n              hint: get it\n\n1 ok, 1 warning, 1 failure\n"
	const words = "ok   engine      qemu\nwarn disk space  a\\x1b[1m\n                 b\n                 hint: one\n                       two\n" +
		"FAIL git         none\n                 hint: get it\n\n1 ok, 1 warning, 1 failure\n"
	coloured := strings.NewReplacer("✓", "\x1b[32m✓\x1b[0m", "!", "\x1b[33m!\x1b[0m", "✗", "\x1b[31m✗\x1b[0m").Replace(signs)
	tests := map[string]struct {
		env      map[string]string
		terminal bool
		want     string
	}{
		"no locale":       {nil, false, words},
		"C":               {map[string]string{"LC_ALL": "C", "LANG": "de_DE.UTF-8"}, false, words},
		"utf-8":           {map[string]string{"LANG": "de_DE.UTF-8"}, false, signs},
		"utf8, ctype":     {map[string]string{"LANG": "C", "LC_CTYPE": "C.utf8"}, false, signs},
		"terminal":        {map[string]string{"LANG": "C.UTF-8", "TERM": "xterm"}, true, coloured},
		"NO_COLOR":        {map[string]string{"LANG": "C.UTF-8", "TERM": "xterm", "NO_COLOR": "1"}, true, signs},
		"a dumb terminal": {map[string]string{"LANG": "C.UTF-8", "TERM": "dumb"}, true, signs},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a := newTestApp(t)
			for k := range a.env {
				delete(a.env, k)
			}
			maps.Copy(a.env, tt.env)
			a.Terminal.Out = tt.terminal
			if err := a.writeChecks(checks); err != nil {
				t.Fatal(err)
			}
			if got := a.out.String(); got != tt.want {
				t.Errorf("got\n%q\nwant\n%q", got, tt.want)
			}
		})
	}
}

// TestWriteChecksNarrow: details are wrapped to the terminal, hints, which are commands, are not.
func TestWriteChecksNarrow(t *testing.T) {
	checks := []doctor.Check{{Name: "kvm", Status: doctor.Warn, Detail: "this host's KVM runs no ordinary guests; VMs are emulated",
		Hint: "sudo sysctl -w net.ipv4.ping_group_range='0 2147483647'"}}
	const narrow = "! kvm  this host's KVM runs no ordinary\n       guests; VMs are emulated\n" +
		"       hint: sudo sysctl -w net.ipv4.ping_group_range='0 2147483647'\n\n0 ok, 1 warning, 0 failures\n"
	const whole = "! kvm  this host's KVM runs no ordinary guests; VMs are emulated\n" +
		"       hint: sudo sysctl -w net.ipv4.ping_group_range='0 2147483647'\n\n0 ok, 1 warning, 0 failures\n"
	for _, tt := range []struct {
		terminal bool
		columns  int
		want     string
	}{{true, 40, narrow}, {true, 100, whole}, {true, 20, whole}, {true, 0, whole}, {false, 40, whole}} {
		a := newTestApp(t)
		a.env["LANG"], a.env["NO_COLOR"] = "C.UTF-8", "1"
		a.Terminal.Out = tt.terminal
		a.Terminal.Size = func() (int, int) { return 24, tt.columns }
		if err := a.writeChecks(checks); err != nil {
			t.Fatal(err)
		}
		if got := a.out.String(); got != tt.want {
			t.Errorf("%d columns, terminal %v:\n%s", tt.columns, tt.terminal, got)
		}
	}
}
