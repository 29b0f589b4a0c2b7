package user

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"git.thaloco.com/thaloco/banger/internal/hostports/hostportstest"
)

// TestConnectionsSurviveANewLink breaks the link of a guest again and again while it sends and receives.
func TestConnectionsSurviveANewLink(t *testing.T) {
	o := &outside{tcp: map[uint16]string{80: serveTCP(t, echoTCP)}, udp: map[uint16]string{7: serveUDP(t)}}
	n := newNetwork(t, o)
	g := newGuest(t, n, 1)
	c, u := g.mustDial(t, "203.0.113.5:80"), g.dialUDP(t, "203.0.113.5:7")
	first, since := g.port, g.port.Stats().Since
	deadline := time.Now().Add(60 * time.Second)
	_ = c.SetDeadline(deadline)
	const size = 4 << 20
	sent := make([]byte, size)
	_, _ = rand.Read(sent)
	go func() {
		_, _ = c.Write(sent)
		_ = c.CloseWrite()
	}()
	got := make([]byte, 0, size)
	buf := make([]byte, 64<<10)
	for next := size / 8; ; {
		k, err := c.Read(buf)
		got = append(got, buf[:k]...)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("after %d bytes: %v", len(got), err)
		}
		if len(got) < next {
			continue
		}
		next += size / 4
		lost := g.port.Lost()
		if len(got) < size/2 { // it ends by itself, or another takes its place
			_ = g.link.Close()
			<-lost
		}
		g.plugIn(t, n)
		<-lost
	}
	if string(got) != string(sent) {
		t.Errorf("%d bytes came back, not the %d sent", len(got), size)
	}
	if _, err := u.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	_ = u.SetReadDeadline(deadline)
	if k, err := u.Read(buf); err != nil || string(buf[:k]) != "x" {
		t.Errorf("by UDP came %q, %v", buf[:k], err)
	}
	if s := g.port.Stats(); g.port != first || !s.Since.Equal(since) || s.Flows != 2 {
		t.Errorf("the port is another one, or counts anew: %+v", s)
	}
}

// TestFramesWaitForALink: neighbours send to a guest whose link has ended; what there is room for is there when it is back.
func TestFramesWaitForALink(t *testing.T) {
	n := newNetwork(t, &outside{})
	a, _ := attach(t, n, 1)
	b, port := attach(t, n, 2)
	lost := port.Lost()
	_ = b.Close()
	<-lost
	f := ipFrame(mac(2), mac(1), testVM(1).Addr, testVM(2).Addr, 17, udpTo(1, 2, make([]byte, 60000)))
	for range 200 {
		a.inject(t, f)
	}
	eventually(t, "the queue is full", func() bool { return port.Stats().Overrun > 0 })
	again, same := attach(t, n, 2)
	if same != port {
		t.Error("it has another port")
	}
	if got := expect(t, again); len(got) != len(f) {
		t.Errorf("a frame of %d bytes waited, want %d", len(got), len(f))
	}
}

// TestEndsResetAtOnce: what ends a VM resets its connections without waiting for another link, and so does the end of the wait.
func TestEndsResetAtOnce(t *testing.T) {
	for what, end := range map[string]func(t *testing.T, n *Network, g *guest){
		"detached":   func(_ *testing.T, n *Network, g *guest) { n.Detach(g.vm.ID) },
		"lost, then": func(_ *testing.T, n *Network, g *guest) { _ = g.link.Close(); <-g.port.Lost(); n.Detach(g.vm.ID) },
		"address given to another": func(t *testing.T, n *Network, g *guest) {
			_ = g.link.Close()
			vm := g.vm
			vm.ID = "id-other"
			if _, err := n.Attach(vm, newMemLink()); err != nil {
				t.Error(err)
			}
		},
		"other host ports": func(t *testing.T, n *Network, g *guest) {
			vm := g.vm
			vm.HostPorts = []uint16{80}
			if _, err := n.Attach(vm, newMemLink()); err != nil {
				t.Error(err)
			}
		},
		"nobody came": func(_ *testing.T, n *Network, g *guest) {
			n.cfg.Grace = time.Millisecond
			_ = g.link.Close()
		},
		"network closed": func(_ *testing.T, n *Network, _ *guest) { n.Close() },
	} {
		t.Run(what, func(t *testing.T) {
			ended := make(chan error, 1)
			o := &outside{tcp: map[uint16]string{80: serveTCP(t, func(c *net.TCPConn) {
				_, err := io.ReadAll(c)
				ended <- err
			})}}
			n := newNetwork(t, o)
			g := newGuest(t, n, 1)
			c := g.mustDial(t, "203.0.113.5:80")
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is connected", func() bool { return g.port.Stats().OpenTCP == 1 })
			port := g.port
			end(t, n, g)
			<-port.Done()
			select {
			case err := <-ended:
				if err == nil {
					t.Error("outside takes it for an orderly end")
				}
			case <-time.After(20 * time.Second):
				t.Error("the connection outside goes on")
			}
			if s := port.Stats(); s.OpenTCP != 0 {
				t.Errorf("%d connections are open", s.OpenTCP)
			}
			eventually(t, "the sockets are back", func() bool {
				n.sockets.mu.Lock()
				defer n.sockets.mu.Unlock()
				return n.sockets.free == n.sockets.size
			})
		})
	}
}

