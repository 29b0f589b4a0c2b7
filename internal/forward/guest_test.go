package forward

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

var errRefused = errors.New("nobody listens there")

const within = 20 * time.Second

// dialled is a connection into a guest as the tunnel's are: closed before its direction was ended it resets.
type dialled struct {
	*net.TCPConn
	ended atomic.Bool
}

func (c *dialled) CloseWrite() error {
	c.ended.Store(true)
	return c.TCPConn.CloseWrite()
}

func (c *dialled) Close() error {
	if !c.ended.Load() {
		_ = c.SetLinger(0)
	}
	return c.TCPConn.Close()
}

// dialTo makes guests whose ports are those of servers on the loopback.
func dialTo(servers map[uint16]string) Dial {
	return func(ctx context.Context, network string, port uint16) (net.Conn, error) {
		at, ok := servers[port]
		if !ok {
			return nil, errRefused
		}
		conn, err := new(net.Dialer).DialContext(ctx, network, at)
		if tcp, ok := conn.(*net.TCPConn); ok {
			return &dialled{TCPConn: tcp}, err
		}
		return conn, err
	}
}

// listen runs serve for each connection to a server, which is there until the test ends.
func listen(t testing.TB, serve func(*net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn.(*net.TCPConn))
			}()
		}
	}()
	return ln.Addr().String()
}

// echo hides what a TCPConn can do with another: the pipes for that would be taken for files that are left.
func echo(c *net.TCPConn) { _, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}) }

// newService checks that nothing is left of it when the test has ended.
func newService(t testing.TB) *Service {
	t.Helper()
	if ln, err := net.Listen("tcp4", "127.0.0.1:0"); err == nil { // the runtime's own files are there from now on
		ln.Close()
	}
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	s := New(Config{Log: slog.New(slog.DiscardHandler), RetryAfter: 5 * time.Millisecond})
	t.Cleanup(func() {
		s.CloseAll()
		deadline := time.After(within)
		for {
			g, f := runtime.NumGoroutine(), openFiles(t)
			if g <= goroutines && f <= files {
				return
			}
			select {
			case <-deadline:
				b := make([]byte, 1<<20)
				t.Errorf("%d goroutines and %d files are left, there were %d and %d:\n%s", g, f, goroutines, files, b[:runtime.Stack(b, true)])
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	return s
}

func openFiles(t testing.TB) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// open opens one forward of a VM.
func open(t testing.TB, s *Service, name string, f api.Forward, dial Dial) netip.AddrPort {
	t.Helper()
	list, err := s.Open(VM{ID: "id-" + name, Name: name, Dial: dial}, []api.Forward{f})
	if err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(list[0].HostAddress, list[0].HostPort)
}

func connect(t testing.TB, at netip.AddrPort) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

// eventually polls until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(within)
	for !ok() {
		select {
		case <-deadline:
			t.Fatal("not so in time: " + what)
		case <-time.After(2 * time.Millisecond):
		}
	}
}
