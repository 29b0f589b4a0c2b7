package process

import (
	"context"
	"errors"
	"net"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// Deadlines of a stream.
const (
	firstFrameTimeout = 30 * time.Second // from its opening to its first frame
	lastWordTimeout   = time.Second      // for the error that ends it
)

// Serve speaks the agent's side of the exec protocol on conn until the process is collected or the
// stream ends, and closes conn. What the stream was attached to goes on. The error is nil where the client
// got what it asked for.
func (m *Manager) Serve(ctx context.Context, conn net.Conn) error {
	if err := m.enter(conn); err != nil {
		_ = conn.Close()
		return err
	}
	defer m.leave(conn)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()

	_ = conn.SetReadDeadline(time.Now().Add(firstFrameTimeout))
	fr := wire.NewFrameReader(conn)
	first, err := fr.ReadFrame()
	if err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Time{})
	if req, ok := sessionOf(first); ok && m.cfg.Session != nil {
		err := m.cfg.Session(ctx, req, conn, fr)
		if errors.As(err, new(*wire.ExecError)) {
			return refuse(conn, err)
		}
		return err
	}
	c, err := m.open(first, conn)
	if err != nil {
		return refuse(conn, err)
	}
	if c == nil {
		return nil
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		c.send()
	}()
	err = c.receive(fr)
	c.leave(err)
	<-sent
	return err
}

// sessionOf is an attachment to a session, where the first frame of a stream is one in this protocol's version.
func sessionOf(first wire.Frame) (wire.ExecAttach, bool) {
	var req wire.ExecAttach
	ok := first.Type == wire.FrameAttach && first.JSON(&req) == nil && req.Session != nil && req.Version == wire.Version && validID(req.ID)
	return req, ok
}

// open starts or finds the process the first frame names, and attaches conn to it. The client is nil
// where there is nothing to attach to.
func (m *Manager) open(first wire.Frame, conn net.Conn) (*client, error) {
	switch first.Type {
	case wire.FrameStart:
		var req wire.ExecStart
		if len(first.Payload) > wire.MaxStart {
			return nil, wire.ExecErrorf(wire.ExecInvalid, "command and environment take %d bytes, %d is the most", len(first.Payload), wire.MaxStart)
		}
		if err := first.JSON(&req); err != nil {
			return nil, err
		}
		p, err := m.start(&req)
		if err != nil {
			return nil, err
		}
		if req.Detach {
			fw := wire.NewFrameWriter(conn)
			if err := fw.JSON(wire.FrameStarted, wire.ExecStarted{ID: p.id, PID: p.pid}); err != nil {
				return nil, err
			}
			return nil, fw.Flush()
		}
		return p.attach(conn, wire.ExecAttach{})
	case wire.FrameAttach:
		var req wire.ExecAttach
		if err := first.JSON(&req); err != nil {
			return nil, err
		}
		if req.Version != wire.Version {
			return nil, wire.ExecErrorf(wire.ExecInvalid, "the host speaks version %d of the guest protocol, the agent version %d", req.Version, wire.Version)
		}
		p, err := m.find(req.ID)
		if err != nil {
			return nil, err
		}
		return p.attach(conn, req)
	}
	return nil, wire.Violation("first frame is of type %d", first.Type)
}

// refuse tells the client why its stream ends.
func refuse(conn net.Conn, err error) error {
	var xerr *wire.ExecError
	if !errors.As(err, &xerr) {
		xerr = wire.ExecErrorf(wire.ExecInvalid, "%v", err)
	}
	fw := wire.NewFrameWriter(conn)
	if jerr := fw.JSON(wire.FrameError, xerr); jerr != nil {
		return jerr
	}
	_ = conn.SetWriteDeadline(time.Now().Add(lastWordTimeout))
	if werr := fw.Flush(); werr != nil {
		return werr
	}
	return err
}
