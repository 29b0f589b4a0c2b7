//go:build e2e

package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
)

// TestKernelRegister boots a kernel that was registered: Debian's vmlinux and modules, as a user who built them would have them.
func TestKernelRegister(t *testing.T) {
	debugfs, err := exec.LookPath("debugfs")
	if err != nil {
		debugfs = "/sbin/debugfs" // not in the PATH of ordinary users
	}
	h := newHost(t)
	h.ok("kernel", "pull", "generic-6.12")
	k := decode[api.Kernel](t, h.ok("kernel", "show", "generic-6.12", "-o", "json"))
	stored := filepath.Join(data, "banger/kernels", strings.Replace(k.Digest, ":", "-", 1))
	modules := t.TempDir()
	if out, err := exec.Command(debugfs, "-R", "rdump / "+modules, filepath.Join(stored, "modules.ext4")).CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v\n%s", err, out)
	}
	vmlinux := filepath.Join(stored, "vmlinux")
	h.fails(1, []string{"not the directory of one kernel's modules"}, "kernel", "register", "--name", "own", "--vmlinux", vmlinux, "--modules", modules)
	r := h.run("kernel", "register", "--name", "own", "--vmlinux", vmlinux, "--modules", filepath.Join(modules, k.Release))
	if r.code != 0 || !strings.HasPrefix(r.stdout, "own "+k.Release+" sha256:") {
		t.Fatalf("register: exit status %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	defer h.ok("kernel", "delete", "own")
	t.Logf("registered within %s\n%s", r.took, r.stderr)
	// The kernel loads the file system by itself, from the drive of its modules.
	h.ok("image", "pull", "debian-bookworm") // takes its time where nothing is local yet
	r = h.run("vm", "run", "--kernel", "own", "--rm", "--", "sh", "-c", "uname -r; mount -t vfat none /mnt 2>/dev/null; grep -w vfat /proc/filesystems; ls /lib/modules /sys/class/net")
	if r.code != 0 {
		t.Fatalf("run: exit status %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	t.Logf("ran within %s\n%s", r.took, r.stdout)
	for _, want := range []string{k.Release + "\n", "vfat", "lo\n"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("%q is not in %q", want, r.stdout)
		}
	}
	if got := strings.Count(r.stdout, k.Release); got != 2 {
		t.Errorf("uname -r and /lib/modules: %q", r.stdout)
	}
}
