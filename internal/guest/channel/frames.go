package channel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// The header of a yamux frame: version 0, type, flags, stream, length; the
// length is that of a body for data frames only.
const (
	headerLen = 12

	typeData   = 0
	typeWindow = 1
	typePing   = 2
	typeGoAway = 3

	flagSYN = 1
	flagFIN = 4
	flagRST = 8

	magicByte = 0xb6

	// window is the most a stream may have in flight, and so the longest body.
	window = 1 << 20
	// maxResets bounds what waits to be written besides yamux's own frames: 1,024 resets.
	maxResets = 1024 * headerLen
	// joinBytes: a header and a body up to this length are written at once. virtio-serial takes 32 KiB a write.
	joinBytes = 32<<10 - headerLen
)

// frames is the connection yamux is given. It passes frames both ways and adds what yamux
// lacks: it ends at a new hello, bounds the streams of the peer, and resets streams, which lets Close mean
// what it means for a socket while a half-closed stream lives as long as it likes.
type frames struct {
	in    *inbox
	w     io.Writer
	stop  func() error
	nonce []byte // of the hello this session answered; nil on the host
	// maxPeer is how many streams the peer may have open at once.
	maxPeer int
	odd     uint32 // id&1 of the peer's streams

	// Guarded by in.mu:
	closed  bool
	err     error // why Read ended, where it was not closed
	left    int   // body bytes left of the frame being read
	drop    bool  // that body goes to nobody
	head    []byte
	headBuf [headerLen]byte
	local   []byte // resets for our own yamux
	streams map[uint32]*halves
	peers   int // streams in it the peer opened

	wmu   sync.Mutex // guards the writing of frames
	wleft int        // body bytes yamux has still to write
	join  []byte     // a header that waits for its body

	qmu   sync.Mutex // guards queue
	queue []byte     // resets for the peer, written between frames
}

// halves is what is known of a stream. Guarded by in.mu.
type halves struct {
	remote, local bool        // closed
	timer         *time.Timer // resets it, where it lingers
}

func newFrames(in *inbox, w io.Writer, stop func() error, nonce []byte, maxPeer int) *frames {
	f := &frames{in: in, w: w, stop: stop, nonce: nonce, maxPeer: maxPeer, streams: map[uint32]*halves{}}
	if nonce != nil {
		f.odd = 1 // the host is the yamux client, whose streams have odd ids
	}
	return f
}

// Read implements io.Reader for yamux: whole frames, in pieces.
func (f *frames) Read(p []byte) (int, error) {
	f.in.mu.Lock()
	defer f.in.mu.Unlock()
	for {
		switch {
		case f.closed:
			return 0, io.EOF
		case len(f.head) > 0:
			n := copy(p, f.head)
			f.head = f.head[n:]
			return n, nil
		case f.left > 0 && f.in.n > 0:
			n := min(f.left, f.in.n)
			if !f.drop {
				n = f.in.peek(p[:min(len(p), n)])
			}
			f.in.skip(n)
			f.left -= n
			if !f.drop {
				return n, nil
			}
		case f.left == 0 && len(f.local) > 0:
			f.head, f.local = f.local, nil
		default:
			ok, err := f.boundary()
			if err != nil {
				f.err = err
				return 0, err
			}
			if !ok {
				if f.in.err != nil {
					f.err = f.in.err
					return 0, f.in.err
				}
				f.in.cond.Wait()
			}
		}
	}
}

// boundary takes the next header, or reports false where more bytes are needed for it.
func (f *frames) boundary() (bool, error) {
	var b [headerLen + helloLen]byte
	have := b[:f.in.peek(b[:helloLen])]
	if f.left > 0 || len(have) == 0 {
		return false, nil
	}
	if have[0] == magicByte && f.nonce != nil {
		if len(have) < helloLen {
			return false, nil
		}
		if !bytes.HasPrefix(have, wire.HelloMagic[:]) {
			return false, ErrGarbage
		}
		if !bytes.Equal(have[len(wire.HelloMagic):], f.nonce) {
			return false, errNewHello // stays unread, for Accept
		}
		f.in.skip(helloLen)
		return true, nil
	}
	if have[0] != 0 {
		return false, ErrGarbage
	}
	if len(have) < headerLen {
		return false, nil
	}
	return true, f.header(have[:headerLen])
}

// header decides about a frame of the peer.
func (f *frames) header(h []byte) error {
	typ, flags := h[1], binary.BigEndian.Uint16(h[2:])
	id, length := binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint32(h[8:])
	if typ > typeGoAway || typ == typeData && length > window {
		return fmt.Errorf("%w: frame of type %d and length %d", ErrGarbage, typ, length)
	}
	f.in.skip(headerLen)
	f.left, f.drop = 0, false
	if typ == typeData {
		f.left = int(length)
	}
	if typ == typePing {
		return nil
	}
	if typ != typeGoAway {
		pass, err := f.track(id, flags, f.left > 0)
		if err != nil {
			return err
		}
		if !pass {
			f.drop = true
			return nil
		}
	}
	f.head = append(f.headBuf[:0], h...)
	return nil
}

// track follows the life of a stream by the flags of the peer's frames, and reports whether the frame is for yamux.
func (f *frames) track(id uint32, flags uint16, body bool) (bool, error) {
	if flags&flagSYN != 0 {
		if id&1 != f.odd || f.streams[id] != nil {
			return false, fmt.Errorf("%w: stream %d opened twice or by the wrong side", ErrGarbage, id)
		}
		if f.peers >= f.maxPeer {
			return false, f.enqueue(id)
		}
		f.streams[id] = &halves{}
		f.peers++
	}
	h := f.streams[id]
	if h == nil {
		return false, nil // of a stream that was reset
	}
	if flags&flagRST != 0 {
		f.forget(id)
		return true, nil
	}
	if h.local && body {
		return false, f.resetLocked(id)
	}
	if flags&flagFIN != 0 {
		if h.remote {
			return false, nil
		}
		h.remote = true
		if h.local {
			f.forget(id)
		}
	}
	return true, nil
}

