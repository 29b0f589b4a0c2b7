package channel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/hashicorp/yamux"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

const (
	// backlog is how many streams may wait to be accepted, and how many Dials may be under way.
	backlog = 64
	// writeTimeout is how long the peer may not read before a writer is told.
	writeTimeout = 30 * time.Second
	// portTimeout is how long the opener of a stream may take to name its port.
	portTimeout = 10 * time.Second
)

// Session is a hand-shaken channel. Its methods may be called from several goroutines.
type Session struct {
	f     *frames
	mux   *yamux.Session
	dials chan struct{} // one slot for each Dial under way
}

func newSession(f *frames, client bool) (*Session, error) {
	cfg := yamux.DefaultConfig()
	cfg.AcceptBacklog = backlog
	cfg.EnableKeepAlive = false
	cfg.ConnectionWriteTimeout = writeTimeout
	cfg.MaxStreamWindowSize = window
	// A paused guest answers late and a half-closed stream lives long: neither has a time limit.
	cfg.StreamOpenTimeout, cfg.StreamCloseTimeout = 0, 0
	cfg.LogOutput = io.Discard
	open := yamux.Server
	if client {
		open = yamux.Client
	}
	mux, err := open(f, cfg)
	if err != nil {
		return nil, err
	}
	return &Session{f: f, mux: mux, dials: make(chan struct{}, backlog)}, nil
}

// Done is closed when the session has ended.
func (s *Session) Done() <-chan struct{} { return s.mux.CloseChan() }

// Err is why the session ended: ErrGarbage, or an error of the byte stream; nil while it lives, and
// where Close or a new hello ended it.
func (s *Session) Err() error {
	err := s.f.cause()
	if !s.mux.IsClosed() || errors.Is(err, errNewHello) {
		return nil
	}
	return err
}

// Close ends the session and its streams. On the host it closes the byte stream; in the guest the Acceptor goes on.
func (s *Session) Close() error { return s.mux.Close() }

// Dial opens a stream to a port of the peer: ErrRefused where nobody listens, ErrClosed after the session's
// end, ctx's cause where the peer does not answer in time.
func (s *Session) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	select {
	case s.dials <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("dial port %d: %w", port, context.Cause(ctx))
	case <-s.Done():
		return nil, fmt.Errorf("dial port %d: %w", port, ErrClosed)
	}
	type result struct {
		c   *conn
		err error
	}
	done := make(chan result)
	go func() {
		defer func() { <-s.dials }()
		c, err := s.dial(ctx, port)
		select {
		case done <- result{c, err}:
		case <-ctx.Done():
			if c != nil {
				s.f.reset(c.StreamID())
			}
		}
	}()
	var r result
	select {
	case r = <-done:
	case <-ctx.Done():
		r.err = context.Cause(ctx)
	}
	if r.err == nil {
		return r.c, nil
	}
	if s.mux.IsClosed() {
		r.err = ErrClosed
	}
	return nil, fmt.Errorf("dial port %d: %w", port, r.err)
}

// dial may outlive ctx by writeTimeout where the peer does not read.
func (s *Session) dial(ctx context.Context, port uint32) (*conn, error) {
	stream, err := s.mux.OpenStream()
	if err != nil {
		return nil, err
	}
	c := newConn(s.f, stream, false)
	abort := context.AfterFunc(ctx, func() { s.f.reset(stream.StreamID()) })
	defer abort()
	var answer [1]byte
	if err = writePort(stream, port); err == nil {
		_, err = io.ReadFull(stream, answer[:])
	}
	if err == nil && answer[0] != wire.StreamOK {
		err = ErrRefused
	}
	if err != nil {
		s.f.reset(stream.StreamID())
		return nil, err
	}
	return c, nil
}

func writePort(w io.Writer, port uint32) error {
	_, err := w.Write(binary.BigEndian.AppendUint32(nil, port))
	return err
}

// Serve answers the streams the peer opens until the session ends, and returns Err. handler runs in a
// goroutine of its own per stream. It returns false, without having used conn, to refuse the port; its first Read or
// Write, or returning true, accepts. conn is its to close, and may be used after it has returned.
func (s *Session) Serve(handler func(port uint32, conn net.Conn) bool) error {
	for {
		stream, err := s.mux.AcceptStream()
		if err == nil {
			go s.answer(newConn(s.f, stream, true), handler)
			continue
		}
		if s.mux.IsClosed() {
			if !errors.Is(err, yamux.ErrSessionShutdown) {
				s.f.fail(err)
			}
			return s.Err()
		}
		// The peer did not read for writeTimeout; the stream is lost, the session may go on.
	}
}

func (s *Session) answer(c *conn, handler func(port uint32, conn net.Conn) bool) {
	var port [4]byte
	_ = c.Stream.SetReadDeadline(time.Now().Add(portTimeout))
	if _, err := io.ReadFull(c.Stream, port[:]); err != nil {
		s.f.reset(c.StreamID())
		return
	}
	_ = c.Stream.SetReadDeadline(time.Time{})
	if handler(binary.BigEndian.Uint32(port[:]), c) {
		c.accept()
		return
	}
	if _, err := c.Stream.Write([]byte{wire.StreamRefused}); err != nil {
		s.f.reset(c.StreamID())
		return
	}
	c.Close()
}
