package fakefc

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/initramfs"
)

// TestMain makes the test binary the fake as well.
func TestMain(m *testing.M) {
	if os.Getenv("FAKEFC_TEST_PROGRAM") != "" || len(os.Args) > 1 && (os.Args[1] == "--id" || os.Args[1] == sftpArg) {
		os.Exit(Main(os.Args[1:]))
	}
	os.Exit(m.Run())
}

const (
	secret = "5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e"
	token  = "a token"
	// bootArgs are such as banger gives.
	bootArgs = "console=ttyS0 panic=-1 reboot=k 8250.nr_uarts=1"
	// good is a configuration like banger's.
	good = `{
  "boot-source": {"kernel_image_path": "vmlinux", "initrd_path": "initrd", "boot_args": "` + bootArgs + `"},
  "drives": [
    {"drive_id": "base", "path_on_host": "base.ext4", "is_root_device": false, "is_read_only": true, "cache_type": "Writeback", "io_engine": "Sync"},
    {"drive_id": "data", "path_on_host": "data.ext4", "is_root_device": false, "is_read_only": false, "cache_type": "Unsafe", "io_engine": "Sync"}],
  "machine-config": {"vcpu_count": 2, "mem_size_mib": 256},
  "vsock": {"guest_cid": 3, "uds_path": "vsock.sock"},
  "entropy": {},
  "balloon": {"amount_mib": 0, "deflate_on_oom": true, "free_page_reporting": true}
}`
)

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func write(t *testing.T, dir, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// newDir is a VM's directory with the files of good.
func newDir(t *testing.T, knobs Knobs, network *wire.Network) string {
	t.Helper()
	dir := t.TempDir()
	var initrd bytes.Buffer
	err := initramfs.WriteBoot(&initrd, wire.Boot{
		Version: wire.Version, Secret: secret, Transport: wire.TransportVsock,
		Identity: wire.Identity{VM: "0123456789abcdef", Hostname: "dev", Network: network},
	})
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "initrd", initrd.Bytes())
	for _, name := range []string{"vmlinux", "base.ext4", "data.ext4"} {
		write(t, dir, name, make([]byte, 4096))
	}
	write(t, dir, "firecracker.json", []byte(good))
	if err := knobs.Write(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// program is a running fake.
type program struct {
	dir            string
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
	http           http.Client
	done           chan struct{}
}

// start starts the fake in dir with arguments; by default those of a boot.
func start(t *testing.T, dir string, args ...string) *program {
	t.Helper()
	if len(args) == 0 {
		args = []string{"--id", "0123456789abcdef", "--api-sock", "fc.sock", "--config-file", "firecracker.json"}
	}
	p := &program{dir: dir, done: make(chan struct{})}
	p.cmd = exec.Command("/proc/self/exe", args...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, &p.stdout, &p.stderr
	p.cmd.Env = append(os.Environ(), "FAKEFC_TEST_PROGRAM=1", EnvSpec+"=")
	p.cmd.WaitDelay = time.Second
	p.http.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialSocket(ctx, filepath.Join(dir, "fc.sock"))
	}}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Signal(os.Interrupt)
		select {
		case <-p.done:
		case <-time.After(5 * time.Second):
			_ = p.cmd.Process.Kill()
			<-p.done
		}
		p.http.CloseIdleConnections()
		if t.Failed() {
			t.Logf("stdout:\n%s\nstderr:\n%s", p.stdout.String(), p.stderr.String())
		}
	})
	return p
}

// dialSocket dials a socket that is just being made.
func dialSocket(ctx context.Context, path string) (net.Conn, error) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			return conn, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}

// end waits for the end: the exit status, or -1.
func (p *program) end(t *testing.T) int {
	t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-deadline(t).Done():
		t.Fatal("it does not end")
		return 0
	}
}

// request makes a request of the API.
func (p *program) request(t *testing.T, method, path, body string) (status int, text string, err error) {
	t.Helper()
	req, err := http.NewRequestWithContext(deadline(t), method, "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// must makes a request that is to succeed.
func (p *program) must(t *testing.T, method, path, body string) string {
	t.Helper()
	status, text, err := p.request(t, method, path, body)
	if err != nil || status >= 300 {
		t.Fatalf("%s %s %s: %d, %s, %v", method, path, body, status, text, err)
	}
	return text
}

func (p *program) file(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(p.dir, name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(b)
}

// host is the supervisor's end of the guest's call.
type host struct {
	ln    *net.UnixListener
	lines chan wire.Call
	conns chan net.Conn
	// patience is how long await waits; 0 for that of deadline.
	patience time.Duration
}

// listenCalls answers the calls of the guest in dir.
func listenCalls(t *testing.T, dir string) *host {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(dir, "vsock.sock_1024")})
	if err != nil {
		t.Fatal(err)
	}
	h := &host{ln: ln, lines: make(chan wire.Call, 100), conns: make(chan net.Conn, 100)}
	t.Cleanup(func() { ln.Close() })
	go func() {
		used := false
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
			go h.serve(conn, &used)
		}
	}()
	return h
}

func (h *host) serve(conn net.Conn, used *bool) {
	lines := wire.NewLineReader(conn)
	for {
		var c wire.Call
		if lines.Read(&c) != nil {
			return
		}
		switch c.Type {
		case wire.CallHello:
			reply := wire.CallReply{Type: wire.ReplyWelcome, Token: token}
			if *used && c.Token != token || c.Token == "" && c.Secret != secret {
				reply = wire.CallReply{Type: wire.ReplyRefused, Reason: "no such secret"}
			}
			*used = true
			h.conns <- conn
			_ = wire.WriteLine(conn, reply)
		case wire.CallEnding:
			_ = wire.WriteLine(conn, wire.CallReply{Type: wire.ReplyAck})
		}
		h.lines <- c
	}
}

// await waits for a message of the guest.
func (h *host) await(t *testing.T, is func(wire.Call) bool) wire.Call {
	t.Helper()
	ctx := deadline(t)
	if h.patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(t.Context(), h.patience)
		defer cancel()
	}
	for {
		select {
		case c := <-h.lines:
			if is(c) {
				return c
			}
		case <-ctx.Done():
			t.Fatal("the guest does not say it")
		}
	}
}

func full(c wire.Call) bool { return c.Mark == "full" }

// connect opens a stream to a port of the guest; the answer is empty where it was refused.
func connect(t *testing.T, dir, line string) (*net.UnixConn, string) {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: filepath.Join(dir, "vsock.sock")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, line); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	answer, err := bufio.NewReaderSize(conn, 16).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
		t.Fatal(err)
	}
	return conn, answer
}