// TestAfterADaemonRestart: a guest whose daemon was killed learns with its next segment that its connections are gone, to whomever
// they were.
func TestAfterADaemonRestart(t *testing.T) {
	o := &outside{tcp: map[uint16]string{80: serveTCP(t, echoTCP)}, policy: realPolicy(t)}
	before := newNetwork(t, o)
	g := newGuest(t, before, 1)
	o.policy = nil // it dials as it is told
	c := g.mustDial(t, "203.0.113.5:80")
	buf := make([]byte, 1)
	for range 2 {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			t.Fatal(err)
		}
	}
	lost := g.port.Lost()
	_ = g.link.Close() // what goes with the process reaches no guest
	<-lost
	before.Close()
	after := newNetwork(t, o)
	g.plugIn(t, after)
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(buf); err == nil || errors.Is(err, io.EOF) || isTimeout(err) {
		t.Errorf("the guest reads %v, want a reset", err)
	}
	// Any segment but one that begins a connection, to any port that may be connected to.
	link, _ := attach(t, after, 2)
	for _, to := range []string{"203.0.113.5:80", "172.16.0.1:53", "172.16.0.1:5432"} {
		for _, flags := range []header.TCPFlags{header.TCPFlagAck, header.TCPFlagAck | header.TCPFlagPsh, header.TCPFlagAck | header.TCPFlagFin, header.TCPFlagSyn | header.TCPFlagAck} {
			dst := netip.MustParseAddrPort(to)
			b := header.TCP(make([]byte, 20))
			b.Encode(&header.TCPFields{SrcPort: 999, DstPort: dst.Port(), SeqNum: 7, AckNum: 9, DataOffset: 20, Flags: flags, WindowSize: 65535})
			link.inject(t, ipFrame(gatewayMAC, mac(2), testVM(2).Addr, dst.Addr(), 6, b))
			got := header.TCP(expect(t, link)[34:])
			if got.Flags()&header.TCPFlagRst == 0 || got.SequenceNumber() != 9 {
				t.Errorf("%s to %s is answered by %s with sequence number %d", flags, to, got.Flags(), got.SequenceNumber())
			}
		}
	}
}

// TestGuestThatOnlyReceives: whatever takes its port, a guest that sends nothing is told that its connections are gone.
func TestGuestThatOnlyReceives(t *testing.T) {
	for what, end := range map[string]func(*Network){
		"detached":       func(n *Network) { n.Detach("id-1") },
		"network closed": (*Network).Close,
	} {
		t.Run(what, func(t *testing.T) {
			n := newNetwork(t, &outside{tcp: map[uint16]string{80: serveTCP(t, greet)}})
			g, _ := linuxGuest(t, n, 1)
			var conns []net.Conn
			for range 20 {
				c := mustDialIn(t, g, "tcp", netip.MustParseAddrPort("203.0.113.5:80"))
				if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
					t.Fatal(err)
				}
				conns = append(conns, c)
			}
			end(n)
			for _, c := range conns {
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the guest reads %v, want a reset", err)
				}
			}
		})
	}
}

