package vhostvsock

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestNegotiation(t *testing.T) {
	q := serve(t)
	if got := binary.NativeEndian.Uint64(q.ask(reqGetFeatures, nil)); got != 1<<32|1<<30 {
		t.Errorf("features %#x", got)
	}
	if got := binary.NativeEndian.Uint64(q.ask(reqGetProtocolFeatures, nil)); got != 1<<9 {
		t.Errorf("protocol features %#x", got)
	}
	config := append(binary.NativeEndian.AppendUint32(nil, 0), 8, 0, 0, 0, 0, 0, 0, 0)
	config = append(config, make([]byte, 8)...)
	got := q.ask(reqGetConfig, config)
	if want := append(config[:12:12], guestCID, 0, 0, 0, 0, 0, 0, 0); !bytes.Equal(got, want) {
		t.Errorf("the configuration is %x in place of %x", got, want)
	}
	q.sayFlags(reqSetOwner, flagVersion|flagNeedsAck, nil)
	if got := q.answer(reqSetOwner); !bytes.Equal(got, make([]byte, 8)) {
		t.Errorf("the acknowledgement %x", got)
	}
	q.conn.Close()
	if err := q.ends(); err != nil {
		t.Errorf("after qemu hung up: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(q.dir, "v")); err != nil {
		t.Errorf("the host's socket: %v", err)
	}
}

func TestBindRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "v"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ln := listenUnix(t, filepath.Join(dir, "vhost"))
	if err := Serve(t.Context(), ln, Config{CID: 3, UDSPath: filepath.Join(dir, "v")}); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("the path is in use: %v", err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is open: %v", err)
	}
	for _, cid := range []uint64{0, 2, 0xffffffff, 1 << 40} {
		if d, err := Bind(Config{CID: cid, UDSPath: filepath.Join(dir, "w")}); err == nil {
			d.Close()
			t.Errorf("cid %d is fine", cid)
		}
	}
}

func TestStop(t *testing.T) {
	q := boot(t)
	conn, _ := q.client(1234)
	cause := errors.New("enough")
	q.cancel(cause)
	if err := q.ends(); !errors.Is(err, cause) {
		t.Errorf("ended with %v", err)
	}
	expectEnd(t, conn)
	if _, err := os.Lstat(filepath.Join(q.dir, "v")); err != nil {
		t.Errorf("the host's socket: %v", err)
	}
}

// TestStopBeforeQEMU ends a device that no QEMU has come to.
func TestStopBeforeQEMU(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := Serve(ctx, listenUnix(t, filepath.Join(dir, "vhost")), Config{CID: 3, UDSPath: filepath.Join(dir, "v")})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}

// expectEnd reads the end of a stream.
func expectEnd(t *testing.T, conn net.Conn) {
	t.Helper()
	if b, err := io.ReadAll(conn); err != nil && !errors.Is(err, unix.ECONNRESET) || len(b) > 0 {
		t.Errorf("%q, %v in place of the end", b, err)
	}
}

func TestHostConnects(t *testing.T) {
	q := boot(t)
	a, sa := q.client(1001)
	_, sb := q.client(1001)
	if sa.host != 1<<30 || sb.host != 1<<30+1 {
		t.Errorf("the host's ports are %d and %d", sa.host, sb.host)
	}
	if _, err := io.WriteString(a, "to the guest"); err != nil {
		t.Fatal(err)
	}
	if p, data := q.expect(opData); string(data) != "to the guest" || p.srcPort != sa.host || p.dstPort != 1001 || p.alloc != bufferSize {
		t.Errorf("%+v with %q", p, data)
	}
	sa.tell(opData, 0, []byte("to the host"))
	b := make([]byte, 11)
	if _, err := io.ReadFull(a, b); err != nil || string(b) != "to the host" {
		t.Errorf("%q, %v", b, err)
	}
	q.silent()
}

