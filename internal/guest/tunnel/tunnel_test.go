package tunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/internal/guest/channel"
	"git.thaloco.com/thaloco/banger/internal/guest/guestapi"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/hostports/hostportstest"
	"git.thaloco.com/thaloco/banger/internal/network/nettest"
	"git.thaloco.com/thaloco/banger/internal/relay"
)

// patience is how long anything here may take.
const patience = 20 * time.Second

// guest is a guest whose network is this host's loopback, and a way to it.
type guest struct {
	t      testing.TB
	server Server
	stream func() (host, guest net.Conn)
}

// newGuest makes a guest that is reached by streams of a kind. When the test ends, so must all its tunnels have.
func newGuest(t testing.TB, kind string) *guest {
	g := &guest{t: t, server: Server{UDPListeners: guestapi.UDPListeners, Addresses: func() []netip.Addr { return nil }}}
	switch kind {
	case "pipe":
		g.stream = net.Pipe
	case "socket":
		g.stream = func() (net.Conn, net.Conn) { return socketpair(t) }
	case "channel":
		g.stream = channelStreams(t)
	}
	return g
}

// kinds are the kinds of streams: of memory, of sockets, which is as good as vsock, and the long way of QEMU.
var kinds = []string{"pipe", "socket", "channel"}

// socketpair is two ends of a unix socket.
func socketpair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return ends[0], ends[1]
}

// channelStreams makes streams as a VM on QEMU has them: a socket that a supervisor joins with a stream of a channel.
func channelStreams(t testing.TB) func() (net.Conn, net.Conn) {
	ours, theirs := socketpair(t)
	acceptor := channel.Guest(theirs)
	t.Cleanup(func() { acceptor.Close() })
	accepted := make(chan net.Conn, 1)
	go func() {
		s, err := acceptor.Accept(t.Context())
		if err == nil {
			_ = s.Serve(func(_ uint32, conn net.Conn) bool { accepted <- conn; return true })
		}
	}()
	s, err := channel.Host(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return func() (net.Conn, net.Conn) {
		host, supervisor := socketpair(t)
		far, err := s.Dial(t.Context(), wire.PortDial)
		if err != nil {
			t.Fatal(err)
		}
		go relay.Join(supervisor, far)
		return host, <-accepted
	}
}

// dial opens a tunnel. Its guest's end must have ended when the test has.
func (g *guest) dial(network string, port uint16) (*Conn, error) {
	g.t.Helper()
	host, far := g.stream()
	g.serve(far)
	c, err := Open(g.t.Context(), host, network, port)
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(patience))
		g.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func (g *guest) serve(stream net.Conn) {
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = g.server.Serve(context.Background(), stream)
	}()
	g.t.Cleanup(func() {
		select {
		case <-served:
		case <-time.After(patience):
			g.t.Error("a tunnel is still there in the guest")
		}
	})
}

// tcp opens a tunnel to a program, which is returned as the other end of its connection.
func (g *guest) tcp() (*Conn, *net.TCPConn) {
	g.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		g.t.Fatal(err)
	}
	defer l.Close()
	host, err := g.dial(TCP, uint16(l.Addr().(*net.TCPAddr).Port))
	if err != nil {
		g.t.Fatal(err)
	}
	program, err := l.Accept()
	if err != nil {
		g.t.Fatal(err)
	}
	_ = program.SetDeadline(time.Now().Add(patience))
	g.t.Cleanup(func() { program.Close() })
	return host, program.(*net.TCPConn)
}

// eachKind runs a test with streams of each kind.
func eachKind(t *testing.T, f func(t *testing.T, g *guest)) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) { f(t, newGuest(t, kind)) })
	}
}

func wantRead(t *testing.T, who string, r io.Reader, want string, wantErr error) {
	t.Helper()
	got, err := io.ReadAll(r)
	if string(got) != want || !errors.Is(err, wantErr) {
		t.Errorf("%s read %.40q, %v; want %q, %v", who, got, err, want, wantErr)
	}
}

