package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/channel"
	"git.thaloco.com/thaloco/banger/internal/relay"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// TestDialTellsRefusedFromSilent: who listens nowhere is not whom one can wait for.
func TestDialTellsRefusedFromSilent(t *testing.T) {
	for name, c := range map[string]struct{ dial, want error }{
		"nobody listens":   {fmt.Errorf("dial port 7: %w", channel.ErrRefused), vmm.ErrRefused},
		"no answer":        {context.DeadlineExceeded, errNoAnswer},
		"no agent":         {errors.New("the guest's agent is not there"), errNoAnswer},
		"the session ends": {channel.ErrClosed, errNoAnswer},
	} {
		t.Run(name, func(t *testing.T) {
			near, far := socketPair(t)
			v := &vsockServer{dial: func(context.Context, uint32) (net.Conn, error) { return nil, c.dial }, log: testLog(t), streams: new(atomic.Uint32)}
			go v.client(t.Context(), far)
			if err := connect(near, 7); !errors.Is(err, c.want) {
				t.Errorf("err = %v, want %v", err, c.want)
			}
		})
	}
}

// TestPipe: a client that has said all it wanted still hears, and one that is gone holds up nobody.
func TestPipe(t *testing.T) {
	start := func(t *testing.T) (client, guest *net.UnixConn, done chan struct{}) {
		client, far := socketPair(t)
		near, guest := socketPair(t)
		done = make(chan struct{})
		go func() {
			relay.Join(far, near)
			close(done)
		}()
		return client, guest, done
	}
	ended := func(t *testing.T, done chan struct{}) {
		t.Helper()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Error("the streams are still joined")
		}
	}
	t.Run("half", func(t *testing.T) {
		client, guest, done := start(t)
		if _, err := io.WriteString(client, "question"); err != nil {
			t.Fatal(err)
		}
		if err := client.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(guest); err != nil || string(b) != "question" {
			t.Errorf("the guest reads %q, %v", b, err)
		}
		if _, err := io.WriteString(guest, "answer"); err != nil {
			t.Fatal(err)
		}
		_ = guest.Close()
		if b, err := io.ReadAll(client); err != nil || string(b) != "answer" {
			t.Errorf("the client reads %q, %v", b, err)
		}
		ended(t, done)
	})
	t.Run("gone", func(t *testing.T) {
		client, guest, done := start(t)
		if _, err := io.WriteString(client, "last words"); err != nil {
			t.Fatal(err)
		}
		_ = client.Close()
		if b, err := io.ReadAll(guest); err != nil || string(b) != "last words" {
			t.Errorf("the guest reads %q, %v", b, err)
		}
		ended(t, done)
	})
	t.Run("gone later", func(t *testing.T) {
		client, guest, done := start(t)
		_ = client.CloseWrite()
		if b, err := io.ReadAll(guest); err != nil || len(b) > 0 {
			t.Errorf("the guest reads %q, %v", b, err)
		}
		_ = client.Close()
		ended(t, done)
	})
}

// socketPair returns two connected unix sockets, closed with the test.
func socketPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
		_ = conns[i].SetDeadline(time.Now().Add(20 * time.Second))
		t.Cleanup(func() { _ = conns[i].Close() })
	}
	return conns[0], conns[1]
}
