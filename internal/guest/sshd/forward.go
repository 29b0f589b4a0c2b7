package sshd

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	// dialTimeout is how long a connection to the target of a forward may take.
	dialTimeout = time.Minute
	// drainTimeout is how long the target of a forward may take to read what a client that has gone had sent.
	drainTimeout = 30 * time.Second
)

// directTCP connects a channel to an address as the guest sees it.
func (c *connection) directTCP(nch ssh.NewChannel) {
	host, port, err := parseDirect(nch.ExtraData())
	if err != nil {
		_ = nch.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	d := net.Dialer{Timeout: dialTimeout}
	c.direct(nch, func() (net.Conn, error) {
		return d.DialContext(c.ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
	})
}

// directUnix connects a channel to a socket of the guest that the user may connect to.
func (c *connection) directUnix(nch ssh.NewChannel) {
	path, err := parseDirectPath(nch.ExtraData())
	if err != nil {
		_ = nch.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	d := net.Dialer{Timeout: dialTimeout}
	c.direct(nch, func() (conn net.Conn, err error) {
		err = asUser(c.user, func() error {
			conn, err = d.DialContext(c.ctx, "unix", path)
			return err
		})
		return conn, err
	})
}

// direct dials for a channel, takes it where that worked, and serves it to its end.
func (c *connection) direct(nch ssh.NewChannel, dial func() (net.Conn, error)) {
	conn, err := dial()
	if err != nil {
		_ = nch.Reject(ssh.ConnectionFailed, cause(err))
		return
	}
	ch, requests, err := nch.Accept()
	if err != nil {
		_ = conn.Close()
		return
	}
	c.relay(ch, requests, conn)
}

// cause is what an error of the network boils down to.
func cause(err error) string {
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		err = op.Err
	}
	if sys := (*os.SyscallError)(nil); errors.As(err, &sys) {
		err = sys.Err
	}
	return err.Error()
}

// relay moves bytes between a channel and a connection, each way to its own end, and returns when the
// client has closed the channel.
func (c *connection) relay(ch ssh.Channel, requests <-chan *ssh.Request, conn net.Conn) {
	stop := context.AfterFunc(c.ctx, func() { _ = conn.Close() })
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { fromClient(conn, ch) })
	both.Go(func() { toClient(ch, conn) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		both.Wait()
		_ = conn.Close()
		_ = ch.Close()
	}()
	ssh.DiscardRequests(requests)
	// The client has closed the channel: it takes no more. What it had sent still goes out.
	_ = conn.SetReadDeadline(time.Now())
	_ = conn.SetWriteDeadline(time.Now().Add(drainTimeout))
	<-done
}

// fromClient copies what the client sends until it ends that, and passes the end on.
func fromClient(conn net.Conn, ch io.Reader) {
	if _, err := io.Copy(conn, ch); err != nil {
		_, _ = io.Copy(io.Discard, ch) // the target does not want it
		return
	}
	if w, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
	}
}

// toClient copies what the target sends until it ends that, and passes the end on. A connection that breaks ends the channel.
func toClient(ch ssh.Channel, conn net.Conn) {
	_, err := io.Copy(ch, conn)
	switch {
	case err == nil:
		_ = ch.CloseWrite()
	case errors.Is(err, io.EOF), errors.Is(err, os.ErrDeadlineExceeded):
		// the client has closed the channel
	default:
		_ = conn.Close()
		_ = ch.Close()
	}
}
