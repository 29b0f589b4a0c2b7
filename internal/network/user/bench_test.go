package user

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/network/dns"
	"git.thaloco.com/thaloco/banger/internal/network/nettest"
)

// benchNetwork is a network whose connections to port 80 lead to handle.
func benchNetwork(b testing.TB, handle func(*net.TCPConn)) (*Network, *outside) {
	b.Helper()
	o := &outside{tcp: map[uint16]string{80: serveTCP(b, handle)}}
	return newNetwork(b, o), o
}

const bulkBlock = 1 << 20

// BenchmarkFromGuest sends from the kernel of a guest to a socket of the host.
func BenchmarkFromGuest(b *testing.B) {
	n, _ := benchNetwork(b, func(c *net.TCPConn) {
		// the kernel may throw the bytes away: what is measured is the way there
		_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, bulkBlock))
		_ = c.Close()
	})
	g, port := linuxGuest(b, n, 1)
	c := mustDialIn(b, g, "tcp", netip.MustParseAddrPort("203.0.113.5:80"))
	_ = c.SetDeadline(time.Time{})
	block := make([]byte, bulkBlock)
	b.SetBytes(bulkBlock)
	start := cpu(b)
	for b.Loop() {
		if _, err := c.Write(block); err != nil {
			b.Fatal(err)
		}
	}
	_ = c.(*net.TCPConn).CloseWrite()
	_, _ = io.Copy(io.Discard, c) // until the other side has read all
	report(b, start, port)
}

// BenchmarkToGuest sends from a socket of the host to the kernel of a guest.
func BenchmarkToGuest(b *testing.B) {
	n, _ := benchNetwork(b, func(c *net.TCPConn) {
		block := make([]byte, bulkBlock)
		for {
			if _, err := c.Write(block); err != nil {
				return
			}
		}
	})
	g, port := linuxGuest(b, n, 1)
	c := mustDialIn(b, g, "tcp", netip.MustParseAddrPort("203.0.113.5:80"))
	_ = c.SetDeadline(time.Time{})
	block := make([]byte, bulkBlock)
	b.SetBytes(bulkBlock)
	start := cpu(b)
	for b.Loop() {
		if _, err := io.ReadFull(c, block); err != nil {
			b.Fatal(err)
		}
	}
	report(b, start, port)
}

// BenchmarkNeighbours sends from the kernel of a guest to that of another and, in turns, to a socket of the host: what matters is how
// the two compare.
func BenchmarkNeighbours(b *testing.B) {
	n, _ := benchNetwork(b, acknowledge)
	g, _ := linuxGuest(b, n, 1)
	other, _ := linuxGuest(b, n, 2)
	at := netip.AddrPortFrom(testVM(2).Addr, 80)
	other.Do(b, func() error {
		l, err := net.Listen("tcp", at.String())
		if err != nil {
			return err
		}
		b.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go acknowledge(c.(*net.TCPConn))
			}
		}()
		return nil
	})
	ways := [2]net.Conn{mustDialIn(b, g, "tcp", at), mustDialIn(b, g, "tcp", netip.MustParseAddrPort("203.0.113.5:80"))}
	var took [2]time.Duration
	block := make([]byte, bulkTurn)
	send := func(c net.Conn) {
		if _, err := c.Write(block); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, block[:1]); err != nil {
			b.Fatal(err)
		}
	}
	for _, c := range ways {
		_ = c.SetDeadline(time.Time{})
		send(c) // windows open
	}
	for b.Loop() {
		for i, c := range ways {
			start := time.Now()
			send(c)
			took[i] += time.Since(start)
		}
	}
	rate := func(i int) float64 { return float64(b.N) * bulkTurn / 1e6 / took[i].Seconds() }
	b.ReportMetric(rate(0), "guest-guest-MB/s")
	b.ReportMetric(rate(1), "guest-host-MB/s")
	b.ReportMetric(rate(0)/rate(1), "ratio")
}

// bulkTurn is how much goes one way before it is the other's turn, in bytes.
const bulkTurn = 32 << 20

