package channel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

const echoPort, sinkPort, sourcePort = 7, 9, 19

// socketpair is two ends of a unix socket, which unlike net.Pipe buffers as QEMU's does.
func socketpair(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func serve(port uint32, c net.Conn) bool {
	switch port {
	case echoPort:
		_, _ = io.Copy(c, c)
		c.Close()
	case sinkPort:
		_, _ = io.Copy(io.Discard, c)
	case sourcePort:
		go func() { // accepted by returning true: the first use comes later
			_, _ = c.Write([]byte("source"))
			c.Close()
		}()
	default:
		return false
	}
	return true
}

// pair is a host and a guest that serve each other.
func pair(t *testing.T) (host, guest *Session, a *Acceptor, hc net.Conn) {
	t.Helper()
	hc, gc := socketpair(t)
	a = Guest(gc)
	t.Cleanup(func() { a.Close() })
	got := make(chan *Session, 1)
	go func() {
		s, err := a.Accept(t.Context())
		if err != nil {
			t.Error(err)
		}
		got <- s
	}()
	host, err := Host(t.Context(), hc)
	if err != nil {
		t.Fatal(err)
	}
	guest = <-got
	t.Cleanup(func() { host.Close() })
	go func() { _ = guest.Serve(serve) }()
	go func() { _ = host.Serve(serve) }()
	return host, guest, a, hc
}

func TestEchoBothWays(t *testing.T) {
	host, guest, _, _ := pair(t)
	for name, s := range map[string]*Session{"host": host, "guest": guest} {
		t.Run(name, func(t *testing.T) {
			var wg sync.WaitGroup
			for i := range 20 {
				wg.Go(func() {
					echo(t, s, 1<<(i%18))
				})
			}
			wg.Wait()
		})
	}
}

// echo sends n bytes, closes its direction, and wants them back whole.
func echo(t *testing.T, s *Session, n int) {
	c, err := s.Dial(t.Context(), echoPort)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	want := bytes.Repeat([]byte{byte(n), 0xb6, 0}, n)
	go func() {
		_, _ = c.Write(want)
		_ = c.(*conn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(want) {
		t.Errorf("echo of %d bytes: got %d, %v", len(want), len(got), err)
	}
}

func TestRefused(t *testing.T) {
	host, _, _, _ := pair(t)
	for range 2 * backlog { // refusals free their stream and their slot
		if _, err := host.Dial(t.Context(), 4242); !errors.Is(err, ErrRefused) {
			t.Fatalf("dial: %v", err)
		}
	}
	echo(t, host, 10)
}

func TestAcceptByReturning(t *testing.T) {
	host, _, _, _ := pair(t)
	c, err := host.Dial(t.Context(), sourcePort)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "source" {
		t.Fatalf("read %q, %v", got, err)
	}
}

// TestLastBytes: what was written before Close arrives, however late it is read.
func TestLastBytes(t *testing.T) {
	host, guest, _, _ := pair(t)
	release := make(chan struct{})
	result := make(chan int, 1)
	go func() { // a second server beside serve would steal streams, so the guest dials
		c, err := guest.Dial(t.Context(), sinkPort)
		if err != nil {
			t.Error(err)
		}
		_, _ = c.Write(make([]byte, 200<<10))
		c.Close()
		close(release)
	}()
	<-release
	c, err := host.Dial(t.Context(), sourcePort)
	if err != nil {
		t.Fatal(err)
	}
	go func() { b, _ := io.ReadAll(c); result <- len(b) }()
	if n := <-result; n != len("source") {
		t.Fatalf("got %d bytes", n)
	}
}

// TestCloseStopsPeer: a peer that goes on writing to a closed stream is told, and nothing of the stream stays.
func TestCloseStopsPeer(t *testing.T) {
	hc, gc := socketpair(t)
	a := Guest(gc)
	defer a.Close()
	stopped := make(chan error, 1)
	go func() {
		s, err := a.Accept(t.Context())
		if err != nil {
			t.Error(err)
			return
		}
		_ = s.Serve(func(_ uint32, c net.Conn) bool {
			for {
				if _, err := c.Write(make([]byte, 64<<10)); err != nil {
					stopped <- err
					return true
				}
			}
		})
	}()
	host, err := Host(t.Context(), hc)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	c, err := host.Dial(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	<-stopped
	eventually(t, func() bool {
		host.f.in.mu.Lock()
		defer host.f.in.mu.Unlock()
		return len(host.f.streams) == 0 && host.mux.NumStreams() == 0
	})
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the condition never came true")
		}
	}
}

func TestNewHelloEndsTheSession(t *testing.T) {
	hc, gc := socketpair(t)
	a := Guest(gc)
	defer a.Close()
	sessions := make(chan *Session)
	go func() {
		for {
			s, err := a.Accept(t.Context())
			if err != nil {
				close(sessions)
				return
			}
			go func() { _ = s.Serve(serve) }()
			sessions <- s
		}
	}()
	// keepOpen lets the first host vanish without closing the byte stream, as in a restored snapshot.
	hostC := make(chan *Session, 1)
	go func() {
		h, err := Host(t.Context(), keepOpen{hc})
		if err != nil {
			t.Error(err)
		}
		hostC <- h
	}()
	first, h1 := <-sessions, <-hostC
	c, err := h1.Dial(t.Context(), echoPort)
	if err != nil {
		t.Fatal(err)
	}
	// What a stream carries is never taken for a hello.
	hello := append(bytes.Clone(wire.HelloMagic[:]), make([]byte, wire.NonceLen)...)
	if _, err := c.Write(hello); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, len(hello))); err != nil {
		t.Fatal(err)
	}
	select {
	case <-first.Done():
		t.Fatal("a hello in a stream ended the session")
	default:
	}
	if _, err := hc.Write(hello); err != nil {
		t.Fatal(err)
	}
	<-first.Done()
	if err := first.Err(); err != nil {
		t.Fatalf("a new hello is no error: %v", err)
	}
	<-sessions
}