// opened notes a stream that this side opened.
func (f *frames) opened(id uint32) {
	f.in.mu.Lock()
	defer f.in.mu.Unlock()
	if f.streams[id] == nil {
		f.streams[id] = &halves{}
	}
}

// half is what is known of a stream; of one that has ended already, nothing.
func (f *frames) half(id uint32) *halves {
	f.in.mu.Lock()
	defer f.in.mu.Unlock()
	if h := f.streams[id]; h != nil {
		return h
	}
	return &halves{}
}

// finished reports whether the peer closed its direction: only then is an end of file one.
func (f *frames) finished(h *halves) bool {
	f.in.mu.Lock()
	defer f.in.mu.Unlock()
	return h.remote
}

// closing notes that this side is done with a stream, reading included, and reports whether the peer is not.
func (f *frames) closing(id uint32) bool {
	f.in.mu.Lock()
	defer f.in.mu.Unlock()
	h := f.streams[id]
	if h == nil {
		return false
	}
	h.local = true
	if h.remote {
		f.forget(id)
	}
	return !h.remote
}

// reset ends a stream on both sides, unless it has ended.
func (f *frames) reset(id uint32) {
	f.in.mu.Lock()
	defer f.in.mu.Unlock()
	if f.streams[id] != nil {
		_ = f.resetLocked(id) // a queue that is full ends the session by itself
	}
}

func (f *frames) resetLocked(id uint32) error {
	f.forget(id)
	f.local = append(f.local, resetFrame(id)...)
	f.in.cond.Broadcast()
	return f.enqueue(id)
}

func (f *frames) forget(id uint32) {
	if f.streams[id] == nil {
		return
	}
	if t := f.streams[id].timer; t != nil {
		t.Stop()
	}
	delete(f.streams, id)
	if id&1 == f.odd {
		f.peers--
	}
}

func resetFrame(id uint32) []byte {
	h := make([]byte, headerLen)
	h[1], h[3] = typeWindow, flagRST
	binary.BigEndian.PutUint32(h[4:], id)
	return h
}

// enqueue has a reset written to the peer. A peer that does not read while it makes us write thousands of them is ended.
func (f *frames) enqueue(id uint32) error {
	f.qmu.Lock()
	defer f.qmu.Unlock()
	if len(f.queue) >= maxResets {
		return fmt.Errorf("%w: it opens streams and does not read", ErrGarbage)
	}
	f.queue = append(f.queue, resetFrame(id)...)
	if len(f.queue) == headerLen {
		go f.flush()
	}
	return nil
}

// flush writes the queue once no frame of yamux is under way.
func (f *frames) flush() {
	f.wmu.Lock()
	defer f.wmu.Unlock()
	_ = f.flushLocked()
}

func (f *frames) flushLocked() error {
	if f.wleft > 0 {
		return nil // the write of that body flushes
	}
	f.qmu.Lock()
	out := f.queue
	f.queue = nil
	f.qmu.Unlock()
	if len(out) == 0 {
		return nil
	}
	_, err := f.w.Write(out)
	return err
}

// Write implements io.Writer for yamux, which writes a header, then its body, from one goroutine.
func (f *frames) Write(p []byte) (int, error) {
	f.wmu.Lock()
	defer f.wmu.Unlock()
	out := p
	if f.wleft > 0 {
		f.wleft -= min(f.wleft, len(p))
		if f.join != nil {
			out = append(f.join, p...)
			f.join = nil
		}
	} else if f.trackOwn(p); p[1] == typeData {
		f.wleft = int(binary.BigEndian.Uint32(p[8:]))
		if f.wleft > 0 && f.wleft <= joinBytes {
			f.join = append(make([]byte, 0, headerLen+f.wleft), p...)
			return len(p), nil
		}
	}
	if _, err := f.w.Write(out); err != nil {
		return 0, err
	}
	return len(p), f.flushLocked()
}

// trackOwn follows the life of a stream by the header of a frame of our yamux.
func (f *frames) trackOwn(h []byte) {
	if h[1] > typeWindow {
		return
	}
	flags, id := binary.BigEndian.Uint16(h[2:]), binary.BigEndian.Uint32(h[4:])
	if flags&flagSYN != 0 {
		f.opened(id)
	}
	if flags&flagRST != 0 {
		f.in.mu.Lock()
		f.forget(id)
		f.in.mu.Unlock()
	}
}

// Close implements io.Closer for yamux.
func (f *frames) Close() error {
	f.in.mu.Lock()
	f.closed = true
	f.in.cond.Broadcast()
	f.in.mu.Unlock()
	return f.stop()
}

// fail notes why yamux ended the session, unless the reason is known.
func (f *frames) fail(err error) {
	f.in.mu.Lock()
	defer f.in.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
}

// cause is why the session ended: what the peer did, or nil where this side closed it.
func (f *frames) cause() error {
	f.in.mu.Lock()
	defer f.in.mu.Unlock()
	return f.err
}

// resetLater resets a stream after d unless it has ended by then.
func (f *frames) resetLater(id uint32, d time.Duration) {
	f.in.mu.Lock()
	defer f.in.mu.Unlock()
	h := f.streams[id]
	if h == nil {
		return
	}
	h.timer = time.AfterFunc(d, func() { f.reset(id) })
}
