//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
)

// TestGuestUserCannotReachTheAgent tries, as an ordinary user of the guest, everything that leads to the agent or to its call.
func TestGuestUserCannotReachTheAgent(t *testing.T) {
	h := box(t)
	for name, script := range map[string]string{
		"the channel's device":  `p=$(ls /dev/vport* | head -n 1); test -n "$p" && exec 3<>$p`,
		"the agent's sockets":   `for s in $(find /run/banger -type s); do python3 -c 'import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.send(b"x\n"); sys.exit(0 if s.recv(1) else 1)' $s && exit 0; done; exit 1`,
		"the abstract sockets":  `python3 -c 'import socket,sys; names=[l.split()[-1] for l in open("/proc/net/unix") if "banger" in l and "@" in l]; n=[x for x in names]; s=socket.socket(socket.AF_UNIX); s.connect("\0"+n[0][1:]); s.send(b"x\n"); sys.exit(0 if s.recv(1) else 1)'`,
		"the boot secret":       `find / -xdev -name boot.json 2>/dev/null | grep -q . || grep -qs secret /proc/cmdline`,
		"the agent's memory":    `cat /proc/$(pgrep -o banger-agent || echo none)/environ`,
		"the vsock loopback":    `python3 -c 'import socket,sys; s=socket.socket(socket.AF_VSOCK); s.settimeout(3); s.connect((1, 1000)); s.send(b"GET /v1/health HTTP/1.0\r\n\r\n"); sys.exit(0 if s.recv(1) else 1)'`,
		"the call to the host":  `python3 -c 'import socket,sys; s=socket.socket(socket.AF_VSOCK); s.settimeout(3); s.connect((2, 1024)); s.send(b"{\"type\":\"hello\",\"secret\":\"0\"}\n"); sys.exit(0 if b"welcome" in s.recv(99) else 1)'`,
		"the kernel's modprobe": `echo /tmp/x > /proc/sys/kernel/modprobe`,
		"the agent's log":       `cat /run/banger/agent.log`,
	} {
		t.Run(name, func(t *testing.T) {
			r := h.run("vm", "exec", "box", "-u", "nobody", "-w", "/", "--", "sh", "-c", script)
			if r.code == 0 {
				t.Errorf("it worked: %q %q", r.stdout, r.stderr)
			}
		})
	}
	if got := strings.TrimSpace(h.ok("vm", "exec", "box", "-u", "nobody", "-w", "/", "--", "id", "-un")); got != "nobody" {
		t.Errorf("the tests above ran as %q", got)
	}
}

// TestFullHostDisk creates and runs VMs on a file system that is too small for them.
func TestFullHostDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	h := newHost(t)
	state := filepath.Join(h.dir, "state")
	command(t, "mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", state)
	t.Cleanup(func() {
		h.try("vm", "delete", "--all", "--force")
		h.try("daemon", "stop")
		if err := waitFor(waitShort, func() bool { return exec.Command("umount", state).Run() == nil }); err != nil {
			t.Errorf("umount %s: %v", state, err)
		}
	})
	h.fails(1, []string{"20GiB", "file system"}, "vm", "create", "--no-start", "--disk", "20GiB")
	h.fails(1, []string{"file system"}, "vm", "create", "--no-start")
	if vms := h.vms(); len(vms) != 0 {
		t.Errorf("left: %+v", vms)
	}
	command(t, "mount", "-o", "remount,size=1200m", state)
	h.ok("vm", "run", "--name", "tight", "--disk", "1GiB", "--detach")
	filler := filepath.Join(state, "filler")
	command(t, "sh", "-c", "head -c 2000000000 /dev/zero > "+filler+" || true")
	c := h.cmd(t.Context(), "vm", "exec", "tight", "--", "sh", "-c", "head -c 200000000 /dev/urandom > /root/big; sync; echo written")
	var out lockedBuffer
	c.Stdout = &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if err := waitFor(commandTimeout, func() bool { return h.vm("tight").State == api.StatePaused }); err != nil {
		t.Fatalf("not paused: %+v", h.vm("tight"))
	}
	if vm := h.vm("tight"); !strings.Contains(vm.Reason, "disk full") {
		t.Errorf("reason %q", vm.Reason)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	h.waitState("tight", api.StateRunning) // by itself, now that there is room
	if err := c.Wait(); err != nil || out.String() != "written\n" {
		t.Errorf("after there was room: %q, %v", out.String(), err)
	}
}

// TestDamagedFiles changes a byte of the kernel and of the image.
func TestDamagedFiles(t *testing.T) {
	h := newHost(t)
	h.ok("vm", "create", "--name", "v", "--no-start")
	vm := h.vm("v")
	for _, tc := range []struct{ dir, digest, file, hint string }{
		{"images", vm.ImageDigest, "rootfs.ext4", "banger image pull"},
		{"kernels", vm.KernelDigest, "vmlinux", "banger kernel pull"},
	} {
		t.Run(tc.dir, func(t *testing.T) {
			path := filepath.Join(data, "banger", tc.dir, strings.Replace(tc.digest, ":", "-", 1), tc.file)
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			st, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			_, err = f.WriteString("x")
			if err != nil {
				t.Fatal(err)
			}
			_ = f.Close()
			defer func() {
				if err := os.Truncate(path, st.Size()); err != nil {
					t.Fatal(err)
				}
				if err := os.Chtimes(path, st.ModTime(), st.ModTime()); err != nil {
					t.Fatal(err)
				}
			}()
			sub := *h
			sub.t = t
			sub.fails(1, []string{tc.file, tc.hint}, "vm", "start", "v")
		})
	}
	h.ok("vm", "start", "v", "--wait", "agent")
}

// TestMissingPrograms hides QEMU from banger.
func TestMissingPrograms(t *testing.T) {
	h := newHost(t)
	h.config("qemu_bin = \"/no/such/qemu\"\n")
	r := h.run("vm", "run", "--rm", "--", "true")
	if r.code != 125 || !strings.Contains(r.stderr, "/no/such/qemu") {
		t.Errorf("exit status %d, %q", r.code, r.stderr)
	}
	if vms := h.vms(); len(vms) > 1 {
		t.Errorf("left: %+v", vms)
	}
}
