package session

import (
	"context"
	"errors"
	"net"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/journal"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// lastWord bounds how long the error that ends a stream may take.
const lastWord = time.Second

// errDetached ends an attachment whose client needs it no more.
var errDetached = errors.New("detached")

// attachment is a client of a session, over its connections. All but id, write and mute is guarded by the session's lock.
type attachment struct {
	e     *session
	id    string
	write bool
	mute  bool

	conn     net.Conn // nil while a writer's connection is broken
	journal  *journal.Journal
	release  func()
	cursor   *journal.Cursor
	acked    [2]uint64
	greeted  bool
	stdin    uint64 // acknowledged
	exitSent bool
	closing  bool
	why      *wire.ExecError // the last word
}

// has tells whether a writer has all output up to the offsets. The session's lock is held.
func (a *attachment) has(upTo [2]uint64) bool {
	return a.mute || a.acked[0] >= upTo[0] && a.acked[1] >= upTo[1]
}

// Serve speaks the agent's side of an attachment to a session on conn, whose first frame was req, until one side ends it. It does not close conn.
func (s *Sessions) Serve(ctx context.Context, req wire.ExecAttach, conn net.Conn, fr *wire.FrameReader) error {
	e, err := s.find(req.Session.Name)
	if err != nil {
		return err
	}
	a, err := e.attach(req, conn)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		a.send(conn)
	}()
	err = a.receive(conn, fr)
	e.leave(a, conn, err)
	<-sent
	a.release()
	if errors.Is(err, errDetached) {
		return nil
	}
	return err
}

// attach enters an attachment.
func (e *session) attach(req wire.ExecAttach, conn net.Conn) (*attachment, error) {
	want := req.Session
	j, release, err := e.openJournal()
	if err != nil {
		return nil, err
	}
	a := &attachment{e: e, id: req.ID, write: want.Write, mute: want.Mute, conn: conn, journal: j, release: release}
	end, _ := j.End()
	if want.Resume && (req.Stdout > end[0] || req.Stderr > end[1]) {
		release()
		return nil, wire.ExecErrorf(wire.ExecInvalid, "session %q has not written %d and %d bytes", e.name, req.Stdout, req.Stderr)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if a.write = e.admit(a, want.Resume); !a.write {
		e.readers[a] = struct{}{}
	}
	switch {
	case want.Mute, want.Tail == wire.TailUnread && !a.write && !want.Resume:
		a.cursor = j.Tail(0)
	case want.Resume:
		a.cursor = j.From([2]uint64{req.Stdout, req.Stderr})
	case want.Tail == wire.TailAll:
		a.cursor = j.Start()
	case want.Tail == wire.TailUnread:
		a.cursor = j.From(e.read)
	default:
		a.cursor = j.Tail(want.Tail)
	}
	a.acked = a.cursor.Offsets()
	e.news.Broadcast()
	return a, nil
}

// admit makes an attachment the one that writes, where it may be. One that comes back takes its own place; where another one has written
// meanwhile it reads, as what it sent and the session did not take has no place in stdin any more. The lock is held.
func (e *session) admit(a *attachment, resume bool) bool {
	old := e.writer
	if old != nil && old.id == a.id {
		old.hangUp(wire.ExecErrorf(wire.ExecTakenOver, "this client has come back by another connection"))
	}
	for r := range e.readers {
		if r.id == a.id {
			r.hangUp(wire.ExecErrorf(wire.ExecTakenOver, "this client has come back by another connection"))
			delete(e.readers, r)
		}
	}
	if !a.write || old != nil && old.id != a.id && old.conn != nil || resume && e.wrote != a.id {
		return false
	}
	e.writer, e.wrote = a, a.id
	return true
}

// hangUp ends an attachment's stream. The lock is held.
func (a *attachment) hangUp(why *wire.ExecError) {
	if a.closing || a.conn == nil {
		return
	}
	a.closing, a.why = true, why
	part(a.conn, why)
	a.e.news.Broadcast()
}

// leave is the end of an attachment's connection.
func (e *session) leave(a *attachment, conn net.Conn, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.readers, a)
	if e.writer == a {
		a.conn = nil
		if errors.Is(err, errDetached) || a.exitSent || errors.Is(err, wire.ErrProtocol) {
			e.writer = nil
		} else {
			time.AfterFunc(e.table.cfg.Grace, func() { e.forget(a) })
		}
	}
	var why *wire.ExecError
	if errors.Is(err, wire.ErrProtocol) {
		why = wire.ExecErrorf(wire.ExecInvalid, "%v", err)
	}
	if !a.closing {
		a.closing, a.why = true, why
		part(conn, why)
	}
	e.news.Broadcast()
}

// part bounds what is still written to a connection, and closes one to which there is nothing to say. It does not wait for
// either: a link to the host may be at a standstill, and the session's lock is held.
func part(conn net.Conn, why *wire.ExecError) {
	go func() {
		_ = conn.SetWriteDeadline(time.Now().Add(lastWord))
		if why == nil {
			_ = conn.Close()
		}
	}()
}

// forget gives up the place of a writer that did not come back.
func (e *session) forget(a *attachment) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.writer == a && a.conn == nil {
		e.writer = nil
		e.news.Broadcast()
	}
}

// send writes what there is for the client until the stream ends, and closes it.
func (a *attachment) send(conn net.Conn) {
	w := wire.NewFrameWriter(conn)
	for {
		a.e.mu.Lock()
		for !a.closing && !a.fill(w) {
			a.e.news.Wait()
		}
		closing, why := a.closing, a.why
		a.e.mu.Unlock()
		if closing {
			if why != nil {
				_ = w.JSON(wire.FrameError, why)
				_ = w.Flush()
			}
			_ = conn.Close()
			return
		}
		if w.Flush() != nil {
			_ = conn.SetReadDeadline(time.Now().Add(lastWord)) // for one who stays and does not read
			return
		}
	}
}

