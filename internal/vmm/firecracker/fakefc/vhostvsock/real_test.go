package vhostvsock

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"git.thaloco.com/thaloco/banger/internal/disk"
	guestexec "git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/guestapi"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/initramfs"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/qemu"
)

// guest is a real one, behind the device.
type guest struct {
	dir    string
	ctx    context.Context
	marks  chan string
	served chan error
	qemu   *exec.Cmd
}

// bootGuest boots a guest. The tests need
//
//	BANGER_TEST_KERNEL  a directory with vmlinux, boot.cpio and modules.ext4
//	BANGER_TEST_AGENT   an initramfs archive with the agent
//	BANGER_TEST_IMAGE   a root file system with systemd and python3
func bootGuest(t *testing.T) *guest {
	t.Helper()
	kernel, agent, image := os.Getenv("BANGER_TEST_KERNEL"), os.Getenv("BANGER_TEST_AGENT"), os.Getenv("BANGER_TEST_IMAGE")
	if kernel == "" || agent == "" || image == "" {
		t.Skip("BANGER_TEST_KERNEL, BANGER_TEST_AGENT and BANGER_TEST_IMAGE do not name what a VM is made of")
	}
	program, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	g := &guest{dir: dir, ctx: ctx, marks: make(chan string, 16), served: make(chan error, 1)}
	secret := strings.Repeat("5e", 32)
	writeInitrd(t, filepath.Join(dir, "initrd"), []string{filepath.Join(kernel, "boot.cpio"), agent}, wire.Boot{
		Version: wire.Version, Secret: secret, Transport: wire.TransportVsock,
		Identity: wire.Identity{
			VM: "0123456789abcdef", Hostname: "dev", MachineID: strings.Repeat("0123456789abcdef", 2), SSHHostKey: hostKey(t),
		},
	})
	if err := disk.Create(ctx, filepath.Join(dir, "data.ext4"), 20<<30); err != nil {
		t.Fatal(err)
	}
	calls := listenUnix(t, filepath.Join(dir, fmt.Sprintf("vsock.sock_%d", wire.PortCall)))
	var answering sync.WaitGroup
	answering.Go(func() { g.answerCalls(t, calls, secret) })
	t.Cleanup(func() { // runs when the device has ended
		calls.Close()
		answering.Wait()
	})
	ln := listenUnix(t, filepath.Join(dir, "vhost.sock"))
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	go func() {
		g.served <- Serve(context.WithoutCancel(ctx), ln, Config{CID: 3, UDSPath: filepath.Join(dir, "vsock.sock"), Log: log})
	}()
	g.startQEMU(t, program, filepath.Join(kernel, "vmlinux"), []vmm.Drive{
		{ID: wire.DriveBase, Path: image, ReadOnly: true},
		{ID: wire.DriveData, Path: "data.ext4"},
		{ID: wire.DriveModules, Path: filepath.Join(kernel, "modules.ext4"), ReadOnly: true},
	})
	return g
}

// hostKey is a key for the guest's ssh server.
func hostKey(t *testing.T) string {
	t.Helper()
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(block))
}

func (g *guest) startQEMU(t *testing.T, program, kernel string, drives []vmm.Drive) {
	t.Helper()
	tsc, err := qemu.MeasureTSC(g.ctx)
	if err != nil {
		t.Fatal(err)
	}
	spec := vmm.Spec{Accel: vmm.AccelTCG}
	args := []string{
		"-M", "microvm,accel=tcg,rtc=on,acpi=on,memory-backend=mem",
		"-object", "memory-backend-memfd,id=mem,share=on,size=512M", "-m", "512M",
		"-cpu", "max", "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-global", "virtio-mmio.force-legacy=false",
		"-kernel", kernel, "-initrd", "initrd", "-append", qemu.CommandLine(spec, qemu.Options{TSCKHz: tsc}),
		"-serial", "file:console.log", "-qmp", "unix:qmp,server=on,wait=off",
	}
	for _, d := range drives {
		readonly := "off"
		if d.ReadOnly {
			readonly = "on"
		}
		args = append(args, "-drive", "id="+d.ID+",file="+d.Path+",format=raw,if=none,readonly="+readonly,
			"-device", "virtio-blk-device,drive="+d.ID)
	}
	args = append(args, "-device", "virtio-rng-device",
		"-chardev", "socket,id=vsock,path=vhost.sock", "-device", "vhost-user-vsock-device,chardev=vsock")
	var stderr bytes.Buffer
	g.qemu = exec.CommandContext(g.ctx, program, args...)
	g.qemu.Dir, g.qemu.Stderr = g.dir, &stderr
	if err := g.qemu.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = g.qemu.Process.Kill()
		_ = g.qemu.Wait()
		if err := <-g.served; err != nil {
			t.Errorf("the device ended with %v", err)
		}
		if t.Failed() {
			console, _ := os.ReadFile(filepath.Join(g.dir, "console.log"))
			t.Logf("qemu: %s\nconsole: %s", stderr.Bytes(), console[max(0, len(console)-4096):])
		}
	})
}

