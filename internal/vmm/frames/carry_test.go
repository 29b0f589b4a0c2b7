package frames

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// carried is a Carry under test: the host's end of the pair, and the guest's of the stream.
type carried struct {
	host  *Link
	guest net.Conn
	vm    *os.File
	stop  context.CancelCauseFunc
	ended chan error
}

func carry(t testing.TB, pair func(testing.TB) (a, b net.Conn)) *carried {
	t.Helper()
	guest, stream := pair(t)
	h, vm, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	host, err := NewLink(h, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &carried{host: host, guest: guest, vm: vm}
	c.start(stream)
	t.Cleanup(func() {
		c.stop(nil)
		for _, e := range []io.Closer{guest, stream, vm, host} {
			_ = e.Close()
		}
	})
	return c
}

// start carries for the same VM over another stream.
func (c *carried) start(stream net.Conn) {
	ctx, stop := context.WithCancelCause(context.Background())
	c.stop, c.ended = stop, make(chan error, 1)
	go func() { c.ended <- Carry(ctx, stream, c.vm) }()
}

// end is how Carry ended.
func (c *carried) end(t testing.TB) error {
	t.Helper()
	select {
	case err := <-c.ended:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("Carry has not ended")
		return nil
	}
}

// pipe returns two ends without a buffer between them.
func pipe(testing.TB) (a, b net.Conn) { return net.Pipe() }

// sockets returns two ends of a unix stream.
func sockets(t testing.TB) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.Dial("unix", ln.Addr().String()); err == nil {
		b, err = ln.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

// frame is frame number i, of n bytes.
func frame(i, n int) []byte {
	f := bytes.Repeat([]byte{byte(i)}, n)
	binary.BigEndian.PutUint32(f, uint32(i))
	return f
}

// framed is a frame as it stands on a stream.
func framed(f []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(f))), f...) }

var lengths = []int{14, 60, 1514, 1514, 1514, 9000, 65533, wire.MaxEthernet}

func TestCarryBothWays(t *testing.T) {
	const rounds = 400
	for name, pair := range map[string]func(testing.TB) (a, b net.Conn){"socket": sockets, "pipe": pipe} {
		t.Run(name, func(t *testing.T) {
			c := carry(t, pair)
			go func() { // in pieces that have nothing to do with frames
				var all []byte
				for i := range rounds {
					all = append(all, framed(frame(i, lengths[i%len(lengths)]))...)
				}
				for n := 1; len(all) > 0; n = n*3%50_021 + 1 {
					n = min(n, len(all))
					if _, err := c.guest.Write(all[:n]); err != nil {
						return
					}
					all = all[n:]
				}
			}()
			go func() {
				for i := range rounds {
					f := frame(i, lengths[i%len(lengths)])
					if c.host.WriteFrame([][]byte{f[:14], f[14:]}) != nil {
						return
					}
				}
			}()
			back := make(chan error, 1)
			go func() { back <- readFrames(c.guest, rounds) }()
			buf := make([]byte, 1<<17)
			for i := range rounds {
				n, err := c.host.ReadFrame(buf)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(buf[:n], frame(i, lengths[i%len(lengths)])) {
					t.Fatalf("frame %d came to the host as %d bytes", i, n)
				}
			}
			if err := <-back; err != nil {
				t.Error(err)
			}
			_ = c.guest.Close()
			if err := c.end(t); err != nil {
				t.Errorf("the end of the stream: %v", err)
			}
		})
	}
}

// readFrames reads frames 0 to n-1 of a stream.
func readFrames(r io.Reader, n int) error {
	for i := range n {
		var head [2]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		f := make([]byte, binary.BigEndian.Uint16(head[:]))
		if _, err := io.ReadFull(r, f); err != nil {
			return err
		}
		if !bytes.Equal(f, frame(i, lengths[i%len(lengths)])) {
			return fmt.Errorf("frame %d came to the guest as %d bytes", i, len(f))
		}
	}
	return nil
}

