package fakefc

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// guestSide is a guest that listens on port 7.
type guestSide struct {
	dir   string
	dev   *device
	conns chan net.Conn
}

// newGuestSide makes a device; its guest is there after up.
func newGuestSide(t *testing.T) *guestSide {
	t.Helper()
	dir := t.TempDir()
	dev, err := newDevice(filepath.Join(dir, "vsock.sock"), newGate())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dev.close)
	return &guestSide{dir: dir, dev: dev, conns: make(chan net.Conn, 10)}
}

func (g *guestSide) up() {
	g.dev.start(func(port uint32, conn net.Conn) bool {
		if port == 7 {
			g.conns <- conn
		}
		return port == 7
	})
}

// join opens a stream and returns both its ends.
func (g *guestSide) join(t *testing.T) (host *net.UnixConn, guest net.Conn) {
	t.Helper()
	host, answer := connect(t, g.dir, "CONNECT 7\n")
	if !strings.HasPrefix(answer, "OK 10737418") {
		t.Fatalf("the answer is %q", answer)
	}
	guest = <-g.conns
	t.Cleanup(func() { guest.Close() })
	_ = host.SetDeadline(time.Now().Add(20 * time.Second))
	_ = guest.SetDeadline(time.Now().Add(20 * time.Second))
	return host, guest
}

func TestConnectLine(t *testing.T) {
	g := newGuestSide(t)
	g.up()
	for line, want := range map[string]string{
		"CONNECT 7\n":                          "OK",
		"connect 7\n":                          "OK",
		"CONNECT 7 and more\n":                 "OK",
		"CONNECT\t7  \n":                       "OK",
		"CONNECT 8\n":                          "", // nobody listens
		"CONNECT 7":                            "", // nine bytes
		"CONNECT 70000000000\n":                "",
		"CONNECT -7\n":                         "",
		"CONNECT seven\n":                      "",
		"LISTEN 777\n":                         "",
		"CONNECT 7 " + strings.Repeat("x", 22): "OK", // 32 bytes are enough
		"CONNECT" + strings.Repeat(" ", 24) + "7\n": "OK",
		"CONNECT" + strings.Repeat(" ", 25) + "7\n": "", // the port is the 33rd byte
	} {
		_, answer := connect(t, g.dir, line)
		if got, _, _ := strings.Cut(answer, " "); got != want {
			t.Errorf("%q is answered %q, want %q", line, answer, want)
		}
	}
}

// TestConnectInPieces: the line has to come at once.
func TestConnectInPieces(t *testing.T) {
	g := newGuestSide(t)
	g.up()
	if _, answer := connect(t, g.dir, "CONN"); answer != "" {
		t.Errorf("answered %q", answer)
	}
}

func TestPortsCount(t *testing.T) {
	g := newGuestSide(t)
	g.up()
	for _, want := range []string{"OK 1073741824\n", "OK 1073741825\n"} {
		if _, answer := connect(t, g.dir, "CONNECT 7\n"); answer != want {
			t.Errorf("answered %q, want %q", answer, want)
		}
	}
	g.dev.mu.Lock()
	g.dev.next = 1<<31 - 1
	g.dev.mu.Unlock()
	for _, want := range []string{"OK 2147483647\n", "OK 1073741824\n"} {
		if _, answer := connect(t, g.dir, "CONNECT 7\n"); answer != want {
			t.Errorf("answered %q, want %q", answer, want)
		}
	}
}

// answered is closed when a client has its answer.
func answered(conn net.Conn) <-chan string {
	c := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(conn).ReadString('\n')
		c <- line
	}()
	return c
}

func dial(t *testing.T, dir string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", filepath.Join(dir, "vsock.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, "CONNECT 7\n"); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestNoAnswerBeforeTheGuest(t *testing.T) {
	g := newGuestSide(t)
	got := answered(dial(t, g.dir))
	select {
	case line := <-got:
		t.Fatalf("answered %q", line)
	case <-time.After(50 * time.Millisecond):
	}
	g.up()
	if line := <-got; !strings.HasPrefix(line, "OK ") {
		t.Errorf("then %q", line)
	}
}

