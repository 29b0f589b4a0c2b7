package vhostvsock

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestConnectLines has clients that say what they want in every way.
func TestConnectLines(t *testing.T) {
	q := boot(t)
	for _, c := range []struct {
		line string
		port uint32 // 0 for none
	}{
		{"CONNECT 1234\n", 1234},
		{"connect 1234\n", 1234},
		{"CoNnEcT 4294967295\n", 4294967295},
		{"CONNECT 4294967296\n", 0},
		{"CONNECT +77\n", 77},
		{"CONNECT ++7\n", 0},
		{"CONNECT -77\n", 0},
		{"CONNECT 0x77\n", 0},
		{"  CONNECT\t77 and more\n", 77},
		{"CONNECT  1234567890\n", 1234567890},
		{"CONNECT 5\n", 5},
		{"CONNECT 5", 0}, // too short
		{"CONNECT 55", 0},
		{"CONNECT  \n", 0},
		{"DISCONNECT 5\n", 0},
		{"\n\n\n\n\n\n\n\n\n\n\n", 0},
		{"CONNECT \xff\xfe5\n", 0},
		{"CONNECT 5" + strings.Repeat(" ", 30), 5}, // 32 bytes are enough
		{"CONNECT" + strings.Repeat(" ", 30) + "5\n", 0},
		{"GET / HTTP/1.1\r\n\r\n", 0},
	} {
		conn := q.connect(c.line)
		if c.port == 0 {
			expectEnd(t, conn)
			q.silent()
			continue
		}
		p, _ := q.expect(opRequest)
		if p.dstPort != c.port {
			t.Errorf("%q asks for port %d", c.line, p.dstPort)
		}
		s := &stream{q: q, guest: p.dstPort, host: p.srcPort}
		s.tell(opReset, 0, nil)
		expectEnd(t, conn)
	}
}

// TestSplitLine has a client that writes its line in two pieces.
func TestSplitLine(t *testing.T) {
	q := boot(t)
	conn := q.connect("CONNECT 12")
	expectEnd(t, conn)
	q.silent()
}

// TestResets has packets that belong to no connection.
func TestResets(t *testing.T) {
	q := boot(t)
	base := packet{srcCID: guestCID, dstCID: hostCID, srcPort: 5, dstPort: 6, kind: typeStream, op: opData}
	for _, o := range []op{opResponse, opShutdown, opData, opCreditUpdate, opCreditRequest, 0, 99} {
		p := base
		p.op = o
		q.put(p, nil)
		if p, _ := q.expect(opReset); p.srcPort != 6 || p.dstPort != 5 || p.alloc != 0 || p.forwarded != 0 {
			t.Errorf("the answer to op %d: %+v", o, p)
		}
	}
	reset := base
	reset.op = opReset
	q.put(reset, nil)
	q.silent()
	kind := base
	kind.kind, kind.op = 2, opRequest
	q.put(kind, nil)
	q.expect(opReset)
	for _, cids := range [][2]uint64{{guestCID, 3}, {guestCID, 1}, {guestCID + 1, hostCID}} {
		p := base
		p.srcCID, p.dstCID, p.op = cids[0], cids[1], opRequest
		q.put(p, nil)
		q.silent()
	}
}

// TestDeafGuest: one that does not fetch its answers is not listened to for ever.
func TestDeafGuest(t *testing.T) {
	q := serve(t)
	q.negotiate()
	q.start([rings]uint16{})
	p := packet{srcCID: guestCID, dstCID: hostCID, srcPort: 5, dstPort: 6, kind: typeStream, op: opData}
	for range maxResets {
		q.put(p, nil)
	}
	q.offer(p, nil)
	if _, _, ok := q.taken(txRing, time.Now().Add(100*time.Millisecond)); ok {
		t.Error("the guest was listened to")
	}
	q.fillRX()
	q.kick(rxRing)
	for range maxResets + 1 {
		q.expect(opReset)
	}
	if _, _, ok := q.taken(txRing, q.deadline); !ok {
		t.Error("the guest was not listened to any more")
	}
}

// TestLimit opens as many connections as there may be, and some more.
func TestLimit(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Max < 3*maxConns {
		t.Skipf("%d descriptors are too few", limit.Max)
	}
	q := boot(t)
	var first *net.UnixConn
	var s *stream
	for i := range maxConns {
		conn, o := q.client(9)
		if i == 0 {
			first, s = conn, o
		}
	}
	expectEnd(t, q.connect("CONNECT 9\n"))
	listenUnix(t, filepath.Join(q.dir, "v_77"))
	more := &stream{q: q, guest: 1, host: 77}
	more.tell(opRequest, 0, nil)
	q.expect(opReset)
	s.tell(opReset, 0, nil)
	expectEnd(t, first)
	if _, s := q.client(9); s.host != 1<<30+maxConns {
		t.Errorf("the host's port is %d", s.host)
	}
}

