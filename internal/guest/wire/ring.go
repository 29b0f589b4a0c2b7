package wire

// Ring keeps the bytes of a stream from the first that was not acknowledged. Offsets count from the
// start of the stream. Its memory starts at 4 KiB with the first byte and grows to its limit
// only while it is full. It has one writer, which uses Reserve and Commit; the caller's lock guards
// everything but the reserved slice.
type Ring struct {
	limit   int
	buf     []byte
	start   int    // of base in buf
	n       int    // bytes held
	base    uint64 // offset of the first of them
	full    bool   // the last Commit used all that was reserved
	asked   int    // length of the last reservation
	dropped uint64 // by Drop
}

// readAhead is up to where a ring grows just because reads fill it, in bytes.
const readAhead = 128 << 10

// NewRing returns an empty ring at offset that holds at most limit bytes.
func NewRing(offset uint64, limit int) *Ring { return &Ring{base: offset, limit: limit} }

// Base is the offset of the first byte held.
func (r *Ring) Base() uint64 { return r.base }

// End is the offset after the last byte held.
func (r *Ring) End() uint64 { return r.base + uint64(r.n) }

// Dropped is how many bytes Drop took in all.
func (r *Ring) Dropped() uint64 { return r.dropped }

// Full tells whether nothing more fits.
func (r *Ring) Full() bool { return r.n >= r.limit }

// Reserve returns room to write into, empty only where the ring is full. The room is the writer's until
// Commit, also without the lock.
func (r *Ring) Reserve() []byte {
	if r.n == 0 {
		r.start = 0
	}
	if r.n == len(r.buf) || (r.full && len(r.buf) < readAhead) {
		r.grow(4 * len(r.buf))
	}
	at := r.start + r.n
	room := r.buf[min(at, len(r.buf)):]
	if at >= len(r.buf) {
		room = r.buf[at-len(r.buf) : r.start]
	}
	r.asked = len(room)
	return room
}

// Commit adds the first n bytes of the last reservation.
func (r *Ring) Commit(n int) {
	r.n += n
	r.full = n > 0 && n == r.asked
}

// Append adds what fits of p and returns how much that was.
func (r *Ring) Append(p []byte) int {
	if need := min(r.n+len(p), r.limit); need > len(r.buf) {
		r.grow(max(need, 2*len(r.buf)))
	}
	done := 0
	for done < len(p) && !r.Full() {
		n := copy(r.Reserve(), p[done:])
		r.Commit(n)
		done += n
	}
	return done
}

// CopyAt copies bytes from offset on into p and returns how many; 0 where offset is not held.
func (r *Ring) CopyAt(p []byte, offset uint64) int {
	if offset < r.base || offset >= r.End() {
		return 0
	}
	skip := int(offset - r.base)
	p = p[:min(len(p), r.n-skip)]
	at := r.start + skip
	if at >= len(r.buf) {
		at -= len(r.buf)
	}
	n := copy(p, r.buf[at:])
	return n + copy(p[n:], r.buf)
}

// Ack forgets what is before offset; one outside what is held is cut to it.
func (r *Ring) Ack(offset uint64) {
	if offset <= r.base {
		return
	}
	n := int(min(offset-r.base, uint64(r.n)))
	r.base += uint64(n)
	r.n -= n
	if r.start += n; r.start >= len(r.buf) {
		r.start -= len(r.buf)
	}
}

// Drop forgets the n oldest bytes and counts them as lost.
func (r *Ring) Drop(n int) {
	before := r.base
	r.Ack(r.base + uint64(n))
	r.dropped += r.base - before
}

// grow moves the content to a buffer of size bytes, cut to the limit and to 4 KiB at least.
func (r *Ring) grow(size int) {
	size = min(max(size, firstBuffer), r.limit)
	if size <= len(r.buf) {
		return
	}
	to := make([]byte, size)
	r.CopyAt(to, r.base)
	r.buf, r.start = to, 0
}