func TestHalfClose(t *testing.T) {
	eachKind(t, func(t *testing.T, g *guest) {
		host, program := g.tcp()
		_, err := io.WriteString(host, "question")
		if err := errors.Join(err, host.CloseWrite(), host.CloseWrite()); err != nil {
			t.Fatal(err)
		}
		wantRead(t, "the program", program, "question", nil)
		if _, err := host.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("a write after the end: %v", err)
		}
		_, _ = io.WriteString(program, "answer")
		program.Close()
		wantRead(t, "the host", host, "answer", nil)
		wantRead(t, "the host, again,", host, "", nil)
	})
	eachKind(t, func(t *testing.T, g *guest) {
		host, program := g.tcp()
		_, _ = io.WriteString(program, "greeting")
		_ = program.CloseWrite()
		wantRead(t, "the host", host, "greeting", nil)
		_, _ = io.WriteString(host, "late")
		_ = host.CloseWrite()
		wantRead(t, "the program", program, "late", nil)
	})
}

func TestCloseResets(t *testing.T) {
	eachKind(t, func(t *testing.T, g *guest) {
		host, program := g.tcp()
		if err := host.Close(); err != nil {
			t.Error(err)
		}
		wantRead(t, "the program", program, "", syscall.ECONNRESET)
		if _, err := host.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a read after Close: %v", err)
		}
		if _, err := host.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a write after Close: %v", err)
		}
		if err := host.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a second Close: %v", err)
		}
	})
}

// TestCloseAfterCloseWrite: what was written arrives with its end, and a program that goes on is reset.
func TestCloseAfterCloseWrite(t *testing.T) {
	eachKind(t, func(t *testing.T, g *guest) {
		host, program := g.tcp()
		want := strings.Repeat("0123456789abcdef", 16<<10)
		go func() {
			_, _ = io.WriteString(host, want)
			_ = host.CloseWrite()
			host.Close()
		}()
		got, err := io.ReadAll(program)
		if string(got) != want || err != nil {
			t.Errorf("the program read %d bytes, %v", len(got), err)
		}
		for err == nil {
			_, err = program.Write([]byte("more"))
		}
		if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the program wrote until %v", err)
		}
	})
}

// TestCloseWhileFull: a host that has read nothing ends its direction and closes, while what the program says stands: the program is reset.
func TestCloseWhileFull(t *testing.T) {
	eachKind(t, func(t *testing.T, g *guest) {
		host, program := g.tcp()
		chunk := make([]byte, 1<<16)
		var err error
		for err == nil {
			_ = program.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			_, err = program.Write(chunk)
		}
		_ = host.CloseWrite()
		host.Close()
		_ = program.SetDeadline(time.Now().Add(patience))
		for err = nil; err == nil; {
			_, err = program.Write(chunk)
		}
		if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the program wrote until %v", err)
		}
	})
}

func TestProgramResets(t *testing.T) {
	eachKind(t, func(t *testing.T, g *guest) {
		host, program := g.tcp()
		_ = program.SetLinger(0)
		program.Close()
		wantRead(t, "the host", host, "", syscall.ECONNRESET)
		if _, err := host.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a write: %v", err)
		}
		if err := host.CloseWrite(); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("CloseWrite: %v", err)
		}
	})
	eachKind(t, func(t *testing.T, g *guest) { // one that is writing is told as well
		host, program := g.tcp()
		wrote := make(chan error, 1)
		go func() {
			_, err := io.Copy(host, rand.NewChaCha8([32]byte{}))
			wrote <- err
		}()
		_, _ = io.ReadFull(program, make([]byte, 100))
		_ = program.SetLinger(0)
		program.Close()
		if err := <-wrote; !errors.Is(err, syscall.EPIPE) {
			t.Errorf("the host wrote until %v", err)
		}
	})
}

