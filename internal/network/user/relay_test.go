package user

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

// pair is a connection of a guest and its other end outside.
func pair(t *testing.T) (*guest, *gonet.TCPConn, *net.TCPConn) {
	t.Helper()
	conns := make(chan *net.TCPConn, 1)
	o := &outside{tcp: map[uint16]string{80: serveTCP(t, func(c *net.TCPConn) { conns <- c })}}
	g := newGuest(t, newNetwork(t, o), 1)
	in := g.mustDial(t, "203.0.113.5:80")
	out := <-conns
	t.Cleanup(func() { _ = out.Close() })
	deadline := time.Now().Add(20 * time.Second)
	_ = in.SetDeadline(deadline)
	_ = out.SetDeadline(deadline)
	return g, in, out
}

// gone waits until nothing of a connection is left.
func gone(t *testing.T, g *guest) {
	t.Helper()
	eventually(t, "the connection is gone", func() bool {
		s := g.port.net.sockets
		s.mu.Lock()
		defer s.mu.Unlock()
		return g.port.tcpFlows() == 0 && s.free == s.size
	})
}

func TestHalfCloseByGuest(t *testing.T) {
	g, in, out := pair(t)
	if _, err := in.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	if err := in.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(out)
	if err != nil || string(got) != "question" {
		t.Fatalf("outside got %q, %v", got, err)
	}
	big := bytes.Repeat([]byte("answer"), 1<<20)
	go func() {
		_, _ = out.Write(big)
		_ = out.Close()
	}()
	if got, err = io.ReadAll(in); err != nil || !bytes.Equal(got, big) {
		t.Fatalf("the guest got %d bytes, %v", len(got), err)
	}
	gone(t, g)
}

func TestHalfCloseByOutside(t *testing.T) {
	g, in, out := pair(t)
	if err := out.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := in.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("read %d, %v; want the end", n, err)
	}
	big := bytes.Repeat([]byte("late"), 1<<20)
	go func() {
		_, _ = in.Write(big)
		_ = in.Close()
	}()
	got, err := io.ReadAll(out)
	if err != nil || !bytes.Equal(got, big) {
		t.Fatalf("outside got %d bytes, %v", len(got), err)
	}
	gone(t, g)
}

func TestResetByOutside(t *testing.T) {
	for _, half := range []bool{false, true} {
		g, in, out := pair(t)
		if half { // the guest has been told of the end, and is told of the reset that follows
			_ = out.CloseWrite()
			if _, err := in.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
		}
		_ = out.SetLinger(0)
		_ = out.Close()
		gone(t, g)
		eventually(t, "the guest sees it", func() bool {
			_, err := in.Write([]byte("x"))
			return err != nil
		})
	}
}

func TestResetByGuest(t *testing.T) {
	for _, half := range []bool{false, true} {
		g, in, out := pair(t)
		if half {
			_ = in.CloseWrite()
			if _, err := out.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
		}
		for _, e := range g.stack.RegisteredEndpoints() {
			e.Abort()
		}
		if half { // it has read the end and would read it again: a reset shows in what it writes
			eventually(t, "outside sees the reset", func() bool {
				_, err := out.Write([]byte("x"))
				return err != nil
			})
		} else if _, err := out.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("outside sees %v, want a reset", err)
		}
		gone(t, g)
	}
}

// TestResetWhileOutsideIsFull: the guest resets a connection whose other side has stopped reading.
func TestResetWhileOutsideIsFull(t *testing.T) {
	g, in, out := pair(t)
	go func() {
		block := make([]byte, 1<<20)
		for {
			if _, err := in.Write(block); err != nil {
				return
			}
		}
	}()
	full := uint64(0)
	eventually(t, "all buffers are full", func() bool {
		now := g.port.Stats().BytesFromGuest
		same := now == full && now > 4<<20
		full = now
		return same
	})
	for _, e := range g.stack.RegisteredEndpoints() {
		e.Abort()
	}
	gone(t, g)
	if _, err := io.Copy(io.Discard, out); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("outside sees %v, want a reset", err)
	}
}

