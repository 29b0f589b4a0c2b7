package tunnel

import (
	"context"
	"fmt"
	"net"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// openTimeout is how long the guest may take to connect.
const openTimeout = 15 * time.Second

// maxReason is how much of the guest's reason is passed on, in bytes.
const maxReason = 200

// Open has the agent at the other end of stream, one to wire.PortDial, connect to a port of its guest; network is TCP or UDP. It owns
// the stream. The error has ErrRefused in its chain where nobody listens on that port, wire.ErrProtocol where the agent answered
// garbage; otherwise it is ctx's cause, the stream's, or has the agent's words, quoted.
func Open(ctx context.Context, stream net.Conn, network string, port uint16) (*Conn, error) {
	_ = stream.SetDeadline(time.Now().Add(openTimeout))
	stop := context.AfterFunc(ctx, func() { _ = stream.SetDeadline(time.Unix(1, 0)) })
	err := ask(stream, wire.Dial{Version: wire.Version, Network: network, Port: port})
	if !stop() && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		stream.Close()
		return nil, err
	}
	_ = stream.SetDeadline(time.Time{})
	return &Conn{stream: stream, addr: addr{network, port}}, nil
}

// Begin is Open over TCP without the wait for the guest's answer: what is written follows what it asks, and the first Read meets the answer, which
// may be the error that Open would have returned. It does not wait longer for it than Open does.
func Begin(ctx context.Context, stream net.Conn, port uint16) (*Conn, error) {
	_ = stream.SetDeadline(time.Now().Add(openTimeout))
	stop := context.AfterFunc(ctx, func() { _ = stream.SetDeadline(time.Unix(1, 0)) })
	err := wire.WriteLine(stream, wire.Dial{Version: wire.Version, Network: TCP, Port: port})
	if !stop() && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		stream.Close()
		return nil, err
	}
	_ = stream.SetDeadline(time.Time{})
	c := &Conn{stream: stream, addr: addr{TCP, port}, unanswered: true}
	c.late = time.AfterFunc(openTimeout, func() { c.Close() })
	return c, nil
}

// ask makes the exchange that opens a tunnel.
func ask(stream net.Conn, d wire.Dial) error {
	if err := wire.WriteLine(stream, d); err != nil {
		return err
	}
	return answered(stream)
}

// answered reads the guest's answer to a dial.
func answered(stream net.Conn) error {
	var r wire.DialReply
	if err := wire.ReadLine(stream, &r); err != nil {
		return err
	}
	switch r.Type {
	case wire.DialOpen:
		return nil
	case wire.DialRefused:
		return ErrRefused
	case wire.DialFailed:
		return fmt.Errorf("the guest's agent says %q", r.Reason[:min(len(r.Reason), maxReason)])
	}
	return wire.Violation("answer %q to a dial", r.Type[:min(len(r.Type), maxReason)])
}
