//go:build e2e && long

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
)

// envNumber reads COUNT or SEED.
func envNumber(t *testing.T, name string, def int) int {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return def
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestLongCrashes kills something at random, COUNT times: what the guest had synced is there at the next boot, and
// the records are right.
func TestLongCrashes(t *testing.T) {
	count, seed := envNumber(t, "COUNT", 20), envNumber(t, "SEED", 1)
	rng := rand.New(rand.NewPCG(uint64(seed), 0))
	h := newHost(t)
	h.ok("vm", "create", "--name", "v", "--no-start")
	for i := range count {
		h.ok("vm", "start", "v", "--wait", "agent")
		if i > 0 {
			if got := strings.TrimSpace(h.ok("vm", "exec", "v", "--", "cat", "/root/n")); got != strconv.Itoa(i-1) {
				t.Fatalf("cycle %d: the guest remembers %q", i, got)
			}
		}
		h.ok("vm", "exec", "v", "--", "sh", "-c", fmt.Sprintf("echo %d > /root/n.new && sync && mv /root/n.new /root/n && sync", i))
		vm := h.vm("v")
		what := rng.IntN(5)
		t.Logf("cycle %d: %s", i, []string{"the VMM", "the supervisor", "the daemon, then the VMM", "vm kill", "vm stop"}[what])
		switch what {
		case 0:
			kill(t, vm.VMMPID)
		case 1:
			kill(t, vm.SupervisorPID)
		case 2:
			kill(t, h.daemonPID())
			kill(t, vm.VMMPID)
		case 3:
			h.ok("vm", "kill", "v")
		case 4:
			h.ok("vm", "stop", "v")
		}
		if err := waitFor(waitShort, func() bool {
			s := h.vm("v").State
			return s == api.StateStopped || s == api.StateFailed
		}); err != nil {
			t.Fatalf("cycle %d: %+v", i, h.vm("v"))
		}
		if alive(vm.VMMPID) || alive(vm.SupervisorPID) {
			t.Fatalf("cycle %d: VMM %v, supervisor %v still live", i, alive(vm.VMMPID), alive(vm.SupervisorPID))
		}
	}
}

// TestLongWorkspaceCycles is TestWorkspaceCycles, COUNT times in one VM.
func TestLongWorkspaceCycles(t *testing.T) {
	workspaceCycles(t, envNumber(t, "COUNT", 50), uint64(envNumber(t, "SEED", 1)))
}
