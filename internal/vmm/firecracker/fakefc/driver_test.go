package fakefc

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/driver"
	"git.thaloco.com/thaloco/banger/internal/vmm/fakeguest"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker"
)

// startDriver starts banger's driver on the fake in dir, whose VM is that of newDir.
func startDriver(t *testing.T, dir string, restore *firecracker.Restore) (*firecracker.VMM, error) {
	t.Helper()
	return startVM(deadline(t), t, firecracker.Config{Dir: dir, Restore: restore, Spec: vmm.Spec{
		CPUs: 2, MemoryMiB: 256, Kernel: filepath.Join(dir, "vmlinux"),
		Drives: []vmm.Drive{{ID: wire.DriveBase, Path: filepath.Join(dir, "base.ext4"), ReadOnly: true}, {ID: wire.DriveData, Path: "data.ext4"}},
	}})
}

// startVM starts banger's driver on the fake. Its thread lives until the test has ended.
func startVM(ctx context.Context, t *testing.T, cfg firecracker.Config) (*firecracker.VMM, error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	console, err := os.OpenFile(filepath.Join(t.TempDir(), "console"), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	s := &cfg.Spec
	s.Version, s.VM, s.Name, s.Engine, s.Binary = vmm.SpecVersion, "0123456789abcdef", "dev", "firecracker", self
	cfg.Initrd, cfg.Console, cfg.Stderr, cfg.Log, cfg.Env = "initrd", console, os.Stderr, t.Output(), []string{"PATH=" + os.Getenv("PATH")}
	type result struct {
		v   *firecracker.VMM
		err error
	}
	started, over := make(chan result), make(chan struct{})
	t.Cleanup(func() {
		close(over)
		b, _ := os.ReadFile(console.Name())
		console.Close()
		if t.Failed() {
			t.Logf("console:\n%s", b[max(0, len(b)-4096):])
		}
	})
	go func() {
		runtime.LockOSThread() // the kernel kills the VMM with its thread
		v, err := firecracker.Start(ctx, cfg)
		started <- result{v, err}
		<-over
	}()
	r := <-started
	if r.err == nil {
		t.Cleanup(func() {
			r.v.Kill()
			<-r.v.Done()
		})
	}
	return r.v, r.err
}

// TestDriver: all that banger ever asks of Firecracker, against its document where that is named.
func TestDriver(t *testing.T) {
	dir := newDir(t, Knobs{Spec: os.Getenv(EnvSpec)}, nil)
	h := listenCalls(t, dir)
	v, err := startDriver(t, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	h.await(t, full)
	ctx := deadline(t)
	for _, err := range []error{
		v.Pause(ctx), v.Snapshot(ctx, "snap.state", "snap.mem"), v.Resume(ctx), v.ResizeDrive(ctx, wire.DriveData), v.SetBalloon(ctx, 64),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "snap.mem"))
	if err != nil || info.Size() != 256<<20 {
		t.Errorf("the guest's memory: %v, %v", info, err)
	}
	if c := h.await(t, func(c wire.Call) bool { return c.Type == wire.CallHello }); c.Token != token || c.Secret != "" {
		t.Errorf("after the snapshot the guest calls with %+v", c)
	}
	v.Kill()
	<-v.Done()

	v, err = startDriver(t, dir, &firecracker.Restore{State: "snap.state", Memory: "snap.mem"})
	if err != nil {
		t.Fatal(err)
	}
	if c := h.await(t, func(c wire.Call) bool { return c.Type == wire.CallHello }); c.Token != token || c.BootID != "1" {
		t.Errorf("the restored guest calls with %+v", c)
	}
	h.await(t, full)
	write(t, dir, "fakeguest/verb", []byte("reboot\n"))
	<-v.Done()
	if x := v.Exit(); x.Ending != driver.GuestReset {
		t.Errorf("the end is %+v", x)
	}

	requests, err := os.ReadFile(filepath.Join(dir, RequestsFile))
	if err != nil {
		t.Fatal(err)
	}
	got := strings.ReplaceAll(string(requests), dir, "DIR")
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile("testdata/requests", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/requests")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("the requests are others (UPDATE=1 writes them, -want +got):\n%s", diff)
	}
	if b, err := os.ReadFile(filepath.Join(dir, ViolationFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("violations: %s, %v", b, err)
	}
}

func TestSnapshotRefused(t *testing.T) {
	dir := newDir(t, Knobs{}, nil)
	h := listenCalls(t, dir)
	v, err := startDriver(t, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	h.await(t, full)
	ctx := deadline(t)
	if err := errors.Join(v.Pause(ctx), v.Snapshot(ctx, "snap.state", "snap.mem")); err != nil {
		t.Fatal(err)
	}
	state, err := os.ReadFile(filepath.Join(dir, "snap.state"))
	if err != nil {
		t.Fatal(err)
	}
	v.Kill()
	<-v.Done()
	restore := &firecracker.Restore{State: "snap.state", Memory: "snap.mem"}
	for name, c := range map[string]struct {
		spoil func()
		says  string
	}{
		"version": {func() {
			write(t, dir, "snap.state", []byte(strings.Replace(string(state), SnapshotVersion, "9.1.0", 1)))
		}, "Invalid data version: 9.1.0"},
		"no snapshot": {func() { write(t, dir, "snap.state", []byte("x")) }, "CRC64 validation failed"},
		"no drive":    {func() { _ = os.Rename(filepath.Join(dir, "data.ext4"), filepath.Join(dir, "elsewhere")) }, "No such file or directory (os error 2) data.ext4"},
		"no memory":   {func() { write(t, dir, "snap.mem", nil) }, "the file is smaller than the guest's memory"},
	} {
		t.Run(name, func(t *testing.T) {
			write(t, dir, "snap.state", state)
			c.spoil()
			if _, err := startDriver(t, dir, restore); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("load: %v, want %q", err, c.says)
			} else if _, ok := errors.AsType[*driver.StartError](err); !ok {
				t.Errorf("load: %v is no StartError", err)
			}
			_ = os.Rename(filepath.Join(dir, "elsewhere"), filepath.Join(dir, "data.ext4"))
			if err := os.Truncate(filepath.Join(dir, "snap.mem"), 256<<20); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestKnobs(t *testing.T) {
	boot := func(t *testing.T, k Knobs) (*program, *host) {
		dir := newDir(t, k, nil)
		h := listenCalls(t, dir)
		return start(t, dir), h
	}
	t.Run("crash at start", func(t *testing.T) {
		p, _ := boot(t, Knobs{CrashAtStart: "out of luck"})
		if status := p.end(t); status != 1 || !strings.Contains(p.stderr.String(), "out of luck") {
			t.Errorf("status %d, %q", status, p.stderr.String())
		}
	})
	t.Run("die", func(t *testing.T) {
		p, _ := boot(t, Knobs{DieAt: map[string]int{"PATCH /vm Paused": 148}})
		p.must(t, "PATCH", "/vm", `{"state": "Resumed"}`)
		if _, _, err := p.request(t, "PATCH", "/vm", `{"state": "Paused"}`); err == nil {
			t.Error("it answered")
		}
		if status := p.end(t); status != 148 || !strings.Contains(p.stdout.String(), "bad syscall") {
			t.Errorf("status %d, %q", status, p.stdout.String())
		}
	})
	t.Run("signal", func(t *testing.T) {
		p, _ := boot(t, Knobs{SignalAt: map[string]int{MomentBoot: 9}})
		if status := p.end(t); status != -1 || !strings.Contains(p.cmd.ProcessState.String(), "killed") {
			t.Errorf("it ended by %v", p.cmd.ProcessState)
		}
	})
	t.Run("fault and lie", func(t *testing.T) {
		p, _ := boot(t, Knobs{FaultAt: map[string]string{"PATCH /balloon": "No."}, LieAt: []string{"PATCH /vm"}})
		if status, text, err := p.request(t, "PATCH", "/balloon", `{"amount_mib": 1}`); status != 400 || text != `{"fault_message":"No."}` || err != nil {
			t.Errorf("%d %s, %v", status, text, err)
		}
		p.must(t, "PATCH", "/vm", `{"state": "Paused"}`)
		if text := p.must(t, "GET", "/", ""); !strings.Contains(text, "Running") {
			t.Errorf("it told the truth: %s", text)
		}
	})
	t.Run("hang", func(t *testing.T) {
		p, _ := boot(t, Knobs{HangAt: []string{"GET /version"}})
		p.must(t, "GET", "/", "")
		p.http.Timeout = 50 * time.Millisecond
		if _, _, err := p.request(t, "GET", "/version", ""); err == nil {
			t.Error("it answered")
		}
		if _, _, err := p.request(t, "GET", "/", ""); err == nil {
			t.Error("it answered another request")
		}
	})
	t.Run("log line", func(t *testing.T) {
		p, h := boot(t, Knobs{LogLine: "a line of an error"})
		h.await(t, full)
		p.must(t, "PUT", "/actions", `{"action_type": "SendCtrlAltDel"}`)
		if status := p.end(t); status != 0 || !strings.Contains(p.stdout.String(), "[0123456789abcdef:main] a line of an error\n") {
			t.Errorf("status %d, %q", status, p.stdout.String())
		}
	})
	t.Run("wrong version", func(t *testing.T) {
		_, h := boot(t, Knobs{WrongVersion: true})
		if c := h.await(t, func(c wire.Call) bool { return c.Type == wire.CallHello }); c.Version != wire.Version+1 {
			t.Errorf("the call is %+v", c)
		}
	})
	t.Run("call twice", func(t *testing.T) {
		p, h := boot(t, Knobs{CallTwice: true})
		h.await(t, full)
		if got := p.file(t, RefusedFile); got == "" {
			t.Error("the second use was not refused")
		}
	})
	t.Run("call again", func(t *testing.T) {
		_, h := boot(t, Knobs{})
		h.await(t, full)
		(<-h.conns).Close()
		if c := h.await(t, func(c wire.Call) bool { return c.Type == wire.CallHello }); c.Token != token || c.Secret != "" {
			t.Errorf("the second call is %+v", c)
		}
	})
	t.Run("hang up", func(t *testing.T) {
		p, h := boot(t, Knobs{})
		h.await(t, full)
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if status := p.end(t); status != 156 {
			t.Errorf("status %d", status)
		}
	})
}

// TestNetwork: the guest answers ARP through its stream to PortNet.
func TestNetwork(t *testing.T) {
	n := &wire.Network{Device: wire.DeviceTAP, MAC: "52:54:ac:10:00:02", Address: "172.16.0.2/24", Gateway: "172.16.0.1", MTU: wire.NetMTU}
	dir := newDir(t, Knobs{}, n)
	ln, err := net.Listen("unix", filepath.Join(dir, "vsock.sock_1025"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	listenCalls(t, dir)
	start(t, dir)
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stop := context.AfterFunc(deadline(t), func() { conn.Close() })
	defer stop()
	var hello wire.NetHello
	if err := wire.ReadLine(conn, &hello); err != nil || hello.Token != token || hello.Version != wire.Version {
		t.Fatalf("the hello is %+v, %v", hello, err)
	}
	if err := wire.WriteLine(conn, wire.CallReply{Type: wire.ReplyWelcome}); err != nil {
		t.Fatal(err)
	}
	own := netip.MustParsePrefix(n.Address).Addr()
	request := fakeguest.ARPRequest(net.HardwareAddr{2, 0, 0, 0, 0, 1}, netip.MustParseAddr(n.Gateway), own)
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(request))), request...)); err != nil {
		t.Fatal(err)
	}
	frame := make([]byte, 2+len(request))
	if _, err := io.ReadFull(conn, frame); err != nil {
		t.Fatal(err)
	}
	if mac := fakeguest.ParseARPReply(frame[2:], own); mac.String() != n.MAC {
		t.Errorf("the guest is at %v", mac)
	}
	if _, err := os.Stat(filepath.Join(dir, paths.VMVsock)); err != nil {
		t.Error(err)
	}
}
