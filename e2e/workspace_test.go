//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestForeignProject builds and tests a C project that is not ours in a VM, from a work tree in every state a work tree can be in.
func TestForeignProject(t *testing.T) {
	h := newHost(t)
	repo := filepath.Join(h.dir, "bzip2")
	command(t, "../scripts/demo-project", repo)
	before := command(t, "sha256sum", filepath.Join(repo, ".git/index"))
	h.ok("vm", "run", "--name", "dev", repo, "--", "true")
	if after := command(t, "sha256sum", filepath.Join(repo, ".git/index")); after != before {
		t.Error("the host's index was changed")
	}

	for _, tc := range []struct{ name, script string }{
		{"status", "git status --porcelain"},
		{"log", "git log --format='%H %T %an %s' --all"},
		{"index", "git ls-files -s"},
		{"diff", "git diff | sha256sum"},
		{"staged", "git diff --cached | sha256sum"},
		{"tree", `find . -path ./.git -prune -o ! -name local.log -printf '%P %y %l %m %s\n' | LC_ALL=C sort | grep -v ' d '`},
		{"content", `find . -path ./.git -prune -o -type f ! -name local.log -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := commandIn(t, repo, "sh", "-c", tc.script)
			r := h.run("vm", "exec", "dev", "-w", "/root/bzip2", "--", "sh", "-c", tc.script)
			if r.code != 0 || r.stdout != want {
				t.Errorf("exit status %d, stderr %q\nguest:\n%s\nhost:\n%s", r.code, r.stderr, r.stdout, want)
			}
		})
	}
	if r := h.run("vm", "exec", "dev", "--", "test", "-e", "/root/bzip2/local.log"); r.code != 1 {
		t.Error("an ignored file came along")
	}
	if r := h.run("vm", "exec", "dev", "-w", "/root/bzip2", "--", "git", "fsck", "--full"); r.code != 0 {
		t.Errorf("git fsck: %s", r.stderr)
	}
	r := h.run("vm", "exec", "dev", "-w", "/root/bzip2", "--", "./check.sh")
	if r.code != 0 || !strings.Contains(r.stdout, "If you got this far") {
		t.Errorf("make test: exit status %d\n%s\n%s", r.code, r.stdout, r.stderr)
	}
	t.Logf("make test took %s", r.took)
}

func TestRunInTheRepository(t *testing.T) {
	h := newHost(t)
	dir := filepath.Join(h.dir, "plain")
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sub/run.sh"), []byte("#!/bin/sh\npwd; echo problem >&2; exit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := h.run("vm", "run", "--rm", "./plain", "--", "sub/run.sh")
	if r.code != 3 || r.stdout != "/root/plain\n" || !strings.Contains(r.stderr, "problem\n") {
		t.Errorf("exit status %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}
}
