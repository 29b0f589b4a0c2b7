package channel

import (
	"bytes"
	"fmt"
	"io"
	"sync"
)

// inboxBytes is how much is read ahead of its use.
const inboxBytes = 64 << 10

// inbox is a bounded queue of the bytes that were read from the byte stream. One
// goroutine fills it for as long as the stream lives; who uses them changes with the sessions.
type inbox struct {
	mu   sync.Mutex // guards all; held by the methods of frames as well
	cond *sync.Cond // bytes came, room came, an error came, or a reader has to look up
	buf  []byte
	from int // first unread byte
	n    int // unread bytes
	err  error
}

func newInbox() *inbox {
	in := &inbox{buf: make([]byte, inboxBytes)}
	in.cond = sync.NewCond(&in.mu)
	return in
}

// pump reads r until it fails; what it read before stays readable.
func (in *inbox) pump(r io.Reader) {
	for {
		room := in.room()
		if room == nil {
			return
		}
		n, err := r.Read(room)
		in.mu.Lock()
		in.n += n
		if err != nil && in.err == nil {
			in.err = err
		}
		in.cond.Broadcast()
		in.mu.Unlock()
	}
}

// room waits for room and returns a contiguous part of it, or nil after an error.
func (in *inbox) room() []byte {
	in.mu.Lock()
	defer in.mu.Unlock()
	for in.n == len(in.buf) && in.err == nil {
		in.cond.Wait()
	}
	if in.err != nil {
		return nil
	}
	if in.n == 0 {
		in.from = 0
	}
	start := in.from + in.n
	if start < len(in.buf) {
		return in.buf[start:]
	}
	return in.buf[start-len(in.buf) : in.from]
}

// close makes readers end with err and the pump as soon as its Read returns.
func (in *inbox) close(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.err == nil {
		in.err = err
	}
	in.n = 0
	in.cond.Broadcast()
}

// peek copies unread bytes to p and returns how many. in.mu is held.
func (in *inbox) peek(p []byte) int {
	n := min(len(p), in.n)
	c := copy(p[:n], in.buf[in.from:])
	copy(p[c:n], in.buf)
	return n
}

// skip forgets n unread bytes. in.mu is held.
func (in *inbox) skip(n int) {
	if in.n == len(in.buf) {
		in.cond.Broadcast() // the pump waits for room
	}
	in.from = (in.from + n) % len(in.buf)
	in.n -= n
}

// scan skips bytes until the next helloLen ones satisfy is, takes those and returns them. Where limit is not 0, more
// than limit skipped bytes give ErrGarbage.
func (in *inbox) scan(is func([]byte) bool, limit int) ([]byte, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	win := make([]byte, 4096)
	for skipped := 0; ; {
		for in.n < helloLen && in.err == nil {
			in.cond.Wait()
		}
		if in.n < helloLen {
			return nil, in.err
		}
		have := win[:in.peek(win)]
		at := 0
		for ; at+helloLen <= len(have); at++ {
			// Both magics begin with the same byte, which is rare elsewhere.
			next := bytes.IndexByte(have[at:], magicByte)
			if next < 0 {
				at = len(have)
				break
			}
			at += next
			if at+helloLen <= len(have) && is(have[at:at+helloLen]) {
				in.skip(at + helloLen)
				return have[at : at+helloLen], nil
			}
			if at+helloLen > len(have) {
				break
			}
		}
		in.skip(at)
		skipped += at
		if limit > 0 && skipped > limit {
			return nil, fmt.Errorf("%w: %d bytes without an answer to the hello", ErrGarbage, skipped)
		}
	}
}