// TestEarlyData is of a client that does not wait for its answer.
func TestEarlyData(t *testing.T) {
	q := boot(t)
	conn := q.connect("CONNECT 9\nearly")
	p, _ := q.expect(opRequest)
	q.silent()
	s := &stream{q: q, guest: 9, host: p.srcPort, alloc: 100}
	s.tell(opResponse, 0, nil)
	if _, data := q.expect(opData); string(data) != "early" {
		t.Errorf("%q", data)
	}
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "OK 1073741824\n" {
		t.Errorf("%q, %v", line, err)
	}
	conn.Close()
	q.expect(opShutdown)
}

func TestGuestRefuses(t *testing.T) {
	q := boot(t)
	conn := q.connect("CONNECT 9\n")
	p, _ := q.expect(opRequest)
	s := &stream{q: q, guest: 9, host: p.srcPort}
	s.tell(opReset, 0, nil)
	expectEnd(t, conn)
	q.silent()
}

func TestGuestConnects(t *testing.T) {
	q := boot(t)
	conn, s := q.caller(1024)
	s.tell(opData, 0, []byte("hello"))
	b := make([]byte, 5)
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := conn.Write([]byte("welcome")); err != nil {
		t.Fatal(err)
	}
	if _, data := q.expect(opData); string(data) != "welcome" {
		t.Errorf("%q", data)
	}
	// Nobody listens there.
	refused := &stream{q: q, guest: 5, host: 1025}
	refused.tell(opRequest, 0, nil)
	if p, _ := q.expect(opReset); p.srcPort != 1025 || p.dstPort != 5 || p.alloc != 0 {
		t.Errorf("%+v", p)
	}
	q.silent()
}

// TestFullBacklog holds everything up while the host does not accept, as Firecracker does, but not the end.
func TestFullBacklog(t *testing.T) {
	q := boot(t)
	path := filepath.Join(q.dir, "v_1024")
	fd, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	first := &stream{q: q, guest: 1, host: 1024}
	first.tell(opRequest, 0, nil)
	q.expect(opResponse)
	second := &stream{q: q, guest: 2, host: 1024}
	q.offer(second.packet(opRequest, 0, nil), nil)
	if _, _, ok := q.taken(txRing, time.Now().Add(300*time.Millisecond)); ok {
		t.Fatal("the guest's request was taken")
	}
	a, _, err := unix.Accept(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(a)
	if p, _ := q.expect(opResponse); p.dstPort != 2 {
		t.Errorf("%+v", p)
	}
	third := &stream{q: q, guest: 3, host: 1024}
	q.offer(third.packet(opRequest, 0, nil), nil)
	q.conn.Close()
	if err := q.ends(); err != nil {
		t.Error(err)
	}
}

// TestNoHalfClose: neither side can end one direction alone.
func TestNoHalfClose(t *testing.T) {
	t.Run("host", func(t *testing.T) {
		q := boot(t)
		conn, s := q.client(9)
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if p, _ := q.expect(opShutdown); p.flags != shutRecv|shutSend {
			t.Errorf("flags %d", p.flags)
		}
		s.tell(opData, 0, []byte("lost"))
		s.tell(opReset, 0, nil)
		expectEnd(t, conn)
		q.silent()
	})
	t.Run("guest", func(t *testing.T) {
		q := boot(t)
		conn, s := q.client(9)
		s.tell(opShutdown, shutSend, nil)
		q.silent()
		_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the host reads %d bytes, %v", n, err)
		}
		_ = conn.SetReadDeadline(q.deadline)
		if _, err := conn.Write([]byte("still heard")); err != nil {
			t.Fatal(err)
		}
		if _, data := q.expect(opData); string(data) != "still heard" {
			t.Errorf("%q", data)
		}
		s.tell(opShutdown, shutRecv, nil)
		q.expect(opReset)
		expectEnd(t, conn)
	})
	t.Run("both", func(t *testing.T) {
		q := boot(t)
		conn, s := q.client(9)
		s.tell(opData, 0, []byte("the last words"))
		s.tell(opShutdown, shutSend|shutRecv, nil)
		q.expect(opReset)
		if b, err := io.ReadAll(conn); err != nil || string(b) != "the last words" {
			t.Errorf("%q, %v", b, err)
		}
		q.silent()
	})
}

