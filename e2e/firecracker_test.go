//go:build e2e

package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker/fakefc"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker/release"
	"git.thaloco.com/thaloco/banger/internal/vmm/probe"
)

// TestFirecracker runs VMs on the real Firecracker, where there is one (banger fetches it where it can) and KVM is usable, or where
// BANGER_TEST_FIRECRACKER=1 says to try in any case: what a user does, then the engine contract's suite.
func TestFirecracker(t *testing.T) {
	h := newHost(t)
	h.config("engine = \"firecracker\"\n")
	if os.Getenv("BANGER_TEST_FIRECRACKER") == "1" {
		h.env = append(h.env, "BANGER_TEST_FIRECRACKER=1")
	} else if why := h.noFirecracker(); why != "" {
		t.Skipf("%s; BANGER_TEST_FIRECRACKER=1 tries it all the same", why)
	}
	logs := h.newLogs(t)
	h.firecrackerLife(t, logs)
	p := probe.Prober{Config: probe.Config{Engine: probe.Firecracker, Bin: filepath.Join(data, "banger", "bin")}}
	d, err := p.Choose(t.Context())
	if err != nil || d.Fetch {
		t.Fatalf("%+v, %v", d, err)
	}
	t.Logf("Firecracker %s, %s", d.Version, d.Binary)
	h.firecrackerConformance(t, d.Binary, "", logs)
}

// noFirecracker is why VMs cannot run on the real Firecracker here; empty where they can.
func (h *host) noFirecracker() string {
	p := probe.Prober{Config: probe.Config{Engine: probe.Firecracker, Bin: filepath.Join(data, "banger", "bin")}}
	d, err := p.Choose(h.t.Context())
	if err != nil {
		return err.Error()
	}
	if d.Fetch {
		pin, _ := release.Pinned("amd64")
		h.t.Logf("Firecracker %s will be fetched: %s", pin.Version, pin.URL)
	}
	return ""
}

// fcLogs is a directory with the logs of VMs, the deleted ones' too.
type fcLogs string

// newLogs makes one where somebody can read it, also of a test that passed.
func (h *host) newLogs(t *testing.T) fcLogs {
	t.Helper()
	to, err := filepath.Abs(filepath.Join(cache, "..", "firecracker-logs", time.Now().UTC().Format("20060102T150405")))
	if err == nil {
		err = os.MkdirAll(to, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.keep(t, fcLogs(to))
		t.Logf("logs: %s", to)
	})
	return fcLogs(to)
}

// keep copies the logs there are now; those of a VM go with it.
func (h *host) keep(t *testing.T, to fcLogs) {
	t.Helper()
	found, _ := filepath.Glob(filepath.Join(h.dir, "state/banger/vms/*/*.log*"))
	for _, f := range append(found, filepath.Join(h.dir, "state/banger/bangerd.log")) {
		if st, err := os.Lstat(f); err != nil || !st.Mode().IsRegular() {
			continue
		}
		name := filepath.Base(f)
		if dir := filepath.Base(filepath.Dir(f)); dir != "banger" {
			name = dir + "-" + name
		}
		b, err := os.ReadFile(f)
		if err == nil {
			err = os.WriteFile(filepath.Join(string(to), name), b, 0o644)
		}
		if err != nil {
			t.Error(err)
		}
	}
}

// TestFirecrackerStandIn runs real guests through the driver of Firecracker and a stand-in for it, which has Firecracker's command
// line, API and vsock, and QEMU in place of KVM. What the guest does, and all that banger does, is as on the real one.
func TestFirecrackerStandIn(t *testing.T) {
	h := newHost(t)
	firecracker, config := h.standIn(t)
	h.config(config)
	logs := fcLogs(t.TempDir())
	h.firecrackerLife(t, logs)
	h.firecrackerConformance(t, firecracker, "/^(AttachRunning|Pause|ResizeDrive|Reboot|Panic|Link|StartCancelled)$", logs)
	for _, name := range []string{"bangerd.log", "console.log", "TestRealFirecracker-Reboot/console.log"} {
		if found, _ := filepath.Glob(filepath.Join(string(logs), strings.ReplaceAll(name, "console", "*console"))); len(found) == 0 {
			t.Errorf("of the logs %q was not kept", name)
		}
	}
	h.noViolation(t)
}