// TestEarlyAnswer: a server that answers before it has read all and closes is heard, by a client that sends on.
func TestEarlyAnswer(t *testing.T) {
	eachKind(t, func(t *testing.T, g *guest) {
		host, program := g.tcp()
		sending := make(chan struct{})
		go func() {
			defer close(sending)
			chunk := make([]byte, 10000)
			for {
				if _, err := host.Write(chunk); err != nil {
					return
				}
			}
		}()
		_, _ = io.ReadFull(program, make([]byte, 10))
		answer := strings.Repeat("no", 1000)
		_, _ = io.WriteString(program, answer)
		_ = program.CloseWrite()
		// Now it is gone, with bytes unread; the answer and its end have been heard of before.
		wantRead(t, "the host", io.LimitReader(host, int64(len(answer))), answer, nil)
		program.Close()
		wantRead(t, "the host", host, "", nil)
		host.Close()
		<-sending
	})
}

// TestAbrupt: a stream that breaks in the middle of a frame is a reset on both sides.
func TestAbrupt(t *testing.T) {
	for _, bytesOfFrame := range []int{0, 3, 4, 50} {
		g := newGuest(t, "socket")
		var host, far net.Conn
		g.stream = func() (net.Conn, net.Conn) { host, far = socketpair(t); return host, far }
		c, program := g.tcp()
		frame := append([]byte{0, 0, 0, 100}, make([]byte, 100)...)
		if _, err := host.Write(frame[:bytesOfFrame]); err != nil {
			t.Fatal(err)
		}
		host.Close()
		wantRead(t, "the program", program, string(make([]byte, max(0, bytesOfFrame-headerLen))), syscall.ECONNRESET)
		c.Close()

		near, guest := socketpair(t)
		h := &Conn{stream: near, addr: addr{TCP, 1}}
		_, _ = guest.Write(frame[:bytesOfFrame])
		guest.Close()
		wantRead(t, "the host", h, string(make([]byte, max(0, bytesOfFrame-headerLen))), syscall.ECONNRESET)
		h.Close()
	}
}

// TestBulk sends 64 MiB both ways at once.
func TestBulk(t *testing.T) {
	const size = 24 << 20
	send := func(w interface {
		io.Writer
		CloseWrite() error
	}, seed byte) [32]byte {
		h := sha256.New()
		// Writes of all sizes, some longer than a frame.
		_, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(w, h)}, io.LimitReader(rand.NewChaCha8([32]byte{seed}), size), make([]byte, 100_001+int(seed)))
		if err := errors.Join(err, w.CloseWrite()); err != nil {
			t.Error(err)
		}
		return [32]byte(h.Sum(nil))
	}
	receive := func(r io.Reader) [32]byte {
		h := sha256.New()
		if n, err := io.Copy(h, r); n != size || err != nil {
			t.Errorf("%d bytes came, %v", n, err)
		}
		return [32]byte(h.Sum(nil))
	}
	eachKind(t, func(t *testing.T, g *guest) {
		host, program := g.tcp()
		_, _ = host.SetDeadline(time.Time{}), program.SetDeadline(time.Time{})
		var up, down, gotUp, gotDown [32]byte
		var wg sync.WaitGroup
		wg.Go(func() { up = send(host, 1) })
		wg.Go(func() { down = send(program, 2) })
		wg.Go(func() { gotUp = receive(program) })
		wg.Go(func() { gotDown = receive(host) })
		wg.Wait()
		if up != gotUp || down != gotDown {
			t.Error("what came is not what was sent")
		}
	})
}