// What is there goes out with one write.
func TestCarryBatches(t *testing.T) {
	host, vm := links(t)
	var want []byte
	for i := range 5 {
		f := frame(i, 100+i)
		want = append(want, framed(f)...)
		if err := host.WriteFrame([][]byte{f}); err != nil {
			t.Fatal(err)
		}
	}
	for _, none := range [][]byte{nil, make([]byte, minEthernet-1)} {
		if err := host.WriteFrame([][]byte{none}); err != nil {
			t.Fatal(err)
		}
	}
	guest, stream := net.Pipe()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Carry(ctx, stream, vm.f) }()
	got := make([]byte, batch)
	n, err := guest.Read(got) // a pipe gives what one write wrote
	if err != nil || !bytes.Equal(got[:n], want) {
		t.Errorf("got %d bytes, want %d; %v", n, len(want), err)
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("after cancel: %v", err)
	}
}

func TestCarryEndOfStream(t *testing.T) {
	for name, c := range map[string]struct {
		bytes []byte
		want  error
	}{
		"nothing":            {nil, nil},
		"after a frame":      {framed(frame(1, 60)), nil},
		"in a length":        {[]byte{1}, io.ErrUnexpectedEOF},
		"in a frame":         {framed(frame(1, 60))[:20], io.ErrUnexpectedEOF},
		"no frame":           {[]byte{0, 0}, wire.ErrProtocol},
		"a frame too short":  {framed(make([]byte, minEthernet-1)), wire.ErrProtocol},
		"a frame too long":   {[]byte{0xff, 0xff}, wire.ErrProtocol},
		"noise behind frame": {append(framed(frame(1, 60)), 0, 13), wire.ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			k := carry(t, sockets)
			if _, err := k.guest.Write(c.bytes); err != nil {
				t.Fatal(err)
			}
			_ = k.guest.Close()
			if err := k.end(t); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

var errStop = errors.New("stop")

// Whatever Carry waits for, the context ends it, and the VM's end is as good as new.
func TestCarryIsStopped(t *testing.T) {
	for name, busy := range map[string]func(*testing.T, *carried){
		"idle": func(*testing.T, *carried) {},
		"stream full": func(t *testing.T, c *carried) {
			c.flood(t, func() error { return c.host.WriteFrame([][]byte{frame(1, wire.MaxEthernet)}) }, func(at time.Time) {
				_ = c.host.f.SetWriteDeadline(at)
			})
		},
		"host full": func(t *testing.T, c *carried) {
			c.flood(t, func() error {
				_, err := c.guest.Write(framed(frame(1, wire.MaxEthernet)))
				return err
			}, func(at time.Time) { _ = c.guest.SetWriteDeadline(at) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := carry(t, sockets)
			busy(t, c)
			c.stop(errStop)
			if err := c.end(t); !errors.Is(err, errStop) {
				t.Errorf("Carry ended with %v", err)
			}
			guest, stream := sockets(t)
			defer guest.Close()
			defer stream.Close()
			c.start(stream)
			marks := frame(9, 77)
			go func() {
				_, _ = guest.Write(framed(marks))
				_ = c.host.WriteFrame([][]byte{marks})
			}()
			buf := make([]byte, 1<<17)
			for n := 0; n != len(marks); { // after what had gone through before
				var err error
				if n, err = c.host.ReadFrame(buf); err != nil {
					t.Fatal(err)
				}
			}
			var head [2]byte
			for n := 0; n != len(marks); {
				if _, err := io.ReadFull(guest, head[:]); err != nil {
					t.Fatal(err)
				}
				n = int(binary.BigEndian.Uint16(head[:]))
				if _, err := io.ReadFull(guest, buf[:n]); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// flood writes until nothing goes any more.
func (c *carried) flood(t *testing.T, write func() error, deadline func(time.Time)) {
	t.Helper()
	defer deadline(time.Time{})
	for range 10_000 {
		deadline(time.Now().Add(200 * time.Millisecond))
		err := write()
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) { // a Link takes a deadline for its end
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("10,000 frames went nowhere")
}

// Nothing is lost on the way to a host that is slow.
func TestCarryWaitsForTheHost(t *testing.T) {
	c := carry(t, sockets)
	const n = 300
	go func() {
		for i := range n {
			if _, err := c.guest.Write(framed(frame(i, wire.MaxEthernet))); err != nil {
				return
			}
		}
		_ = c.guest.Close()
	}()
	buf := make([]byte, 1<<17)
	for i := range n {
		k, err := c.host.ReadFrame(buf)
		if err != nil {
			t.Fatal(err)
		}
		if k != wire.MaxEthernet || int(binary.BigEndian.Uint32(buf)) != i {
			t.Fatalf("frame %d: %d bytes, number %d", i, k, binary.BigEndian.Uint32(buf))
		}
	}
	if err := c.end(t); err != nil {
		t.Error(err)
	}
}

func TestCarryWithoutVM(t *testing.T) {
	c := carry(t, sockets)
	_ = c.vm.Close()
	if err := c.end(t); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the VM's end was closed: %v", err)
	}
	c = carry(t, sockets)
	_ = c.host.Close()
	if _, err := c.guest.Write(framed(frame(1, 60))); err != nil {
		t.Fatal(err)
	}
	if err := c.end(t); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the host's end was closed: %v", err)
	}
}

// FuzzCarry gives Carry what a hostile guest may: the frames before the first violation come out, nothing else does.
func FuzzCarry(f *testing.F) {
	f.Add([]byte{}, uint8(1))
	f.Add(append(framed(frame(1, 60)), framed(frame(2, 14))...), uint8(3))
	f.Add(append(framed(frame(1, 300)), 0, 13, 1), uint8(255))
	f.Add([]byte{0xff, 0xff, 0}, uint8(2))
	f.Fuzz(func(t *testing.T, stream []byte, piece uint8) {
		var want [][]byte
		var end error
		rest := stream
		for len(rest) >= prefix && end == nil {
			n := int(binary.BigEndian.Uint16(rest))
			switch {
			case n < minEthernet || n > wire.MaxEthernet:
				end = wire.ErrProtocol
			case prefix+n > len(rest):
				end = io.ErrUnexpectedEOF
			default:
				want = append(want, rest[prefix:prefix+n])
				rest = rest[prefix+n:]
			}
		}
		if end == nil && len(rest) > 0 {
			end = io.ErrUnexpectedEOF
		}
		c := carry(t, pipe)
		go func() {
			for b := stream; len(b) > 0; {
				n := min(max(int(piece), 1), len(b))
				if _, err := c.guest.Write(b[:n]); err != nil {
					return
				}
				b = b[n:]
			}
			_ = c.guest.Close()
		}()
		buf := make([]byte, wire.MaxEthernet+1)
		for i, w := range want {
			n, err := c.host.ReadFrame(buf)
			if err != nil || !bytes.Equal(buf[:n], w) {
				t.Fatalf("frame %d: %d bytes, want %d; %v", i, n, len(w), err)
			}
		}
		if err := c.end(t); !errors.Is(err, end) {
			t.Errorf("the end is %v, want %v", err, end)
		}
		_ = c.host.f.SetReadDeadline(time.Unix(1, 0))
		if n, err := c.host.ReadFrame(buf); err == nil {
			t.Errorf("one more frame, of %d bytes", n)
		}
	})
}

func BenchmarkCarry(b *testing.B) {
	for _, size := range []int{wire.MaxEthernet, 1514} {
		one := framed(frame(1, size))
		b.Run(fmt.Sprintf("to the host/%d", size), func(b *testing.B) {
			c := carry(b, sockets)
			b.SetBytes(int64(size))
			go func() { // as the guest writes: what there is at once
				all := bytes.Repeat(one, max(1, batch/len(one)))
				for {
					if _, err := c.guest.Write(all); err != nil {
						return
					}
				}
			}()
			buf := make([]byte, wire.MaxEthernet)
			for b.Loop() {
				if _, err := c.host.ReadFrame(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("to the guest/%d", size), func(b *testing.B) {
			c := carry(b, sockets)
			b.SetBytes(int64(size))
			go func() {
				f := [][]byte{one[prefix:]}
				for c.host.WriteFrame(f) == nil {
				}
			}()
			buf := make([]byte, 256<<10)
			have := 0
			for b.Loop() {
				for have < len(one) {
					n, err := c.guest.Read(buf)
					if err != nil {
						b.Fatal(err)
					}
					have += n
				}
				have -= len(one)
			}
		})
	}
}
