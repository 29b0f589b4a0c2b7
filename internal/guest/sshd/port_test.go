package sshd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// portHost is a port that somebody else can take, and who has it.
type portHost struct {
	t       *testing.T
	dir     string
	listens chan error         // what Listen is to answer
	serving chan *fakeListener // what is served
	done    chan error
	cancel  context.CancelFunc
}

type fakeListener struct{ closed chan struct{} }

func (l *fakeListener) Accept() (net.Conn, error) { <-l.closed; return nil, net.ErrClosed }
func (l *fakeListener) Close() error              { close(l.closed); return nil }
func (l *fakeListener) Addr() net.Addr            { return &net.TCPAddr{} }

func newPortHost(t *testing.T, programs ...string) *portHost {
	t.Helper()
	h := &portHost{t: t, dir: t.TempDir(), listens: make(chan error), serving: make(chan *fakeListener), done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	h.cancel = cancel
	t.Cleanup(cancel)
	p := Port{
		Listen: func() (net.Listener, error) {
			select {
			case err := <-h.listens:
				return &fakeListener{closed: make(chan struct{})}, err
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		},
		Serve: func(l net.Listener) { h.serving <- l.(*fakeListener); _, _ = l.Accept() },
		Quiet: 30 * time.Millisecond,
	}
	for _, name := range programs {
		p.Programs = append(p.Programs, filepath.Join(h.dir, name))
	}
	go func() { h.done <- p.Keep(ctx) }()
	return h
}

// serve lets the port be had, and returns its listener.
func (h *portHost) serve() *fakeListener {
	h.t.Helper()
	h.answer(nil)
	select {
	case l := <-h.serving:
		return l
	case <-time.After(20 * time.Second):
		h.t.Fatal("the port is not served")
		return nil
	}
}

func (h *portHost) answer(err error) {
	h.t.Helper()
	select {
	case h.listens <- err:
	case <-time.After(20 * time.Second):
		h.t.Fatal("nobody listens")
	}
}

func (h *portHost) wantClosed(l *fakeListener) {
	h.t.Helper()
	select {
	case <-l.closed:
	case <-time.After(20 * time.Second):
		h.t.Fatal("the listener is not closed")
	}
}

func (h *portHost) wantEnd(want error) {
	h.t.Helper()
	select {
	case err := <-h.done:
		if !errors.Is(err, want) {
			h.t.Fatalf("ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		h.t.Fatal("does not end")
	}
}

func (h *portHost) touch(name string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, name), []byte("x"), 0o755); err != nil {
		h.t.Fatal(err)
	}
}

var errTaken = fmt.Errorf("listen: %w", syscall.EADDRINUSE)

func TestPortTakenAtOnce(t *testing.T) {
	h := newPortHost(t, "sshd")
	h.answer(errTaken)
	h.wantEnd(nil)
}

func TestPortCannotBeHad(t *testing.T) {
	h := newPortHost(t, "sshd")
	h.answer(syscall.EACCES)
	h.wantEnd(syscall.EACCES)
}

// TestPortGivenAway: a package brings a server, which appears under another name first and takes the port later.
func TestPortGivenAway(t *testing.T) {
	h := newPortHost(t, "sshd", "nowhere/dropbear")
	l := h.serve()
	program, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "sshd.new"), program, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(h.dir, "sshd.new"), filepath.Join(h.dir, "sshd")); err != nil {
		t.Fatal(err)
	}
	h.wantClosed(l)
	l = h.serve() // it has not started
	if err := exec.Command(filepath.Join(h.dir, "sshd")).Run(); err != nil {
		t.Fatal(err)
	}
	h.wantClosed(l)
	h.answer(errTaken)
	h.wantEnd(nil)
}

// TestPortKept: other programs of the same directory are none of its business, and it ends with its context.
func TestPortKept(t *testing.T) {
	h := newPortHost(t, "sshd")
	h.touch("other")
	l := h.serve()
	h.touch("another")
	if _, err := os.ReadFile(filepath.Join(h.dir, "other")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-l.closed:
		t.Error("given away")
	case <-time.After(50 * time.Millisecond):
	}
	h.cancel()
	h.wantClosed(l)
	h.wantEnd(nil)
}
