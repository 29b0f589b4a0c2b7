//go:build e2e

package e2e

import (
	"bytes"
	"strings"
	"syscall"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

// TestDaemonGoesAndComes stops and kills the daemon under a running VM with a running command whose client is attached.
func TestDaemonGoesAndComes(t *testing.T) {
	h := newHost(t)
	h.ok("vm", "run", "--name", "live", "--detach")
	for _, tc := range []struct {
		name string
		end  func()
	}{
		{"stop and start", func() { h.ok("daemon", "stop"); h.ok("daemon", "start") }},
		{"kill", func() { kill(t, h.daemonPID()); h.ok("daemon", "start") }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := h.vm("live")
			c := h.cmd(t.Context(), "vm", "exec", "live", "--", "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo line $i; sleep 1; done; exit 5")
			var out, errOut lockedBuffer
			c.Stdout, c.Stderr = &out, &errOut
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			if err := waitFor(time.Minute, func() bool { return strings.Contains(out.String(), "line 2") }); err != nil {
				t.Fatal(err)
			}
			tc.end()
			_ = c.Wait()
			want := ""
			for n := range strings.FieldsSeq("1 2 3 4 5 6 7 8 9 10 11 12") {
				want += "line " + n + "\n"
			}
			if out.String() != want || c.ProcessState.ExitCode() != 5 {
				t.Errorf("exit status %d, stdout:\n%s\nstderr:\n%s", c.ProcessState.ExitCode(), out.String(), errOut.String())
			}
			after := h.vm("live")
			if after.State != api.StateRunning || after.VMMPID != before.VMMPID {
				t.Errorf("before %+v, after %+v", before, after)
			}
		})
	}
}

func TestKillEverything(t *testing.T) {
	h := newHost(t)
	h.ok("vm", "run", "--name", "victim", "--detach", "--wait", "agent")
	t.Run("the VMM", func(t *testing.T) {
		kill(t, h.vm("victim").VMMPID)
		vm := h.waitState("victim", api.StateFailed)
		if !strings.Contains(vm.Reason, "killed") && !strings.Contains(vm.Reason, "signal") {
			t.Errorf("reason %q does not say what happened", vm.Reason)
		}
		h.ok("vm", "start", "victim", "--wait", "agent")
	})
	t.Run("the supervisor", func(t *testing.T) {
		vm := h.vm("victim")
		kill(t, vm.SupervisorPID)
		after := h.waitState("victim", api.StateStopped)
		if !strings.Contains(after.Reason, "supervisor") {
			t.Errorf("reason %q", after.Reason)
		}
		if err := waitFor(10*time.Second, func() bool { return !alive(vm.VMMPID) }); err != nil {
			t.Errorf("the VMM, process %d, outlived its supervisor", vm.VMMPID)
		}
		h.ok("vm", "start", "victim", "--wait", "agent")
	})
	t.Run("the supervisor without a daemon", func(t *testing.T) {
		vm := h.vm("victim")
		kill(t, h.daemonPID())
		kill(t, vm.SupervisorPID)
		after := h.waitState("victim", api.StateStopped)
		if after.VMMPID != 0 || alive(vm.VMMPID) {
			t.Errorf("after: %+v; the VMM lives: %v", after, alive(vm.VMMPID))
		}
		h.ok("vm", "start", "victim", "--wait", "agent")
	})
	t.Run("the command line", func(t *testing.T) {
		c := h.cmd(t.Context(), "vm", "exec", "victim", "--", "sh", "-c", "echo up; exec sleep 1000")
		var out lockedBuffer
		c.Stdout = &out
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if err := waitFor(time.Minute, func() bool { return strings.Contains(out.String(), "up") }); err != nil {
			t.Fatal(err)
		}
		_ = c.Process.Kill()
		_ = c.Wait()
		if err := waitFor(30*time.Second, func() bool {
			return h.run("vm", "exec", "victim", "--", "pgrep", "-f", "sleep 1000").code != 0
		}); err != nil {
			t.Error("the command goes on though its client was killed")
		}
		if vm := h.vm("victim"); vm.State != api.StateRunning {
			t.Errorf("the VM is %s", vm.State)
		}
	})
	t.Run("the command line of a --rm VM", func(t *testing.T) {
		c := h.cmd(t.Context(), "vm", "run", "--rm", "--name", "orphan", "--wait", "agent", "--", "sh", "-c", "echo up; exec sleep 1000")
		var out lockedBuffer
		c.Stdout = &out
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if err := waitFor(2*time.Minute, func() bool { return strings.Contains(out.String(), "up") }); err != nil {
			t.Fatal(err)
		}
		_ = c.Process.Kill()
		_ = c.Wait()
		if err := waitFor(30*time.Second, func() bool { return h.run("vm", "show", "orphan").code != 0 }); err != nil {
			t.Errorf("the VM stays: %+v", h.vm("orphan"))
		}
	})
}

