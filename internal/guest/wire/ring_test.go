package wire

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// TestRingAgainstModel does random operations on a ring and on a plain slice.
func TestRingAgainstModel(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		limit := 1 + rnd.IntN(40<<10)
		start := rnd.Uint64N(1000)
		r := NewRing(start, limit)
		var all []byte // since start
		base := start
		for range 400 {
			switch rnd.IntN(5) {
			case 0, 1: // the writer's way
				room := r.Reserve()
				if (len(room) == 0) != r.Full() {
					t.Fatalf("seed %d: room of %d, full %v", seed, len(room), r.Full())
				}
				n := rnd.IntN(len(room) + 1)
				for i := range room[:n] {
					room[i] = byte(rnd.Uint32())
				}
				all = append(all, room[:n]...)
				r.Commit(n)
			case 2:
				p := make([]byte, rnd.IntN(3000))
				for i := range p {
					p[i] = byte(rnd.Uint32())
				}
				n := r.Append(p)
				if n < len(p) && !r.Full() {
					t.Fatalf("seed %d: appended %d of %d", seed, n, len(p))
				}
				all = append(all, p[:n]...)
			case 3:
				to := base + rnd.Uint64N(r.End()-base+1)
				r.Ack(to)
				base = to
			case 4:
				n := rnd.IntN(200)
				r.Drop(n)
				base = min(base+uint64(n), r.End())
			}
			if r.Base() != base || r.End() != start+uint64(len(all)) {
				t.Fatalf("seed %d: %d-%d, want %d-%d", seed, r.Base(), r.End(), base, start+uint64(len(all)))
			}
			held := all[base-start:]
			if len(held) > limit || len(r.buf) > limit {
				t.Fatalf("seed %d: beyond the limit", seed)
			}
			skip := rnd.IntN(len(held) + 1)
			got := make([]byte, rnd.IntN(len(held)+10))
			got = got[:r.CopyAt(got, base+uint64(skip))]
			if want := held[skip:min(len(held), skip+cap(got))]; !bytes.Equal(got, want) && cap(got) > 0 {
				t.Fatalf("seed %d: content differs", seed)
			}
		}
	}
}

func TestRingEdges(t *testing.T) {
	r := NewRing(10, 100)
	if r.CopyAt(make([]byte, 1), 10) != 0 || r.CopyAt(make([]byte, 1), 3) != 0 {
		t.Error("an empty ring has bytes")
	}
	r.Append([]byte("hello"))
	r.Ack(5) // before what is held
	r.Ack(12)
	r.Ack(1 << 60)
	if r.Base() != 15 || r.End() != 15 {
		t.Errorf("%d-%d after an absurd acknowledgement", r.Base(), r.End())
	}
	r.Append(make([]byte, 200))
	r.Drop(30)
	if r.Full() || r.Dropped() != 30 {
		t.Errorf("dropped %d", r.Dropped())
	}
}

// TestRingIsLazy: a ring that saw little has little.
func TestRingIsLazy(t *testing.T) {
	r := NewRing(0, RingBytes)
	for range 1000 {
		r.Commit(copy(r.Reserve(), "a line\n"))
		r.Ack(r.End())
	}
	if len(r.buf) > firstBuffer {
		t.Errorf("%d bytes of memory", len(r.buf))
	}
}
