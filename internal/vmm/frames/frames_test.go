package frames

import (
	"bytes"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// links returns the two ends of a pair as links.
func links(t *testing.T) (host, vm *Link) {
	t.Helper()
	h, v, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	list := make([]*Link, 0, 2)
	for _, f := range []*os.File{h, v} {
		l, err := NewLink(f, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		list = append(list, l)
	}
	return list[0], list[1]
}

// A frame the kernel has no room for is lost, as on a wire: it does not cost the VM its network.
func TestAFrameWithoutRoomIsLost(t *testing.T) {
	host, vm := links(t)
	if err := host.rc.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 1); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := host.WriteFrame([][]byte{make([]byte, 60_000)}); err != nil {
		t.Fatalf("a frame that does not fit: %v", err)
	}
	if err := host.WriteFrame([][]byte{[]byte("sma"), []byte("ll")}); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	if n, err := vm.ReadFrame(buf); err != nil || string(buf[:n]) != "small" {
		t.Errorf("got %d bytes, %v", n, err)
	}
}

func TestAnEmptyDatagramIsNoFrame(t *testing.T) {
	host, vm := links(t)
	for _, frame := range [][]byte{nil, []byte("frame")} {
		if err := vm.WriteFrame([][]byte{frame}); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 100)
	if n, err := host.ReadFrame(buf); err != nil || string(buf[:n]) != "frame" {
		t.Errorf("got %q, %v", buf[:n], err)
	}
}

// Discard takes whatever a guest can send, and only that: the end of a socket it reports.
func TestDiscard(t *testing.T) {
	host, vm, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	for _, frame := range [][]byte{{}, []byte("x"), bytes.Repeat([]byte("long"), 1000)} {
		if err := unix.Send(fdOf(t, vm), frame, 0); err != nil {
			t.Fatal(err)
		}
		if err := Discard(host); err != nil {
			t.Errorf("discard a frame of %d bytes: %v", len(frame), err)
		}
	}
	if err := host.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := Discard(host); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after a deadline: %v", err)
	}
	_ = host.Close()
	if err := Discard(host); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	_ = vm.Close()
}

// fdOf is a file's descriptor, which stays as it is: (*os.File).Fd would make it wait.
func fdOf(t *testing.T, f *os.File) int {
	t.Helper()
	rc, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	if err := rc.Control(func(u uintptr) { fd = int(u) }); err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestCloseEndsBothDirections(t *testing.T) {
	host, vm := links(t)
	ended := make(chan error, 1)
	go func() {
		_, err := host.ReadFrame(make([]byte, 100))
		ended <- err
	}()
	_ = host.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("read: %v", err)
	}
	if err := vm.WriteFrame([][]byte{[]byte("x")}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write to nobody: %v", err)
	}
}