// standIn builds the stand-in for the host and returns its path, and what the configuration must say for it.
func (h *host) standIn(t *testing.T) (firecracker, config string) {
	t.Helper()
	bin := filepath.Join(h.dir, "bin")
	firecracker = filepath.Join(bin, "firecracker")
	build := exec.Command("go", "build", "-trimpath", "-o", firecracker, "./internal/vmm/firecracker/fakefc/program")
	build.Dir, build.Env = "..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := (fakefc.Knobs{Backend: fakefc.BackendQEMU, Spec: os.Getenv(fakefc.EnvSpec)}).Write(bin); err != nil {
		t.Fatal(err)
	}
	h.env = append(h.env, "BANGER_TEST_FIRECRACKER=1")
	// What the stand-in starts is out of reach for who is confined as Firecracker is.
	return firecracker, "engine = \"firecracker\"\nfirecracker_bin = \"" + firecracker + "\"\njail = \"off\"\n"
}

// noViolation checks that nothing was asked that Firecracker's document does not have.
func (h *host) noViolation(t *testing.T) {
	t.Helper()
	if found, _ := filepath.Glob(filepath.Join(h.dir, "state/banger/vms/*", fakefc.ViolationFile)); len(found) > 0 {
		t.Errorf("Firecracker's document was violated: %v", found)
	}
}

