package supervise

import (
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// heard is a listener that keeps what it was told.
type heard struct {
	mu   sync.Mutex // guards said
	said []string
}

func (h *heard) add(s string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.said = append(h.said, s)
}

func (h *heard) hello(m wire.Call)        { h.add("hello " + m.Agent) }
func (h *heard) badVersion(detail string) { h.add("bad version") }
func (h *heard) garbage(error)            { h.add("garbage") }
func (h *heard) mark(m api.Mark)          { h.add("mark " + string(m)) }
func (h *heard) ending(verb string)       { h.add("ending " + verb) }
func (h *heard) logLine(text string)      { h.add("log " + text) }

func (h *heard) list() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.said)
}

// caller is a guest's end of a call.
type caller struct {
	t    *testing.T
	conn net.Conn
	r    *wire.LineReader
	done chan struct{} // closed when the server has hung up
}

func call(t *testing.T, c *callServer) *caller {
	t.Helper()
	ours, theirs := net.Pipe()
	k := &caller{t: t, conn: ours, r: wire.NewLineReader(ours), done: make(chan struct{})}
	_ = ours.SetDeadline(time.Now().Add(20 * time.Second))
	go func() {
		c.serve(theirs)
		close(k.done)
	}()
	t.Cleanup(func() { ours.Close(); <-k.done })
	return k
}

func (k *caller) say(m wire.Call) {
	k.t.Helper()
	if err := wire.WriteLine(k.conn, m); err != nil {
		k.t.Fatalf("say %+v: %v", m, err)
	}
}

func (k *caller) ask(m wire.Call) wire.CallReply {
	k.t.Helper()
	k.say(m)
	var rep wire.CallReply
	if err := k.r.Read(&rep); err != nil {
		k.t.Fatalf("answer to %+v: %v", m, err)
	}
	return rep
}

func newCalls() (*callServer, *heard) {
	h := &heard{}
	return newCallServer("s3cret", h, slog.New(slog.DiscardHandler)), h
}

func helloOf(secret string) wire.Call {
	return wire.Call{Type: wire.CallHello, Secret: secret, Version: wire.Version, Agent: "1"}
}

func TestCall(t *testing.T) {
	c, h := newCalls()
	k := call(t, c)
	welcome := k.ask(helloOf("s3cret"))
	if welcome.Type != wire.ReplyWelcome || welcome.Token == "" || len(welcome.Entropy) != 64 || welcome.TimeUnixNano == 0 {
		t.Fatalf("the answer to the hello is %+v", welcome)
	}
	k.say(wire.Call{Type: wire.CallMark, Mark: "agent"})
	k.say(wire.Call{Type: wire.CallMark, Mark: "nonsense"})
	k.say(wire.Call{Type: wire.CallLog, Text: "two\nlines"})
	k.say(wire.Call{Type: "dance"})
	k.say(wire.Call{Type: wire.CallEnding, Verb: "explode"})
	if rep := k.ask(wire.Call{Type: wire.CallEnding, Verb: "halt"}); rep.Type != wire.ReplyAck {
		t.Errorf("the answer to an ending is %+v", rep)
	}
	want := []string{"hello 1", "mark agent", "log two lines", "ending halt"}
	if diff := cmp.Diff(want, h.list()); diff != "" {
		t.Errorf("heard (-want +got):\n%s", diff)
	}
	// The agent lost that call and comes back, with its token.
	again := call(t, c)
	hello := helloOf("")
	hello.Token = welcome.Token
	if rep := again.ask(hello); rep.Type != wire.ReplyWelcome || rep.Token != welcome.Token {
		t.Errorf("the answer to the token is %+v", rep)
	}
	<-k.done // the older call is over
}

func TestCallRefused(t *testing.T) {
	for name, c := range map[string]struct {
		hello wire.Call
		used  bool // the secret was used before
		heard []string
	}{
		"wrong secret":    {helloOf("other"), false, nil},
		"no secret":       {helloOf(""), false, nil},
		"secret again":    {helloOf("s3cret"), true, []string{"hello 1"}},
		"empty token":     {wire.Call{Type: wire.CallHello, Version: wire.Version}, false, nil},
		"no hello":        {wire.Call{Type: wire.CallEnding, Verb: "halt", Secret: "s3cret"}, false, nil},
		"another version": {wire.Call{Type: wire.CallHello, Secret: "s3cret", Version: 99}, false, []string{"bad version"}},
	} {
		t.Run(name, func(t *testing.T) {
			server, h := newCalls()
			if c.used {
				call(t, server).ask(helloOf("s3cret"))
			}
			k := call(t, server)
			if rep := k.ask(c.hello); rep.Type != wire.ReplyRefused || rep.Reason == "" || rep.Token != "" || len(rep.Entropy) != 0 {
				t.Errorf("the answer is %+v", rep)
			}
			<-k.done
			if diff := cmp.Diff(c.heard, h.list()); diff != "" {
				t.Errorf("heard (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHostileCallers(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON":      "hello\n",
		"endless line": strings.Repeat("x", wire.MaxCallLine+1),
		"wrong types":  `{"type":7}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			c, h := newCalls()
			k := call(t, c)
			_, _ = k.conn.Write([]byte(text))
			<-k.done
			if said := h.list(); len(said) > 0 {
				t.Errorf("heard %v", said)
			}
		})
	}
	t.Run("many", func(t *testing.T) {
		c, _ := newCalls()
		for range maxCallers {
			k := call(t, c)
			_, _ = k.conn.Write([]byte("{")) // it is being heard
		}
		<-call(t, c).done // one too many
	})
	t.Run("second hello", func(t *testing.T) {
		c, _ := newCalls()
		k := call(t, c)
		k.ask(helloOf("s3cret"))
		k.say(helloOf("s3cret"))
		<-k.done
	})
}

func FuzzCall(f *testing.F) {
	f.Add([]byte(`{"type":"hello","secret":"s3cret","version":1}` + "\n" + `{"type":"ending","verb":"halt"}` + "\n"))
	f.Add([]byte(`{"type":"hello","token":""}` + "\n"))
	f.Add([]byte(`{"type":"mark","mark":"full"}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, h := newCalls()
		ours, theirs := net.Pipe()
		go func() {
			_, _ = ours.Write(b)
			ours.Close()
		}()
		go func() { // read what is answered
			var buf [512]byte
			for {
				if _, err := ours.Read(buf[:]); err != nil {
					return
				}
			}
		}()
		c.serve(theirs)
		for _, s := range h.list() {
			if !c.used && s != "bad version" {
				t.Errorf("heard %q of a caller without the secret", s)
			}
		}
	})
}
