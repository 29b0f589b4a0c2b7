package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
)

// maxMessage is the longest message of QMP that is accepted, in bytes.
const maxMessage = 1 << 20

// qmp is a client of QEMU's machine protocol, just as large as banger needs it.
// https://www.qemu.org/docs/master/interop/qmp-spec.html
type qmp struct {
	conn    net.Conn
	onEvent func(qmpEvent) // called from the reading goroutine
	done    chan struct{}  // closed when the connection has ended

	mu      sync.Mutex // guards what follows
	next    uint64
	pending map[uint64]chan qmpMessage
	err     error
}

// qmpMessage is any line QEMU sends.
type qmpMessage struct {
	Greeting json.RawMessage `json:"QMP"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"`
	ID       *uint64         `json:"id"`
	Return   json.RawMessage `json:"return"`
	Error    *QMPError       `json:"error"`
}

// qmpEvent is something QEMU tells unasked.
type qmpEvent struct {
	Name string
	Data json.RawMessage
}

// QMPError is QEMU's refusal of a command.
type QMPError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

// Error implements error.
func (e *QMPError) Error() string { return e.Desc }

var errQMPClosed = errors.New("qemu closed its control connection")

// newQMP waits for QEMU's greeting on conn and negotiates. It owns conn.
func newQMP(ctx context.Context, conn net.Conn, onEvent func(qmpEvent)) (*qmp, error) {
	q := &qmp{conn: conn, onEvent: onEvent, done: make(chan struct{}), pending: map[uint64]chan qmpMessage{}}
	greeted := make(chan struct{})
	go q.read(greeted)
	select {
	case <-greeted:
	case <-q.done:
		return nil, q.failure()
	case <-ctx.Done():
		q.close()
		return nil, context.Cause(ctx)
	}
	if err := q.execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		q.close()
		return nil, fmt.Errorf("negotiate with qemu: %w", err)
	}
	return q, nil
}

// read hands out messages until the connection ends.
func (q *qmp) read(greeted chan struct{}) {
	err := q.readAll(greeted)
	q.mu.Lock()
	q.err = err
	pending := q.pending
	q.pending = nil
	q.mu.Unlock()
	for _, ch := range pending {
		close(ch)
	}
	q.conn.Close()
	close(q.done)
}

func (q *qmp) readAll(greeted chan struct{}) error {
	r := bufio.NewReaderSize(q.conn, 4096)
	sawGreeting := false
	for {
		line, err := readLine(r, maxMessage)
		if err != nil {
			return err
		}
		var m qmpMessage
		if err := json.Unmarshal(line, &m); err != nil {
			return fmt.Errorf("read a message of qemu: %w", err)
		}
		switch {
		case m.Greeting != nil:
			if sawGreeting {
				return errors.New("read a message of qemu: a second greeting")
			}
			sawGreeting = true
			close(greeted)
		case m.Event != "":
			q.onEvent(qmpEvent{Name: m.Event, Data: m.Data})
		case m.ID != nil:
			q.deliver(*m.ID, m)
		}
	}
}

func (q *qmp) deliver(id uint64, m qmpMessage) {
	q.mu.Lock()
	ch := q.pending[id]
	delete(q.pending, id)
	q.mu.Unlock()
	if ch != nil {
		ch <- m
	}
}

// execute runs a command and decodes its result into out, which may be nil.
func (q *qmp) execute(ctx context.Context, name string, args, out any) error {
	ch := make(chan qmpMessage, 1)
	q.mu.Lock()
	if q.pending == nil {
		q.mu.Unlock()
		return q.failure()
	}
	q.next++
	id := q.next
	q.pending[id] = ch
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{name, args, id})
	if err == nil {
		_, err = q.conn.Write(append(line, '\n'))
	}
	q.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	select {
	case m, ok := <-ch:
		switch {
		case !ok:
			return fmt.Errorf("%s: %w", name, q.failure())
		case m.Error != nil:
			return fmt.Errorf("%s: %w", name, m.Error)
		case out != nil:
			return json.Unmarshal(m.Return, out)
		}
		return nil
	case <-ctx.Done():
		q.mu.Lock()
		delete(q.pending, id)
		q.mu.Unlock()
		return fmt.Errorf("%s: %w", name, context.Cause(ctx))
	}
}

// failure is why the connection ended.
func (q *qmp) failure() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return fmt.Errorf("%w: %w", errQMPClosed, q.err)
}

// close ends the connection and waits for the reader.
func (q *qmp) close() {
	q.conn.Close()
	<-q.done
}

// readLine reads one line of at most limit bytes; the result is good until the next call.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if !errors.Is(err, bufio.ErrBufferFull) {
		return line, err
	}
	long := append([]byte(nil), line...)
	for errors.Is(err, bufio.ErrBufferFull) {
		if len(long) > limit {
			return nil, fmt.Errorf("read a message of qemu: longer than %d bytes", limit)
		}
		line, err = r.ReadSlice('\n')
		long = append(long, line...)
	}
	return long, err
}
