//go:build e2e

package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestConformance runs the engine contract's suite, and the test of a full host disk, on the real engine with the real agent: the same suite
// that the fakes pass in package supervise.
func TestConformance(t *testing.T) {
	h := box(t)
	images := filepath.Join(t.TempDir(), "images")
	busyboxImage(t, images)
	image := one(t, filepath.Join(images, "*", "rootfs.ext4"))
	kernel := filepath.Join(data, "banger", "kernels", strings.Replace(h.vm("box").KernelDigest, ":", "-", 1))
	c := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-timeout=10m", "-v", "-run", "^TestReal", "./internal/vmm/supervise")
	c.Dir = ".."
	c.Env = append(os.Environ(), "BANGER_TEST_KERNEL="+kernel, "BANGER_TEST_IMAGE="+image, "BANGER_TEST_PANIC=/bin/panic",
		"BANGER_TEST_AGENT="+newest(t, filepath.Join(data, "banger", "agents", "*", "initramfs.cpio")))
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Run(); err != nil {
		t.Errorf("%v\n%s", err, out.String())
	}
	for _, name := range []string{"TestRealConformance/Reboot", "TestRealConformance/Panic"} {
		if !strings.Contains(out.String(), "--- PASS: "+name) {
			t.Errorf("%s did not run:\n%s", name, out.String())
		}
	}
	if strings.Contains(out.String(), "--- SKIP: TestRealConformance") {
		t.Errorf("something was skipped:\n%s", out.String())
	}
}

// one is the only file of a pattern.
func one(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %v, %v", pattern, found, err)
	}
	return found[0]
}

// newest is the file of a pattern that was written last: agents of earlier builds may be there too.
func newest(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) == 0 {
		t.Fatalf("%s: %v, %v", pattern, found, err)
	}
	last := found[0]
	for _, f := range found[1:] {
		a, errA := os.Stat(last)
		b, errB := os.Stat(f)
		if errA == nil && errB == nil && b.ModTime().After(a.ModTime()) {
			last = f
		}
	}
	return last
}