func TestDatagrams(t *testing.T) {
	eachKind(t, func(t *testing.T, g *guest) {
		program, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer program.Close()
		host, err := g.dial(UDP, program.LocalAddr().(*net.UDPAddr).AddrPort().Port())
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1<<16)
		for _, size := range []int{5, 0, 1, MaxDatagram, 1472} {
			sent := bytes.Repeat([]byte{byte(size)}, size)
			if n, err := host.Write(sent); n != size || err != nil {
				t.Fatalf("%d bytes: %d, %v", size, n, err)
			}
			_ = program.SetReadDeadline(time.Now().Add(patience))
			n, from, err := program.ReadFromUDPAddrPort(buf)
			if err != nil || !bytes.Equal(buf[:n], sent) {
				t.Fatalf("of %d bytes %d came, %v", size, n, err)
			}
			if _, err := program.WriteToUDPAddrPort(buf[:n], from); err != nil {
				t.Fatal(err)
			}
			if n, err = host.Read(buf); err != nil || !bytes.Equal(buf[:n], sent) {
				t.Fatalf("of %d bytes %d came back, %v", size, n, err)
			}
		}
		if _, err := host.Write(make([]byte, MaxDatagram+1)); !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("one that is too long: %v", err)
		}
		if err := host.CloseWrite(); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("CloseWrite: %v", err)
		}
		// One that is longer than the buffer is cut, and the next is whole.
		_, _ = host.Write([]byte("hello"))
		_, from, err := program.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{strings.Repeat("long", 10000), "next"} {
			_, _ = program.WriteToUDPAddrPort([]byte(text), from)
			if n, err := host.Read(buf[:6]); err != nil || string(buf[:n]) != text[:min(6, len(text))] {
				t.Errorf("read %q, %v", buf[:n], err)
			}
		}
		// Nobody listens any more.
		program.Close()
		for err == nil {
			if _, err = host.Write([]byte("anybody?")); err == nil {
				_ = host.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
				if _, err = host.Read(buf); errors.Is(err, os.ErrDeadlineExceeded) {
					err = nil
				}
			}
		}
		if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("in the end: %v", err)
		}
	})
}

