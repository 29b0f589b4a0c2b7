package vhostvsock

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	guestexec "git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// peers is a program of the guest that serves ports by vsock: each connection begins with a number of 16 characters.
const peers = `
import socket, sys, threading
def serve(port, f):
    l = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    l.bind((socket.VMADDR_CID_ANY, port)); l.listen(128)
    def run(c):
        try: f(c, int(c.recv(16)))
        except (OSError, ValueError): pass
        c.close()
    def loop():
        while True:
            c, _ = l.accept()
            threading.Thread(target=run, args=(c,), daemon=True).start()
    threading.Thread(target=loop, daemon=True).start()
def echo(c, n):
    while n > 0:
        b = c.recv(65536)
        if not b: break
        n -= len(b); c.sendall(b)
    c.recv(1)
def sink(c, n):
    got = 0
    while got < n:
        b = c.recv(262144)
        if not b: break
        got += len(b)
    c.sendall(b'%16d' % got); c.recv(1)
def source(c, n):
    b = bytes(range(256)) * 256
    while n > 0:
        c.sendall(b[:n]); n -= len(b)
    c.recv(1)
def half(c, n):
    c.shutdown(socket.SHUT_WR)
    while n > 0: n -= len(c.recv(n))
def leave(c, n):
    c.sendall(b'x' * n)
serve(5000, echo); serve(5001, sink); serve(5002, source); serve(5003, half); serve(5004, leave)
print('ready', flush=True)
sys.stdin.read()
`

func rate(n int, began time.Time) string {
	d := time.Since(began)
	return fmt.Sprintf("%.1f MB/s (%v)", float64(n)/1e6/d.Seconds(), d.Round(time.Millisecond))
}

// startPeers runs peers in the guest.
func (g *guest) startPeers(t *testing.T) (stop func()) {
	t.Helper()
	stdin, end := io.Pipe()
	ready, say := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := guestexec.Run(g.ctx, guestexec.Options{
			Dial:  func(ctx context.Context) (net.Conn, error) { return g.dial(ctx, wire.PortExec) },
			Start: wire.ExecStart{Argv: []string{"python3", "-c", peers}}, Stdin: stdin, Stdout: say, Stderr: t.Output(),
		})
		say.CloseWithError(io.ErrUnexpectedEOF)
		done <- err
	}()
	if _, err := io.ReadFull(ready, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err, <-done)
	}
	return func() {
		end.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// bulk measures bare streams.
func (g *guest) bulk(t *testing.T) {
	const size = 50 << 20
	conn := g.peer(t, 5001, size)
	began := time.Now()
	if _, err := conn.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 16)
	if _, err := io.ReadFull(conn, answer); err != nil || strings.TrimSpace(string(answer)) != strconv.Itoa(size) {
		t.Errorf("the guest has %q bytes, %v", answer, err)
	}
	t.Logf("vsock, host to guest: %s", rate(size, began))

	conn = g.peer(t, 5002, size)
	began = time.Now()
	got := make([]byte, size)
	if _, err := io.ReadFull(conn, got); err != nil {
		t.Fatal(err)
	}
	t.Logf("vsock, guest to host: %s", rate(size, began))
	for i, b := range got {
		if b != byte(i) {
			t.Fatalf("byte %d is %d", i, b)
		}
	}

	const turns = 500
	conn = g.peer(t, 5000, turns)
	began = time.Now()
	for range turns {
		if _, err := conn.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, answer[:1]); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("there and back: %v", time.Since(began)/turns)
	began = time.Now()
	for range 50 {
		if conn, err := g.dial(g.ctx, 5000); err != nil {
			t.Fatal(err)
		} else {
			conn.Close()
		}
	}
	t.Logf("connecting: %v", time.Since(began)/50)
}

// many has streams side by side, both directions at once.
func (g *guest) many(t *testing.T) {
	const streams, size = 40, 1 << 20
	data := noise(size)
	done := make(chan error, streams)
	for range streams {
		conn := g.peer(t, 5000, size)
		go func() {
			write := make(chan error, 1)
			go func() {
				_, err := conn.Write(data)
				write <- err
			}()
			got := make([]byte, size)
			_, err := io.ReadFull(conn, got)
			if err = errors.Join(err, <-write); err == nil && !bytes.Equal(got, data) {
				err = errors.New("other data came back than were sent")
			}
			done <- err
		}()
	}
	for range streams {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// ends shows who sees the end of what: what banger's protocols must live with on Firecracker.
func (g *guest) ends(t *testing.T) {
	// The guest ends its direction: the host does not see it, and is heard on.
	conn := g.peer(t, 5003, 5)
	_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the host reads %d bytes, %v", n, err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := conn.Write([]byte("12345")); err != nil {
		t.Error(err)
	}
	expectEnd(t, conn)
	// The guest closes with data under way: all of it comes, then the end.
	conn = g.peer(t, 5004, 300_000)
	if b, err := io.ReadAll(conn); err != nil || len(b) != 300_000 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	// The host ends its direction: what the guest answers is lost.
	conn = g.peer(t, 5001, 1<<20)
	if _, err := conn.Write(make([]byte, 10)); err != nil {
		t.Error(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Error(err)
	}
	expectEnd(t, conn)
}

// pause stops the VM in the midst of a stream.
func (g *guest) pause(t *testing.T) {
	conn, err := net.Dial("unix", filepath.Join(g.dir, "qmp"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	lines := json.NewDecoder(conn)
	order := func(command string) {
		t.Helper()
		if _, err := fmt.Fprintf(conn, `{"execute":%q}`+"\n", command); err != nil {
			t.Fatal(err)
		}
		for {
			var m struct{ Return, Error json.RawMessage }
			if err := lines.Decode(&m); err != nil || m.Error != nil {
				t.Fatalf("%s: %s, %v", command, m.Error, err)
			}
			if m.Return != nil {
				return
			}
		}
	}
	order("qmp_capabilities")
	const size = 30 << 20
	stream := g.peer(t, 5002, size)
	got := make([]byte, size)
	if _, err := io.ReadFull(stream, got[:size/3]); err != nil {
		t.Fatal(err)
	}
	for at := size / 3; at < size; at += size / 3 {
		order("stop")
		ctx, cancel := context.WithTimeout(g.ctx, 100*time.Millisecond)
		if _, err := g.dial(ctx, 5000); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("while the VM stands still: %v", err)
		}
		cancel()
		order("cont")
		if _, err := io.ReadFull(stream, got[at:at+size/3]); err != nil {
			t.Fatal(err)
		}
	}
	for i, b := range got {
		if b != byte(i) {
			t.Fatalf("byte %d is %d", i, b)
		}
	}
	if out := g.run(t, nil, "echo", "again"); string(out) != "again\n" {
		t.Errorf("echo: %q", out)
	}
}

// peer connects to a port of peers and tells it a number.
func (g *guest) peer(t *testing.T, port uint32, n int) *net.UnixConn {
	t.Helper()
	conn, err := g.dial(g.ctx, port)
	if err != nil {
		t.Fatalf("connect to port %d of the guest: %v", port, err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := fmt.Fprintf(conn, "%-16d", n); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.UnixConn)
}