// TestHostGone has data for a host that has closed.
func TestHostGone(t *testing.T) {
	q := boot(t)
	conn, s := q.client(9)
	conn.Close()
	q.expect(opShutdown)
	s.tell(opData, 0, []byte("too late"))
	q.silent()
	// The guest does not end it, and its time is over when the next one comes.
	other := q.connect("CONNECT 10\n")
	q.expect(opRequest)
	q.silent()
	other.Close()
}

// TestUnread: a host that closes with something unread resets.
func TestUnread(t *testing.T) {
	q := boot(t)
	conn, s := q.client(9)
	s.tell(opData, 0, []byte("unread"))
	conn.Close()
	q.expect(opReset)
	q.silent()
}

// TestCreditOfGuest: no more is sent than the guest has room for.
func TestCreditOfGuest(t *testing.T) {
	q := boot(t)
	conn := q.connect("CONNECT 9\n")
	p, _ := q.expect(opRequest)
	s := &stream{q: q, guest: 9, host: p.srcPort, alloc: 1000}
	s.tell(opResponse, 0, nil)
	data := noise(5500)
	if _, err := conn.Write(data); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for len(got) < len(data) {
		p, b := q.get()
		switch p.op {
		case opData:
			got = append(got, b...)
			if flying := uint32(len(got)) - s.forwarded; flying > s.alloc {
				t.Fatalf("%d bytes are under way", flying)
			}
		case opCreditRequest:
			q.silent()
			s.forwarded = uint32(len(got))
			s.tell(opCreditUpdate, 0, nil)
		default:
			t.Fatalf("%+v", p)
		}
	}
	if !bytes.Equal(got, data) {
		t.Error("other data than were sent")
	}
	// A guest that takes room away has none, not all there is.
	s.forwarded, s.alloc = uint32(len(got))-1, 0
	s.tell(opCreditUpdate, 0, nil)
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	q.silent()
}

// TestCreditOfHost: the guest is told of room when the host has taken its data, and reset where it sends more.
func TestCreditOfHost(t *testing.T) {
	q := boot(t)
	conn, s := q.client(9)
	if err := conn.SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	data := noise(4 << 20)
	read := make(chan []byte)
	begin := make(chan struct{})
	go func() {
		<-begin
		b := make([]byte, len(data))
		_, _ = io.ReadFull(conn, b)
		read <- b
	}()
	var sent, forwarded uint32
	for stalled := false; int(sent) < len(data); {
		if room := bufferSize - (sent - forwarded); room > 0 {
			n := min(room, 10000, uint32(len(data))-sent)
			s.tell(opData, 0, data[sent:sent+n])
			sent += n
			if room > n {
				continue
			}
		}
		deadline := q.deadline
		if !stalled {
			deadline = time.Now().Add(200 * time.Millisecond)
		}
		p, _, ok := q.getUntil(deadline)
		if !ok && !stalled { // nobody reads
			stalled = true
			close(begin)
			continue
		}
		if !ok || p.op != opCreditUpdate || sent-p.forwarded > bufferSize {
			t.Fatalf("%+v, %v with %d sent", p, ok, sent)
		}
		forwarded = p.forwarded
	}
	if !bytes.Equal(<-read, data) {
		t.Error("other data than were sent")
	}
	s.tell(opCreditRequest, 0, nil)
	for p, _ := q.expect(opCreditUpdate); p.forwarded != sent; p, _ = q.expect(opCreditUpdate) {
	}
	q.silent()
}

// TestOverrun: a guest that sends more than it may is reset.
func TestOverrun(t *testing.T) {
	q := boot(t)
	conn, s := q.client(9)
	data := noise(32 << 10)
	for range 100 {
		s.tell(opData, 0, data)
	}
	for {
		p, _ := q.get()
		if p.op == opReset {
			break
		}
		if p.op != opCreditUpdate {
			t.Fatalf("%+v", p)
		}
	}
	if n, err := io.Copy(io.Discard, conn); err != nil || n >= 100<<15 {
		t.Errorf("the host has %d bytes, %v", n, err)
	}
}

// noise is n bytes that are always the same.
func noise(n int) []byte {
	r := rand.NewChaCha8([32]byte{1})
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}

