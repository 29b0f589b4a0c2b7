package supervise

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/internal/disk"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/vmmtest"
)

// TestRealConformance runs the suite on QEMU. It needs
//
//	BANGER_TEST_KERNEL  a directory with vmlinux, boot.cpio and modules.ext4
//	BANGER_TEST_AGENT   an initramfs archive with the agent
//	BANGER_TEST_IMAGE   a root file system
//	BANGER_TEST_PANIC   the command that makes its kernel panic; "panic" where it is unset
func TestRealConformance(t *testing.T) {
	kernel, agent, image := os.Getenv("BANGER_TEST_KERNEL"), os.Getenv("BANGER_TEST_AGENT"), os.Getenv("BANGER_TEST_IMAGE")
	if kernel == "" || agent == "" || image == "" {
		t.Skip("BANGER_TEST_KERNEL, BANGER_TEST_AGENT and BANGER_TEST_IMAGE do not name what a VM is made of")
	}
	qemu, err := hostexec.Runner{}.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip(err)
	}
	vmmtest.Run(t, func(t *testing.T) vmmtest.Fixture {
		dir := filepath.Join(t.TempDir(), "a,b=c")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := disk.Create(within(t, time.Minute), filepath.Join(dir, "data.ext4"), 20<<30); err != nil {
			t.Fatal(err)
		}
		spec := vmm.Spec{
			Version: vmm.SpecVersion, VM: "0123456789abcdef", Name: "dev", Engine: "qemu", Binary: qemu, Accel: "tcg",
			CPUs: 1, MemoryMiB: 512, Kernel: filepath.Join(kernel, "vmlinux"),
			Initramfs: []string{filepath.Join(kernel, "boot.cpio"), agent},
			Drives: []vmm.Drive{
				{ID: wire.DriveBase, Path: image, ReadOnly: true},
				{ID: wire.DriveData, Path: "data.ext4"},
				{ID: wire.DriveModules, Path: filepath.Join(kernel, "modules.ext4"), ReadOnly: true},
			},
			Identity: wire.Identity{VM: "0123456789abcdef", Hostname: "dev", MachineID: strings.Repeat("0123456789abcdef", 2)},
		}
		return vmmtest.Fixture{
			Engine: newEngine(t), Again: newEngine(t), Dir: dir, Spec: spec, Patience: 2 * time.Minute,
			Panic: strings.Fields(os.Getenv("BANGER_TEST_PANIC")),
		}
	})
}
