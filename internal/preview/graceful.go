package preview

import (
	"io"
	"net"
	"sync"
	"time"
)

// A connection to a guest that is not needed any more is ended as TCP ends one: our end first, then the guest has lingerWithin and lingerBytes for
// its own. Closed at once it would be reset, which many servers write a complaint about, for every tab that was open a while.
const (
	lingerWithin = time.Second
	lingerBytes  = 256 << 10
)

// gracefulConn is a connection whose Close says goodbye.
type gracefulConn struct {
	net.Conn
	s *Server

	reading sync.Mutex // held by who reads
	mu      sync.Mutex // guards closed
	closed  bool
}

// graceful wraps a connection where its type can end one direction.
func (s *Server) graceful(c net.Conn) net.Conn {
	if _, ok := c.(interface{ CloseWrite() error }); !ok {
		return c
	}
	return &gracefulConn{Conn: c, s: s}
}

// Read implements net.Conn.
func (c *gracefulConn) Read(b []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.isClosed() {
		return 0, net.ErrClosed
	}
	n, err := c.Conn.Read(b)
	if err != nil && c.isClosed() {
		err = net.ErrClosed
	}
	return n, err
}

func (c *gracefulConn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// CloseWrite ends the direction to the guest.
func (c *gracefulConn) CloseWrite() error {
	return c.Conn.(interface{ CloseWrite() error }).CloseWrite()
}

// Close implements net.Conn. It returns at once.
func (c *gracefulConn) Close() error {
	c.mu.Lock()
	again := c.closed
	c.closed = true
	c.mu.Unlock()
	if again {
		return net.ErrClosed
	}
	end, ok := c.s.begin()
	if !ok || c.s.ctx.Err() != nil {
		if ok {
			end()
		}
		return c.Conn.Close()
	}
	_ = c.SetDeadline(time.Unix(1, 0)) // who reads or writes lets go
	go func() {
		defer end()
		c.linger()
		_ = c.Conn.Close()
	}()
	return nil
}

// linger ends our direction, and reads what the guest still had to say.
func (c *gracefulConn) linger() {
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.SetDeadline(time.Now().Add(lingerWithin)) != nil || c.CloseWrite() != nil {
		return
	}
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-c.s.ctx.Done():
			_ = c.SetDeadline(time.Unix(1, 0))
		case <-stop:
		}
	}()
	_, _ = io.CopyN(io.Discard, c.Conn, lingerBytes)
}
