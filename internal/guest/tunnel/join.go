package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// linger is how long the host may go on sending to a program that has closed its connection, so that it can read what the program said
// before it is told.
const linger = 5 * time.Second

// errHost is in the chain of an error of the stream.
var errHost = errors.New("the host's end")

// joinTCP carries a connection of the guest over stream until both directions of it have ended, or the host has closed the stream, and closes
// both. The error says why that was not an end on both sides.
func joinTCP(stream net.Conn, conn *net.TCPConn) error {
	t := &tcpTunnel{stream: stream, conn: conn, sent: make(chan error, 1)}
	defer t.end()
	go func() {
		err := t.send()
		if err != nil {
			t.abort() // receive waits for the stream, or for the connection
		}
		t.sent <- err
	}()
	switch err := t.receive(); {
	case err == nil:
		t.drain()      // to the host's Close; where the program has not ended its side by then, that is one of TCP
		t.conn.Close() // what the program still sends resets it
		return <-t.sent
	case errors.Is(err, errHost):
		t.abort()
		<-t.sent
		return err
	default:
		return errors.Join(err, t.outlast())
	}
}

// tcpTunnel is the guest's end of a tunnel.
type tcpTunnel struct {
	stream net.Conn
	conn   *net.TCPConn
	sent   chan error // what send returned
	// writing is held while the program is written to, until broken is right: who is told of a reset first is the only one who is told.
	writing sync.Mutex
	// broken: the connection was reset. What can be read of it is the host's still, its end is none.
	broken atomic.Bool
}

// write writes to the program.
func (t *tcpTunnel) write(p []byte) error {
	t.writing.Lock()
	defer t.writing.Unlock()
	_, err := t.conn.Write(p)
	if err != nil {
		// EPIPE says that the program's end had come before its reset (tcp_reset in net/ipv4/tcp_input.c).
		t.broken.Store(!errors.Is(err, syscall.EPIPE))
	}
	return err
}

// reset tells whether the end that was read of the program is a reset that a write was told of, or is about to be.
func (t *tcpTunnel) reset(raw syscall.RawConn) bool {
	closed := false
	_ = raw.Control(func(fd uintptr) { // fails where the tunnel has ended: nobody is there to be told
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		closed = err == nil && info.State == unix.BPF_TCP_CLOSE
	})
	if closed { // then no write waits
		t.writing.Lock()
		defer t.writing.Unlock()
	}
	return t.broken.Load()
}

// end closes both.
func (t *tcpTunnel) end() {
	t.conn.Close()
	t.stream.Close()
}

// abort resets the connection and closes both.
func (t *tcpTunnel) abort() {
	_ = t.conn.SetLinger(0)
	t.end()
}

// drain reads the stream to its end, for nothing.
func (t *tcpTunnel) drain() {
	var b [512]byte
	for {
		if _, err := t.stream.Read(b[:]); err != nil {
			return
		}
	}
}

// outlast goes on after the program has stopped to take what comes from the host: what it has said is carried on, and then the
// host is given time to read it.
func (t *tcpTunnel) outlast() error {
	sent := make(chan error, 1)
	go func() {
		err := <-t.sent
		_ = t.stream.SetReadDeadline(time.Now().Add(linger))
		sent <- err
	}()
	t.drain()
	t.end()
	return <-sent
}

// send carries what the program says to the host, with its end.
func (t *tcpTunnel) send() error {
	raw, err := t.conn.SyscallConn()
	for err == nil {
		var buf *frame
		var n int
		if buf, n, err = readReady(raw); err != nil {
			return err
		}
		if n == 0 && t.reset(raw) {
			frames.Put(buf)
			return syscall.ECONNRESET
		}
		err = writeHost(t.stream, buf, n)
		if n == 0 {
			return err
		}
	}
	return err
}

