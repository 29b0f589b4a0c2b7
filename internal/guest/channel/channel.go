// Package channel makes many streams out of the one byte stream between a
// supervisor and the agent in its guest: QEMU's virtio-serial port. It is the
// hand-shake of package wire (a hello with a nonce, repeated until it is
// answered) and yamux after it, for both ends.
//
// The files: channel.go the hand-shake and the two ways to a Session;
// session.go the streams of a session; conn.go one stream; frames.go what
// lies between yamux and the byte stream, namely the search for hellos at frame
// boundaries, the limits a hostile peer meets, and resets; inbox.go the bytes that
// were read and not yet used.
//
// Neither end trusts the other with memory: streams the peer may have open are counted,
// pings (which yamux answers with a goroutine each) are dropped, and the window of a stream is 1 MiB.
package channel

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

const (
	// helloEvery is how often the host repeats an unanswered hello.
	helloEvery = 300 * time.Millisecond
	// maxGarbage is how many bytes that are no reply the host skips before it gives up:
	// what an earlier session left in the guest's queue is less.
	maxGarbage = 4 << 20
	helloLen   = len(wire.HelloMagic) + wire.NonceLen

	// Streams a guest may have open to its supervisor, and the other way round.
	maxGuestStreams = 64
	maxHostStreams  = 4096
)

// Errors of this package that callers test for.
var (
	// ErrRefused says that nobody listens on the dialled port.
	ErrRefused = errors.New("connection refused by the guest")
	// ErrGarbage says that the peer sent something that is neither a reply nor a frame.
	ErrGarbage = errors.New("the peer does not speak the channel's protocol")
	// ErrClosed says that the session has ended.
	ErrClosed = errors.New("the channel's session has ended")

	errNewHello = errors.New("a new session began")
)

// Host opens the supervisor's side: it says hello until the agent answers and
// returns the session. It owns conn, and closes it with the session or on an
// error. A guest that sends more than 4 MiB which is no reply gives ErrGarbage.
func Host(ctx context.Context, conn net.Conn) (*Session, error) {
	s, err := host(ctx, conn)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open the agent's channel: %w", err)
	}
	return s, nil
}

func host(ctx context.Context, conn net.Conn) (*Session, error) {
	hello := make([]byte, helloLen)
	copy(hello, wire.HelloMagic[:])
	if _, err := rand.Read(hello[len(wire.HelloMagic):]); err != nil {
		return nil, err
	}
	want := append(bytes.Clone(wire.ReplyMagic[:]), hello[len(wire.HelloMagic):]...)

	in := newInbox()
	go in.pump(conn)
	found := make(chan error, 1)
	go func() {
		_, err := in.scan(func(b []byte) bool { return bytes.Equal(b, want) }, maxGarbage)
		found <- err
	}()

	// A write to a guest that is not up yet may block: the context ends it.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err := sayHello(conn, hello, found)
	if !stop() || ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, err
	}
	return newSession(newFrames(in, conn, conn.Close, nil, maxGuestStreams), true)
}

// sayHello writes hello every helloEvery until found says how the search for the reply went.
// It never leaves half a hello behind, unless the connection is broken.
func sayHello(w io.Writer, hello []byte, found <-chan error) error {
	tick := time.NewTicker(helloEvery)
	defer tick.Stop()
	for {
		if _, err := w.Write(hello); err != nil {
			return err
		}
		select {
		case err := <-found:
			return err
		case <-tick.C:
		}
	}
}

// Acceptor is the agent's side of the byte stream. Sessions follow one another on it.
type Acceptor struct {
	rw io.ReadWriteCloser
	in *inbox

	mu    sync.Mutex // serialises Accept
	prev  *Session
	nonce []byte // answered last
}

// Guest serves rw, which it owns. An error of rw's Read is final: a port without a host must wait, not
// end (see the agent's port).
func Guest(rw io.ReadWriteCloser) *Acceptor {
	a := &Acceptor{rw: rw, in: newInbox()}
	go a.in.pump(rw)
	return a
}

// Accept waits for the end of the previous session and for a hello, answers it and returns the session.
// A hello that arrives in a session ends it. After ctx ended, the Acceptor is closed.
func (a *Acceptor) Accept(ctx context.Context) (*Session, error) {
	stop := context.AfterFunc(ctx, func() { a.Close() })
	defer stop()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.prev != nil {
		<-a.prev.Done()
		a.prev = nil
	}
	hello, err := a.in.scan(func(b []byte) bool {
		return bytes.HasPrefix(b, wire.HelloMagic[:]) && !bytes.Equal(b[len(wire.HelloMagic):], a.nonce)
	}, 0)
	if err != nil {
		return nil, acceptError(ctx, err)
	}
	a.nonce = bytes.Clone(hello[len(wire.HelloMagic):])
	reply := append(bytes.Clone(wire.ReplyMagic[:]), a.nonce...)
	if _, err := a.rw.Write(reply); err != nil {
		return nil, acceptError(ctx, err)
	}
	none := func() error { return nil } // the byte stream outlives the session
	s, err := newSession(newFrames(a.in, a.rw, none, a.nonce, maxHostStreams), false)
	if err != nil {
		return nil, acceptError(ctx, err)
	}
	a.prev = s
	return s, nil
}

// Close closes the byte stream and ends the session on it.
func (a *Acceptor) Close() error {
	a.in.close(ErrClosed)
	return a.rw.Close()
}

func acceptError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return fmt.Errorf("await the host's hello: %w", err)
}
