package exec

import (
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// sessionAttach is what the first frame of a connection says of the session; nil for a command.
func (r *run) sessionAttach() *wire.SessionAttach {
	o := r.opts.Session
	if o == nil {
		return nil
	}
	return &wire.SessionAttach{Name: o.Name, Write: o.Write && !r.readOnly, Tail: o.Tail, Resume: r.started, Mute: o.SendOnly}
}

// keepsOpen tells whether the end of Stdin is not passed on.
func (r *run) keepsOpen() bool { return r.opts.Session != nil && r.opts.Session.KeepOpen }

// beginSession takes in what an agent's answer says of an attachment to a session.
func (c *conn) beginSession(s wire.ExecStarted) error {
	r := c.r
	o := r.opts.Session
	if o == nil {
		return nil
	}
	switch {
	case o.SendOnly && s.ReadOnly:
		return wire.ExecErrorf(wire.ExecTakenOver, "another client writes to session %q", o.Name)
	case o.SendOnly && s.StdinEOF && !r.started:
		return wire.ExecErrorf(wire.ExecInvalid, "session %q takes no input", o.Name)
	case o.Write && s.ReadOnly && !r.readOnly && r.opts.OnReadOnly != nil:
		r.opts.OnReadOnly()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.readOnly = r.readOnly || s.ReadOnly
	r.deaf = s.StdinEOF && !o.SendOnly // who only sends is to know what was not taken
	return nil
}

// gap takes in that output of a session is lost.
func (c *conn) gap(f wire.Frame) error {
	i, offset, err := f.Ack()
	if err != nil {
		return err
	}
	i--
	r := c.r
	if r.opts.Session == nil || offset <= r.got[i] {
		return wire.Violation("a gap up to offset %d, expected %d", offset, r.got[i])
	}
	lost := offset - r.got[i]
	r.got[i], c.first[i] = offset, false
	if r.opts.OnDropped != nil {
		r.opts.OnDropped(i, lost)
	}
	c.ack(i)
	return nil
}

// ack acknowledges all output of a stream that was delivered.
func (c *conn) ack(i int) {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	c.toAck[i] = c.r.got[i]
	c.news.Signal()
}

// fillDetach appends the end of an attachment, where it is time for it. r.mu is held.
func (c *conn) fillDetach(w *wire.FrameWriter) bool {
	r := c.r
	if o := r.opts.Session; o != nil && o.SendOnly && r.inEOF && r.in.Base() == r.in.End() && (o.KeepOpen || c.sentEOF) {
		c.leaving = true
	}
	if !c.leaving || r.broken == nil && (c.writing || c.sent < r.in.End() && !r.readOnly) {
		return false
	}
	for i, offset := range r.got { // who comes next is not sent that again
		if offset > c.acked[i] {
			w.Ack(i+1, offset)
			c.acked[i] = offset
		}
	}
	_ = w.Bytes(wire.FrameDetach, nil)
	c.left = true
	return true
}

// sentAll tells whether a run that only sends had all of it sent when the connection ended.
func (c *conn) sentAll() bool {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	o := c.r.opts.Session
	return o != nil && o.SendOnly && c.leaving && c.r.in.Base() == c.r.in.End()
}

// inputLeft is the error of a run that only sends, where its session has ended before all was taken.
func (c *conn) inputLeft() error {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	if o := c.r.opts.Session; o != nil && o.SendOnly && c.r.in.Base() < c.r.in.End() {
		return ErrInputLeft
	}
	return nil
}

// detach tells the agent that a session is left, where there is one and it can be told soon.
func (c *conn) detach() {
	if c.r.opts.Session == nil {
		return
	}
	c.r.mu.Lock()
	attached := c.r.conn == c
	c.leaving = true
	c.news.Signal()
	_ = c.nc.SetWriteDeadline(time.Now().Add(lastWordTimeout / 2))
	c.r.mu.Unlock()
	if !attached {
		return
	}
	select {
	case <-c.sender:
	case <-time.After(lastWordTimeout / 2):
	}
}