// answerCalls is the agent's supervisor.
func (g *guest) answerCalls(t *testing.T, ln *net.UnixListener, secret string) {
	for {
		conn, err := ln.AcceptUnix()
		if err != nil {
			return
		}
		lines := wire.NewLineReader(conn)
		for {
			var call wire.Call
			if err := lines.Read(&call); err != nil {
				t.Logf("the call ended: %v", err)
				conn.Close()
				break
			}
			switch call.Type {
			case wire.CallHello:
				if call.Secret != secret && call.Token != secret {
					t.Errorf("the agent's hello: %+v", call)
				}
				g.marks <- "hello"
				err := wire.WriteLine(conn, wire.CallReply{
					Type: wire.ReplyWelcome, Token: secret, TimeUnixNano: time.Now().UnixNano(), Entropy: make([]byte, 64),
				})
				if err != nil {
					t.Error(err)
				}
			case wire.CallMark:
				g.marks <- call.Mark
			case wire.CallLog:
				t.Log("agent:", call.Text)
			case wire.CallEnding:
				g.marks <- call.Verb
				if err := wire.WriteLine(conn, wire.CallReply{Type: wire.ReplyAck}); err != nil {
					t.Error(err)
				}
			}
		}
	}
}

// await waits for the agent to tell a mark.
func (g *guest) await(t *testing.T, mark string) {
	t.Helper()
	for {
		select {
		case m := <-g.marks:
			if m == mark {
				return
			}
		case err := <-g.served:
			g.served <- err
			t.Fatalf("the device ended: %v", err)
		case <-g.ctx.Done():
			t.Fatalf("the guest did not reach %q", mark)
		}
	}
}

// dial connects to a port of the guest.
func (g *guest) dial(ctx context.Context, port uint32) (net.Conn, error) {
	return dialGuest(ctx, filepath.Join(g.dir, "vsock.sock"), port)
}

// dialGuest connects to a port of a guest through the host's socket.
func dialGuest(ctx context.Context, path string, port uint32) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", port); err != nil {
		conn.Close()
		return nil, err
	}
	var line []byte
	for b := make([]byte, 1); len(line) == 0 || line[len(line)-1] != '\n'; line = append(line, b...) {
		if _, err := io.ReadFull(conn, b); err != nil {
			conn.Close()
			return nil, err
		}
	}
	var n uint32
	if _, err := fmt.Sscanf(string(line), "OK %d\n", &n); err != nil || n < firstPort {
		conn.Close()
		return nil, fmt.Errorf("the answer %q", line)
	}
	return conn, nil
}

// run runs a command in the guest and returns what it wrote.
func (g *guest) run(t *testing.T, stdin io.Reader, argv ...string) []byte {
	t.Helper()
	var out, stderr bytes.Buffer
	exit, err := guestexec.Run(g.ctx, guestexec.Options{
		Dial:  func(ctx context.Context) (net.Conn, error) { return g.dial(ctx, wire.PortExec) },
		Start: wire.ExecStart{Argv: argv, NoStdin: stdin == nil}, Stdin: stdin, Stdout: &out, Stderr: &stderr,
	})
	if err != nil || exit.Status != 0 {
		t.Fatalf("%q: %+v, %v\n%s", argv, exit, err, stderr.Bytes())
	}
	return out.Bytes()
}