func TestOpenErrors(t *testing.T) {
	g := newGuest(t, "socket")
	port, err := hostportstest.Free()
	if err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{TCP, UDP} {
		if _, err := g.dial(network, port); !errors.Is(err, ErrRefused) {
			t.Errorf("%s to a port where nobody listens: %v", network, err)
		}
	}
	if _, err := g.dial("sctp", port); err == nil || !strings.Contains(err.Error(), `network \"sctp\" is not known`) {
		t.Errorf("another network: %v", err)
	}
	if _, err := g.dial(TCP, 0); err == nil || errors.Is(err, ErrRefused) {
		t.Errorf("port 0: %v", err)
	}
	eventually(t, "none is open", func() bool { return g.server.open.Load() == 0 }) // the guest counts down after it has answered
	g.server.open.Store(MaxTunnels)
	if _, err := g.dial(TCP, port); err == nil || !strings.Contains(err.Error(), "4096 connections are open already") {
		t.Errorf("one too many: %v", err)
	}
	g.server.open.Store(0)
	g.server.UDPListeners = func() ([]netip.AddrPort, error) { return nil, errors.New("no /proc") }
	if _, err := g.dial(UDP, port); err == nil || !strings.Contains(err.Error(), "no /proc") {
		t.Errorf("no /proc: %v", err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(patience); !ok(); {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("never happened: " + what)
		}
	}
}

// TestHostileAnswer: an agent that does not answer as one does.
func TestHostileAnswer(t *testing.T) {
	long := strings.Repeat("x", 10000)
	for _, tc := range []struct{ answer, want string }{
		{"", "EOF"},
		{`{"type":"open"`, "unexpected EOF"},
		{"garbage\n", "protocol violated"},
		{`{"type":"` + long + `"}` + "\n", "protocol violated: answer \"xxx"},
		{`{"type":"failed","reason":"\u001b[2J` + long + `"}` + "\n", `the guest's agent says "\x1b[2Jxxx`},
		{strings.Repeat(" ", wire.MaxCallLine) + "\n", "protocol violated: line of more than"},
	} {
		host, far := socketpair(t)
		go func() {
			var d wire.Dial
			_ = wire.ReadLine(far, &d)
			_, _ = io.WriteString(far, tc.answer)
			far.Close()
		}()
		_, err := Open(t.Context(), host, TCP, 80)
		if err == nil || !strings.Contains(err.Error(), tc.want) || len(err.Error()) > 300 {
			t.Errorf("%.40q: %v", tc.answer, err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	host, far := socketpair(t)
	defer far.Close()
	why := errors.New("waited enough")
	go func() {
		var d wire.Dial
		_ = wire.ReadLine(far, &d)
		cancel(why)
	}()
	if _, err := Open(ctx, host, TCP, 80); !errors.Is(err, why) {
		t.Errorf("no answer: %v", err)
	}
}

// TestHostileFrames: lengths that there are not.
func TestHostileFrames(t *testing.T) {
	for network, most := range map[string]uint32{TCP: MaxChunk, UDP: MaxDatagram} {
		for _, n := range []uint32{most + 1, 1 << 31, 1<<32 - 1} {
			host, far := socketpair(t)
			c := &Conn{stream: host, addr: addr{network, 1}}
			_, _ = far.Write(append(binary.BigEndian.AppendUint32(nil, n), make([]byte, 100)...))
			for range 2 {
				if k, err := c.Read(make([]byte, 10)); k != 0 || !errors.Is(err, wire.ErrProtocol) {
					t.Errorf("%s, %d bytes: %d, %v", network, n, k, err)
				}
			}
			c.Close()
			far.Close()
		}
	}
	// The agent does not take them from the host either.
	g := newGuest(t, "socket")
	c, program := g.tcp()
	if _, err := c.stream.Write([]byte{0, 1, 0, 1, 'x'}); err != nil {
		t.Fatal(err)
	}
	wantRead(t, "the program", program, "", syscall.ECONNRESET)
}

// TestReadDeadline: what has come of a frame before the deadline is not lost.
func TestReadDeadline(t *testing.T) {
	for network, want := range map[string]string{TCP: "hello", UDP: "world"} {
		host, far := socketpair(t)
		c := &Conn{stream: host, addr: addr{network, 1}}
		sent := []byte("\x00\x00\x00\x05hello\x00\x00\x00\x05world")
		var got []byte
		buf := make([]byte, 10)
		for i := range sent {
			_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
			n, err := c.Read(buf)
			got = append(got, buf[:n]...)
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("%s, before byte %d: %v", network, i, err)
			}
			// A datagram that a deadline cut is lost; the next one is not.
			if network == UDP && i == 10 {
				_ = c.SetReadDeadline(time.Time{})
				_, _ = far.Write(sent[i:])
				if n, err = c.Read(buf); err != nil || string(buf[:n]) != want {
					t.Errorf("%s: %q, %v", network, buf[:n], err)
				}
				break
			}
			_, _ = far.Write(sent[i : i+1])
		}
		if network == TCP {
			_ = c.SetReadDeadline(time.Time{})
			n, err := c.Read(buf)
			if got = append(got, buf[:n]...); err != nil || string(got) != "helloworld" {
				t.Errorf("%s: %q, %v", network, got, err)
			}
		}
		c.Close()
		far.Close()
	}
}

// TestWriteDeadline: after half a frame nothing can be written any more.
func TestWriteDeadline(t *testing.T) {
	host, far := net.Pipe()
	c := &Conn{stream: host, addr: addr{TCP, 1}}
	defer c.Close()
	defer far.Close()
	_ = c.SetWriteDeadline(time.Now().Add(time.Millisecond))
	if n, err := c.Write([]byte("hello")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("nothing was taken: %d, %v", n, err)
	}
	_ = c.SetWriteDeadline(time.Time{})
	taken := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(far, make([]byte, 7))
		_ = c.SetWriteDeadline(time.Now())
		taken <- err
	}()
	if n, err := c.Write([]byte("hello")); n != 3 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("half a frame: %d, %v", n, err)
	}
	if err := <-taken; err != nil {
		t.Error(err)
	}
	_ = c.SetWriteDeadline(time.Time{})
	if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("after half a frame: %v", err)
	}
	if err := c.CloseWrite(); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("CloseWrite after half a frame: %v", err)
	}
}