// TestPause stops the device and lets it go on.
func TestPause(t *testing.T) {
	q := boot(t)
	conn, s := q.client(9)
	base := q.stop()
	if base != [rings]uint16{1, 1} {
		t.Errorf("the rings stand at %v", base)
	}
	if _, err := conn.Write([]byte("later")); err != nil {
		t.Fatal(err)
	}
	waiting := q.connect("CONNECT 10\n")
	if p, _, ok := q.getUntil(time.Now().Add(50 * time.Millisecond)); ok {
		t.Errorf("%+v while the VM is paused", p)
	}
	q.offer(s.packet(opData, 0, []byte("back")), []byte("back"))
	q.start(base)
	ops := map[op]packet{}
	for range 2 {
		p, data := q.get()
		if ops[p.op] = p; p.op == opData && string(data) != "later" {
			t.Errorf("%q", data)
		}
	}
	if ops[opData].dstPort != 9 || ops[opRequest].dstPort != 10 {
		t.Errorf("%+v", ops)
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "back" {
		t.Errorf("%q, %v", b, err)
	}
	waiting.Close()

	// Another driver knows nothing of them.
	q.stop()
	for i := range q.queues {
		clear(q.mem[i*ringSpace:][:ringSpace])
		q.queues[i].avail, q.queues[i].used = 0, 0
	}
	q.fillRX()
	q.start([rings]uint16{})
	expectEnd(t, conn)
	q.silent()
}

// TestNoDriver: before the guest has a driver a client waits.
func TestNoDriver(t *testing.T) {
	q := serve(t)
	q.negotiate()
	conn := q.connect("CONNECT 9\n")
	_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the client was answered: %v", err)
	}
	q.fillRX()
	q.start([rings]uint16{})
	if p, _ := q.expect(opRequest); p.dstPort != 9 {
		t.Errorf("%+v", p)
	}
}

// TestQuietGuest: a guest that wants no interrupts gets none.
func TestQuietGuest(t *testing.T) {
	q := boot(t)
	q.silent()
	_ = q.queues[txRing].call.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, _ = q.queues[txRing].call.Read(make([]byte, 8))
	avail := q.mem[q.queues[txRing].base+0x1000:]
	atomic.StoreUint32(word(avail, 0), atomic.LoadUint32(word(avail, 0))|availNoInterrupt)
	q.offer(packet{srcCID: guestCID, dstCID: hostCID, srcPort: 1, dstPort: 1, kind: typeStream, op: opData}, nil)
	q.expect(opReset)
	_ = q.queues[txRing].call.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := q.queues[txRing].call.Read(make([]byte, 8)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("an interrupt nobody wants: %v", err)
	}
}

// bare is a muxer without a device, and one connection of it with its other end.
func bare(t *testing.T, c *conn) (m *muxer, host *os.File) {
	t.Helper()
	d, err := Bind(Config{CID: guestCID, UDSPath: filepath.Join(t.TempDir(), "v")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	host = os.NewFile(uintptr(pair[1]), "host")
	t.Cleanup(func() { host.Close() })
	c.fd = pair[0]
	if err := d.mux.add(c); err != nil {
		t.Fatal(err)
	}
	return d.mux, host
}

// next is the op of the next packet for the guest; 0 where there is none.
func (m *muxer) next() op {
	room := [][]byte{make([]byte, 100)}
	if m.toGuest(room) == 0 {
		return 0
	}
	var p packet
	p.decode((*[packetLen]byte)(room[0]))
	return p.op
}

// TestRequestTimeout: a guest that does not answer is given up with the next connection, not before.
func TestRequestTimeout(t *testing.T) {
	m, _ := bare(t, &conn{key: key{1, 2}, state: hostAsks, todo: doRequest})
	if o := m.next(); o != opRequest {
		t.Fatalf("op %d", o)
	}
	m.sweep(time.Now().Add(requestTimeout - time.Second))
	if o := m.next(); o != 0 {
		t.Errorf("op %d before its time", o)
	}
	m.sweep(time.Now().Add(requestTimeout + time.Second))
	if o := m.next(); o != opReset || len(m.conns) > 0 {
		t.Errorf("op %d in time, %d connections", o, len(m.conns))
	}
}

// TestSlowHost: what the guest sent before it closed waits for the host, but not beyond the time of a close: a connection that
// is made then costs the host the rest.
func TestSlowHost(t *testing.T) {
	for name, late := range map[string]bool{"in time": false, "late": true} {
		t.Run(name, func(t *testing.T) {
			c := &conn{key: key{1, 2}, state: established, peerAlloc: 1 << 16}
			m, host := bare(t, c)
			p := packet{srcCID: guestCID, dstCID: hostCID, srcPort: 2, dstPort: 1, kind: typeStream, op: opData, size: maxData}
			sent := 0
			for len(c.buf) == 0 {
				m.fromGuest(&p, [][]byte{make([]byte, maxData)})
				sent += maxData
			}
			for m.next() != 0 { // credit
			}
			p.op, p.size, p.flags = opShutdown, 0, shutRecv|shutSend
			m.fromGuest(&p, nil)
			if late {
				m.sweep(time.Now().Add(closeTimeout + time.Second))
			} else if o := m.next(); o != 0 {
				t.Fatalf("op %d", o)
			}
			done := make(chan int)
			go func() {
				n, _ := io.Copy(io.Discard, host)
				done <- int(n)
			}()
			for o := m.next(); o != opReset; o = m.next() {
				if err := errors.Join(m.settle(), m.poll.wait(1000)); err != nil || o != 0 {
					t.Fatalf("op %d, %v", o, err)
				}
			}
			if got := <-done; (got == sent) == late {
				t.Errorf("the host has %d bytes of %d", got, sent)
			}
		})
	}
}

func TestCreditWraps(t *testing.T) {
	for _, c := range []struct {
		sent, alloc, forwarded uint32
		want                   int
	}{
		{0, 0, 0, 0}, {0, 100, 0, 100}, {40, 100, 0, 60}, {100, 100, 0, 0}, {101, 100, 0, 0},
		{5, 100, 0xfffffffb, 90}, {0xffffffff, 1 << 18, 0xfffffff0, 1<<18 - 15},
		{10, 100, 20, 0}, // it has forwarded what it was not sent
	} {
		k := conn{sent: c.sent, peerAlloc: c.alloc, peerForwarded: c.forwarded}
		if got := k.credit(); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
	k := conn{forwarded: 30000, told: 0xffff8000}
	if k.maybeCredit(); k.todo != doCredit {
		t.Errorf("todo %d", k.todo)
	}
}
