package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/relay"
)

var (
	errNoAddress error = unix.EADDRNOTAVAIL
	errInUse     error = unix.EADDRINUSE
)

// dialTimeout is how long a port of the host may take to accept.
const dialTimeout = 10 * time.Second

// accept serves the connections of a listener, each in a goroutine of its own. One more than the limits allow is reset.
func (g *Gateway) accept(l *net.TCPListener, limit *limiter, serve func(*net.TCPConn, netip.Addr)) {
	for {
		conn, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, which passes
			g.cfg.Log.Warn("the bridge's gateway does not accept", "error", err)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-g.ctx.Done():
			}
			continue
		}
		peer := addrOf(conn.RemoteAddr())
		if !limit.take(peer) {
			reset(conn)
			continue
		}
		g.tasks.Go(func() {
			defer limit.give(peer)
			stop := context.AfterFunc(g.ctx, func() { reset(conn) })
			defer stop()
			serve(conn, peer)
			_ = conn.Close() // both sides have said their last
		})
	}
}

// serveProxy joins a guest's connection to a port of the gateway with the same port of the host's loopback, where the VM is let through
// to it; else it is reset, as where nobody listens.
func (g *Gateway) serveProxy(conn *net.TCPConn, peer netip.Addr) {
	id, ok := g.cfg.VM(peer)
	dst, err := g.cfg.Destination(conn)
	if err != nil || !ok || dst.Addr() != g.cfg.Address || !g.cfg.HostPort(id, dst.Port()) {
		reset(conn)
		return
	}
	var d net.Dialer
	ctx, cancel := context.WithTimeout(g.ctx, dialTimeout)
	defer cancel()
	host, err := d.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(dst.Port()))))
	if err != nil {
		g.cfg.Log.Debug("a port of the host does not answer", "id", id, "port", dst.Port(), "error", err)
		reset(conn)
		return
	}
	stop := context.AfterFunc(g.ctx, func() { _ = host.Close() })
	defer stop()
	other := host.(*net.TCPConn)
	relay.Join(&end{conn, other}, &end{other, conn})
}

// end is one end of what is joined. When it breaks the other is about to be closed: with a reset then, so that nobody takes what came for
// all there was.
type end struct {
	*net.TCPConn
	other *net.TCPConn
}

// Read implements net.Conn.
func (e *end) Read(b []byte) (int, error) {
	n, err := e.TCPConn.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		_ = e.other.SetLinger(0)
	}
	return n, err
}

// Write implements net.Conn.
func (e *end) Write(b []byte) (int, error) {
	n, err := e.TCPConn.Write(b)
	if err != nil {
		_ = e.other.SetLinger(0)
	}
	return n, err
}

// reset closes a connection so that its peer sees a refusal, not the end of a conversation.
func reset(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
}

func addrOf(a net.Addr) netip.Addr {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return t.AddrPort().Addr().Unmap()
}
