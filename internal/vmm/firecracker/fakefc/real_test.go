package fakefc

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/internal/disk"
	guestexec "git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/initramfs"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/driver"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker"
)

// realVM makes the directory and the spec of a VM whose kernel, agent and image are real. The tests need
//
//	BANGER_TEST_KERNEL  a directory with vmlinux, boot.cpio and modules.ext4
//	BANGER_TEST_AGENT   an initramfs archive with the agent
//	BANGER_TEST_IMAGE   a root file system
func realVM(t *testing.T) firecracker.Config {
	t.Helper()
	kernel, agent, image := os.Getenv("BANGER_TEST_KERNEL"), os.Getenv("BANGER_TEST_AGENT"), os.Getenv("BANGER_TEST_IMAGE")
	if kernel == "" || agent == "" || image == "" {
		t.Skip("BANGER_TEST_KERNEL, BANGER_TEST_AGENT and BANGER_TEST_IMAGE do not name what a VM is made of")
	}
	if _, err := exec.LookPath(qemuProgram); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	var initrd bytes.Buffer
	for _, path := range []string{filepath.Join(kernel, "boot.cpio"), agent} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		initrd.Write(b)
	}
	err := initramfs.WriteBoot(&initrd, wire.Boot{
		Version: wire.Version, Secret: secret, Transport: wire.TransportVsock,
		Identity: wire.Identity{VM: "0123456789abcdef", Hostname: "dev", MachineID: strings.Repeat("0123456789abcdef", 2)},
	})
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "initrd", initrd.Bytes())
	if err := disk.Create(t.Context(), filepath.Join(dir, "data.ext4"), 20<<30); err != nil {
		t.Fatal(err)
	}
	if err := (Knobs{Backend: BackendQEMU, Spec: os.Getenv(EnvSpec)}).Write(dir); err != nil {
		t.Fatal(err)
	}
	return firecracker.Config{Dir: dir, Spec: vmm.Spec{
		CPUs: 1, MemoryMiB: 512, Kernel: filepath.Join(kernel, "vmlinux"),
		Drives: []vmm.Drive{
			{ID: wire.DriveBase, Path: image, ReadOnly: true}, {ID: wire.DriveData, Path: "data.ext4"},
			{ID: wire.DriveModules, Path: filepath.Join(kernel, "modules.ext4"), ReadOnly: true},
		},
	}}
}

// TestRealGuest: banger's driver, the fake, and behind it a real kernel with the real agent.
func TestRealGuest(t *testing.T) {
	cfg := realVM(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	h := listenCalls(t, cfg.Dir)
	h.patience = 2 * time.Minute
	v, err := startVM(ctx, t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	h.await(t, func(c wire.Call) bool { return c.Mark == "ready" })
	if out := run(ctx, t, cfg.Dir, "sh", "-c", "cat /proc/cmdline; echo there"); !strings.HasSuffix(out, "there\n") || !strings.Contains(out, "reboot=t") {
		t.Errorf("the guest says %q", out)
	}
	if err := v.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := v.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(cfg.Dir, "data.ext4"), 21<<30); err != nil {
		t.Fatal(err)
	}
	if err := v.ResizeDrive(ctx, wire.DriveData); err != nil {
		t.Fatal(err)
	}
	if out := run(ctx, t, cfg.Dir, "cat", "/sys/class/block/vdb/size"); out != fmt.Sprintln(21<<30/512) {
		t.Errorf("the guest sees %q sectors", out)
	}
	_ = run(ctx, t, cfg.Dir, "reboot", "-f")
	select {
	case <-v.Done():
	case <-ctx.Done():
		t.Fatal("it does not end")
	}
	if x := v.Exit(); x.Ending != driver.GuestReset {
		t.Errorf("the end is %+v", x)
	}
	if b, err := os.ReadFile(filepath.Join(cfg.Dir, ViolationFile)); err == nil {
		t.Errorf("violations: %s", b)
	}
}

// run runs a command in the guest.
func run(ctx context.Context, t *testing.T, dir string, argv ...string) string {
	t.Helper()
	var out bytes.Buffer
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	_, err := guestexec.Run(ctx, guestexec.Options{
		Dial: func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			conn, err := d.DialContext(ctx, "unix", filepath.Join(dir, "vsock.sock"))
			if err != nil {
				return nil, err
			}
			if _, err = fmt.Fprintf(conn, "CONNECT %d\n", wire.PortExec); err == nil {
				err = readOK(conn)
			}
			return conn, err
		},
		Start: wire.ExecStart{Argv: argv, NoStdin: true}, Stdout: &out, ReconnectFor: -1,
	})
	if err != nil {
		t.Logf("%v: %v", argv, err)
	}
	return out.String()
}

// readOK reads the answer to a CONNECT, and nothing behind it.
func readOK(conn net.Conn) error {
	b := make([]byte, 1)
	for line := ""; !strings.HasSuffix(line, "\n"); line += string(b) {
		if _, err := io.ReadFull(conn, b); err != nil {
			return err
		}
	}
	return nil
}