func TestPaused(t *testing.T) {
	g := newGuestSide(t)
	g.up()
	host, guest := g.join(t)
	g.dev.gate.stop()
	got := answered(dial(t, g.dir))
	if _, err := host.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	arrived := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(guest, make([]byte, 1))
		arrived <- err
	}()
	select {
	case line := <-got:
		t.Errorf("a paused guest answers %q", line)
	case <-arrived:
		t.Error("a paused guest was given a byte")
	case <-time.After(50 * time.Millisecond):
	}
	g.dev.gate.cont()
	if line, err := <-got, <-arrived; err != nil || !strings.HasPrefix(line, "OK ") {
		t.Errorf("resumed: %q, %v", line, err)
	}
}

// TestNoHalfCloseOfTheHost: who ends what it sends gets no answer.
func TestNoHalfCloseOfTheHost(t *testing.T) {
	g := newGuestSide(t)
	g.up()
	host, guest := g.join(t)
	if _, err := host.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	if err := host.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(guest); string(b) != "question" || err != nil {
		t.Errorf("the guest reads %q, %v", b, err)
	}
	if _, err := guest.Write([]byte("answer")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the guest's answer: %v", err)
	}
	guest.Close()
	if b, _ := io.ReadAll(host); len(b) > 0 {
		t.Errorf("the host reads %q", b)
	}
}

// TestNoHalfCloseOfTheGuest: the host hears of an end when the guest closes, and then it has all the guest wrote.
func TestNoHalfCloseOfTheGuest(t *testing.T) {
	g := newGuestSide(t)
	g.up()
	host, guest := g.join(t)
	if err := guest.(interface{ CloseWrite() error }).CloseWrite(); !errors.Is(err, errors.ErrUnsupported) {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("answer"), 100_000)
	go func() {
		_, _ = guest.Write(want)
		guest.Close()
	}()
	if b, err := io.ReadAll(host); !bytes.Equal(b, want) || err != nil {
		t.Errorf("the host reads %d bytes, %v", len(b), err)
	}
}

func TestGuestDials(t *testing.T) {
	g := newGuestSide(t)
	if _, err := g.dev.dial(1024); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("dial where nobody listens: %v", err)
	}
	h := listenCalls(t, g.dir)
	conn, err := g.dev.dial(1024)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, `{"type":"mark","mark":"full"}`+"\n"); err != nil {
		t.Fatal(err)
	}
	h.await(t, full)
	conn.Close()
}

// TestStreamsAfterASnapshot: the guest's ends are gone, and the host hears of it only when it sends something.
func TestStreamsAfterASnapshot(t *testing.T) {
	g := newGuestSide(t)
	g.up()
	host, guest := g.join(t)
	g.dev.reset()
	if _, err := io.ReadAll(guest); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the guest's end: %v", err)
	}
	_ = host.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := host.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the host's end has heard of it: %v", err)
	}
	_ = host.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := host.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := host.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after a byte: %v", err)
	}
}

func TestSocketIsBoundPlainly(t *testing.T) {
	g := newGuestSide(t)
	if _, err := newDevice(g.dev.path, newGate()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second device at the same path: %v", err)
	}
	g.dev.close()
	if _, err := newDevice(g.dev.path, newGate()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("after the first has gone: %v", err)
	}
}

func FuzzConnectLine(f *testing.F) {
	for _, line := range []string{"CONNECT 7\n", "connect 1024 more\n", "CONNECT x\n", "OK"} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		port, err := parseConnect(line)
		if err == nil && port != 0 && !bytes.ContainsAny(line, "123456789") {
			t.Errorf("%q is port %d", line, port)
		}
	})
}