// receive carries what the host says to the program, with its end.
func (t *tcpTunnel) receive() error {
	for {
		n, err := readHeader(t.stream, MaxChunk)
		if err != nil {
			return err
		}
		if n == 0 {
			return t.conn.CloseWrite()
		}
		if err := t.forward(n); err != nil {
			return err
		}
	}
}

// forward carries the n bytes of a frame to the program, as they come.
func (t *tcpTunnel) forward(n int) error {
	buf := frames.Get().(*frame)
	defer frames.Put(buf)
	for n > 0 {
		k, err := t.stream.Read(buf[:min(len(buf), n)])
		if k > 0 {
			if err := t.write(buf[:k]); err != nil {
				return err
			}
			n -= k
		}
		if err != nil && n > 0 {
			return hostFailed(err)
		}
	}
	return nil
}

// joinUDP carries a connected UDP socket of the guest over stream until either ends, and closes both.
func joinUDP(stream net.Conn, conn *net.UDPConn) error {
	end := func() { conn.Close(); stream.Close() }
	sent := make(chan error, 1)
	go func() {
		defer end()
		sent <- sendDatagrams(stream, conn)
	}()
	err := receiveDatagrams(conn, stream)
	end()
	return errors.Join(err, <-sent)
}

// sendDatagrams carries datagrams to the host until the socket or the stream fails: ECONNREFUSED says that nobody listens any more.
func sendDatagrams(stream net.Conn, conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	for err == nil {
		var buf *frame
		var n int
		if buf, n, err = readReady(raw); err != nil {
			return err
		}
		if n > MaxDatagram { // over IPv6
			frames.Put(buf)
			continue
		}
		err = writeHost(stream, buf, n)
	}
	return err
}

// receiveDatagrams does the same the other way.
func receiveDatagrams(conn *net.UDPConn, stream net.Conn) error {
	for {
		n, err := readHeader(stream, MaxDatagram)
		if err != nil {
			return err
		}
		buf := frames.Get().(*frame)
		if _, err = io.ReadFull(stream, buf[:n]); err != nil {
			err = hostFailed(err)
		} else {
			_, err = conn.Write(buf[:n])
		}
		frames.Put(buf)
		if err != nil && !dropped(err) {
			return err
		}
	}
}

// dropped tells whether an error is of one datagram, and not of the socket.
func dropped(err error) bool {
	return errors.Is(err, syscall.EMSGSIZE) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.EPERM)
}

// readHeader reads the length of a frame.
func readHeader(stream net.Conn, most int) (int, error) {
	var b [headerLen]byte
	if _, err := io.ReadFull(stream, b[:]); err != nil {
		return 0, hostFailed(err)
	}
	n := binary.BigEndian.Uint32(b[:])
	if n > uint32(most) {
		return 0, hostFailed(wire.Violation("frame of %d bytes, more than %d", n, most))
	}
	return int(n), nil
}

// writeHost sends a frame with a payload of n bytes in one write, and gives its buffer back.
func writeHost(stream net.Conn, buf *frame, n int) error {
	defer frames.Put(buf)
	if _, err := stream.Write(buf.sized(n)); err != nil {
		return hostFailed(err)
	}
	return nil
}

func hostFailed(err error) error { return fmt.Errorf("%w: %w", errHost, err) }

// readReady reads what a socket has into the payload of a buffer, which is taken only when there is something: of TCP no bytes are
// the end.
func readReady(raw syscall.RawConn) (buf *frame, n int, err error) {
	rerr := raw.Read(func(fd uintptr) bool {
		buf = frames.Get().(*frame)
		for {
			if n, err = unix.Read(int(fd), buf.payload()); !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if errors.Is(err, unix.EAGAIN) {
			frames.Put(buf)
			buf = nil
			return false
		}
		return true
	})
	if rerr != nil {
		return nil, 0, rerr
	}
	if err != nil {
		frames.Put(buf)
		return nil, 0, err
	}
	return buf, n, nil
}
