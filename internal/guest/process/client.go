package process

import (
	"errors"
	"net"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// errCollected ends receive where the client has what it came for.
var errCollected = errors.New("collected")

// client is one stream attached to a process. All but p, m and conn is guarded by p.mu.
type client struct {
	p    *proc
	conn net.Conn
	news *sync.Cond // for send

	greeted  bool
	sent     [2]uint64 // of stdout and stderr
	stdin    uint64    // acknowledged
	exitSent bool
	turn     int // which output goes first
	closing  bool
	lastWord *wire.ExecError // why the agent ends the stream
}

// attach makes conn the stream of p, in place of the one it had.
func (p *proc) attach(conn net.Conn, have wire.ExecAttach) (*client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := &client{p: p, conn: conn, news: sync.NewCond(&p.mu)}
	for i, offset := range []uint64{have.Stdout, have.Stderr} {
		o := p.out[i]
		if o == nil {
			if offset > 0 {
				return nil, wire.ExecErrorf(wire.ExecInvalid, "process %q has no stderr of its own", p.id)
			}
			continue
		}
		if offset > o.ring.End() {
			return nil, wire.ExecErrorf(wire.ExecInvalid, "process %q has not written %d bytes", p.id, offset)
		}
	}
	for i, offset := range []uint64{have.Stdout, have.Stderr} {
		if o := p.out[i]; o != nil {
			o.ring.Ack(offset)
			o.room.Signal()
			c.sent[i] = o.ring.Base()
		}
	}
	if old := p.client; old != nil {
		old.end(wire.ExecErrorf(wire.ExecTakenOver, "another client has attached to the process"))
	}
	p.client = c
	return c, nil
}

// end makes send write why and close the stream. p.mu is held.
func (c *client) end(why *wire.ExecError) {
	c.closing, c.lastWord = true, why
	_ = c.conn.SetWriteDeadline(time.Now().Add(lastWordTimeout))
	c.news.Signal()
}

// leave ends the stream because nothing more comes from the client.
func (c *client) leave(err error) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if c.p.client == c {
		c.p.client = nil
		if c.p.detached {
			c.p.detach()
		}
	}
	var why *wire.ExecError
	if !errors.As(err, &why) && errors.Is(err, wire.ErrProtocol) {
		why = wire.ExecErrorf(wire.ExecInvalid, "%v", err)
	}
	switch {
	case c.closing:
	case why != nil:
		c.end(why)
	default:
		c.closing = true
		_ = c.conn.Close()
		c.news.Signal()
	}
}

// send writes what there is for the client until the stream ends, and closes it; where the client has gone receive does, which may have
// frames to read that it sent before.
func (c *client) send() {
	w := wire.NewFrameWriter(c.conn)
	for {
		c.p.mu.Lock()
		for !c.closing && !c.fill(w) {
			c.news.Wait()
		}
		closing, why := c.closing, c.lastWord
		c.p.mu.Unlock()
		if closing {
			if why != nil {
				_ = w.JSON(wire.FrameError, why)
				_ = w.Flush()
			}
			_ = c.conn.Close()
			return
		}
		if w.Flush() != nil {
			_ = c.conn.SetReadDeadline(time.Now().Add(lastWordTimeout)) // for one who stays and does not read
			return
		}
	}
}

// fill appends what is new for the client, at most a chunk of each output, and tells whether that was anything. p.mu is held.
func (c *client) fill(w *wire.FrameWriter) bool {
	p := c.p
	written := p.in.ring.Base()
	if !c.greeted {
		c.greeted, c.stdin = true, written
		_ = w.JSON(wire.FrameStarted, wire.ExecStarted{ID: p.id, PID: p.pid, Stdin: written,
			Received: p.in.ring.End(), StdinEOF: p.in.eof || p.in.closed})
	}
	if written > c.stdin {
		c.stdin = written
		w.Offset(wire.FrameStdinAck, written)
	}
	all := true
	for k := range p.out {
		i := (c.turn + k) % len(p.out)
		o := p.out[i]
		if o == nil {
			continue
		}
		if n := int(min(o.ring.End()-c.sent[i], wire.MaxChunk)); n > 0 {
			o.ring.CopyAt(w.Chunk(wire.FrameStdout+wire.FrameType(i), c.sent[i], n), c.sent[i])
			c.sent[i] += uint64(n)
		}
		all = all && c.sent[i] == o.ring.End()
	}
	c.turn++
	if p.exit != nil && all && !c.exitSent {
		c.exitSent = true
		_ = w.JSON(wire.FrameExit, p.exit)
	}
	return w.Buffered() > 0
}

// receive handles the client's frames until it has collected the process (nil) or the stream ends.
func (c *client) receive(fr *wire.FrameReader) error {
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return err
		}
		switch err := c.handle(f); {
		case errors.Is(err, errCollected):
			c.p.m.forget(c.p)
			return nil
		case err != nil:
			return err
		}
	}
}

// handle does what one frame asks. Frames of a stream that was taken over do nothing.
func (c *client) handle(f wire.Frame) error {
	p := c.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client != c {
		return nil
	}
	switch f.Type {
	case wire.FrameStdin:
		offset, data, err := f.Data()
		if err != nil {
			return err
		}
		return p.receive(offset, data)
	case wire.FrameStdinEOF:
		offset, err := f.Offset()
		if err != nil {
			return err
		}
		return p.receiveEOF(offset)
	case wire.FrameAck:
		stream, offset, err := f.Ack()
		if err != nil {
			return err
		}
		return c.ack(stream-1, offset)
	case wire.FrameSignal:
		if len(f.Payload) > 16 {
			return wire.Violation("signal name of %d bytes", len(f.Payload))
		}
		return p.signal(string(f.Payload))
	case wire.FrameResize:
		rows, cols, err := f.Size()
		if err == nil {
			p.io.resize(rows, cols)
		}
		return err
	case wire.FrameCollect:
		if !c.exitSent || len(f.Payload) > 0 {
			return wire.Violation("collected before the end")
		}
		return errCollected
	}
	return wire.Violation("frame of type %d", f.Type)
}

// ack frees output the client has. p.mu is held.
func (c *client) ack(i int, offset uint64) error {
	if c.p.out[i] == nil || offset > c.sent[i] {
		return wire.Violation("acknowledged %d bytes of output %d that were not sent", offset, i+1)
	}
	o := c.p.out[i]
	o.ring.Ack(offset)
	o.room.Signal()
	return nil
}