// TestFlood has both directions of many streams at once.
func TestFlood(t *testing.T) {
	q := boot(t)
	const streams, size = 20, 300_000
	data := noise(size)
	type end struct {
		*stream
		sent, theirs uint32
		got          []byte
	}
	ends := map[uint32]*end{}
	begin, done := make(chan struct{}), make(chan error, 2*streams)
	for i := range uint32(streams) {
		conn, s := q.client(100 + i)
		s.alloc = 20_000
		ends[s.host] = &end{stream: s}
		go func() {
			<-begin
			_, err := conn.Write(data)
			done <- err
		}()
		go func() {
			b := make([]byte, size)
			_, err := io.ReadFull(conn, b)
			if err == nil && !bytes.Equal(b, data) {
				err = errors.New("the host has other data than were sent")
			}
			done <- err
		}()
	}
	close(begin)
	for left := 2 * streams; left > 0; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			left--
			continue
		default:
		}
		for _, e := range ends {
			if n := min(bufferSize-(e.sent-e.theirs), 7000, size-e.sent); n > 0 {
				e.tell(opData, 0, data[e.sent:e.sent+n])
				e.sent += n
			}
		}
		for {
			p, b, ok := q.getUntil(time.Now().Add(time.Millisecond))
			if !ok {
				break
			}
			e := ends[p.srcPort]
			e.theirs = p.forwarded
			e.got = append(e.got, b...)
			if p.op == opCreditRequest || uint32(len(e.got))-e.forwarded > e.alloc/2 {
				e.forwarded = uint32(len(e.got))
				e.tell(opCreditUpdate, 0, nil)
			}
		}
	}
	for _, e := range ends {
		for len(e.got) < size {
			p, b := q.get()
			o := ends[p.srcPort]
			o.got = append(o.got, b...)
			o.forwarded = uint32(len(o.got))
			o.tell(opCreditUpdate, 0, nil)
		}
		if !bytes.Equal(e.got, data) {
			t.Fatal("the guest has other data than were sent")
		}
	}
}

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