// firecrackerLife does with a VM what a user does, and keeps its logs before it is deleted.
func (h *host) firecrackerLife(t *testing.T, logs fcLogs) {
	t.Helper()
	repo := filepath.Join(h.dir, "repo")
	command(t, "git", "init", "-q", repo)
	for name, text := range map[string]string{"Makefile": "test:\n\t@uname -s; id -un; cat data\n", "data": "from the repository\n"} {
		if err := os.WriteFile(filepath.Join(repo, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := h.run("vm", "run", "--name", "first", repo, "--", "sh", "-c", "make -s test && exit 7")
	if r.code != 7 || r.stdout != "Linux\nroot\nfrom the repository\n" {
		t.Fatalf("vm run: status %d\n%s\n%s", r.code, r.stdout, r.stderr)
	}
	t.Logf("vm run took %s", r.took)
	h.keep(t, logs)
	h.ok("vm", "delete", "--force", "first")

	h.ok("vm", "run", "--name", "fc", "--detach", "--wait", "full")
	vm := h.vm("fc")
	if vm.Engine != "firecracker" || vm.Accel != "kvm" {
		t.Errorf("engine %q, %q", vm.Engine, vm.Accel)
	}
	if got := h.inGuest("fc", "systemctl is-system-running; systemctl --failed --no-legend"); got != "running\n" {
		t.Errorf("systemd: %q", got)
	}
	big := h.randomFile("big", 20<<20)
	h.ok("vm", "cp", big, "fc:/root/")
	if got := h.inGuest("fc", "sha256sum </root/big"); !strings.HasPrefix(got, sum(t, big)) {
		t.Error("what was copied into the guest is another")
	}
	back := filepath.Join(h.dir, "back")
	h.ok("vm", "cp", "fc:big", back)
	if sum(t, back) != sum(t, big) {
		t.Error("what was copied back is another")
	}
	if got := h.ok("vm", "ssh", "fc", "--", "echo by ssh"); got != "by ssh\n" {
		t.Errorf("vm ssh: %q", got)
	}
	if r := h.feed(strings.NewReader("to and fro"), "vm", "exec", "-i", "fc", "--", "cat"); r.stdout != "to and fro" || r.code != 0 {
		t.Errorf("vm exec -i: %+v", r)
	}
	// Its eth0 is a TAP in the guest, whose frames come over vsock: the gateway answers, and knows names.
	h.ok("vm", "create", "--name", "other", "--wait", "full")
	other := h.vm("other").Address.String()
	if got := h.inGuest("fc", `ip -o link show eth0 | grep -o 'mtu [0-9]*'; getent hosts other.vm; python3 - <<'P'
import socket
s = socket.create_connection(("other.vm", 22), 20)
print(s.recv(8).decode())
P`); got != "mtu 65520\n"+other+"       other.vm\n"+"SSH-2.0-\n" && !strings.Contains(got, "SSH-2.0-") {
		t.Errorf("the network: %q", got)
	}
	h.keep(t, logs)
	h.ok("vm", "delete", "--force", "other")
	// A forward hands on the end of one direction, whichever side ends it, though Firecracker's streams do not.
	t.Run("forward", func(t *testing.T) {
		h.netserve(t, "fc", "127.0.0.1")
		sumInto(t, h.forward("fc", "0:11"), 8<<20)
		halfCloseByGuest(t, h.forward("fc", "0:7"))
	})

	pid := vm.VMMPID
	h.ok("daemon", "stop")
	if got := h.inGuest("fc", "echo still here"); got != "still here\n" || h.vm("fc").VMMPID != pid {
		t.Errorf("after the daemon was restarted: %q", got)
	}
	h.run("vm", "exec", "fc", "--", "reboot")
	h.await("fc", "a second boot", func(vm api.VM) bool { return vm.Restarts == 1 && vm.State == api.StateRunning })
	h.ok("vm", "start", "--wait", "full", "fc")
	if got := h.inGuest("fc", "sha256sum </root/big"); !strings.HasPrefix(got, sum(t, big)) {
		t.Error("after a reboot the file is another")
	}
	h.ok("vm", "stop", "fc")
	h.ok("vm", "start", "--wait", "full", "fc")
	h.run("vm", "exec", "fc", "--", "poweroff")
	h.await("fc", "the end", func(vm api.VM) bool { return vm.State == api.StateStopped && vm.Reason == "" })
	// What no init announces is seen on the console.
	h.ok("vm", "start", "--wait", "full", "fc")
	h.run("vm", "exec", "fc", "--", "halt", "-ff")
	h.await("fc", "the end", func(vm api.VM) bool { return vm.State == api.StateStopped })
	h.keep(t, logs)
	h.ok("vm", "delete", "fc")
}

// await waits until a VM is as ok wants.
func (h *host) await(name, what string, ok func(api.VM) bool) {
	h.t.Helper()
	if err := waitFor(2*time.Minute, func() bool { return ok(h.vm(name)) }); err != nil {
		text, _ := json.Marshal(h.vm(name))
		h.t.Fatalf("%s: not %s: %s", name, what, text)
	}
}

// firecrackerConformance runs the suite of the engine contract on a Firecracker, with the agent, the kernel and a small image. A
// part of it stands for a stand-in: the rest passes on a fake guest, in package supervise.
func (h *host) firecrackerConformance(t *testing.T, firecracker, part string, logs fcLogs) {
	t.Helper()
	images := filepath.Join(t.TempDir(), "images")
	busyboxImage(t, images)
	var kernels []api.Kernel
	if err := json.Unmarshal([]byte(h.ok("kernel", "list", "-o", "json")), &kernels); err != nil {
		t.Fatal(err)
	}
	digest := ""
	for _, k := range kernels {
		if k.Local {
			digest = cmp.Or(digest, k.Digest)
		}
	}
	c := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-timeout=10m", "-v", "-run", "^TestRealFirecracker$"+part, "./internal/vmm/supervise")
	c.Dir = ".."
	c.Env = append(os.Environ(), "BANGER_TEST_KERNEL="+filepath.Join(data, "banger", "kernels", strings.Replace(digest, ":", "-", 1)),
		"BANGER_TEST_IMAGE="+one(t, filepath.Join(images, "*", "rootfs.ext4")), "BANGER_TEST_PANIC=/bin/panic",
		"BANGER_TEST_AGENT="+newest(t, filepath.Join(data, "banger", "agents", "*", "initramfs.cpio")), "BANGER_TEST_FIRECRACKER_BIN="+firecracker, "BANGER_TEST_LOGS="+string(logs))
	if part != "" {
		c.Env = append(c.Env, "BANGER_TEST_UNCONFINED=1")
	}
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Run(); err != nil {
		t.Errorf("%v\n%s", err, out.String())
	}
	for _, name := range []string{"Reboot", "Panic", "Link"} {
		if !strings.Contains(out.String(), "--- PASS: TestRealFirecracker/"+name) {
			t.Errorf("%s did not run:\n%s", name, out.String())
		}
	}
}
