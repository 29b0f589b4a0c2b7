//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

func TestSystemdIsContent(t *testing.T) {
	h := box(t)
	if got := strings.TrimSpace(h.run("vm", "exec", "box", "--", "systemctl", "is-system-running", "--wait").stdout); got != "running" {
		t.Errorf("systemctl is-system-running: %q", got)
	}
	if got := h.ok("vm", "exec", "box", "--", "systemctl", "--failed", "--no-legend", "--plain"); got != "" {
		t.Errorf("failed units:\n%s", got)
	}
	if got := h.ok("vm", "exec", "box", "--", "systemctl", "list-jobs", "--no-legend"); got != "" {
		t.Errorf("jobs still waiting:\n%s", got)
	}
	journal := h.ok("vm", "exec", "box", "--", "journalctl", "-b", "--no-pager", "-o", "cat")
	for line := range strings.Lines(journal) {
		if strings.Contains(line, "Timed out waiting") || strings.Contains(line, "timed out") {
			t.Errorf("journal: %s", line)
		}
	}
}

func TestGuestIsItsOwnMachine(t *testing.T) {
	h := box(t)
	vm := h.vm("box")
	if got := strings.TrimSpace(h.ok("vm", "exec", "box", "--", "hostname")); got != "box" {
		t.Errorf("hostname %q", got)
	}
	id := strings.TrimSpace(h.ok("vm", "exec", "box", "--", "cat", "/etc/machine-id"))
	if len(id) != 32 {
		t.Errorf("machine-id %q", id)
	}
	if got := h.ok("vm", "exec", "box", "--", "uname", "-r"); !strings.HasPrefix(got, "6.12") {
		t.Errorf("kernel %q", got)
	}
	now := strings.TrimSpace(h.ok("vm", "exec", "box", "--", "date", "-u", "+%Y-%m-%dT%H"))
	if here := time.Now().UTC().Format("2006-01-02T15"); now != here && now != time.Now().UTC().Add(-time.Minute).Format("2006-01-02T15") {
		t.Errorf("the guest's clock says %s, the host's %s", now, here)
	}
	if vm.Engine != "qemu" || vm.Accel == "" || vm.VMMPID == 0 || vm.SupervisorPID == 0 {
		t.Errorf("vm show: %+v", vm)
	}
	for _, dir := range []string{"/root", "/home", "/var/lib/docker", "/var/tmp"} {
		if got := strings.TrimSpace(h.ok("vm", "exec", "box", "--", "stat", "-f", "-c", "%T", dir)); got != "ext2/ext3" {
			t.Errorf("%s is on %s, want the data drive", dir, got)
		}
	}
	h.ok("vm", "exec", "box", "--", "modprobe", "nf_tables")
	for tool := range strings.FieldsSeq("git jq rg curl gcc make python3 tmux vim less rsync ssh docker") {
		if r := h.run("vm", "exec", "box", "--", "sh", "-c", "command -v "+tool); r.code != 0 {
			t.Errorf("the image has no %s", tool)
		}
	}
}