// TestUnacknowledgedBytesCount: what waits for a guest that takes nothing counts as its connection, though both sides
// have closed.
func TestUnacknowledgedBytesCount(t *testing.T) {
	for _, back := range []bool{true, false} {
		g, in, out := pair(t)
		if err := in.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if err := g.stack.DisableNIC(1); err != nil {
			t.Fatal(err)
		}
		data := bytes.Repeat([]byte("x"), 100000)
		if _, err := out.Write(data); err != nil {
			t.Fatal(err)
		}
		_ = out.Close()
		eventually(t, "the host's socket is closed", func() bool {
			s := g.port.net.sockets
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.free == s.size
		})
		if s := g.port.Stats(); s.OpenTCP != 1 {
			t.Errorf("%d connections are open, want 1", s.OpenTCP)
		}
		if !back {
			g.port.Close()
			gone(t, g)
			continue
		}
		if err := g.stack.EnableNIC(1); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(in); err != nil || !bytes.Equal(got, data) {
			t.Errorf("the guest got %d bytes, %v", len(got), err)
		}
		gone(t, g)
	}
}

func TestCloseOfPortResets(t *testing.T) {
	g, _, out := pair(t)
	g.port.Close()
	if _, err := out.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("outside sees %v, want a reset", err)
	}
	gone(t, g)
}

// TestGuestThatNeverAnswers opens a connection and goes before the handshake is over.
func TestGuestThatNeverAnswers(t *testing.T) {
	conns := make(chan *net.TCPConn, 1)
	o := &outside{tcp: map[uint16]string{80: serveTCP(t, func(c *net.TCPConn) { conns <- c })}}
	n := newNetwork(t, o)
	link, port := attach(t, n, 1)
	link.inject(t, ipFrame(gatewayMAC, mac(1), testVM(1).Addr, netip.MustParseAddr("203.0.113.5"), 6, syn(7, 80)))
	out := <-conns
	expect(t, link) // the gateway's SYN-ACK, which nobody answers
	port.Close()
	_ = out.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := out.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("outside sees %v, want a reset", err)
	}
	eventually(t, "its socket comes back", func() bool {
		n.sockets.mu.Lock()
		defer n.sockets.mu.Unlock()
		return n.sockets.free == n.sockets.size
	})
}

func TestUDPFlowEnds(t *testing.T) {
	o := &outside{udp: map[uint16]string{7: serveUDP(t)}}
	g := newGuest(t, newNetwork(t, o), 1)
	c := g.dialUDP(t, "203.0.113.5:7")
	ask := func() {
		t.Helper()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
	}
	ask()
	var f *udpFlow
	g.port.udp.mu.Lock()
	for _, f = range g.port.udp.flows {
	}
	g.port.udp.mu.Unlock()
	_ = f.conn.SetReadDeadline(time.Now()) // a deadline that came although the flow was used since ends nothing
	ask()
	f.last.Store(time.Now().Add(-2 * udpIdle).UnixNano())
	_ = f.conn.SetReadDeadline(time.Now())
	gone := func() bool { return g.port.Stats().OpenUDP == 0 }
	eventually(t, "the idle flow ends", gone)
	ask() // and another takes its place
	if s := g.port.Stats(); s.Flows != 2 {
		t.Errorf("%d flows, want 2", s.Flows)
	}
	g.port.Close()
	eventually(t, "the port's flows end", gone)
}

func TestGuestsTalk(t *testing.T) {
	o := &outside{}
	n := newNetwork(t, o)
	a, b := newGuest(t, n, 1), newGuest(t, n, 2)
	l, err := gonet.ListenTCP(b.stack, full(netip.AddrPortFrom(b.vm.Addr, 80)), ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(c, c)
		_ = c.Close()
	}()
	c := a.mustDial(t, netip.AddrPortFrom(b.vm.Addr, 80).String())
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	data := bytes.Repeat([]byte("between guests "), 1<<18)
	go func() {
		_, _ = c.Write(data)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d of %d bytes came back, %v", len(got), len(data), err)
	}
	if d := o.all(); len(d) > 0 {
		t.Errorf("left by the host: %v", d)
	}
}