// TestServeEnds: a host that says nothing that can be understood, and an agent that ends.
func TestServeEnds(t *testing.T) {
	var s Server
	host, far := socketpair(t)
	host.Close()
	if err := s.Serve(t.Context(), far); !errors.Is(err, io.EOF) {
		t.Errorf("a host that has gone: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	host, far = socketpair(t)
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, far) }()
	c, err := Open(t.Context(), host, TCP, uint16(l.Addr().(*net.TCPAddr).Port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cancel()
	wantRead(t, "the host", c, "", syscall.ECONNRESET)
	if err := <-served; err == nil {
		t.Error("it ended well")
	}
	if n := s.open.Load(); n != 0 {
		t.Errorf("%d tunnels are open", n)
	}
}

func TestTargets(t *testing.T) {
	addrs := func(list ...string) (out []netip.Addr) {
		for _, a := range list {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	s := Server{Addresses: func() []netip.Addr {
		return addrs("fe80::1%eth0", "127.0.0.1", "172.16.0.2", "::1", "172.17.0.1", "2001:db8::1")
	}}
	texts := func(list []netip.AddrPort) (out []string) {
		for _, a := range list {
			out = append(out, a.String())
		}
		return out
	}
	want := []string{"127.0.0.1:80", "172.16.0.2:80", "172.17.0.1:80", "[::1]:80", "[fe80::1%eth0]:80", "[2001:db8::1]:80"}
	if diff := cmp.Diff(want, texts(slices.Collect(s.targets(80)))); diff != "" {
		t.Error(diff)
	}
	s.Addresses = func() (out []netip.Addr) {
		for i := range 1000 {
			out = append(out, netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}))
		}
		return out
	}
	if n := len(slices.Collect(s.targets(80))); n != 2+maxAddresses {
		t.Errorf("%d targets", n)
	}
	s.Addresses = nil
	if n := len(slices.Collect(s.targets(80))); n < 2 {
		t.Errorf("%d targets", n)
	}
	for _, tc := range []struct{ listeners, want string }{
		{"", ""},
		{"0.0.0.0:53 127.0.0.53:53", "127.0.0.1:53 127.0.0.53:53"},
		{"0.0.0.0:54", ""},
		{"[::]:53", "[::1]:53 127.0.0.1:53"},
		{"[::]:53 172.16.0.2:53 [2001:db8::1]:53 127.0.0.53:53", "127.0.0.53:53 [::1]:53 172.16.0.2:53 [2001:db8::1]:53 127.0.0.1:53"},
		{"224.0.0.251:53 [ff02::fb]:53", ""},
		{"127.0.0.1:53 0.0.0.0:53 127.0.0.1:53", "127.0.0.1:53"},
	} {
		var listeners []netip.AddrPort
		for l := range strings.FieldsSeq(tc.listeners) {
			listeners = append(listeners, netip.MustParseAddrPort(l))
		}
		if got := strings.Join(texts(udpTargets(listeners, 53)), " "); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.listeners, got, tc.want)
		}
	}
}

// TestLoopback6: what listens on ::1 only is found, over TCP and UDP.
func TestLoopback6(t *testing.T) {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 here:", err)
	}
	defer l.Close()
	g := newGuest(t, "socket")
	if _, err := g.dial(TCP, uint16(l.Addr().(*net.TCPAddr).Port)); err != nil {
		t.Error(err)
	}
	u, err := net.ListenPacket("udp6", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	c, err := g.dial(UDP, uint16(u.LocalAddr().(*net.UDPAddr).Port))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write([]byte("six"))
	buf := make([]byte, 10)
	if n, _, err := u.ReadFrom(buf); string(buf[:n]) != "six" || err != nil {
		t.Errorf("%q, %v", buf[:n], err)
	}
}

