package channel

import (
	"errors"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// linger is how long after Close the peer may take to close as well, before the stream is reset. It may be
// reading, at its own pace, what was written before.
const linger = 2 * time.Minute

// conn is one stream. Like a socket's, its Close is for both directions and CloseWrite for one.
type conn struct {
	*yamux.Stream
	f    *frames
	half *halves

	answer     sync.Once
	unanswered bool // the peer opened it and waits for wire.StreamOK
	closing    sync.Once
}

func newConn(f *frames, s *yamux.Stream, unanswered bool) *conn {
	return &conn{Stream: s, f: f, half: f.half(s.StreamID()), unanswered: unanswered}
}

// accept tells the opener that its port is served.
func (c *conn) accept() {
	if c.unanswered {
		c.answer.Do(func() { _, _ = c.Stream.Write([]byte{wire.StreamOK}) }) // the next Write meets the error again
	}
}

// Read implements net.Conn. The end of the session is ErrClosed, not the end of the stream.
func (c *conn) Read(p []byte) (int, error) {
	c.accept()
	n, err := c.Stream.Read(p)
	if errors.Is(err, io.EOF) && !c.f.finished(c.half) {
		err = ErrClosed
	}
	return n, err
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	c.accept()
	return c.Stream.Write(p)
}

// CloseWrite tells the peer that nothing more will be written; reading goes on.
func (c *conn) CloseWrite() error { return c.Stream.Close() }

// Close closes both directions: the peer reads what was written and then its end. Where it
// sends more, or has sent what nobody read, its stream is reset.
func (c *conn) Close() error {
	c.closing.Do(func() {
		open := c.f.closing(c.StreamID())
		_ = c.Stream.SetReadDeadline(time.Unix(1, 0)) // ends a Read that waits, as a socket's Close does
		_ = c.Stream.Close()
		if open {
			go c.drop()
		}
	})
	return nil
}

// drop resets the stream at once where there are bytes nobody read: its peer may wait for room.
func (c *conn) drop() {
	var b [512]byte
	if n, _ := c.Stream.Read(b[:]); n > 0 {
		c.f.reset(c.StreamID())
		return
	}
	c.f.resetLater(c.StreamID(), linger)
}