type keepOpen struct{ net.Conn }

func (keepOpen) Close() error { return nil }

// TestHelloRepeated: hellos that queued up before the guest read are answered once.
func TestHelloRepeated(t *testing.T) {
	hc, gc := socketpair(t)
	hello := append(bytes.Clone(wire.HelloMagic[:]), bytes.Repeat([]byte{5}, wire.NonceLen)...)
	for range 10 {
		if _, err := hc.Write(hello); err != nil {
			t.Fatal(err)
		}
	}
	a := Guest(gc)
	defer a.Close()
	s, err := a.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(serve) }()
	reply := make([]byte, helloLen)
	if _, err := io.ReadFull(hc, reply); err != nil || !bytes.HasPrefix(reply, wire.ReplyMagic[:]) {
		t.Fatalf("reply %x, %v", reply, err)
	}
	in := newInbox()
	go in.pump(hc)
	h, err := newSession(newFrames(in, hc, hc.Close, nil, maxGuestStreams), true)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	echo(t, h, 1000)
}

func TestHostSkipsGarbageAndRepeats(t *testing.T) {
	hc, gc := socketpair(t)
	go func() {
		_, _ = gc.Write(bytes.Repeat([]byte{magicByte, 0, 1}, 100_000))
		var b [2 * helloLen]byte // the first hello and its repetition
		_, _ = io.ReadFull(gc, b[:])
		_, _ = gc.Write(append(bytes.Clone(wire.ReplyMagic[:]), b[len(wire.HelloMagic):helloLen]...))
	}()
	s, err := Host(t.Context(), hc)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

func TestHostBounds(t *testing.T) {
	t.Run("garbage for ever", func(t *testing.T) {
		hc, gc := socketpair(t)
		go func() {
			for {
				if _, err := gc.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}()
		if _, err := Host(t.Context(), hc); !errors.Is(err, ErrGarbage) {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("silence", func(t *testing.T) {
		hc, _ := socketpair(t)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Millisecond, cancel)
		if _, err := Host(ctx, hc); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	})
}

// hostile gives the host's session and a guest that has shaken hands and now writes what it likes.
func hostile(t *testing.T) (*Session, net.Conn) {
	t.Helper()
	hc, gc := socketpair(t)
	go func() {
		var b [helloLen]byte
		_, _ = io.ReadFull(gc, b[:])
		_, _ = gc.Write(append(bytes.Clone(wire.ReplyMagic[:]), b[len(wire.HelloMagic):]...))
	}()
	s, err := Host(t.Context(), hc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	go func() { _ = s.Serve(serve) }()
	return s, gc
}

func frame(typ byte, flags uint16, id, length uint32) []byte {
	h := make([]byte, headerLen)
	h[1] = typ
	binary.BigEndian.PutUint16(h[2:], flags)
	binary.BigEndian.PutUint32(h[4:], id)
	binary.BigEndian.PutUint32(h[8:], length)
	return h
}

func TestHostileGuest(t *testing.T) {
	for name, garbage := range map[string][]byte{
		"not a frame":        []byte("GET / HTTP/1.1\r\n\r\n"),
		"unknown type":       frame(9, 0, 0, 0),
		"body beyond limits": frame(typeData, flagSYN, 2, 1<<31),
		"wrong side's id":    frame(typeWindow, flagSYN, 3, 0),
		"opened twice":       append(frame(typeWindow, flagSYN, 2, 0), frame(typeWindow, flagSYN, 2, 0)...),
	} {
		t.Run(name, func(t *testing.T) {
			s, gc := hostile(t)
			if _, err := gc.Write(garbage); err != nil {
				t.Fatal(err)
			}
			<-s.Done()
			eventually(t, func() bool { return errors.Is(s.Err(), ErrGarbage) })
			if _, err := s.Dial(t.Context(), echoPort); !errors.Is(err, ErrClosed) {
				t.Fatalf("dial: %v", err)
			}
		})
	}
}

func TestHostileGuestOpensForEver(t *testing.T) {
	s, gc := hostile(t)
	go func() { // never reads; names no port
		for id := uint32(2); ; id += 2 {
			if _, err := gc.Write(frame(typeWindow, flagSYN, id, 0)); err != nil {
				return
			}
		}
	}()
	<-s.Done() // the resets nobody reads are bounded
	if n := s.mux.NumStreams(); n > maxGuestStreams {
		t.Fatalf("%d streams", n)
	}
}

func TestPingsAreDropped(t *testing.T) {
	s, gc := hostile(t)
	ping := bytes.Repeat(frame(typePing, flagSYN, 0, 1), 1000)
	for range 1000 { // a million goroutines, if yamux saw them
		if _, err := gc.Write(ping); err != nil {
			t.Fatal(err)
		}
	}
	if s.mux.IsClosed() {
		t.Fatal("the session ended")
	}
}

func TestDialEndsWithContext(t *testing.T) {
	s, gc := hostile(t) // reads, and answers nothing
	go func() { _, _ = io.Copy(io.Discard, gc) }()
	for range 3 * backlog {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		if _, err := s.Dial(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("dial: %v", err)
		}
		cancel()
	}
	eventually(t, func() bool { return s.mux.NumStreams() == 0 && len(s.dials) == 0 })
}

func TestEndOfSessionIsNoEndOfFile(t *testing.T) {
	host, _, _, hc := pair(t)
	c, err := host.Dial(t.Context(), echoPort)
	if err != nil {
		t.Fatal(err)
	}
	hc.Close()
	if _, err := io.ReadAll(c); !errors.Is(err, ErrClosed) {
		t.Fatalf("read: %v", err)
	}
}

func FuzzScan(f *testing.F) {
	hello := append(bytes.Clone(wire.HelloMagic[:]), bytes.Repeat([]byte{7}, wire.NonceLen)...)
	f.Add([]byte{}, []byte{})
	f.Add([]byte{magicByte}, []byte("x"))
	f.Add(hello[:20], hello)
	f.Add(bytes.Repeat([]byte{magicByte}, 5000), []byte{0})
	f.Fuzz(func(t *testing.T, before, after []byte) {
		data := append(append(bytes.Clone(before), hello...), after...)
		want := bytes.Index(data, hello)
		in := newInbox()
		go in.pump(&chunks{data: data, r: rand.New(rand.NewPCG(1, uint64(len(data))))})
		got, err := in.scan(func(b []byte) bool { return bytes.Equal(b, hello) }, 0)
		if err != nil || !bytes.Equal(got, hello) {
			t.Fatalf("scan: %x, %v", got, err)
		}
		rest := &frames{in: in}
		var left []byte
		in.mu.Lock()
		for in.err == nil || in.n > 0 {
			if in.n == 0 {
				in.cond.Wait()
				continue
			}
			b := make([]byte, in.n)
			in.skip(rest.in.peek(b))
			left = append(left, b...)
		}
		in.mu.Unlock()
		if !bytes.Equal(left, data[want+helloLen:]) {
			t.Fatalf("%d bytes after the hello, want %d", len(left), len(data)-want-helloLen)
		}
	})
}

// chunks reads data in pieces of random length.
type chunks struct {
	data []byte
	r    *rand.Rand
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 1+c.r.IntN(70))], c.data)
	c.data = c.data[n:]
	return n, nil
}

// FuzzFrames: whatever a guest sends after the hand-shake, the host neither panics nor keeps more than it may.
func FuzzFrames(f *testing.F) {
	f.Add(frame(typeWindow, flagSYN, 2, 0))
	f.Add(append(frame(typeData, flagSYN, 2, 4), 0, 0, 0, 7))
	f.Add(append(frame(typeData, flagSYN|flagFIN, 2, 5), 0, 0, 0, 7, 1))
	f.Add(append(frame(typePing, flagSYN, 0, 9), frame(typeGoAway, 0, 0, 0)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		hc, gc := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, gc) }()
		in := newInbox()
		go in.pump(hc)
		s, err := newSession(newFrames(in, hc, hc.Close, nil, maxGuestStreams), true)
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan struct{})
		go func() { _ = s.Serve(serve); close(served) }()
		_, _ = gc.Write(data)
		if n := s.mux.NumStreams(); n > maxGuestStreams {
			t.Fatalf("%d streams", n)
		}
		gc.Close()
		s.Close()
		<-served
	})
}

func BenchmarkThroughput(b *testing.B) {
	hc, gc := net.Pipe()
	a := Guest(gc)
	go func() {
		s, _ := a.Accept(b.Context())
		_ = s.Serve(serve)
	}()
	h, err := Host(b.Context(), hc)
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	c, err := h.Dial(b.Context(), sinkPort)
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
}
