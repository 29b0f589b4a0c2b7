//go:build e2e

package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestMain builds and installs banger as `make install` does, into a directory of the tests' own.
func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	// Under nohup, what the tests start would take a terminal that is gone for nothing; a signal that is caught here is not ignored there.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	root, err := filepath.Abs("..")
	if err != nil {
		return fail(err)
	}
	base := os.Getenv("BANGER_TEST_CACHE")
	if base == "" {
		base = filepath.Join(root, ".cache", "e2e")
	}
	install, data, cache = filepath.Join(base, "install"), filepath.Join(base, "data"), filepath.Join(base, "cache")
	c := exec.Command("make", "-s", "install", "PREFIX="+install, "DESTDIR=")
	c.Dir, c.Stdout, c.Stderr = root, os.Stderr, os.Stderr
	if err := c.Run(); err != nil {
		return fail(fmt.Errorf("make install: %w", err))
	}
	flag.Parse()
	if filter := flag.Lookup("test.run").Value.String(); os.Getuid() == 0 && (filter == "" || strings.Contains("TestOrdinaryUser", filter)) {
		startUserRun()
		defer userRun.remove()
	}
	code := m.Run()
	if shared != nil && !shared.closeShared() {
		code = 1
	}
	return code
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, "e2e:", err)
	return 1
}

// shared is a host with one running VM, "box", for all tests that only look at a running VM or run commands in it.
var shared *host

// box returns the shared host. The first call starts the VM; where nothing is local yet that is a real first run, and its
// progress is checked.
func box(t *testing.T) *host {
	t.Helper()
	if shared == nil {
		h := bareHost(t)
		shared = h
		first := len(h.ok("image", "list", "-o", "name")) == 0 || !strings.Contains(h.ok("image", "list"), "yes")
		r := h.run("vm", "run", "--name", "box", "--detach", "--wait", "full")
		if r.code != 0 {
			t.Fatalf("banger vm run: exit status %d\n%s", r.code, r.stderr)
		}
		t.Logf("the first start took %s, nothing local before: %v\n%s", r.took, first, r.stderr)
	}
	shared.t = t
	if st := shared.vm("box").State; st != "running" {
		t.Fatalf("the shared VM is %s", st)
	}
	return shared
}