// TestBadGuest has a driver that breaks the rules: the device ends.
func TestBadGuest(t *testing.T) {
	const somewhere = ramBase + txBuffers
	for name, c := range map[string]struct {
		do   func(q *fakeQEMU)
		want string
	}{
		"head": {func(q *fakeQEMU) { q.give(txRing, ringSize) }, "descriptor 64 of 64"},
		"next": {func(q *fakeQEMU) {
			q.desc(txRing, 0, somewhere, 44, descNext, 9999)
			q.give(txRing, 0)
		}, "descriptor 9999 of 64"},
		"loop": {func(q *fakeQEMU) {
			q.desc(txRing, 0, somewhere, 44, descNext, 1)
			q.desc(txRing, 1, somewhere, 44, descNext, 0)
			q.give(txRing, 0)
		}, "does not end"},
		"indirect": {func(q *fakeQEMU) {
			q.desc(txRing, 0, somewhere, 64, descIndirect, 0)
			q.give(txRing, 0)
		}, "indirect"},
		"address": {func(q *fakeQEMU) {
			q.desc(txRing, 0, ramBase-1, 44, 0, 0)
			q.give(txRing, 0)
		}, "not in the guest's memory"},
		"end": {func(q *fakeQEMU) {
			q.desc(txRing, 0, ramBase+ramSize-43, 44, 0, 0)
			q.give(txRing, 0)
		}, "not in the guest's memory"},
		"wrap": {func(q *fakeQEMU) {
			q.desc(txRing, 0, 0xffffffffffffffff, 0xffffffff, 0, 0)
			q.give(txRing, 0)
		}, "not in the guest's memory"},
		"order": {func(q *fakeQEMU) {
			q.desc(txRing, 0, somewhere, 44, descNext|descWrite, 1)
			q.desc(txRing, 1, somewhere, 44, 0, 0)
			q.give(txRing, 0)
		}, "behind one to be written"},
		"written": {func(q *fakeQEMU) {
			q.desc(txRing, 0, somewhere, 44, descNext, 1)
			q.desc(txRing, 1, somewhere, 44, descWrite, 0)
			q.give(txRing, 0)
		}, "to be written to"},
		"jump": {func(q *fakeQEMU) {
			q.queues[txRing].avail += ringSize
			q.give(txRing, 0)
		}, "65 chains wait in 64"},
		"short": {func(q *fakeQEMU) {
			q.desc(txRing, 0, somewhere, 43, 0, 0)
			q.give(txRing, 0)
		}, "a packet of 43 bytes"},
		"long": {func(q *fakeQEMU) {
			p := packet{size: maxData + 1}
			p.encode((*[packetLen]byte)(q.mem[txBuffers:]))
			q.desc(txRing, 0, somewhere, 44, 0, 0)
			q.give(txRing, 0)
		}, "with 65537 bytes of data"},
		"missing": {func(q *fakeQEMU) {
			p := packet{size: 10}
			p.encode((*[packetLen]byte)(q.mem[txBuffers:]))
			q.desc(txRing, 0, somewhere, 53, 0, 0)
			q.give(txRing, 0)
		}, "of which there are 9"},
	} {
		t.Run(name, func(t *testing.T) {
			q := boot(t)
			c.do(q)
			q.kick(txRing)
			if err := q.ends(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("ended with %v in place of %q", err, c.want)
			}
		})
	}
	for name, flags := range map[string]uint16{"small": descWrite, "readable": 0} {
		t.Run(name, func(t *testing.T) {
			q := serve(t)
			q.negotiate()
			q.desc(rxRing, 0, ramBase+rxBuffers, packetLen, flags, 0)
			q.give(rxRing, 0)
			q.start([rings]uint16{})
			q.connect("CONNECT 9\n")
			if err := q.ends(); err == nil || !strings.Contains(err.Error(), "does not hold a packet") {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

// TestBadQEMU has a QEMU that breaks the protocol: the device ends.
func TestBadQEMU(t *testing.T) {
	memory := func(change func(r *regionInfo)) func(q *fakeQEMU) {
		return func(q *fakeQEMU) {
			r := ram
			change(&r)
			q.say(reqSetMemTable, table(r), q.memfd)
		}
	}
	ring := func(change func(addr []byte)) func(q *fakeQEMU) {
		return func(q *fakeQEMU) {
			q.say(reqSetMemTable, table(ram), q.memfd)
			q.say(reqSetVringNum, vring(0, ringSize))
			addr := addrOf(0, 0)
			change(addr)
			q.say(reqSetVringAddr, addr)
			q.say(reqSetVringKick, u64(0), q.queues[0].kick.fd)
			q.say(reqSetVringEnable, vring(0, 1))
		}
	}
	for name, do := range map[string]func(q *fakeQEMU){
		"request":          func(q *fakeQEMU) { q.say(31, nil) },
		"version":          func(q *fakeQEMU) { q.sayFlags(reqSetOwner, 2, nil) },
		"reply":            func(q *fakeQEMU) { q.sayFlags(reqSetOwner, flagVersion|flagReply, nil) },
		"long":             func(q *fakeQEMU) { q.say(reqSetOwner, make([]byte, maxPayload+1)) },
		"features":         func(q *fakeQEMU) { q.say(reqSetFeatures, u64(1<<29)) },
		"features size":    func(q *fakeQEMU) { q.say(reqSetFeatures, nil) },
		"protocol":         func(q *fakeQEMU) { q.say(reqSetProtocolFeatures, u64(1)) },
		"config":           func(q *fakeQEMU) { q.say(reqGetConfig, append(vring(4, 8), make([]byte, 12)...)) },
		"config size":      func(q *fakeQEMU) { q.say(reqGetConfig, append(vring(0, 9), make([]byte, 12)...)) },
		"config head":      func(q *fakeQEMU) { q.say(reqGetConfig, vring(0, 0)) },
		"no descriptor":    func(q *fakeQEMU) { q.say(reqSetVringKick, u64(0)) },
		"two descriptors":  func(q *fakeQEMU) { q.say(reqSetVringKick, u64(0), q.memfd, q.memfd) },
		"nine descriptors": func(q *fakeQEMU) { q.say(reqSetOwner, nil, 0, 0, 0, 0, 0, 0, 0, 0, 0) },
		"polled ring":      func(q *fakeQEMU) { q.say(reqSetVringKick, u64(vringNoFD)) },
		"file for a kick":  func(q *fakeQEMU) { q.say(reqSetVringKick, u64(0), q.memfd) },
		"ring":             func(q *fakeQEMU) { q.say(reqSetVringCall, u64(2), q.memfd) },
		"ring state":       func(q *fakeQEMU) { q.say(reqSetVringNum, vring(3, 64)) },
		"ring stop":        func(q *fakeQEMU) { q.say(reqGetVringBase, vring(-1, 0)) },
		"ring of none":     func(q *fakeQEMU) { q.say(reqSetVringNum, vring(0, 0)) },
		"ring of 63":       func(q *fakeQEMU) { q.say(reqSetVringNum, vring(0, 63)) },
		"ring of 2048":     func(q *fakeQEMU) { q.say(reqSetVringNum, vring(0, 2048)) },
		"base":             func(q *fakeQEMU) { q.say(reqSetVringBase, vring(0, 1<<16)) },
		"enable":           func(q *fakeQEMU) { q.say(reqSetVringEnable, vring(0, 2)) },
		"no regions":       func(q *fakeQEMU) { q.say(reqSetMemTable, nil) },
		"region missing":   func(q *fakeQEMU) { q.say(reqSetMemTable, table(ram)) },
		"regions missing":  func(q *fakeQEMU) { q.say(reqSetMemTable, table(ram)[:8], q.memfd) },
		"region of none":   memory(func(r *regionInfo) { r.size = 0 }),
		"region too large": memory(func(r *regionInfo) { r.size++ }),
		"region of all":    memory(func(r *regionInfo) { r.size = 1 << 63 }),
		"region wraps":     memory(func(r *regionInfo) { r.guest = -r.size + 1 }),
		"region offset":    memory(func(r *regionInfo) { r.offset = 1 << 63 }),
		"ring elsewhere":   ring(func(a []byte) { a[14] = 1 }),
		"ring unaligned":   ring(func(a []byte) { a[8] = 1 }),
		"used unaligned":   ring(func(a []byte) { a[16] = 2 }),
		"avail unaligned":  ring(func(a []byte) { a[24] = 1 }),
		"ring is logged":   ring(func(a []byte) { a[4] = 1 }),
		"ring on the edge": ring(func(a []byte) { binary.NativeEndian.PutUint64(a[8:], userBase+ramSize-16) }),
		"ring too small":   func(q *fakeQEMU) { q.say(reqSetVringAddr, vring(0, 0)) },
		"half a message": func(q *fakeQEMU) {
			_, _ = q.conn.Write(make([]byte, 5))
			_ = q.conn.CloseWrite()
		},
		"half a payload": func(q *fakeQEMU) {
			_, _ = q.conn.Write([]byte{2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1})
			_ = q.conn.CloseWrite()
		},
		"no size": func(q *fakeQEMU) {
			q.say(reqSetMemTable, table(ram), q.memfd)
			q.say(reqSetVringAddr, addrOf(0, 0))
			q.say(reqSetVringKick, u64(0), q.queues[0].kick.fd)
			q.say(reqSetVringEnable, vring(0, 1))
		},
		"memory is gone": func(q *fakeQEMU) {
			q.fillRX()
			q.start([rings]uint16{})
			q.say(reqSetMemTable, table(rom), q.memfd)
		},
	} {
		t.Run(name, func(t *testing.T) {
			q := serve(t)
			do(q)
			if err := q.ends(); err == nil || errors.Is(err, context.Canceled) {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

// TestDescriptors: a device leaves none open.
func TestDescriptors(t *testing.T) {
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	run := func() {
		t.Run("", func(t *testing.T) {
			q := boot(t)
			q.client(9)
			q.caller(1024)
			q.connect("")
			q.say(reqSetVringErr, u64(0), q.memfd)
			q.sayFlags(reqSetOwner, flagVersion|flagNeedsAck, nil, q.memfd, q.memfd)
			q.answer(reqSetOwner)
			q.conn.Close()
			if err := q.ends(); err != nil {
				t.Error(err)
			}
		})
	}
	run()
	before := count()
	run()
	if after := count(); after > before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}
