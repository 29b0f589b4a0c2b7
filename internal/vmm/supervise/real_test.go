package supervise

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/disk"
	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker/fakefc"
	"git.thaloco.com/thaloco/banger/internal/vmm/vmmtest"
)

// TestRealConformance runs the suite on QEMU. The real tests need
//
//	BANGER_TEST_KERNEL  a directory with vmlinux, boot.cpio and modules.ext4
//	BANGER_TEST_AGENT   an initramfs archive with the agent
//	BANGER_TEST_IMAGE   a root file system
//	BANGER_TEST_PANIC   the command that makes its kernel panic; "panic" where it is unset
func TestRealConformance(t *testing.T) { vmmtest.Run(t, realFixture(wire.DeviceVirtio)) }

// TestRealLinkTAP runs the suite's part about the network with the agent's TAP in place of a device of QEMU's.
func TestRealLinkTAP(t *testing.T) { vmmtest.RunLink(t, realFixture(wire.DeviceTAP)) }

func realFixture(netDevice string) vmmtest.New {
	return func(t *testing.T) vmmtest.Fixture {
		t.Helper()
		newSpec := realVM(t)
		dir := filepath.Join(t.TempDir(), "a,b=c")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		return vmmtest.Fixture{
			Engine: newEngine(t), Again: newEngine(t), Dir: dir, Spec: newSpec(t, dir), Patience: 2 * time.Minute,
			NetDevice: netDevice, Panic: strings.Fields(os.Getenv("BANGER_TEST_PANIC")),
		}
	}
}

// TestRealFirecracker runs the suite on the Firecracker that BANGER_TEST_FIRECRACKER_BIN names; BANGER_TEST_UNCONFINED is set for one that
// is none, and starts programs of its own.
func TestRealFirecracker(t *testing.T) {
	binary := os.Getenv("BANGER_TEST_FIRECRACKER_BIN")
	if binary == "" {
		t.Skip("BANGER_TEST_FIRECRACKER_BIN names no Firecracker")
	}
	newSpec := realVM(t)
	vmmtest.Run(t, func(t *testing.T) vmmtest.Fixture {
		dir := t.TempDir()
		keepLogs(t, dir)
		spec := newSpec(t, dir)
		spec.Engine, spec.Binary, spec.Accel, spec.Unconfined = vmm.EngineFirecracker, binary, vmm.AccelKVM, os.Getenv("BANGER_TEST_UNCONFINED") != ""
		if spec.Unconfined {
			if err := (fakefc.Knobs{Backend: fakefc.BackendQEMU}).Write(dir); err != nil {
				t.Fatal(err)
			}
		}
		return vmmtest.Fixture{
			Engine: newEngine(t), Again: newEngine(t), Dir: dir, Spec: spec, Patience: 2 * time.Minute,
			Panic: strings.Fields(os.Getenv("BANGER_TEST_PANIC")), NetDevice: wire.DeviceTAP,
			NoSnapshots: spec.Unconfined,
		}
	})
}

// keepLogs copies the logs of the VM in dir, when the test is over, to where BANGER_TEST_LOGS says.
func keepLogs(t *testing.T, dir string) {
	t.Helper()
	to := os.Getenv("BANGER_TEST_LOGS")
	if to == "" {
		return
	}
	to = filepath.Join(to, strings.ReplaceAll(t.Name(), "/", "-"))
	t.Cleanup(func() {
		err := os.MkdirAll(to, 0o755)
		found, _ := filepath.Glob(filepath.Join(dir, "*.log*"))
		for _, f := range found {
			if st, serr := os.Lstat(f); serr != nil || !st.Mode().IsRegular() { // the named pipe of Firecracker's own is one
				continue
			}
			b, rerr := os.ReadFile(f)
			err = errors.Join(err, rerr, os.WriteFile(filepath.Join(to, filepath.Base(f)), b, 0o644))
		}
		if err != nil {
			t.Error(err)
		}
	})
}

// TestRealFullDisk fills the host's disk from the guest, and makes room.
func TestRealFullDisk(t *testing.T) {
	newSpec := realVM(t)
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=48m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		tick := time.NewTicker(50 * time.Millisecond) // the supervisor ends a moment after its VM
		defer tick.Stop()
		ctx := within(t, 20*time.Second)
		for {
			err := unix.Unmount(dir, 0)
			if err == nil {
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Error(err)
				return
			}
		}
	})
	ctx := within(t, 2*time.Minute)
	m, err := newEngine(t).Start(ctx, dir, newSpec(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	r := &run{machine: m.(*machine), ctx: ctx, dir: dir}
	defer r.Close()
	defer func() { _ = r.Kill(within(t, 30*time.Second)) }()
	r.awaitFull(t)
	written := r.orderLater("dd", "if=/dev/urandom", "of=/root/big", "bs=1M", "count=80", "conv=fsync")
	r.await(t, func(st vmm.Status) bool { return st.PauseReason == pausedDiskFull || st.Phase == vmm.PhaseEnded })
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=300m"); err != nil {
		t.Fatal(err)
	}
	r.await(t, func(st vmm.Status) bool { return st.Phase == vmm.PhaseRunning || st.Phase == vmm.PhaseEnded })
	if exit := <-written; exit.err != nil || exit.status != 0 {
		t.Errorf("the guest's write ended with status %d, %v", exit.status, exit.err)
	}
}

// exit is how a command of the guest ended.
type exit struct {
	status int
	err    error
}

// orderLater runs a command in the guest in the background.
func (r *run) orderLater(argv ...string) <-chan exit {
	done := make(chan exit, 1)
	go func() {
		e, err := exec.Run(r.ctx, exec.Options{
			Dial:  func(ctx context.Context) (net.Conn, error) { return r.Dial(ctx, wire.PortExec) },
			Start: wire.ExecStart{Argv: argv, NoStdin: true},
		})
		done <- exit{e.Status, err}
	}()
	return done
}

// realVM returns what makes the data drive and the spec of a VM in a directory.
func realVM(t *testing.T) func(t *testing.T, dir string) vmm.Spec {
	t.Helper()
	kernel, agent, image := os.Getenv("BANGER_TEST_KERNEL"), os.Getenv("BANGER_TEST_AGENT"), os.Getenv("BANGER_TEST_IMAGE")
	if kernel == "" || agent == "" || image == "" {
		t.Skip("BANGER_TEST_KERNEL, BANGER_TEST_AGENT and BANGER_TEST_IMAGE do not name what a VM is made of")
	}
	qemu, err := hostexec.Runner{}.LookPath("qemu-system-x86_64")
	if err != nil && os.Getenv("BANGER_TEST_FIRECRACKER_BIN") == "" {
		t.Skip(err)
	}
	return func(t *testing.T, dir string) vmm.Spec {
		t.Helper()
		if err := disk.Create(within(t, time.Minute), filepath.Join(dir, "data.ext4"), 20<<30); err != nil {
			t.Fatal(err)
		}
		return vmm.Spec{
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
	}
}