// fill appends what is new for the client, at most a chunk or two, and tells whether that was anything. The lock is held.
func (a *attachment) fill(w *wire.FrameWriter) bool {
	e := a.e
	taken := e.in.Base()
	if !a.greeted {
		a.greeted, a.stdin = true, taken
		_ = w.JSON(wire.FrameStarted, wire.ExecStarted{ID: a.id, PID: e.pid, Stdin: taken, Received: e.in.End(),
			StdinEOF: e.inEOF || e.inShut, ReadOnly: !a.write})
	}
	if a.write && taken > a.stdin {
		a.stdin = taken
		w.Offset(wire.FrameStdinAck, taken)
	}
	more := false
	for !a.mute && w.Buffered() < wire.MaxChunk {
		entry, ok, err := a.journal.Read(a.cursor)
		if err != nil {
			a.closing, a.why = true, wire.ExecErrorf(wire.ExecFailed, "read the log of session %q: %v", e.name, err)
			_ = a.conn.SetWriteDeadline(time.Now().Add(lastWord))
			return true
		}
		if more = ok; !ok {
			break
		}
		if entry.Lost > 0 {
			w.Gap(entry.Stream+1, entry.Offset)
			continue
		}
		copy(w.Chunk(wire.FrameStdout+wire.FrameType(entry.Stream), entry.Offset, len(entry.Data)), entry.Data)
	}
	if e.end != nil && !more && w.Buffered() < wire.MaxChunk && !a.exitSent {
		a.exitSent = true
		exit := e.end.Exit
		if exit == nil {
			a.closing, a.why = true, wire.ExecErrorf(wire.ExecFailed, "session %q ended with its guest", e.name)
			_ = a.conn.SetWriteDeadline(time.Now().Add(lastWord))
			return true
		}
		_ = w.JSON(wire.FrameExit, wire.ExecExit{Status: exit.Status, Signal: exit.Signal})
	}
	return w.Buffered() > 0
}

// receive handles the client's frames until the stream ends or it is detached.
func (a *attachment) receive(conn net.Conn, fr *wire.FrameReader) error {
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return err
		}
		if err := a.handle(conn, f); err != nil {
			return err
		}
	}
}

// handle does what one frame asks. What only the writer may ask does nothing for others.
func (a *attachment) handle(conn net.Conn, f wire.Frame) error {
	e := a.e
	e.mu.Lock()
	defer e.mu.Unlock()
	writes := e.writer == a && a.conn == conn
	switch f.Type {
	case wire.FrameStdin:
		offset, data, err := f.Data()
		if err != nil || !writes {
			return err
		}
		return e.receive(offset, data)
	case wire.FrameStdinEOF:
		offset, err := f.Offset()
		if err != nil || !writes {
			return err
		}
		if end := e.in.End(); offset != end {
			return wire.Violation("end of stdin at offset %d, have %d bytes", offset, end)
		}
		if e.meta.Stdin == wire.SessionPTY {
			e.typeEnd(a.id)
		} else {
			e.inEOF = true
		}
		e.news.Broadcast()
	case wire.FrameAck:
		stream, offset, err := f.Ack()
		if err != nil {
			return err
		}
		return a.ack(stream-1, offset)
	case wire.FrameSignal:
		if len(f.Payload) > 16 {
			return wire.Violation("signal name of %d bytes", len(f.Payload))
		}
		if !writes || e.end != nil {
			return nil
		}
		err := e.table.cfg.Processes.Signal(e.meta.ID, string(f.Payload))
		if x, ok := errors.AsType[*wire.ExecError](err); ok && x.Code == wire.ExecNoProcess {
			return nil
		}
		return err
	case wire.FrameResize:
		rows, cols, err := f.Size()
		if err == nil && writes {
			e.resize(rows, cols)
		}
		return err
	case wire.FrameDetach:
		return errDetached
	case wire.FrameCollect:
		if !a.exitSent {
			return wire.Violation("collected before the end")
		}
		return errDetached
	default:
		return wire.Violation("frame of type %d", f.Type)
	}
	return nil
}

// receive takes stdin from the writer: what is there already is skipped, a gap or more than the window is a violation. The lock is held.
func (e *session) receive(offset uint64, data []byte) error {
	end := e.in.End()
	switch {
	case offset > end:
		return wire.Violation("stdin at offset %d, expected %d", offset, end)
	case offset+uint64(len(data)) <= end:
		return nil
	case e.inEOF:
		return wire.Violation("stdin after its end")
	}
	data = data[end-offset:]
	if n := e.in.Append(data); n < len(data) {
		return wire.Violation("more than %d bytes of stdin in flight", wire.StdinWindow)
	}
	e.last = data[len(data)-1]
	if e.inShut && e.end == nil { // who writes to one that has ended is to know that it was not taken
		e.in.Ack(e.in.End())
	}
	e.news.Broadcast()
	return nil
}

// ack notes output the client has. The lock is held.
func (a *attachment) ack(i int, offset uint64) error {
	if sent := a.cursor.Offsets(); offset > sent[i] {
		return wire.Violation("acknowledged %d bytes of output %d, %d were sent", offset, i+1, sent[i])
	}
	a.acked[i] = max(a.acked[i], offset)
	if a.write {
		a.e.read[i] = max(a.e.read[i], offset)
		a.e.news.Broadcast()
	}
	return nil
}
