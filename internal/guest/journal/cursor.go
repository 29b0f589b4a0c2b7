package journal

import (
	"encoding/binary"
	"hash/crc32"
	"io/fs"
	"slices"
	"time"
)

// Entry is a piece of output, or a place where some is lost.
type Entry struct {
	// Stream is 0 for stdout, 1 for stderr.
	Stream int
	Time   time.Time // when it was printed
	Offset uint64    // of the first byte
	// Data is valid until the next call with the same cursor; it is empty where Lost is not.
	Data []byte
	// Lost is how many bytes are missing before Offset.
	Lost uint64
}

// Cursor is where a reader of a journal is. It belongs to one goroutine at a time.
type Cursor struct {
	number uint64 // of the segment
	at     int64
	next   [2]uint64 // offset of what is wanted next
	buf    []byte
}

// Offsets are those of what comes next.
func (c *Cursor) Offsets() [2]uint64 { return c.next }

// Start is a cursor before all output, of which the first may be lost.
func (j *Journal) Start() *Cursor { return j.From([2]uint64{}) }

// From is a cursor for a reader who has what is before the offsets.
func (j *Journal) From(have [2]uint64) *Cursor {
	j.mu.Lock()
	defer j.mu.Unlock()
	c := &Cursor{next: have}
	for _, s := range j.segs {
		for _, m := range s.marks {
			if c.at == 0 || m.offsets[0] <= have[0] && m.offsets[1] <= have[1] {
				c.number, c.at = s.number, m.at
			}
		}
	}
	return c
}

// Tail is a cursor with the last n bytes of output before it, or what there is of them; what goes before is not wanted.
func (j *Journal) Tail(n int64) *Cursor {
	j.mu.Lock()
	defer j.mu.Unlock()
	c := &Cursor{next: j.end}
	if n <= 0 || len(j.segs) == 0 {
		if len(j.segs) > 0 {
			c.number, c.at = j.last().number, j.last().size
		}
		return c
	}
	left := int64(0) // bytes of output from the segment's end on
	for _, s := range slices.Backward(j.segs) {
		for _, m := range slices.Backward(s.marks) {
			c.number, c.at, c.next = s.number, m.at, m.offsets
			if total := left + s.output - m.before; total >= n {
				j.skip(c, total-n)
				return c
			}
		}
		left += s.output
	}
	return c
}

// skip moves a cursor over n bytes of output, of the segment it is in. j.mu is held.
func (j *Journal) skip(c *Cursor, n int64) {
	for n > 0 {
		at := c.at
		e, ok, err := j.record(c)
		if err != nil || !ok {
			return
		}
		if size := int64(len(e.Data)); size > n {
			c.at, c.next[e.Stream] = at, e.Offset+uint64(n)
			return
		}
		c.next[e.Stream] = e.Offset + uint64(len(e.Data))
		n -= int64(len(e.Data))
	}
}

// Read returns what comes next; false where nothing does yet.
func (j *Journal) Read(c *Cursor) (Entry, bool, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return Entry{}, false, fs.ErrClosed
	}
	for {
		s := j.find(c)
		if s == nil || c.at >= s.size && s == j.last() {
			return j.lostBefore(c, j.end) // what could not be written
		}
		if c.at >= s.size {
			c.number, c.at = c.number+1, 0
			continue
		}
		if c.at == 0 {
			if e, lost, _ := j.lostBefore(c, s.offsets); lost {
				return e, true, nil
			}
			c.at = headerSize
			continue
		}
		at := c.at
		e, ok, err := j.record(c)
		if err != nil {
			return Entry{}, false, err
		}
		if !ok {
			c.at = s.size // damaged since it was looked at: no more of this segment
			continue
		}
		next := &c.next[e.Stream]
		end := e.Offset + uint64(len(e.Data))
		switch {
		case end <= *next:
			continue
		case e.Offset > *next:
			lost := e.Offset - *next
			c.at, *next = at, e.Offset
			return Entry{Stream: e.Stream, Time: e.Time, Offset: e.Offset, Lost: lost}, true, nil
		case e.Offset < *next:
			e.Data = e.Data[*next-e.Offset:]
			e.Offset = *next
		}
		*next = end
		return e, true, nil
	}
}

// find returns the segment a cursor is in, and moves one whose segment is gone to the next there is. j.mu is held.
func (j *Journal) find(c *Cursor) *segment {
	for _, s := range j.segs {
		if s.number >= c.number {
			if s.number > c.number {
				c.number, c.at = s.number, 0
			}
			return s
		}
	}
	return nil
}

// lostBefore tells of output before the offsets that the cursor never came to. j.mu is held.
func (j *Journal) lostBefore(c *Cursor, offsets [2]uint64) (Entry, bool, error) {
	for i, end := range offsets {
		if c.next[i] < end {
			lost := end - c.next[i]
			c.next[i] = end
			return Entry{Stream: i, Offset: end, Lost: lost}, true, nil
		}
	}
	return Entry{}, false, nil
}

// record reads the record at a cursor and moves it behind; false where there is none that is sound. j.mu is held.
func (j *Journal) record(c *Cursor) (Entry, bool, error) {
	s := j.find(c)
	if c.buf == nil {
		c.buf = make([]byte, recordHeader, 4<<10)
	}
	c.buf = c.buf[:recordHeader]
	if s == nil || c.at+recordHeader > s.size {
		return Entry{}, false, nil
	}
	if _, err := s.file.ReadAt(c.buf, c.at); err != nil {
		return Entry{}, false, err
	}
	n := int(binary.BigEndian.Uint32(c.buf[4:]))
	if n < 1 || n > MaxData || c.at+recordHeader+int64(n) > s.size {
		return Entry{}, false, nil
	}
	if need := recordHeader + n; cap(c.buf) < need {
		c.buf = append(make([]byte, 0, recordHeader+MaxData), c.buf...)
	}
	c.buf = c.buf[:recordHeader+n]
	if _, err := s.file.ReadAt(c.buf[recordHeader:], c.at+recordHeader); err != nil {
		return Entry{}, false, err
	}
	e, ok := parse(c.buf)
	if ok {
		c.at += int64(len(c.buf))
	}
	return e, ok, nil
}

// parse takes a whole record apart.
func parse(b []byte) (Entry, bool) {
	if crc32.Checksum(b[4:], castagnoli) != binary.BigEndian.Uint32(b) || b[8] > 1 {
		return Entry{}, false
	}
	e := Entry{Stream: int(b[8]), Time: time.Unix(0, int64(binary.BigEndian.Uint64(b[9:]))), Offset: binary.BigEndian.Uint64(b[17:]), Data: b[recordHeader:]}
	return e, e.Offset <= maxOffset
}
