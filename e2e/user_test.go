//go:build e2e

package e2e

import (
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestOrdinaryUser goes from nothing to a sandbox as a user made for it: in no group, without /dev/net/tun, without a runtime
// directory, with nothing local. Kernel and image are fetched and built again.
func TestOrdinaryUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("making a user needs root; an ordinary user's make test covers the rest")
	}
	if testing.Short() {
		t.Skip("builds an image")
	}
	const name = "banger-e2e"
	command(t, "useradd", "--create-home", "--home-dir", "/home/"+name, name)
	t.Cleanup(func() { command(t, "userdel", "--remove", "--force", name) })
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, gid := number(t, u.Uid), number(t, u.Gid)
	prefix := filepath.Join(u.HomeDir, ".local")
	command(t, "cp", "-r", install, prefix)
	repo := filepath.Join(u.HomeDir, "repo")
	command(t, "sh", "-c", "mkdir "+repo+" && cd "+repo+" && git init -q && printf '#!/bin/sh\\necho from $(pwd)\\nexit 4\\n' > run && chmod +x run && chown -R "+name+": "+u.HomeDir)

	h := &host{t: t, dir: u.HomeDir, prefix: prefix, uid: uid, gid: gid, env: []string{
		"PATH=" + prefix + "/bin:/usr/local/bin:/usr/bin:/bin", "HOME=" + u.HomeDir, "USER=" + name, "LANG=C.UTF-8", "TERM=dumb"}}
	for _, v := range os.Environ() { // how this machine reaches its mirrors is not the user's secret
		if k, _, _ := strings.Cut(v, "="); strings.HasSuffix(strings.ToLower(k), "_proxy") || strings.HasPrefix(k, "SSL_CERT") || strings.HasPrefix(k, "npm_config") {
			h.env = append(h.env, v)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			h.explain()
		}
		h.try("vm", "delete", "--all", "--force")
		h.try("daemon", "stop")
		if left := waitFor(waitShort, func() bool { return len(h.processes()) == 0 }); left != nil {
			t.Errorf("left behind: %+v", h.processes())
		}
	})
	r := h.run("vm", "run", "--rm", "--memory", "512MiB", repo, "--", "./run")
	t.Logf("first run with nothing local: %s\n%s", r.took, r.stderr)
	if r.code != 4 || r.stdout != "from /root/repo\n" {
		t.Errorf("exit status %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}
	for _, want := range []string{"kernel", "image", "boot"} {
		if !strings.Contains(strings.ToLower(r.stderr), want) {
			t.Errorf("the progress does not mention %q", want)
		}
	}
	if st, err := os.Stat(filepath.Join(u.HomeDir, ".local/state/banger/bangerd.sock")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("without a runtime directory the socket is in the state directory: %v", err)
	}
	if left, _ := filepath.Glob("/tmp/mmdebstrap.*"); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func number(t *testing.T, s string) uint32 {
	t.Helper()
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}
