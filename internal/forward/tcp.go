package forward

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"git.thaloco.com/thaloco/banger/internal/relay"
)

// How long accepting rests after an error, such as too many open files.
const (
	restFirst  = 5 * time.Millisecond
	restLonger = time.Second
)

// serveTCP takes connections until the listener is closed.
func (p *port) serveTCP(ln net.Listener) {
	rest := restFirst
	for {
		conn, err := ln.Accept()
		if p.ctx.Err() != nil {
			if err == nil {
				reset(conn)
			}
			return
		}
		if err != nil {
			if rest == restFirst {
				p.guest.log.Warn("take a connection", "forward", p.f.String(), "err", err)
			}
			if !p.wait(rest) {
				return
			}
			rest = min(2*rest, restLonger)
			continue
		}
		rest = restFirst
		if p.guest.connections.Add(1) > maxConnections {
			p.guest.connections.Add(-1)
			reset(conn)
			continue
		}
		p.open.Add(1)
		p.tasks.Go(func() {
			defer p.guest.connections.Add(-1)
			defer p.open.Add(-1)
			p.carry(conn)
		})
	}
}

// wait waits for d; false where the port is closed before.
func (p *port) wait(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-p.ctx.Done():
		return false
	}
}

// carry joins a client with the guest, until both are done or the port is closed.
func (p *port) carry(client net.Conn) {
	ctx, cancel := context.WithTimeout(p.ctx, dialWithin)
	conn, err := p.guest.vm.Dial(ctx, "tcp", p.f.GuestPort)
	cancel()
	if err != nil {
		p.guest.log.Debug("a connection to the guest", "forward", p.f.String(), "err", err)
		reset(client)
		return
	}
	stop := context.AfterFunc(p.ctx, func() {
		reset(client)
		_ = conn.Close()
	})
	defer stop()
	relay.Join(client, &passing{Conn: conn, client: client})
}

// passing is the guest's end of a connection. When it breaks its client is about to be closed: with a reset then, so that nobody takes
// what came for all there was.
type passing struct {
	net.Conn
	client net.Conn
}

// Read implements net.Conn.
func (c *passing) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		resetOnClose(c.client)
	}
	return n, err
}

// Write implements net.Conn.
func (c *passing) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil {
		resetOnClose(c.client)
	}
	return n, err
}

// CloseWrite ends the direction to the guest.
func (c *passing) CloseWrite() error {
	if half, ok := c.Conn.(relay.HalfCloser); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// reset closes a connection the hard way.
func reset(conn net.Conn) {
	resetOnClose(conn)
	_ = conn.Close()
}

func resetOnClose(conn net.Conn) {
	if tcp, ok := conn.(interface{ SetLinger(seconds int) error }); ok {
		_ = tcp.SetLinger(0) // a connection that is closed already does not need it
	}
}
