package exec

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// ackEvery is how much delivered output is acknowledged at once, in bytes: an eighth of the agent's ring.
const ackEvery = wire.RingBytes / 8

// lastWordTimeout bounds how long the last frames of a run take.
const lastWordTimeout = 2 * time.Second

// conn is one connection of a run.
type conn struct {
	r        *run
	nc       net.Conn
	attached bool // the agent has answered; of the reading goroutine
	first    [2]bool

	// Guarded by r.mu.
	news    *sync.Cond
	sent    uint64 // of stdin
	sentEOF bool
	acked   [2]uint64 // of stdout and stderr, told the agent
	toAck   [2]uint64 // to be told
	writing bool      // a Write to Stdout or Stderr is under way
	collect bool
	closing bool
	leaving bool // FrameDetach is to be sent
	left    bool // it is with what is sent next
	// sender is closed when nothing more is sent.
	sender chan struct{}
}

func newConn(r *run, nc net.Conn) *conn {
	return &conn{r: r, nc: nc, news: sync.NewCond(&r.mu), first: [2]bool{true, true}, sender: make(chan struct{})}
}

// close ends the connection; it tells whether a Write to an output is under way.
func (c *conn) close() (writing bool) {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	c.closing = true
	_ = c.nc.Close()
	c.news.Signal()
	if c.r.conn == c {
		c.r.conn = nil
	}
	return c.writing
}

// serve starts or attaches, and moves frames until the command has ended or the connection breaks.
func (c *conn) serve() (wire.ExecExit, error) {
	defer c.close()
	_ = c.nc.SetDeadline(time.Now().Add(answerTimeout))
	fr := wire.NewFrameReader(c.nc)
	if err := c.greet(fr); err != nil {
		return wire.ExecExit{}, err
	}
	if c.r.opts.Start.Detach {
		return wire.ExecExit{}, nil
	}
	_ = c.nc.SetDeadline(time.Time{})
	go func() {
		defer close(c.sender)
		c.send()
	}()
	exit, err := c.receive(fr)
	if err != nil && c.sentAll() {
		err = nil
		c.close()
	} else if err != nil {
		if r := c.r; r.opts.Session != nil && r.brokenOutput() != nil {
			c.detach()
		}
		c.close()
	} else {
		err = c.inputLeft()
		c.r.post(func() { c.collect = true })
		_ = c.nc.SetWriteDeadline(time.Now().Add(lastWordTimeout))
	}
	<-c.sender
	return exit, err
}

// greet sends the first frame and takes in the answer.
func (c *conn) greet(fr *wire.FrameReader) error {
	r := c.r
	w := wire.NewFrameWriter(c.nc)
	var err error
	if r.attached {
		err = w.JSON(wire.FrameAttach, wire.ExecAttach{Version: wire.Version, ID: r.id, Stdout: r.got[0], Stderr: r.got[1], Session: r.sessionAttach()})
	} else {
		err = w.JSON(wire.FrameStart, r.opts.Start)
		r.attached, r.tried, r.retried = true, true, r.tried
		if w.Buffered() > wire.MaxStart {
			return wire.ExecErrorf(wire.ExecInvalid, "command and environment take %d bytes, %d is the most", w.Buffered(), wire.MaxStart)
		}
	}
	if err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	f, err := fr.ReadFrame()
	if err != nil {
		return err
	}
	switch f.Type {
	case wire.FrameError:
		return execError(f)
	case wire.FrameStarted:
		var s wire.ExecStarted
		if err := f.JSON(&s); err != nil {
			return err
		}
		return c.begin(s)
	}
	return wire.Violation("first frame is of type %d", f.Type)
}

// begin takes up the streams where the agent has them.
func (c *conn) begin(s wire.ExecStarted) error {
	r := c.r
	if s.ID != r.id {
		return wire.Violation("started %.40q instead of %q", s.ID, r.id)
	}
	first := !r.started
	if err := c.beginSession(s); err != nil {
		return err
	}
	r.mu.Lock()
	if first && (r.opts.AttachID != "" || r.opts.Session != nil) && s.Received < 1<<62 {
		r.in = wire.NewRing(s.Received, wire.StdinWindow)
	}
	if r.readOnly || r.deaf {
		s.Received, s.Stdin = r.in.End(), r.in.End()
	}
	if s.Received < r.in.Base() || s.Received > r.in.End() || s.Stdin > s.Received {
		r.mu.Unlock()
		return wire.Violation("the command has taken %d bytes of stdin, %d were sent", s.Received, r.in.End())
	}
	r.in.Ack(s.Stdin)
	r.room.Signal()
	c.sent = s.Received
	c.acked = r.got
	r.conn = c
	r.mu.Unlock()
	r.started, c.attached = true, true
	if first {
		if r.opts.OnStarted != nil {
			r.opts.OnStarted(s)
		}
		if r.opts.Stdin != nil && (r.opts.Session != nil || !s.StdinEOF) {
			go r.feed()
		}
	}
	r.tell(StateConnected, nil)
	return nil
}