// TestEndings says goodbye from inside in every way, and looks at the record and at the data drive.
func TestEndings(t *testing.T) {
	h := newHost(t)
	h.ok("vm", "create", "--name", "end", "--no-start")
	for _, tc := range []struct {
		verb, reason string
		dirty        bool
	}{
		{verb: "poweroff"},
		{verb: "halt", reason: "halt"},
		{verb: "sync; echo c > /proc/sysrq-trigger", reason: "unexpectedly", dirty: true},
	} {
		t.Run(tc.verb, func(t *testing.T) {
			h.ok("vm", "start", "end")
			h.run("vm", "exec", "end", "--", "sh", "-c", "echo kept > /root/kept; "+tc.verb)
			vm := h.waitState("end", api.StateStopped)
			if !strings.Contains(vm.Reason, tc.reason) || (tc.reason == "" && vm.Reason != "") {
				t.Errorf("reason %q, want %q", vm.Reason, tc.reason)
			}
			if !tc.dirty {
				h.clean(vm)
			}
		})
	}
	t.Run("reboot", func(t *testing.T) {
		h.ok("vm", "start", "end")
		before := h.vm("end")
		h.run("vm", "exec", "end", "--", "reboot")
		if err := waitFor(3*time.Minute, func() bool {
			vm := h.vm("end")
			return vm.State == api.StateRunning && vm.Restarts == 1 && vm.Mark.Reached(api.MarkReady)
		}); err != nil {
			t.Fatalf("after reboot: %+v", h.vm("end"))
		}
		if after := h.vm("end"); after.VMMPID == before.VMMPID {
			t.Errorf("the VMM is the same process, %d", after.VMMPID)
		}
		if got := h.ok("vm", "exec", "end", "--", "cat", "/root/kept"); got != "kept\n" {
			t.Errorf("/root/kept: %q", got)
		}
	})
	t.Run("stop", func(t *testing.T) {
		h.ok("vm", "stop", "end")
		vm := h.vm("end")
		if vm.State != api.StateStopped || vm.Reason != "" {
			t.Errorf("after stop: %s, %q", vm.State, vm.Reason)
		}
		h.clean(vm)
	})
	t.Run("kill", func(t *testing.T) {
		h.ok("vm", "start", "end", "--wait", "agent")
		h.ok("vm", "kill", "end")
		if vm := h.vm("end"); vm.State != api.StateStopped {
			t.Errorf("after kill: %s", vm.State)
		}
		h.ok("vm", "start", "end") // and it comes back
		if got := h.ok("vm", "exec", "end", "--", "cat", "/root/kept"); got != "kept\n" {
			t.Errorf("/root/kept: %q", got)
		}
	})
}

// clean checks that a stopped VM's data drive needs no recovery and has no error.
func (h *host) clean(vm api.VM) {
	h.t.Helper()
	data := filepath.Join(h.dir, "state/banger/vms", vm.ID, "data.ext4")
	out := command(h.t, "dumpe2fs", "-h", data)
	if strings.Contains(out, "needs_recovery") {
		h.t.Errorf("the data drive needs recovery after %s", vm.Reason)
	}
	command(h.t, "e2fsck", "-fn", data)
}

func TestTwoAtOnce(t *testing.T) {
	h := newHost(t)
	done := make(chan result, 2)
	for i := range 2 {
		go func() {
			done <- h.run("vm", "run", "--rm", "--name", fmt.Sprintf("two-%d", i), "--", "hostname")
		}()
	}
	seen := map[string]bool{}
	for range 2 {
		r := <-done
		if r.code != 0 {
			t.Errorf("exit status %d: %s", r.code, r.stderr)
		}
		seen[strings.TrimSpace(r.stdout)] = true
	}
	if !seen["two-0"] || !seen["two-1"] {
		t.Errorf("hostnames %v", seen)
	}
}

// TestBusyHost boots twenty times in a row while three loops keep the host busy: early boots under software
// emulation used to hang one time in ten.
func TestBusyHost(t *testing.T) {
	h := newHost(t)
	stop := make(chan struct{})
	defer close(stop)
	for range 3 {
		go func() {
			for n := 0; ; n++ {
				if n&0xfffff == 0 {
					select {
					case <-stop:
						return
					default:
					}
				}
			}
		}()
	}
	h.ok("vm", "create", "--name", "busy", "--no-start")
	for i := range 20 {
		h.ok("vm", "start", "busy", "--wait", "agent")
		if r := h.run("vm", "exec", "busy", "--", "true"); r.code != 0 {
			t.Fatalf("boot %d: exec: status %d, %s", i, r.code, r.stderr)
		}
		h.ok("vm", "kill", "busy")
	}
	vmmLog, _ := os.ReadFile(filepath.Join(h.dir, "state/banger/vms", h.vm("busy").ID, "vmm.log"))
	if n := strings.Count(string(vmmLog), "boot deadline"); n > 0 {
		t.Errorf("%d of 20 boots hung and were started again", n)
	}
}
