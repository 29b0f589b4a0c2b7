package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

const (
	callTimeout = 10 * time.Second // to be answered
	callAgain   = 200 * time.Millisecond
	// maxQueued is how many lines of the log wait for the host; older ones are dropped.
	maxQueued = 512
	// maxLogLine bounds a line of the log on its way to the host, in bytes.
	maxLogLine = 4 << 10
)

// link is a way to the host: a session on the virtio-serial port, or vsock.
type link interface {
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	Serve(handler func(port uint32, conn net.Conn) bool) error
	Done() <-chan struct{}
}

// whileLinked returns a context that ends with the link.
func whileLinked(ctx context.Context, l link) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-l.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// caller keeps the agent's call to its supervisor: marks, the log, and the end. What it is told
// while there is no call it says in the next.
type caller struct {
	hello   wire.Call                          // but for Secret and Token
	welcome func(r wire.CallReply, first bool) // first of this boot
	log     *slog.Logger                       // set before run

	mu       sync.Mutex // guards what follows
	secret   string     // until the first welcome
	token    string
	mark     api.Mark
	lines    []string
	dropped  int
	verb     string        // to be announced, until it is acknowledged
	verbSent bool          // in this call
	acked    chan struct{} // closed when the host has heard verb
	wake     chan struct{} // there is something to say
}

func newCaller(hello wire.Call, secret string, welcome func(r wire.CallReply, first bool)) *caller {
	return &caller{hello: hello, secret: secret, welcome: welcome, log: slog.New(slog.DiscardHandler),
		wake: make(chan struct{}, 1)}
}

// reached tells the host of a mark. A lower one than before is nothing new.
func (c *caller) reached(m api.Mark) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.mark.Reached(m) {
		c.mark = m
		c.poke()
	}
}

// current is the highest mark reached.
func (c *caller) current() api.Mark {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mark
}

// currentToken is what a stream to the host proves with that it is the agent's; empty before the welcome.
func (c *caller) currentToken() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.token
}

// logLine tells the host a line of the log.
func (c *caller) logLine(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.lines) >= maxQueued {
		c.lines = c.lines[1:]
		c.dropped++
	}
	c.lines = append(c.lines, text[:min(len(text), maxLogLine)])
	c.poke()
}

// announce tells the host how the guest is about to end and waits until it was heard.
func (c *caller) announce(ctx context.Context, verb string) error {
	c.mu.Lock()
	acked := make(chan struct{})
	c.verb, c.verbSent, c.acked = verb, false, acked
	c.poke()
	c.mu.Unlock()
	select {
	case <-acked:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("announce %s: %w", verb, context.Cause(ctx))
	}
}

// poke wakes the writer. c.mu is held.
func (c *caller) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// run calls, and calls again whenever the call breaks, until the link or ctx ends.
func (c *caller) run(ctx context.Context, l link) {
	ctx, cancel := whileLinked(ctx, l)
	defer cancel()
	for {
		err := c.once(ctx, l)
		if ctx.Err() != nil {
			return
		}
		c.log.Warn("the call to the host ended", "error", err)
		select {
		case <-time.After(callAgain):
		case <-ctx.Done():
			return
		}
	}
}

// once makes one call. It returns why that ended.
func (c *caller) once(ctx context.Context, l link) error {
	dialCtx, cancel := context.WithTimeout(ctx, callTimeout)
	conn, err := l.Dial(dialCtx, wire.PortCall)
	cancel()
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	lines := wire.NewLineReader(conn)
	if err := c.greet(conn, lines); err != nil {
		return err
	}
	broken := make(chan error, 1)
	go func() { broken <- c.listen(lines) }()
	var told api.Mark
	c.mu.Lock()
	c.verbSent = false
	c.mu.Unlock()
	for {
		for _, m := range c.pending(&told) {
			if err := wire.WriteLine(conn, m); err != nil {
				return err
			}
		}
		select {
		case <-c.wake:
		case err := <-broken:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// greet says hello and takes the welcome.
func (c *caller) greet(conn net.Conn, lines *wire.LineReader) error {
	hello := c.hello
	hello.Type, hello.Version = wire.CallHello, wire.Version
	c.mu.Lock()
	hello.Secret, hello.Token = c.secret, c.token
	c.mu.Unlock()
	if err := wire.WriteLine(conn, hello); err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Now().Add(callTimeout))
	var r wire.CallReply
	if err := lines.Read(&r); err != nil {
		return fmt.Errorf("await the host's welcome: %w", err)
	}
	_ = conn.SetReadDeadline(time.Time{})
	if r.Type != wire.ReplyWelcome {
		return fmt.Errorf("the host refused the call: %q", r.Reason)
	}
	c.mu.Lock()
	first := c.token == ""
	c.secret, c.token = "", r.Token
	c.mu.Unlock()
	c.welcome(r, first)
	return nil
}

// listen reads the host's answers until the call ends.
func (c *caller) listen(lines *wire.LineReader) error {
	for {
		var r wire.CallReply
		if err := lines.Read(&r); err != nil {
			return err
		}
		c.mu.Lock()
		if r.Type == wire.ReplyAck && c.verbSent {
			c.verb, c.verbSent = "", false
			close(c.acked)
		}
		c.mu.Unlock()
		if r.Type == wire.ReplyRefused {
			return errors.New("the host refused the call: " + r.Reason)
		}
	}
}

// pending returns what there is to say on a call on which told was said already. The end goes before the
// log, which may be long.
func (c *caller) pending(told *api.Mark) []wire.Call {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []wire.Call
	for _, m := range []api.Mark{api.MarkAgent, api.MarkReady, api.MarkFull} {
		if c.mark.Reached(m) && !told.Reached(m) {
			out = append(out, wire.Call{Type: wire.CallMark, Mark: string(m)})
			*told = m
		}
	}
	if c.verb != "" && !c.verbSent {
		out = append(out, wire.Call{Type: wire.CallEnding, Verb: c.verb})
		c.verbSent = true
	}
	if c.dropped > 0 {
		out = append(out, wire.Call{Type: wire.CallLog, Text: fmt.Sprintf("%d lines of the log were dropped", c.dropped)})
		c.dropped = 0
	}
	for _, l := range c.lines {
		out = append(out, wire.Call{Type: wire.CallLog, Text: l})
	}
	c.lines = nil
	return out
}
