package supervise

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/channel"
	"git.thaloco.com/thaloco/banger/internal/relay"
)

// Firecracker's protocol on the host's end of its vsock device
// (docs/vsock.md of firecracker v1.17): a client writes "CONNECT <port>\n" and reads "OK <n>\n", or the end where
// nobody listens. Streams of the guest to a port of the host arrive at the socket <name>_<port>.
const (
	maxVsockClients = 1023 // as Firecracker's
	maxConnectLine  = 32   // bytes, newline included
	connectTimeout  = 10 * time.Second
	firstHostPort   = 1 << 30 // what n counts from
	// noAnswer is our own word, in place of OK, for a guest that does not answer; Firecracker only closes the connection.
	noAnswer = "NOANSWER"
)

// vsockServer serves vsock.sock.
type vsockServer struct {
	// dial opens a stream to a port of the guest.
	dial func(ctx context.Context, port uint32) (net.Conn, error)
	log  *slog.Logger

	clients atomic.Int32
	streams *atomic.Uint32 // opened so far
}

// serve accepts clients until ln is closed.
func (v *vsockServer) serve(ctx context.Context, ln *net.UnixListener) {
	for {
		conn, err := ln.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors
			v.log.Error("vsock.sock does not accept", "error", err)
			if !pause(ctx, 100*time.Millisecond) {
				return
			}
			continue
		}
		if v.clients.Add(1) > maxVsockClients || checkPeer(conn) != nil {
			conn.Close()
			v.clients.Add(-1)
			continue
		}
		go func() {
			defer v.clients.Add(-1)
			v.client(ctx, conn)
		}()
	}
}

// client serves one client to its end.
func (v *vsockServer) client(ctx context.Context, conn *net.UnixConn) {
	_ = conn.SetReadDeadline(time.Now().Add(connectTimeout))
	r := bufio.NewReaderSize(conn, maxConnectLine)
	line, err := readLine(r, maxConnectLine)
	if err != nil {
		conn.Close()
		return
	}
	port, err := parseConnect(string(line))
	if err != nil {
		v.log.Warn("a client of vsock.sock broke the protocol", "error", err)
		conn.Close()
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	stream, err := v.dial(ctx, port)
	if err != nil {
		if !errors.Is(err, channel.ErrRefused) {
			_, _ = io.WriteString(conn, noAnswer+"\n")
		}
		conn.Close()
		return
	}
	n := firstHostPort + v.streams.Add(1)%firstHostPort
	if _, err := fmt.Fprintf(conn, "OK %d\n", n); err != nil {
		conn.Close()
		stream.Close()
		return
	}
	// A client that does not wait for its answer has written on already.
	if early := r.Buffered(); early > 0 {
		b, _ := r.Peek(early)
		if _, err := stream.Write(b); err != nil {
			conn.Close()
			stream.Close()
			return
		}
	}
	relay.Join(conn, stream)
}

// parseConnect reads "CONNECT <port>".
func parseConnect(line string) (uint32, error) {
	word, rest, _ := strings.Cut(line, " ")
	port, err := strconv.ParseUint(rest, 10, 32)
	if !strings.EqualFold(word, "CONNECT") || err != nil {
		return 0, fmt.Errorf("not CONNECT and a port: %q", line)
	}
	return uint32(port), nil
}

// guestStream connects a stream the guest opened to the socket of its port, as Firecracker does; false where there is none.
func guestStream(ctx context.Context, port uint32, stream net.Conn) bool {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", portSocket(port))
	if err != nil {
		return false
	}
	go relay.Join(conn, stream)
	return true
}

// sessionWait is how long a client waits for a guest that has no session (yet): as long as Firecracker
// lets a guest take to answer.
const sessionWait = 2 * time.Second

// guestLine holds the channel's session, which comes and goes with boots.
type guestLine struct {
	mu      sync.Mutex // guards what follows
	session *channel.Session
	changed chan struct{} // closed when session changes
}

func newGuestLine() *guestLine { return &guestLine{changed: make(chan struct{})} }

// put replaces the session; nil for none.
func (g *guestLine) put(s *channel.Session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.session = s
	close(g.changed)
	g.changed = make(chan struct{})
}

// dial opens a stream to a port of the guest.
func (g *guestLine) dial(ctx context.Context, port uint32) (net.Conn, error) {
	wait := time.NewTimer(sessionWait)
	defer wait.Stop()
	for {
		g.mu.Lock()
		session, changed := g.session, g.changed
		g.mu.Unlock()
		if session != nil {
			ctx, cancel := context.WithTimeout(ctx, connectTimeout)
			defer cancel()
			return session.Dial(ctx, port)
		}
		select {
		case <-changed:
		case <-wait.C:
			return nil, errors.New("the guest's agent is not there")
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// pause waits for d; false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
