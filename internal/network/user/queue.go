package user

import (
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// queueBytes is how much waits for a guest at most. A TCP sender that finds less room loses frames in every burst.
const queueBytes = 4 << 20

// frameOverhead is what a waiting frame costs beside its bytes: it counts against queueBytes, so that a flood of small
// frames is bounded too.
const frameOverhead = 512

// outFrame is a frame on its way to a guest: an Ethernet header and a packet of the stack, or a whole frame.
type outFrame struct {
	header [14]byte
	packet *stack.PacketBuffer // without Ethernet header
	whole  *buffer.View        // set where packet is nil
}

func (f *outFrame) size() int {
	if f.packet != nil {
		return len(f.header) + f.packet.Size()
	}
	return f.whole.Size()
}

// pieces appends the frame's bytes to list.
func (f *outFrame) pieces(list [][]byte) [][]byte {
	if f.packet == nil {
		return append(list, f.whole.AsSlice())
	}
	return append(append(list, f.header[:]), f.packet.AsSlices()...)
}

func (f *outFrame) release() {
	if f.packet != nil {
		f.packet.DecRef()
		return
	}
	f.whole.Release()
}

// queue holds the frames that wait for one guest, in order; what does not fit is dropped.
type queue struct {
	mu     sync.Mutex
	frames []outFrame    // guarded by mu
	bytes  int           // guarded by mu
	closed bool          // guarded by mu
	empty  chan struct{} // guarded by mu: closed once nothing waits; nil where nobody asks
	wake   chan struct{} // holds one token where frames or closed changed
}

func newQueue() *queue { return &queue{wake: make(chan struct{}, 1)} }

// put takes the frame over; false where it was dropped.
func (q *queue) put(f outFrame) bool {
	cost := f.size() + frameOverhead
	q.mu.Lock()
	if q.closed || q.bytes+cost > queueBytes {
		q.mu.Unlock()
		f.release()
		return false
	}
	q.frames = append(q.frames, f)
	q.bytes += cost
	first := len(q.frames) == 1
	q.mu.Unlock()
	if first {
		q.signal()
	}
	return true
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take waits for frames and returns all that wait, reusing spare for the next ones; nil once the queue or stop is closed.
func (q *queue) take(spare []outFrame, stop <-chan struct{}) []outFrame {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		q.mu.Lock()
		if q.closed {
			q.mu.Unlock()
			return nil
		}
		if len(q.frames) > 0 {
			list := q.frames
			q.frames = spare[:0]
			q.mu.Unlock()
			return list
		}
		q.mu.Unlock()
		select {
		case <-q.wake:
		case <-stop:
		}
	}
}

// done says that a frame that was taken has been written: its room is free.
func (q *queue) done(size int) {
	q.mu.Lock()
	q.bytes -= size + frameOverhead
	if q.bytes == 0 && q.empty != nil {
		close(q.empty)
		q.empty = nil
	}
	q.mu.Unlock()
}

// settle waits until all that waits has been written, or stop is closed, for at most d. One at a time may call it.
func (q *queue) settle(stop <-chan struct{}, d time.Duration) {
	q.mu.Lock()
	if q.bytes == 0 || q.closed {
		q.mu.Unlock()
		return
	}
	empty := make(chan struct{})
	q.empty = empty
	q.mu.Unlock()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-empty:
	case <-stop:
	case <-timer.C:
	}
}

// close drops what waits and ends take.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	list := q.frames
	q.frames = nil
	q.mu.Unlock()
	for i := range list {
		list[i].release()
	}
	q.signal()
}
