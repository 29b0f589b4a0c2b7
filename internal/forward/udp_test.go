package forward

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

// echoUDP answers datagrams with who seems to have sent them and what they were; "quiet" it does not answer.
func echoUDP(t testing.TB) string {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			if string(b[:n]) == "who" {
				n = copy(b, from.String())
			}
			_, _ = pc.WriteTo(b[:n], from)
		}
	}()
	return pc.LocalAddr().String()
}

func connectUDP(t testing.TB, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(within))
	return conn
}

// ask sends a datagram and returns the answer. Datagrams may be lost, and here a flow may have just gone.
func ask(t testing.TB, c *net.UDPConn, b []byte) []byte {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Error(err)
	}
	buf := make([]byte, 1<<16)
	n, err := c.Read(buf)
	if err != nil {
		t.Error(err)
	}
	return buf[:n]
}

func TestUDPPeers(t *testing.T) {
	s := newService(t)
	at := open(t, s, "web", api.Forward{Protocol: api.UDP, GuestPort: 53}, dialTo(map[uint16]string{53: echoUDP(t)}))
	const peers = 50
	var mu sync.Mutex
	var wg sync.WaitGroup
	seen := map[string]bool{}
	for i := range peers {
		c := connectUDP(t, at)
		wg.Go(func() {
			who := string(ask(t, c, []byte("who")))
			mu.Lock()
			seen[who] = true
			mu.Unlock()
			for n := range 20 {
				want := fmt.Sprintf("%d of %d", n, i)
				if got := ask(t, c, []byte(want)); string(got) != want {
					t.Errorf("%q was answered with %q", want, got)
				}
			}
			if again := string(ask(t, c, []byte("who"))); again != who {
				t.Errorf("one peer is %q and %q", who, again)
			}
		})
	}
	wg.Wait()
	if len(seen) != peers || s.Status("id-web")[0].Connections != peers {
		t.Errorf("%d peers seem to be %d, status %+v", peers, len(seen), s.Status("id-web"))
	}
	for _, size := range []int{0, 1, 1472, 9000, maxDatagram} {
		b := bytes.Repeat([]byte{7}, size)
		if got := ask(t, connectUDP(t, at), b); !bytes.Equal(got, b) {
			t.Errorf("%d bytes came back as %d", size, len(got))
		}
	}
}

// Answers come from the address that was asked, though the socket has all of them.
func TestUDPAnswersFromWhereItWasAsked(t *testing.T) {
	s := newService(t)
	dial := dialTo(map[uint16]string{53: echoUDP(t)})
	four := open(t, s, "four", api.Forward{Protocol: api.UDP, HostAddress: netip.IPv4Unspecified(), GuestPort: 53}, dial)
	ask4 := []string{"127.0.0.1", "127.0.0.2", "127.1.2.3"}
	for _, to := range ask4 {
		if got := ask(t, connectUDP(t, netip.AddrPortFrom(netip.MustParseAddr(to), four.Port())), []byte("x")); string(got) != "x" {
			t.Errorf("%s: %q", to, got)
		}
	}
	list, err := s.Open(VM{ID: "6", Name: "six", Dial: dial}, []api.Forward{{Protocol: api.UDP, HostAddress: netip.IPv6Unspecified(), GuestPort: 53}})
	if err != nil {
		t.Skipf("no IPv6 here: %v", err)
	}
	if got := ask(t, connectUDP(t, netip.AddrPortFrom(netip.IPv6Loopback(), list[0].HostPort)), []byte("x")); string(got) != "x" {
		t.Errorf("::1: %q", got)
	}
}

func testFlows(t *testing.T, idle time.Duration, dial Dial) *flows {
	s := newService(t)
	open(t, s, "web", api.Forward{Protocol: api.UDP, GuestPort: 53}, dial)
	p := s.guest("id-web").entries[0].port
	return &flows{port: p, socket: p.socket.(*udpSocket), idle: idle, all: map[flowKey]*flow{}}
}

func peer(n int) flowKey {
	return flowKey{peer: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 9, byte(n >> 8), byte(n)}), 5000)}
}

func TestUDPTooManyPeers(t *testing.T) {
	fs := testFlows(t, time.Hour, func(ctx context.Context, _ string, _ uint16) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	for i := range maxFlows {
		fs.put(peer(i), nil)
	}
	fs.put(peer(0), nil) // used again: the next is the oldest
	fs.put(peer(maxFlows), nil)
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if len(fs.all) != maxFlows || fs.all[peer(0)] == nil || fs.all[peer(1)] != nil || fs.all[peer(maxFlows)] == nil {
		t.Errorf("%d flows; 0 %v, 1 %v, the last %v", len(fs.all), fs.all[peer(0)], fs.all[peer(1)], fs.all[peer(maxFlows)])
	}
	if n := fs.port.open.Load(); n != maxFlows {
		t.Errorf("%d are counted", n)
	}
}

// What waits for a guest that takes nothing has a bound, and is let go with its flows.
func TestUDPWaitingBytes(t *testing.T) {
	fs := testFlows(t, time.Hour, func(ctx context.Context, _ string, _ uint16) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	b := make([]byte, maxDatagram)
	for i := range 2 * waitingBytes / maxDatagram {
		fs.put(peer(i/10), b)
	}
	held := int64(0)
	fs.mu.Lock()
	for _, f := range fs.all {
		held += int64(len(f.in)) * maxDatagram
	}
	for _, f := range fs.all {
		fs.drop(f)
	}
	fs.mu.Unlock()
	if held > waitingBytes || held < waitingBytes/2 {
		t.Errorf("%d bytes wait", held)
	}
	eventually(t, "nothing waits any more", func() bool { return fs.waiting.Load() == 0 })
}

func TestUDPIdle(t *testing.T) {
	var dialled atomic.Int32
	dial := dialTo(map[uint16]string{53: echoUDP(t)})
	fs := testFlows(t, 20*time.Millisecond, func(ctx context.Context, network string, port uint16) (net.Conn, error) {
		dialled.Add(1)
		return dial(ctx, network, port)
	})
	fs.put(peer(1), []byte("quiet"))
	eventually(t, "an idle flow goes", func() bool { return dialled.Load() == 1 && fs.port.open.Load() == 0 })
	fs.put(peer(1), []byte("again"))
	eventually(t, "a new one comes", func() bool { return dialled.Load() == 2 })
}

// A guest that does not take datagrams, or refuses them, holds nothing up.
func TestUDPNobodyListens(t *testing.T) {
	s := newService(t)
	at := open(t, s, "web", api.Forward{Protocol: api.UDP, GuestPort: 53}, dialTo(nil))
	c := connectUDP(t, at)
	for range 100 {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "no flow stays", func() bool { return s.Status("id-web")[0].Connections == 0 })
	if !s.Remove("id-web", s.Status("id-web")[0].Forward) {
		t.Error("it could not be removed")
	}
}

func TestUDPCloseWithFlows(t *testing.T) {
	s := newService(t)
	at := open(t, s, "web", api.Forward{Protocol: api.UDP, GuestPort: 53}, dialTo(map[uint16]string{53: echoUDP(t)}))
	for range 20 {
		ask(t, connectUDP(t, at), []byte("x"))
	}
	s.Close("id-web")
	if pc, err := net.ListenPacket("udp4", at.String()); err != nil {
		t.Errorf("the port is held: %v", err)
	} else {
		pc.Close()
	}
}
