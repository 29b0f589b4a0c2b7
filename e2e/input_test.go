//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"testing"
)

// TestBadInput gives what people mistype. Each gets its message and its status, and nothing is left.
func TestBadInput(t *testing.T) {
	h := newHost(t)
	h.ok("vm", "create", "--name", "taken", "--no-start")
	file := filepath.Join(h.dir, "a-file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(h.dir, "broken")
	command(t, "git", "init", "-q", broken)
	if err := os.WriteFile(filepath.Join(broken, ".git/HEAD"), []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		code  int
		texts []string
		args  []string
	}{
		{"unknown image", 1, []string{"debian-bokworm", "debian-bookworm"}, []string{"vm", "create", "--no-start", "--image", "debian-bokworm"}},
		{"unknown image in run", 125, []string{"debian-bokworm", "debian-bookworm"}, []string{"vm", "run", "--image", "debian-bokworm", "--", "true"}},
		{"bad name", 1, []string{"Web_1", "a-z"}, []string{"vm", "create", "--no-start", "--name", "Web_1"}},
		{"reserved name", 1, []string{"gateway", "reserved"}, []string{"vm", "create", "--no-start", "--name", "gateway"}},
		{"all digits", 1, []string{"123", "digits"}, []string{"vm", "create", "--no-start", "--name", "123"}},
		{"duplicate name", 1, []string{"taken", "already exists"}, []string{"vm", "create", "--no-start", "--name", "taken"}},
		{"memory of no form", 1, []string{"lots", "GiB"}, []string{"vm", "create", "--no-start", "--memory", "lots"}},
		{"memory too small", 1, []string{"16MiB"}, []string{"vm", "create", "--no-start", "--memory", "16MiB"}},
		{"memory beyond the host", 1, []string{"900GiB", "host"}, []string{"vm", "create", "--no-start", "--memory", "900GiB"}},
		{"disk of no form", 1, []string{"-5", "GiB"}, []string{"vm", "create", "--no-start", "--disk=-5"}},
		{"disk beyond the host", 1, []string{"900TiB"}, []string{"vm", "create", "--no-start", "--disk", "900TiB"}},
		{"too many CPUs", 1, []string{"4096"}, []string{"vm", "create", "--no-start", "--cpus", "4096"}},
		{"path that is not there", 125, []string{"no-such-dir"}, []string{"vm", "run", "./no-such-dir", "--", "true"}},
		{"path that is a file", 125, []string{"a-file", "directory"}, []string{"vm", "run", "./a-file", "--", "true"}},
		{"bad environment", 2, []string{"=x"}, []string{"vm", "create", "--no-start", "-e", "=x"}},
		{"no such VM", 1, []string{"takn", "taken"}, []string{"vm", "show", "takn"}},
		{"no such VM in exec", 125, []string{"takn", "taken"}, []string{"vm", "exec", "takn", "--", "true"}},
		{"a stopped VM in exec", 125, []string{"taken", "stopped", "vm start"}, []string{"vm", "exec", "taken", "--", "true"}},
		{"unknown command", 2, []string{"strat"}, []string{"vm", "strat"}},
		{"unknown flag", 2, []string{"--no-such-flag"}, []string{"vm", "list", "--no-such-flag"}},
		{"unknown kernel", 1, []string{"generic-7"}, []string{"kernel", "pull", "generic-7"}},
		{"image in use", 1, []string{"debian-bookworm", "taken"}, []string{"image", "delete", "debian-bookworm"}},
		{"log source", 0, nil, []string{"vm", "logs", "taken", "--source", "console"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sub := *h
			sub.t = t
			sub.fails(tc.code, tc.texts, tc.args...)
		})
	}
	if vms := h.vms(); len(vms) != 1 {
		t.Errorf("left: %+v", vms)
	}
}

func TestBadConfiguration(t *testing.T) {
	h := newHost(t)
	h.config("defualt_cpus = 2\n")
	h.fails(3, []string{"config.toml", "3", "defualt_cpus", "default_cpus"}, "vm", "list")
	h.config("default_cpus = \"two\"\n")
	h.fails(3, []string{"config.toml", "default_cpus"}, "vm", "list")
	h.config("")
	h.ok("vm", "list")
}

// TestBrokenRepository comes with a HEAD that git cannot read: the run says so.
func TestBrokenRepository(t *testing.T) {
	h := newHost(t)
	broken := filepath.Join(h.dir, "broken")
	command(t, "git", "init", "-q", broken)
	if err := os.WriteFile(filepath.Join(broken, ".git/HEAD"), []byte("ref: refs/heads/../../x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := h.run("vm", "run", "--rm", "./broken", "--", "true")
	if r.code != 125 {
		t.Errorf("exit status %d, want 125; %s", r.code, r.stderr)
	}
	if vms := h.vms(); len(vms) != 0 {
		t.Errorf("left: %+v", vms)
	}
}