// TestRealGuest has the kernel of a real guest on the device, and banger's agent.
func TestRealGuest(t *testing.T) {
	g := bootGuest(t)
	began := time.Now()
	g.await(t, "hello")
	t.Logf("the agent called after %v", time.Since(began).Round(time.Millisecond))
	if out := g.run(t, nil, "echo", "hello"); string(out) != "hello\n" {
		t.Fatalf("echo: %q", out)
	}
	if _, err := g.dial(g.ctx, 4999); !errors.Is(err, io.EOF) {
		t.Errorf("a port that nobody listens on: %v", err)
	}
	g.await(t, "ready")

	data := noise(50 << 20)
	began = time.Now()
	g.run(t, bytes.NewReader(data), "sh", "-c", "cat >/root/big")
	t.Logf("exec, host to guest: %s", rate(len(data), began))
	began = time.Now()
	if out := g.run(t, nil, "cat", "/root/big"); !bytes.Equal(out, data) {
		t.Errorf("%d bytes came back of %d, or others", len(out), len(data))
	}
	t.Logf("exec, guest to host: %s", rate(len(data), began))

	stop := g.startPeers(t)
	defer stop()
	t.Run("bulk", g.bulk)
	t.Run("many", g.many)
	t.Run("ends", g.ends)
	t.Run("pause", g.pause)
	t.Run("agent", g.agent)
}

// agent has the agent's other ports, many commands at once, and the end of the guest.
func (g *guest) agent(t *testing.T) {
	client := guestapi.Client{Dial: g.dial}
	if h, err := client.Health(g.ctx); err != nil {
		t.Errorf("health: %+v, %v", h, err)
	}
	shell, err := g.dial(g.ctx, wire.PortSSH)
	if err != nil {
		t.Fatal(err)
	}
	defer shell.Close()
	banner := make([]byte, len("SSH-2.0-"))
	if _, err := io.ReadFull(shell, banner); err != nil || string(banner) != "SSH-2.0-" {
		t.Errorf("ssh: %q, %v", banner, err)
	}
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			want := strconv.Itoa(i)
			var out bytes.Buffer
			_, err := guestexec.Run(g.ctx, guestexec.Options{
				Dial:  func(ctx context.Context) (net.Conn, error) { return g.dial(ctx, wire.PortExec) },
				Start: wire.ExecStart{Argv: []string{"cat"}}, Stdin: strings.NewReader(want), Stdout: &out,
			})
			if err != nil || out.String() != want {
				t.Errorf("command %d: %q, %v", i, out.String(), err)
			}
		})
	}
	wg.Wait()
	g.resume(t)
	g.run(t, nil, "systemctl", "--no-block", "reboot")
	g.await(t, "reboot")
	select {
	case err := <-g.served:
		if g.served <- err; err != nil {
			t.Errorf("the device ended with %v", err)
		}
	case <-g.ctx.Done():
		t.Error("the guest did not end")
	}
}

// resume breaks the connection of a command again and again.
func (g *guest) resume(t *testing.T) {
	t.Helper()
	data := noise(2 << 20)
	var out bytes.Buffer
	dials := 0
	_, err := guestexec.Run(g.ctx, guestexec.Options{
		Dial: func(ctx context.Context) (net.Conn, error) {
			conn, err := g.dial(ctx, wire.PortExec)
			if dials++; err != nil || dials > 4 {
				return conn, err
			}
			return &brittle{Conn: conn, left: 200_000}, nil
		},
		Start: wire.ExecStart{Argv: []string{"cat"}}, Stdin: bytes.NewReader(data), Stdout: &out,
	})
	if err != nil || !bytes.Equal(out.Bytes(), data) || dials < 5 {
		t.Errorf("%d bytes of %d over %d connections, %v", out.Len(), len(data), dials, err)
	}
}

// brittle is a connection that breaks once left bytes were read.
type brittle struct {
	net.Conn
	left int
}

// Read implements io.Reader.
func (b *brittle) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	if b.left -= n; b.left < 0 {
		b.Close()
	}
	return n, err
}

func listenUnix(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// writeInitrd joins archives and the boot configuration.
func writeInitrd(t *testing.T, name string, archives []string, boot wire.Boot) {
	t.Helper()
	var all bytes.Buffer
	for _, a := range archives {
		b, err := os.ReadFile(a)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
		all.Write(make([]byte, -len(b)&3))
	}
	if err := initramfs.WriteBoot(&all, boot); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, all.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}
