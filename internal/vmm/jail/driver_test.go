package jail

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/initramfs"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker"
)

// TestDriver: banger's driver boots a Firecracker in a jail, twice, as a guest's reboot makes a supervisor do; the
// guest calls through a socket that is older than the jail.
func TestDriver(t *testing.T) {
	needRoot(t)
	dir, err := os.MkdirTemp("", "jail") //nolint:usetesting // names of sockets must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	fake := filepath.Join(dir, "firecracker")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", fake, "../firecracker/fakefc/program")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	block := string(make([]byte, 4096))
	cfg := Config{
		Jailer: self, Firecracker: fake, ID: "0123456789abcdef", Dir: dir, UID: UserOf("0123456789abcdef"), GID: UserOf("0123456789abcdef"),
		Files: []File{
			{Host: write(t, filepath.Join(dir, "kernel"), block, 0o600), Name: "vmlinux"},
			{Host: write(t, filepath.Join(dir, "rootfs.ext4"), block, 0o600), Name: "base.ext4"},
			{Host: write(t, filepath.Join(dir, "data.ext4"), block, 0o600), Name: "data.ext4", Writable: true},
			{Host: filepath.Join(dir, "vsock.sock_1024"), Name: "vsock.sock_1024", Writable: true},
		},
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: cfg.Files[3].Host})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 2 {
		bootJailed(ctx, t, cfg, ln)
	}
	for _, f := range cfg.Files[:3] {
		if got, want := ownerMode(t, f.Host), fmt.Sprintf("%d:%d ", os.Geteuid(), os.Getegid()); !strings.HasPrefix(got, want) {
			t.Errorf("%s is %s", f.Name, got)
		}
	}
	if mounted(t, dir) {
		t.Error("mounts are left")
	}
}

// bootJailed boots the VM, waits for its guest's call, and ends it.
func bootJailed(ctx context.Context, t *testing.T, cfg Config, ln *net.UnixListener) {
	t.Helper()
	j, err := Prepare(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	initrd, err := os.Create(filepath.Join(j.Root(), "initrd"))
	if err == nil {
		err = initramfs.WriteBoot(initrd, wire.Boot{
			Version: wire.Version, Secret: "secret", Transport: wire.TransportVsock,
			Identity: wire.Identity{VM: cfg.ID, Hostname: "dev"},
		})
		err = errors.Join(err, initrd.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	_, console := pipe(t)
	v, err := firecracker.Start(ctx, firecracker.Config{
		Spec: vmm.Spec{
			Version: vmm.SpecVersion, VM: cfg.ID, Name: "dev", Engine: vmm.EngineFirecracker, Accel: vmm.AccelKVM, Binary: cfg.Firecracker,
			CPUs: 1, MemoryMiB: 128, Kernel: "vmlinux",
			Drives: []vmm.Drive{{ID: wire.DriveBase, Path: "base.ext4", ReadOnly: true}, {ID: wire.DriveData, Path: "data.ext4"}},
		},
		Dir: j.Root(), Initrd: "initrd", Command: j.Command(), NoID: true, Share: j.Give,
		Console: console, Stderr: os.Stderr, Log: t.Output(), Env: []string{"PATH=/usr/bin:/bin"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		v.Kill()
		<-v.Done()
		if err := j.Remove(); err != nil {
			t.Error(err)
		}
	}()
	if err := ln.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	conn, err := ln.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var call wire.Call
	if err := wire.NewLineReader(conn).Read(&call); err != nil || call.Type != wire.CallHello || call.Secret != "secret" {
		t.Errorf("the guest calls with %+v, %v", call, err)
	}
	if err := errors.Join(v.Pause(ctx), v.Resume(ctx), v.ResizeDrive(ctx, wire.DriveData)); err != nil {
		t.Error(err)
	}
}
