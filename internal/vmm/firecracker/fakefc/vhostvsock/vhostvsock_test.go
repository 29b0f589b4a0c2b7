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