// TestInterrupt presses Ctrl-C while a VM boots, and while a command runs.
func TestInterrupt(t *testing.T) {
	h := newHost(t)
	t.Run("while it boots", func(t *testing.T) {
		c := h.cmd(t.Context(), "vm", "run", "--name", "early", "--", "true")
		var errOut lockedBuffer
		c.Stderr = &errOut
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if err := waitFor(time.Minute, func() bool { return strings.Contains(h.run("vm", "list").stdout, "starting") }); err != nil {
			t.Fatal(err)
		}
		_ = c.Process.Signal(syscall.SIGINT)
		_ = c.Wait()
		if c.ProcessState.ExitCode() != 130 {
			t.Errorf("exit status %d, want 130; %s", c.ProcessState.ExitCode(), errOut.String())
		}
		if vms := h.vms(); len(vms) != 0 {
			t.Errorf("half-made: %+v", vms)
		}
	})
	t.Run("while the command runs", func(t *testing.T) {
		c := h.cmd(t.Context(), "vm", "run", "--rm", "--wait", "agent", "--", "sh", "-c", "trap 'echo caught; exit 9' INT; echo up; while :; do sleep 0.2; done")
		var out lockedBuffer
		c.Stdout = &out
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if err := waitFor(2*time.Minute, func() bool { return strings.Contains(out.String(), "up") }); err != nil {
			t.Fatal(err)
		}
		_ = c.Process.Signal(syscall.SIGINT)
		_ = c.Wait()
		if c.ProcessState.ExitCode() != 9 || !strings.Contains(out.String(), "caught") {
			t.Errorf("exit status %d, stdout %q", c.ProcessState.ExitCode(), out.String())
		}
		if vms := h.vms(); len(vms) != 0 {
			t.Errorf("left: %+v", vms)
		}
	})
}

// TestFlood lets a guest print for ever: its log stays bounded.
func TestFlood(t *testing.T) {
	h := newHost(t)
	h.ok("vm", "run", "--name", "loud", "--detach", "--wait", "agent")
	h.ok("vm", "exec", "loud", "--", "sh", "-c", "(head -c 9000000 /dev/zero | tr '\\0' x | fold -w 99 > /dev/ttyS0) 2>&1")
	dir := h.dir + "/state/banger/vms/" + h.vm("loud").ID + "/" // the rest of the bound is tested without the slow serial port
	if now, old := fileSize(dir+"console.log"), fileSize(dir+"console.log.1"); now > 8<<20 || old < 7<<20 || old > 8<<20 {
		t.Errorf("after 9 MB: console.log has %d bytes, console.log.1 %d; want 8 MiB at most, and the older half full", now, old)
	}
	if got := h.ok("vm", "exec", "loud", "--", "echo", "fine"); got != "fine\n" {
		t.Errorf("exec: %q", got)
	}
	if logs := h.ok("vm", "logs", "loud"); !bytes.Contains([]byte(logs), []byte("xxxxxxxx")) {
		t.Error("vm logs does not show the console")
	}
}