// receive handles the agent's frames until the exit.
func (c *conn) receive(fr *wire.FrameReader) (exit wire.ExecExit, err error) {
	r := c.r
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return exit, err
		}
		switch f.Type {
		case wire.FrameStdout, wire.FrameStderr:
			i := int(f.Type - wire.FrameStdout)
			if err = c.deliver(i, f); err == nil && r.opts.Session != nil && !fr.Buffered() {
				c.ack(i)
			}
		case wire.FrameGap:
			err = c.gap(f)
		case wire.FrameStdinAck:
			err = c.stdinAck(f)
		case wire.FrameError:
			err = execError(f)
		case wire.FrameExit:
			if err := f.JSON(&exit); err != nil {
				return exit, err
			}
			if exit.Status < 0 || exit.Status > 255 || len(exit.Signal) > 16 {
				return wire.ExecExit{}, wire.Violation("exit status %d", exit.Status)
			}
			return exit, nil
		default:
			err = wire.Violation("frame of type %d", f.Type)
		}
		if err != nil {
			return exit, err
		}
	}
}

// deliver writes output and acknowledges it from time to time. Only the first data after an attach may
// leave a gap: it was dropped, or another client has had it.
func (c *conn) deliver(i int, f wire.Frame) error {
	offset, data, err := f.Data()
	if err != nil {
		return err
	}
	r := c.r
	if offset != r.got[i] && (!c.first[i] || offset < r.got[i]) {
		return wire.Violation("output at offset %d, expected %d", offset, r.got[i])
	}
	c.first[i] = false
	r.mu.Lock()
	if c.closing {
		r.mu.Unlock()
		return net.ErrClosed
	}
	c.writing = true
	r.mu.Unlock()
	n, err := r.out[i].Write(data)
	if r.opts.Session == nil || err == nil {
		n = len(data) // what a command's broken output does not take is thrown away; who attaches to a session next wants it
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c.writing = false
	r.got[i] = offset + uint64(min(max(n, 0), len(data)))
	if c.leaving {
		c.news.Signal()
	}
	if r.got[i]-c.acked[i] >= ackEvery {
		c.toAck[i] = r.got[i]
		c.news.Signal()
	}
	if err != nil && r.opts.Session != nil {
		r.broken = err
		return err
	}
	if err != nil {
		r.out[i] = io.Discard
		r.breakOutput(err)
	}
	return nil
}

// stdinAck frees stdin the command has read.
func (c *conn) stdinAck(f wire.Frame) error {
	offset, err := f.Offset()
	if err != nil {
		return err
	}
	r := c.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if offset > c.sent {
		return wire.Violation("acknowledged %d bytes of stdin, %d were sent", offset, c.sent)
	}
	r.in.Ack(offset)
	r.room.Signal()
	c.news.Signal()
	return nil
}

// send writes what the run has for the agent until the connection ends or the exit was collected.
func (c *conn) send() {
	w := wire.NewFrameWriter(c.nc)
	for {
		c.r.mu.Lock()
		for !c.closing && !c.fill(w) {
			c.news.Wait()
		}
		closing, collect, left := c.closing, c.collect, c.left
		c.r.mu.Unlock()
		if closing {
			return
		}
		if w.Flush() != nil {
			c.close()
			return
		}
		if collect || left {
			return
		}
	}
}

// fill appends what is to be sent and tells whether that was anything. r.mu is held.
func (c *conn) fill(w *wire.FrameWriter) bool {
	r := c.r
	if c.collect {
		_ = w.Bytes(wire.FrameCollect, nil)
		return true
	}
	if r.readOnly || r.deaf {
		r.in.Ack(r.in.End())
		r.room.Signal()
		c.sent = r.in.End()
	}
	if r.readOnly {
		r.signals, r.size = nil, nil
	}
	for _, name := range r.signals {
		_ = w.Bytes(wire.FrameSignal, []byte(name))
	}
	r.signals = nil
	if r.size != nil {
		w.Size(r.size.Rows, r.size.Cols)
		r.size = nil
	}
	for i, offset := range c.toAck {
		if offset > c.acked[i] {
			w.Ack(i+1, offset)
			c.acked[i] = offset
		}
	}
	if n := int(min(r.in.End()-c.sent, wire.MaxChunk)); n > 0 {
		r.in.CopyAt(w.Chunk(wire.FrameStdin, c.sent, n), c.sent)
		c.sent += uint64(n)
	} else if r.inEOF && !c.sentEOF && !r.readOnly && !r.deaf && !r.keepsOpen() {
		w.Offset(wire.FrameStdinEOF, c.sent)
		c.sentEOF = true
	}
	return c.fillDetach(w) || w.Buffered() > 0
}

// execError decodes a FrameError; its text is cut to a few lines.
func execError(f wire.Frame) error {
	var x wire.ExecError
	if err := f.JSON(&x); err != nil {
		return err
	}
	const most = 4 << 10
	x.Code, x.Message = x.Code[:min(len(x.Code), 64)], x.Message[:min(len(x.Message), most)]
	if x.Code == "" {
		return wire.Violation("error without a code")
	}
	return &x
}

// breakOutput reacts to an output that takes no more as ssh does: the command is told, and not waited for for long. r.mu is held.
func (r *run) breakOutput(err error) {
	if r.broken != nil {
		return
	}
	r.broken = err
	r.signals = append(r.signals, "PIPE")
	if r.conn != nil {
		r.conn.news.Signal()
	}
	time.AfterFunc(pipeGrace, func() { r.post(func() { r.signals = append(r.signals, "HUP") }) })
	time.AfterFunc(2*pipeGrace, func() { close(r.gaveUp) })
}

// isExec tells whether err is an answer of the agent.
func isExec(err error, code string) bool {
	var x *wire.ExecError
	return errors.As(err, &x) && x.Code == code
}
