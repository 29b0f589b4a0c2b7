//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// ordinaryUser is a user made for the tests: in no group, without /dev/net/tun and without a runtime directory.
const ordinaryUser = "banger-e2e"

// firstRun is how an ordinary user's first run went. It takes a while and one CPU, and so goes on beside other tests.
type firstRun struct {
	host *host
	result
	err  error
	done chan struct{}
}

// userRun is nil where the tests do not run as root.
var userRun *firstRun

// startUserRun goes from nothing to a sandbox as a fresh user; kernel and image are fetched and built again.
func startUserRun() {
	userRun = &firstRun{done: make(chan struct{})}
	go func() {
		defer close(userRun.done)
		userRun.err = userRun.run()
	}()
}

// addUser makes a user of this machine who has installed banger, and nothing else of it.
func addUser(name string) (*host, error) {
	if out, err := exec.Command("useradd", "--create-home", "--home-dir", "/home/"+name, name).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("useradd: %w: %s", err, out)
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	prefix := filepath.Join(u.HomeDir, ".local")
	script := `set -e; cp -r "$1" "$2"; mkdir repo; cd repo; git init -q; printf '#!/bin/sh\necho from $(pwd)\nexit 4\n' >run; chmod +x run; chown -R "$3:" ..`
	c := exec.Command("sh", "-c", script, "sh", install, prefix, name)
	c.Dir = u.HomeDir
	if out, err := c.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("prepare the user's home: %w: %s", err, out)
	}
	h := &host{dir: u.HomeDir, prefix: prefix, uid: uint32(uid), gid: uint32(gid), env: []string{
		"PATH=" + prefix + "/bin:/usr/local/bin:/usr/bin:/bin", "HOME=" + u.HomeDir, "USER=" + name, "LANG=C.UTF-8", "TERM=dumb"}}
	for _, v := range os.Environ() { // how this machine reaches its mirrors is the user's to know
		if k, _, _ := strings.Cut(v, "="); strings.HasSuffix(strings.ToLower(k), "_proxy") || strings.HasPrefix(k, "SSL_CERT") || strings.HasPrefix(k, "npm_config") {
			h.env = append(h.env, v)
		}
	}
	return h, nil
}

// removeUser ends what a user that addUser made has left, and removes the user. h may be nil.
func removeUser(h *host, name string) {
	if h != nil {
		_ = h.cmd(context.Background(), "vm", "delete", "--all", "--force").Run()
		_ = h.cmd(context.Background(), "daemon", "stop").Run()
		_ = waitFor(waitShort, func() bool { return len(h.processes()) == 0 })
	}
	_ = exec.Command("userdel", "--remove", "--force", name).Run()
}

func (f *firstRun) run() (err error) {
	if f.host, err = addUser(ordinaryUser); err != nil {
		return err
	}
	var out, errOut bytes.Buffer
	run := f.host.cmd(context.Background(), "vm", "run", "--rm", "--memory", "512MiB", filepath.Join(f.host.dir, "repo"), "--", "./run")
	run.Stdout, run.Stderr = &out, &errOut
	start := time.Now()
	err = run.Run()
	f.result = result{out.String(), errOut.String(), run.ProcessState.ExitCode(), time.Since(start)}
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil // the status is looked at by the test
	}
	return err
}

// remove ends what the user left and removes the user.
func (f *firstRun) remove() {
	<-f.done
	removeUser(f.host, ordinaryUser)
}

func TestOrdinaryUser(t *testing.T) {
	if userRun == nil {
		t.Skip("making a user needs root, and a full run of the tests; an ordinary user's own make test covers the rest")
	}
	<-userRun.done
	if userRun.err != nil {
		t.Fatal(userRun.err)
	}
	r, h := userRun.result, userRun.host
	h.t = t
	t.Logf("first run with nothing local, beside other tests: %s\n%s", r.took, r.stderr)
	if r.code != 4 || r.stdout != "from /root/repo\n" {
		t.Errorf("exit status %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}
	for _, want := range []string{"linux-image", "install packages", "boot"} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("the progress does not mention %q", want)
		}
	}
	if st, err := os.Stat(filepath.Join(h.dir, ".local/state/banger/bangerd.sock")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("without a runtime directory the socket is in the state directory: %v", err)
	}
	if vms := h.vms(); len(vms) != 0 {
		t.Errorf("left: %+v", vms)
	}
	h.ok("daemon", "stop")
	if left := waitFor(waitShort, func() bool { return len(h.processes()) == 0 }); left != nil {
		t.Errorf("left behind: %+v", h.processes())
	}
}