// TestIdle: tunnels on which nothing moves hold no buffers.
func TestIdle(t *testing.T) {
	const count, most = 200, 24 << 10 // bytes for both ends of one, goroutines included
	g := newGuest(t, "socket")
	heap := func() uint64 {
		runtime.GC()
		runtime.GC() // what is pooled survives one
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	least := int64(math.MaxInt64)
	for range 3 { // what the runtime holds at the moment is in it
		before := heap()
		for range count {
			host, program := g.tcp()
			_, err := io.WriteString(host, "x")
			if _, rerr := io.ReadFull(program, make([]byte, 1)); err != nil || rerr != nil {
				t.Fatal(err, rerr)
			}
			_, _ = io.WriteString(program, "y")
			_, _ = host.Read(make([]byte, 1))
		}
		if least = min(least, (int64(heap())-int64(before))/count); least <= most {
			return
		}
	}
	t.Errorf("a tunnel holds %d bytes", least)
}

// FuzzRead: whatever a guest sends, the host reads what a plain reading of the frames says.
func FuzzRead(f *testing.F) {
	f.Fuzz(func(t *testing.T, said []byte, tcp bool, size uint8) {
		network := UDP
		if tcp {
			network = TCP
		}
		buf := make([]byte, int(size)+1)
		want, wantErr := plain(said, network, len(buf))
		c := &Conn{stream: &said0{r: bytes.NewReader(said)}, addr: addr{network, 1}}
		var got [][]byte
		var err error
		for range 2*len(said) + 2 {
			var n int
			if n, err = c.Read(buf); err != nil {
				break
			}
			got = append(got, bytes.Clone(buf[:n]))
		}
		if tcp {
			got = [][]byte{bytes.Join(got, nil)}
		}
		if diff := cmp.Diff(want, got); diff != "" || !errors.Is(err, wantErr) {
			t.Errorf("%v, want %v\n%s", err, wantErr, diff)
		}
		if _, again := c.Read(buf); !errors.Is(again, wantErr) {
			t.Errorf("then %v, again %v", err, again)
		}
	})
}

// plain reads all frames: of TCP as one.
func plain(said []byte, network string, size int) (out [][]byte, err error) {
	out = nil
	all := []byte{}
	cut := syscall.ECONNRESET
	for len(said) >= headerLen {
		n := binary.BigEndian.Uint32(said)
		said = said[headerLen:]
		if n > uint32(longest(network)) {
			err = wire.ErrProtocol
			break
		}
		if network == TCP && n == 0 {
			err = io.EOF
			break
		}
		piece := said[:min(len(said), int(n))]
		said = said[len(piece):]
		all = append(all, piece...)
		if network == UDP && (len(piece) == int(n) || len(piece) >= size) {
			out = append(out, append([]byte{}, piece[:min(len(piece), size)]...))
		}
		if len(piece) < int(n) {
			break
		}
	}
	switch {
	case network == TCP && err == nil:
		return [][]byte{all}, cut
	case network == TCP:
		return [][]byte{all}, err
	case err == nil:
		err = io.EOF
	}
	return out, err
}

// said0 is a stream of which only what comes matters.
type said0 struct {
	net.Conn
	r *bytes.Reader
}

func (s *said0) Read(p []byte) (int, error) { return s.r.Read(p) }

func BenchmarkBulk(b *testing.B) {
	for _, kind := range []string{"socket", "channel"} {
		for _, up := range []bool{true, false} {
			name := kind + "/to_host"
			if up {
				name = kind + "/to_guest"
			}
			b.Run(name, func(b *testing.B) {
				host, program := newGuest(b, kind).tcp()
				_, _ = host.SetDeadline(time.Time{}), program.SetDeadline(time.Time{})
				from, to := net.Conn(program), net.Conn(host)
				if up {
					from, to = to, from
				}
				const chunk = 64 << 10
				b.SetBytes(chunk)
				done := make(chan error, 1)
				go func() {
					buf := make([]byte, chunk)
					for range b.N {
						if _, err := from.Write(buf); err != nil {
							done <- err
							return
						}
					}
					done <- from.(relay.HalfCloser).CloseWrite()
				}()
				buf := make([]byte, chunk)
				n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{to}, buf)
				if err := errors.Join(err, <-done); err != nil || n != int64(b.N)*chunk {
					b.Fatal(n, err)
				}
			})
		}
	}
}

