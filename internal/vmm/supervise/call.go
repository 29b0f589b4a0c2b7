package supervise

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

const (
	// helloTimeout is how long a caller may take to say who it is.
	helloTimeout = 10 * time.Second
	// replyTimeout is how long it may leave an answer unread.
	replyTimeout = 10 * time.Second
	// maxCallers is how many calls are heard at once; the agent needs one.
	maxCallers = 4
)

// listener is told what the agent of a boot says, one thing at a time.
type listener interface {
	// hello: the agent called with the secret, or again with its token.
	hello(wire.Call)
	// badVersion: the caller had the secret and speaks another version.
	badVersion(detail string)
	// garbage: what called, where the agent has never called, said nothing that is a call, again and again.
	garbage(err error)
	mark(api.Mark)
	// ending returns before the agent is told that it was heard.
	ending(verb string)
	logLine(text string)
}

// callServer is the supervisor's end of the agent's call, of one boot.
type callServer struct {
	secret string
	log    *slog.Logger
	to     listener
	now    func() time.Time

	mu      sync.Mutex // guards what follows, and serialises the listener
	used    bool       // the secret was
	token   string
	current net.Conn // the call that counts
	callers int
	noise   int // calls with garbage, while the agent has never called
}

// newSecret returns 64 random hex digits.
func newSecret() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails, says its documentation
	return hex.EncodeToString(b[:])
}

func newCallServer(secret string, to listener, log *slog.Logger) *callServer {
	return &callServer{secret: secret, to: to, log: log, now: time.Now}
}

// serve hears one caller out and closes its connection.
func (c *callServer) serve(conn net.Conn) {
	defer conn.Close()
	c.mu.Lock()
	full := c.callers >= maxCallers
	if !full {
		c.callers++
	}
	c.mu.Unlock()
	if full {
		return
	}
	defer func() {
		c.mu.Lock()
		c.callers--
		if c.current == conn {
			c.current = nil
		}
		c.mu.Unlock()
	}()
	r := wire.NewLineReader(conn)
	_ = conn.SetReadDeadline(c.now().Add(helloTimeout))
	var hello wire.Call
	if err := r.Read(&hello); err != nil {
		c.log.Warn("the guest's call began with no hello", "error", err)
		c.hearNoise(err)
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	answer, err := c.admit(hello, conn)
	if err != nil {
		c.log.Warn("a call of the guest was refused", "error", err)
		_ = c.reply(conn, wire.CallReply{Type: wire.ReplyRefused, Reason: err.Error()})
		return
	}
	if err := c.reply(conn, answer); err != nil {
		return
	}
	for {
		var m wire.Call
		if err := r.Read(&m); err != nil {
			return
		}
		if err := c.hear(conn, m); err != nil {
			c.log.Warn("the guest's call was ended", "error", err)
			return
		}
	}
}

// hearNoise counts calls that are none. Until the agent has called nothing but it runs in the guest; later whoever likes may call.
func (c *callServer) hearNoise(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !errors.Is(err, wire.ErrProtocol) || c.token != "" {
		return
	}
	if c.noise++; c.noise == maxGarbage {
		c.to.garbage(err)
	}
}

func (c *callServer) reply(conn net.Conn, r wire.CallReply) error {
	_ = conn.SetWriteDeadline(c.now().Add(replyTimeout))
	return wire.WriteLine(conn, r)
}

// admit decides on a hello: the secret is good once, the token it was exchanged for from then on.
func (c *callServer) admit(hello wire.Call, conn net.Conn) (wire.CallReply, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if hello.Type != wire.CallHello {
		return wire.CallReply{}, errors.New("a call begins with a hello")
	}
	known := same(hello.Secret, c.secret) && !c.used
	again := same(hello.Token, c.token)
	if !known && !again {
		return wire.CallReply{}, errors.New("neither the secret of this boot nor its token")
	}
	if hello.Version != wire.Version {
		detail := fmt.Sprintf("the agent speaks version %d, this host %d", hello.Version, wire.Version)
		c.to.badVersion(detail)
		return wire.CallReply{}, errors.New(detail)
	}
	c.used = true
	if c.token == "" {
		c.token = newSecret()
	}
	if c.current != nil {
		c.current.Close() // a call that is open still is one the agent has lost
	}
	c.current = conn
	c.to.hello(hello)
	entropy := make([]byte, 64)
	_, _ = rand.Read(entropy)
	return wire.CallReply{
		Type: wire.ReplyWelcome, Token: c.token, TimeUnixNano: c.now().UnixNano(), Entropy: entropy,
	}, nil
}

// knows reports whether token is the one the agent of this boot was given.
func (c *callServer) knows(token string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return same(token, c.token)
}

// given is the token the agent of this boot was given; empty before.
func (c *callServer) given() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.token
}

// resume makes the server one of a guest that was restored: it has been welcomed before, and has a token.
func (c *callServer) resume(token string) { c.used, c.token = true, token }

// same compares in constant time; an empty want is the same as nothing.
func same(got, want string) bool {
	return want != "" && subtle.ConstantTimeCompare([]byte(got), []byte(want)) == 1
}

// hear acts on a message of an admitted caller.
func (c *callServer) hear(conn net.Conn, m wire.Call) error {
	c.mu.Lock()
	if c.current != conn {
		c.mu.Unlock()
		return errors.New("another call has taken its place")
	}
	ack := false
	switch m.Type {
	case wire.CallMark:
		if mark := api.Mark(m.Mark); mark.Valid() {
			c.to.mark(mark)
		}
	case wire.CallLog:
		c.to.logLine(strings.NewReplacer("\n", " ", "\r", " ").Replace(m.Text))
	case wire.CallEnding:
		if m.Verb == "poweroff" || m.Verb == "reboot" || m.Verb == "halt" {
			c.to.ending(m.Verb)
			ack = true
		}
	case wire.CallHello:
		c.mu.Unlock()
		return errors.New("a second hello in one call")
	}
	c.mu.Unlock()
	if ack {
		return c.reply(conn, wire.CallReply{Type: wire.ReplyAck})
	}
	return nil
}