// greet says hello, and nothing more until the other side ends.
func greet(c *net.TCPConn) {
	_, _ = io.WriteString(c, "hello")
	_, _ = io.Copy(io.Discard, c)
	_ = c.Close()
}

// TestFarewellIsBounded: a guest that does not take its frames holds nobody up.
func TestFarewellIsBounded(t *testing.T) {
	n := newNetwork(t, &outside{})
	a, _ := attach(t, n, 1)
	deaf, err := n.Attach(testVM(2), &memLink{toGuest: make(chan []byte), fromGuest: make(chan []byte), done: make(chan struct{})})
	if err != nil {
		t.Fatal(err)
	}
	a.inject(t, ipFrame(mac(2), mac(1), testVM(1).Addr, testVM(2).Addr, 17, udpTo(1, 2, make([]byte, 60000))))
	eventually(t, "a frame waits", func() bool {
		deaf.out.mu.Lock()
		defer deaf.out.mu.Unlock()
		return deaf.out.bytes > 0
	})
	start := time.Now()
	n.Close()
	if took := time.Since(start); took < farewell || took > 10*time.Second {
		t.Errorf("closed after %s", took)
	}
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// TestHostPorts: a guest reaches the ports of the host's loopback it was given at the gateway, and no others; its neighbour none.
func TestHostPorts(t *testing.T) {
	tcp, udp := netip.MustParseAddrPort(serveTCP(t, echoTCP)).Port(), netip.MustParseAddrPort(serveUDP(t)).Port()
	silent := netip.MustParseAddrPort(serveTCP(t, echoTCP)).Port() // open, and given to nobody
	closed := closedPort(t)
	asked := &outside{}
	o := &outside{policy: realPolicy(t)}
	n := newNetwork(t, o, func(c *Config) {
		c.Allow = func(f Flow) error {
			asked.note(f.Proto, f.Dst)
			if f.Dst.Port() == 1 {
				return io.ErrUnexpectedEOF
			}
			return nil
		}
	})
	g := newGuest(t, n, 1, func(v *VM) { v.HostPorts = []uint16{tcp, udp, closed, 53, 1} })
	other := newGuest(t, n, 2)
	at := func(port uint16) string { return netip.AddrPortFrom(testGateway, port).String() }
	c := g.mustDial(t, at(tcp))
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	_ = c.CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
	u := g.dialUDP(t, at(udp))
	_ = u.SetDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, 100)
	if _, err := u.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if k, err := u.Read(buf); err != nil || string(buf[:k]) != "hello" {
		t.Errorf("got %q, %v", buf[:k], err)
	}
	refused := func(g *guest, port uint16) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, err := g.dial(ctx, at(port)); err == nil || ctx.Err() != nil {
			t.Errorf("port %d: %v, want a refusal", port, err)
		}
		u := g.dialUDP(t, at(port))
		eventually(t, "a datagram is refused", func() bool { // the write after it says so
			_, err := u.Write([]byte("x"))
			return err != nil
		})
	}
	refused(g, closed)
	refused(g, 53) // DNS, which nobody answers here
	refused(g, silent)
	refused(other, tcp)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := g.dial(ctx, at(1)); err == nil || ctx.Err() != nil { // by the rule
		t.Errorf("port 1: %v, want a refusal", err)
	}
	for _, a := range o.all() {
		to := a[strings.LastIndexByte(a, ' ')+1:]
		if p := netip.MustParseAddrPort(to).Port(); p != tcp && p != udp && p != closed {
			t.Errorf("dialled: %s", a)
		}
	}
	if !slices.Contains(asked.all(), "tcp "+at(tcp)) || !slices.Contains(asked.all(), "udp "+at(udp)) {
		t.Errorf("the rules were asked about %v", asked.all())
	}
	if s := g.port.Stats(); s.Flows < 2 || s.Refused != 1 {
		t.Errorf("stats = %+v, want the flows counted", s)
	}
	if s := other.port.Stats(); s.Flows != 0 {
		t.Errorf("stats of the other = %+v", s)
	}
}

// closedPort is one that nobody listens on.
func closedPort(t *testing.T) uint16 {
	t.Helper()
	port, err := hostportstest.Free()
	if err != nil {
		t.Fatal(err)
	}
	return port
}