// BenchmarkOpen is a connection with one byte there and back.
func BenchmarkOpen(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); c.Close() }()
		}
	}()
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	for _, kind := range []string{"socket", "channel"} {
		b.Run(kind, func(b *testing.B) {
			g := newGuest(b, kind)
			buf := make([]byte, 1)
			for b.Loop() {
				host, far := g.stream()
				go func() { _ = g.server.Serve(context.Background(), far) }()
				c, err := Open(b.Context(), host, TCP, port)
				if err != nil {
					b.Fatal(err)
				}
				_, err = c.Write(buf)
				if _, rerr := c.Read(buf); err != nil || rerr != nil {
					b.Fatal(err, rerr)
				}
				c.Close()
			}
		})
	}
}

// TestUnixPath keeps the helper honest: a tunnel works over a named socket as well, which is what a VM has.
func TestUnixPath(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g := newGuest(t, "socket")
	g.stream = func() (net.Conn, net.Conn) {
		host, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return host, far
	}
	host, program := g.tcp()
	_, _ = io.WriteString(host, "x")
	_ = host.CloseWrite()
	wantRead(t, "the program", program, "x", nil)
	if got := host.RemoteAddr(); got.Network() != TCP || !strings.HasPrefix(got.String(), "guest:") || host.LocalAddr() == nil {
		t.Errorf("address %v", got)
	}
}

// TestBegin does not wait for the guest's answer before it writes, and meets it when it reads.
func TestBegin(t *testing.T) {
	begin := func(t *testing.T, g *guest, port uint16) *Conn {
		host, far := g.stream()
		g.serve(far)
		c, err := Begin(t.Context(), host, port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := io.WriteString(c, "early"); err != nil && !errors.Is(err, syscall.EPIPE) {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		return c
	}
	test := func(t *testing.T, g *guest) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c := begin(t, g, uint16(l.Addr().(*net.TCPAddr).Port))
		program, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer program.Close()
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		wantRead(t, "the program", program, "early", nil)
		if _, err := io.WriteString(program, "answer"); err != nil {
			t.Fatal(err)
		}
		program.Close()
		wantRead(t, "the host", c, "answer", nil)

		l.Close()
		c = begin(t, g, uint16(l.Addr().(*net.TCPAddr).Port))
		for range 2 {
			if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, ErrRefused) && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("where nobody listens it reads %d, %v", n, err)
			}
		}
		if _, err := io.WriteString(c, "more"); err == nil {
			t.Error("it writes to nobody")
		}
	}
	for _, kind := range []string{"socket", "channel"} { // a pipe holds nothing: who writes early waits for the reader
		t.Run(kind, func(t *testing.T) { test(t, newGuest(t, kind)) })
	}
}

// TestFullBacklog has a program that takes no connections: whether the next one is taken is not known at once.
func TestFullBacklog(t *testing.T) {
	l, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(l)
	if err := errors.Join(syscall.Bind(l, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(l, 1)); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(l)
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(loopback4, uint16(sa.(*syscall.SockaddrInet4).Port))
	for range 10 {
		conn, err := dialLoopback(to)
		if errors.Is(err, errLater) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	t.Error("10 connections were taken")
}

// TestNotItself: a socket that the kernel gave the very port it asks for is connected to itself, which is nobody who listens.
func TestNotItself(t *testing.T) {
	ns := nettest.NewNS(t)
	ns.Do(t, func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40000"), 0); err != nil {
			return err
		}
		conn, err := dialLoopback(netip.AddrPortFrom(loopback4, 40000))
		if err == nil {
			conn.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("where nobody listens: %v", err)
		}
		return nil
	})
}
