package agent

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// pipeLink is a link whose Dial makes a pipe, the other end of which the test takes.
type pipeLink struct {
	calls chan net.Conn
	done  chan struct{}
}

func newPipeLink() *pipeLink {
	return &pipeLink{calls: make(chan net.Conn, 8), done: make(chan struct{})}
}

func (l *pipeLink) Dial(_ context.Context, port uint32) (net.Conn, error) {
	if port != wire.PortCall {
		return nil, errors.New("the agent dialled another port")
	}
	a, b := net.Pipe()
	l.calls <- b
	return a, nil
}
func (l *pipeLink) Serve(func(uint32, net.Conn) bool) error { <-l.done; return nil }
func (l *pipeLink) Done() <-chan struct{}                   { return l.done }

// supervisor is the host's end of one call.
type supervisor struct {
	t    *testing.T
	conn net.Conn
	r    *wire.LineReader
}

func (l *pipeLink) take(t *testing.T) *supervisor {
	t.Helper()
	select {
	case c := <-l.calls:
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		return &supervisor{t, c, wire.NewLineReader(c)}
	case <-time.After(20 * time.Second):
		t.Fatal("no call came")
		return nil
	}
}

func (s *supervisor) hear() wire.Call {
	s.t.Helper()
	var c wire.Call
	must(s.t, s.r.Read(&c))
	return c
}

func (s *supervisor) say(r wire.CallReply) {
	s.t.Helper()
	must(s.t, wire.WriteLine(s.conn, r))
}

func startCall(t *testing.T) (*caller, *pipeLink, chan wire.CallReply) {
	welcomes := make(chan wire.CallReply, 8)
	c := newCaller(wire.Call{Agent: "dev", Init: "none"}, "secret", func(r wire.CallReply, first bool) {
		if !first {
			r.Reason = "again"
		}
		welcomes <- r
	})
	l := newPipeLink()
	go c.run(t.Context(), l)
	return c, l, welcomes
}

func TestCall(t *testing.T) {
	c, l, welcomes := startCall(t)
	s := l.take(t)
	want := wire.Call{Type: wire.CallHello, Secret: "secret", Version: wire.Version, Agent: "dev", Init: "none"}
	if diff := cmp.Diff(want, s.hear()); diff != "" {
		t.Fatal(diff)
	}
	s.say(wire.CallReply{Type: wire.ReplyWelcome, Token: "token", TimeUnixNano: 7})
	if r := <-welcomes; r.TimeUnixNano != 7 || r.Reason != "" {
		t.Errorf("welcome %+v", r)
	}
	c.reached(api.MarkAgent)
	if m := s.hear(); m.Mark != "agent" {
		t.Errorf("heard %+v", m)
	}
	c.reached(api.MarkFull) // says ready as well, so that nobody waits for what was passed over
	if a, b := s.hear(), s.hear(); a.Mark != "ready" || b.Mark != "full" {
		t.Errorf("heard %+v, %+v", a, b)
	}
	c.reached(api.MarkReady)
	c.logLine("a line")
	if m := s.hear(); m.Type != wire.CallLog || m.Text != "a line" {
		t.Errorf("heard %+v: marks do not go back", m)
	}

	// The call breaks: the next one carries the token, and says again what the host may have missed.
	s.conn.Close()
	s = l.take(t)
	if h := s.hear(); h.Token != "token" || h.Secret != "" {
		t.Errorf("second hello %+v", h)
	}
	s.say(wire.CallReply{Type: wire.ReplyWelcome, Token: "token"})
	for _, m := range []string{"agent", "ready", "full"} {
		if got := s.hear(); got.Mark != m {
			t.Errorf("heard %+v, want mark %s", got, m)
		}
	}
	if r := <-welcomes; r.Reason != "again" {
		t.Errorf("a later welcome is %+v", r)
	}
}

func TestAnnounce(t *testing.T) {
	c, l, _ := startCall(t)
	s := l.take(t)
	s.hear()
	s.say(wire.CallReply{Type: wire.ReplyWelcome, Token: "token"})
	done := make(chan error, 1)
	go func() { done <- c.announce(t.Context(), verbReboot) }()
	if m := s.hear(); m.Type != wire.CallEnding || m.Verb != verbReboot {
		t.Fatalf("heard %+v", m)
	}
	s.conn.Close() // before the answer: it is said again
	s = l.take(t)
	s.hear()
	s.say(wire.CallReply{Type: wire.ReplyWelcome, Token: "token"})
	if m := s.hear(); m.Verb != verbReboot {
		t.Fatalf("heard %+v", m)
	}
	select {
	case err := <-done:
		t.Fatalf("announced before it was heard: %v", err)
	default:
	}
	s.say(wire.CallReply{Type: wire.ReplyAck})
	must(t, <-done)

	// Another verb needs an answer of its own; a host that gives none is not waited for.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	go func() { _ = s.r.Read(new(wire.Call)) }()
	if err := c.announce(ctx, verbHalt); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("announce: %v", err)
	}
}

func TestRefusedCallIsTriedAgain(t *testing.T) {
	_, l, welcomes := startCall(t)
	s := l.take(t)
	s.hear()
	s.say(wire.CallReply{Type: wire.ReplyRefused, Reason: "busy"})
	s = l.take(t)
	if h := s.hear(); h.Secret != "secret" {
		t.Errorf("hello %+v", h)
	}
	s.say(wire.CallReply{Type: wire.ReplyWelcome, Token: "t"})
	<-welcomes
	s.conn.Close()
}

func TestCallEndsWithItsLink(t *testing.T) {
	c := newCaller(wire.Call{}, "secret", func(wire.CallReply, bool) {})
	l := newPipeLink()
	ended := make(chan struct{})
	go func() { c.run(t.Context(), l); close(ended) }()
	l.take(t)
	close(l.done)
	<-ended
}

func TestLogQueueIsBounded(t *testing.T) {
	c := newCaller(wire.Call{}, "secret", func(wire.CallReply, bool) {})
	for range 3 * maxQueued {
		c.logLine(strings.Repeat("x", 2*maxLogLine))
	}
	var told api.Mark
	out := c.pending(&told)
	if len(out) != maxQueued+1 || !strings.Contains(out[0].Text, "1024 lines") || len(out[1].Text) != maxLogLine {
		t.Errorf("%d messages, first %q", len(out), out[0].Text)
	}
	if again := c.pending(&told); len(again) != 0 {
		t.Errorf("%d messages twice", len(again))
	}
}
