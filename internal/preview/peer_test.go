package preview

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// request is what another user asks.
const request = "POST / HTTP/1.1\r\nHost: 1.web.localhost\r\nContent-Length: 0\r\n\r\n"

// TestMain is also the program that another user runs: it makes requests to the address in its environment, and waits for the last's answer.
func TestMain(m *testing.M) {
	addr := os.Getenv("PREVIEW_TEST_ASK")
	if addr == "" {
		os.Exit(m.Run())
	}
	var c net.Conn
	for range maxStrangers - 2 { // more at once might be closed unheard
		if c != nil {
			c.Close() // the socket of a request that was sent is nobody's from here on
		}
		var err error
		if c, err = net.Dial("tcp", addr); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		_, _ = io.WriteString(c, request)
	}
	b, _ := io.ReadAll(c)
	_, _ = os.Stdout.Write(b)
	os.Exit(0)
}

// both are the ways to look a socket up.
var both = map[string]func(local, remote netip.AddrPort) (int, error){
	"netlink": askDiag,
	"/proc":   askTables,
	"either":  ownerOf,
}

func TestOwnerOf(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln, err := net.Listen("tcp", at)
		if err != nil {
			t.Logf("no %s here: %v", at, err)
			continue
		}
		defer ln.Close()
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		in, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		peer, _ := endpoint(in.RemoteAddr())
		own, _ := endpoint(in.LocalAddr())
		for name, look := range both {
			if uid, err := look(peer, own); err != nil || uid != os.Getuid() {
				t.Errorf("%s, %s: uid %d, %v", at, name, uid, err)
			}
			for _, other := range []netip.AddrPort{netip.AddrPortFrom(peer.Addr(), 1), own} { // nobody's; one that listens
				if uid, err := look(other, peer); !errors.Is(err, errNoSocket) && other != own {
					t.Errorf("%s, %s: %s to %s: uid %d, %v", at, name, other, peer, uid, err)
				}
				if uid, err := look(other, own); !errors.Is(err, errNoSocket) {
					t.Errorf("%s, %s: %s to %s: uid %d, %v", at, name, other, own, uid, err)
				}
			}
		}
		c.Close() // with our end open the peer's socket lives on, and is nobody's
		_, _ = in.Read(make([]byte, 1))
		for name, look := range both {
			if uid, err := look(peer, own); !errors.Is(err, errNoSocket) {
				t.Errorf("%s, %s: a socket that was closed is of uid %d, %v", at, name, uid, err)
			}
		}
	}
}

// TestIdentifyMapped: programs that know IPv6's sockets alone, as those of Java's do, connect to 127.0.0.1 by one.
func TestIdentifyMapped(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	fd, err := syscall.Socket(syscall.AF_INET6, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Skip("no IPv6 here:", err)
	}
	defer syscall.Close(fd)
	to := &syscall.SockaddrInet6{Port: ln.Addr().(*net.TCPAddr).Port, Addr: netip.MustParseAddr("::ffff:127.0.0.1").As16()}
	if err := syscall.Connect(fd, to); err != nil {
		t.Fatal(err)
	}
	in, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	peer, _ := endpoint(in.RemoteAddr())
	own, _ := endpoint(in.LocalAddr())
	for name, look := range both {
		if uid, err := look(peer, own); err != nil || uid != os.Getuid() {
			t.Errorf("%s: uid %d, %v", name, uid, err)
		}
	}
}

// TestIdentify: the socket of an IPv6 listener that took an IPv4 connection is found, and another uid is refused.
func TestIdentify(t *testing.T) {
	ln, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	c, err := net.Dial("tcp4", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := identify(in.(*net.TCPConn), os.Getuid()); err != nil {
		t.Error(err)
	}
	if err := identify(in.(*net.TCPConn), os.Getuid()+1); err == nil || !strings.Contains(err.Error(), "serves nobody else") {
		t.Errorf("another user's daemon: %v", err)
	}
}

// TestAnotherUser: who is not the daemon's user gets an answer that says so, also where it does not wait for it.
func TestAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root becomes another user")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	prog := t.TempDir() + "/ask" // where everybody may run it
	if b, err := os.ReadFile(exe); err != nil || os.WriteFile(prog, b, 0o755) != nil {
		t.Fatal(err)
	}
	for dir := prog; dir != "/tmp" && dir != "/"; dir = dir[:strings.LastIndexByte(dir, '/')] {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h := newHost("web")
	s := start(t, h)
	h.serve(t, "web", 1, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })
	ask := func(uid uint32) string {
		cmd := exec.CommandContext(t.Context(), prog)
		cmd.Dir, cmd.Env = "/", []string{"PREVIEW_TEST_ASK=" + s.addr}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if got := ask(65534); !strings.HasPrefix(got, "HTTP/1.1 403 ") || !strings.Contains(got, "uid 65534; the daemon is of uid 0") {
		t.Errorf("another user got %q", got)
	}
	if n := h.dialled(); n != 0 {
		t.Errorf("%d connections to guests", n)
	}
	if status, _ := s.get(s.url("1.web.localhost")); status != 200 { // and by now those were looked at
		t.Errorf("the daemon's own user: %d", status)
	}
	if n := h.dialled(); n != 1 {
		t.Errorf("%d connections to guests, one of them is ours", n)
	}
}

// TestStrangersAreFew: connections of others are not held without bound.
func TestStrangersAreFew(t *testing.T) {
	h := newHost("web")
	s := start(t, h)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newListener(ln, os.Getuid()+1, s.server.cfg.Log) // everybody is a stranger
	accepted := make(chan net.Conn, 1000)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	closed := make(chan struct{}, 1000)
	for range maxStrangers + 10 {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		go func() {
			_, _ = c.Read(make([]byte, 1))
			closed <- struct{}{}
		}()
	}
	for range 10 {
		<-closed
	}
	(<-accepted).Close() // makes room for one
	<-closed
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range maxStrangers {
		in := <-accepted
		defer in.Close()
	}
	ln.Close()
	if _, more := <-accepted; more {
		t.Error("one more was accepted")
	}
}

func TestReadDiagDistrusts(t *testing.T) {
	at := netip.MustParseAddrPort("127.0.0.1:1")
	for _, b := range [][]byte{nil, make([]byte, 16), make([]byte, 19), make([]byte, 200)} {
		if _, err := readDiag(b, at, at); err == nil {
			t.Errorf("%d bytes were an answer", len(b))
		}
	}
}