// acknowledge answers every bulkTurn bytes with one.
func acknowledge(c *net.TCPConn) {
	defer c.Close()
	for buf := make([]byte, bulkBlock); ; {
		for left := bulkTurn; left > 0; {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			left -= n
		}
		if _, err := c.Write(buf[:1]); err != nil {
			return
		}
	}
}

// BenchmarkDNS has a guest ask for VMs, 32 questions at a time.
func BenchmarkDNS(b *testing.B) {
	addr := testVM(7).Addr
	server := dns.New(dns.Config{Gateway: testGateway, CIDR: testCIDR, Log: slog.New(slog.DiscardHandler),
		Lookup:  func(name string) (netip.Addr, bool) { return addr, name == "vm7" },
		Reverse: func(a netip.Addr) (string, bool) { return "vm7", a == addr }})
	n := newNetwork(b, &outside{}, func(c *Config) { c.DNS = server })
	link, port := attach(b, n, 1)
	q := []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03vm7\x02vm\x00\x00\x01\x00\x01")
	frame := ipFrame(gatewayMAC, mac(1), testVM(1).Addr, testGateway, 17, udpTo(4000, dnsPort, q))
	for range 32 {
		link.inject(b, frame)
	}
	for b.Loop() {
		if f := expect(b, link); len(f) < 14+20+8+len(q)+4 || [4]byte(f[len(f)-4:]) != addr.As4() {
			b.Fatalf("the answer is %x", f)
		}
		link.inject(b, frame)
	}
	if s := port.Stats(); s.Refused > 0 {
		b.Errorf("%d questions were not answered", s.Refused)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "answers/s")
}

// report adds the frames that were lost, and what a GB cost the machine: unlike its speed, that depends little on who else
// is using it. Both ends of the connection and the guest's kernel are included.
func report(b *testing.B, start time.Duration, port *Port) {
	b.Helper()
	b.ReportMetric(float64(port.Stats().Overrun), "overruns")
	b.ReportMetric((cpu(b)-start).Seconds()/(float64(b.N)*bulkBlock/1e9), "cpu-s/GB")
}

// cpu is the CPU time this process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkConnect opens, uses and closes a connection.
func BenchmarkConnect(b *testing.B) {
	n, _ := benchNetwork(b, echoTCP)
	g, _ := linuxGuest(b, n, 1)
	buf := []byte{1}
	_ = g.Try(func() error {
		for b.Loop() {
			c, err := net.Dial("tcp", "203.0.113.5:80")
			if err != nil {
				b.Fatal(err)
			}
			if _, err := c.Write(buf); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
			_ = c.Close()
		}
		return nil
	})
}

// TestIdleConnectionMemory holds many connections that were used once.
func TestIdleConnectionMemory(t *testing.T) {
	const count, limit = 300, 48 << 10
	o := &outside{tcp: map[uint16]string{80: serveTCP(t, func(c *net.TCPConn) {
		var b [1]byte
		_, _ = c.Read(b[:])
		_, _ = c.Write(b[:])
	})}}
	n := newNetwork(t, o, func(c *Config) { c.Sockets = 16384 })
	g := nettest.NewGuest(t, netip.PrefixFrom(testVM(1).Addr, 24), testVM(1).MAC, testGateway, 65520)
	port, err := n.Attach(testVM(1), g.Link)
	if err != nil {
		t.Fatal(err)
	}
	// the guest's and the server's ends live in this process too: what they cost is measured first
	base := heap()
	conns := make([]net.Conn, count)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i := range conns {
		c := mustDialIn(t, g, "tcp", netip.MustParseAddrPort("203.0.113.5:80"))
		if _, err := c.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		conns[i] = c
	}
	if ctx.Err() != nil {
		t.Fatal("too slow")
	}
	if open := port.Stats().OpenTCP; open != count {
		t.Fatalf("%d connections are open, want %d", open, count)
	}
	per := (heap() - base) / count
	t.Logf("%d bytes per idle connection, both of its ends included", per)
	if per > limit {
		t.Errorf("an idle connection holds %d bytes, more than %d", per, limit)
	}
	runtime.KeepAlive(conns)
}

// heap is what the process holds, goroutine stacks included, in bytes.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
