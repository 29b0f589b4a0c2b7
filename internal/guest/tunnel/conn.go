package tunnel

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// Conn is the host's end of a tunnel. Its methods may be called from several goroutines.
//
// Of TCP it is what a connection to the guest's program would be. Read returns io.EOF after the end that the program sent, and an
// error with syscall.ECONNRESET in its chain where the connection was reset or the guest is gone. Close after a CloseWrite is that of a TCP
// connection: what was written arrives, and the program is reset when it sends more. Close without a CloseWrite resets at once. A Write that its deadline cut
// short in the middle leaves nothing to do but Close.
//
// Of UDP each Write is a datagram, of up to MaxDatagram bytes, and each Read returns one, cut where p is too short for it; io.EOF where the
// guest's socket is closed, which it is when nobody listens any more.
type Conn struct {
	stream net.Conn
	addr   addr
	closed atomic.Bool
	reset  atomic.Bool // Read has found the end of the stream

	rmu    sync.Mutex // guards what follows
	header [headerLen]byte
	have   int   // bytes of the header
	left   int   // bytes of the frame that were not read yet
	rerr   error // what every further Read returns
	// unanswered: what comes first is the answer to the dial, which late does not wait for longer.
	unanswered bool
	late       *time.Timer

	wmu  sync.Mutex // guards what follows
	werr error      // what every further Write returns
	fin  bool       // CloseWrite was called
}

// addr is a port of a guest.
type addr struct {
	network string
	port    uint16
}

// Network implements net.Addr.
func (a addr) Network() string { return a.network }

// String implements net.Addr.
func (a addr) String() string { return "guest:" + strconv.Itoa(int(a.port)) }

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	if c.addr.network == UDP {
		return c.readDatagram(p)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if c.left == 0 {
		n, err := c.nextFrame()
		if err != nil {
			return 0, err
		}
		if n == 0 {
			c.rerr = io.EOF
			return 0, io.EOF
		}
		c.left = n
	}
	n, err := c.stream.Read(p[:min(len(p), c.left)])
	c.left -= n
	if n > 0 {
		return n, nil
	}
	return 0, c.readFailed(err)
}

// readDatagram is Read of UDP.
func (c *Conn) readDatagram(p []byte) (int, error) {
	if err := c.skip(); err != nil {
		return 0, err
	}
	size, err := c.nextFrame()
	if err != nil {
		return 0, err
	}
	c.left = size
	n, err := io.ReadFull(c.stream, p[:min(len(p), size)])
	c.left -= n
	if err != nil {
		return 0, c.readFailed(err)
	}
	return n, nil
}

// skip drops what nobody read of the last datagram.
func (c *Conn) skip() error {
	if c.left == 0 {
		return nil
	}
	buf := frames.Get().(*frame)
	defer frames.Put(buf)
	for c.left > 0 {
		n, err := c.stream.Read(buf[:min(len(buf), c.left)])
		c.left -= n
		if err != nil && c.left > 0 {
			return c.readFailed(err)
		}
	}
	return nil
}

// nextFrame reads the header of a frame and returns its length. What a deadline leaves of the header is kept.
func (c *Conn) nextFrame() (int, error) {
	if c.rerr != nil {
		return 0, c.rerr
	}
	if c.unanswered {
		err := answered(c.stream)
		c.late.Stop()
		c.unanswered = false
		if err != nil {
			c.reset.Store(true)
			if errors.Is(err, io.EOF) {
				err = syscall.ECONNRESET // no end of the connection's
			}
			c.rerr = c.failed("dial", err)
			return 0, c.rerr
		}
	}
	for c.have < headerLen {
		n, err := c.stream.Read(c.header[c.have:])
		c.have += n
		if err != nil && c.have < headerLen {
			return 0, c.readFailed(err)
		}
	}
	c.have = 0
	n := binary.BigEndian.Uint32(c.header[:])
	if most := longest(c.addr.network); n > uint32(most) {
		c.rerr = c.failed("read", wire.Violation("frame of %d bytes, more than %d", n, most))
		return 0, c.rerr
	}
	return int(n), nil
}

// readFailed is what Read returns after an error of the stream: one that lasts, unless it was a deadline.
func (c *Conn) readFailed(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return c.failed("read", os.ErrDeadlineExceeded)
	case c.closed.Load():
		c.rerr = c.failed("read", net.ErrClosed)
	case c.addr.network == UDP:
		c.rerr = io.EOF
	default:
		c.reset.Store(true)
		c.rerr = c.failed("read", syscall.ECONNRESET)
	}
	return c.rerr
}

func (c *Conn) failed(op string, err error) error {
	return &net.OpError{Op: op, Net: c.addr.network, Addr: c.addr, Err: err}
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if err := c.writable(); err != nil {
		return 0, err
	}
	if c.addr.network == UDP {
		if len(p) > MaxDatagram {
			return 0, c.failed("write", syscall.EMSGSIZE)
		}
		return c.writeFrame(p)
	}
	written := 0
	for len(p) > 0 {
		chunk := p[:min(len(p), MaxChunk)]
		n, err := c.writeFrame(chunk)
		written += n
		if err != nil {
			return written, err
		}
		p = p[n:]
	}
	return written, nil
}

// writable is why nothing can be written any more; nil where something can.
func (c *Conn) writable() error {
	switch {
	case c.werr != nil:
		return c.werr
	case c.fin:
		return c.failed("write", syscall.EPIPE)
	case c.closed.Load():
		return c.failed("write", net.ErrClosed)
	case c.reset.Load():
		return c.failed("write", syscall.ECONNRESET)
	}
	return nil
}

// writeFrame writes p as one frame, in one write, and returns how much of p was written.
func (c *Conn) writeFrame(p []byte) (int, error) {
	buf := frames.Get().(*frame)
	defer frames.Put(buf)
	n, err := c.stream.Write(buf.sized(copy(buf.payload(), p)))
	if err == nil {
		return len(p), nil
	}
	switch {
	case c.closed.Load():
		err = net.ErrClosed
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = os.ErrDeadlineExceeded
	default:
		err = syscall.EPIPE
	}
	err = c.failed("write", err)
	if n > 0 {
		c.werr = c.failed("write", syscall.EPIPE) // half a frame: the guest would take what came next for the rest of it
	}
	return max(0, n-headerLen), err
}

// CloseWrite ends the direction to the guest. Of UDP there is none: errors.ErrUnsupported.
func (c *Conn) CloseWrite() error {
	if c.addr.network == UDP {
		return errors.ErrUnsupported
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.fin {
		return nil
	}
	if err := c.writable(); err != nil {
		return err
	}
	_, err := c.writeFrame(nil)
	c.fin = err == nil
	return err
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	if c.late != nil {
		c.late.Stop()
	}
	if c.closed.Swap(true) {
		return c.failed("close", net.ErrClosed)
	}
	return c.stream.Close()
}

// LocalAddr implements net.Conn; it says as little as RemoteAddr.
func (c *Conn) LocalAddr() net.Addr { return c.addr }

// RemoteAddr implements net.Conn: the network and the port.
func (c *Conn) RemoteAddr() net.Addr { return c.addr }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error { return c.stream.SetDeadline(t) }

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.stream.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.stream.SetWriteDeadline(t) }
