// Package journal keeps what a session prints, bounded, in a directory: a ring of
// files (segments), each a header and then records of time, stream, offset and bytes. When the
// last file is full the oldest one is overwritten, and what was in it is lost; as every record and every header
// carries the offsets of both streams, whoever reads knows exactly how much that is.
//
// The files are in a guest, whose root may write anything into them, and the host reads them off the drive of a stopped VM. So
// nothing in them is believed: every number is checked, records carry a checksum, and memory is bounded.
//
// journal.go is the journal and its writer, open.go reads what is there, cursor.go where a reader is, log.go prints it.
package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// Bounds of a journal: of a segment in bytes, and of their number.
const (
	MinSegment  = 128 << 10
	MaxSegment  = 1 << 30
	MinSegments = 2
	MaxSegments = 16
)

// MaxData is the most bytes of output that a record has.
const MaxData = wire.MaxChunk

// The layout of a segment, all numbers big-endian: magic 8, number 8, offsets of stdout and stderr 8 each, the maker's bound 8,
// checksum 4; then records of checksum 4, length 4, stream 1, time 8 (nanoseconds since 1970), offset 8, bytes. A checksum is
// CRC-32C of what follows it, of a header of what goes before.
const (
	magic        = "bngrses1"
	headerSize   = 8 + 8 + 16 + 8 + 4
	recordHeader = 4 + 4 + 1 + 8 + 8
	// markEvery is how far apart the places in a segment are that a reader can go to at once, in bytes.
	markEvery = 64 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Limits bound a journal: Segments files of SegmentBytes each. What is out of bounds is cut to them.
type Limits struct {
	SegmentBytes int64
	Segments     int
}

// within cuts limits to what is possible.
func (l Limits) within() Limits {
	return Limits{SegmentBytes: min(max(l.SegmentBytes, MinSegment), MaxSegment), Segments: min(max(l.Segments, MinSegments), MaxSegments)}
}

// File is the name of the file that is number slot of the ring, of MaxSegments at most.
func File(slot int) string { return "log." + strconv.Itoa(slot) }

// mark is a place in a segment where a record begins.
type mark struct {
	at      int64
	offsets [2]uint64 // of the streams, there
	before  int64     // bytes of output in the segment before it
}

// segment is one file.
type segment struct {
	number  uint64
	offsets [2]uint64 // of the streams, at its start
	size    int64     // of its header and its whole records
	output  int64     // bytes of output in it
	marks   []mark
	file    io.ReaderAt
}

// Journal is the output of one session. Its methods may be called from several goroutines.
type Journal struct {
	mu      sync.Mutex // guards what follows
	limits  Limits
	dir     *os.Root // nil for one that only reads
	segs    []*segment
	end     [2]uint64 // of the streams
	dropped uint64    // bytes of output that are in no segment
	changed chan struct{}
	closed  bool
	buf     []byte // of the writer
}

// Create makes an empty journal in a directory without one. It keeps the directory, and closes it at Close.
func Create(dir *os.Root, limits Limits) (*Journal, error) {
	j := &Journal{limits: limits.within(), dir: dir, changed: make(chan struct{})}
	if err := j.rotate(); err != nil {
		return nil, err
	}
	return j, nil
}

// rotate begins a new segment, in place of the oldest where there are enough. j.mu is held, or nobody else knows j.
func (j *Journal) rotate() error {
	number := uint64(0)
	if n := len(j.segs); n > 0 {
		number = j.segs[n-1].number + 1
	}
	if len(j.segs) >= j.limits.Segments {
		old := j.segs[0]
		j.segs = append([]*segment{}, j.segs[1:]...)
		j.dropped += uint64(old.output)
		closeFile(old.file)
	}
	name := File(int(number % uint64(j.limits.Segments)))
	if err := j.dir.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("begin a log file: %w", err)
	}
	f, err := j.dir.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("begin a log file: %w", err)
	}
	if _, err := f.WriteAt(header(number, j.end, j.limits.SegmentBytes), 0); err != nil {
		_ = f.Close()
		return fmt.Errorf("begin a log file: %w", err)
	}
	j.segs = append(j.segs, &segment{number: number, offsets: j.end, size: headerSize, file: f, marks: []mark{{headerSize, j.end, 0}}})
	return nil
}

// header is that of a segment.
func header(number uint64, offsets [2]uint64, bound int64) []byte {
	b := append(make([]byte, 0, headerSize), magic...)
	b = binary.BigEndian.AppendUint64(b, number)
	b = binary.BigEndian.AppendUint64(b, offsets[0])
	b = binary.BigEndian.AppendUint64(b, offsets[1])
	b = binary.BigEndian.AppendUint64(b, uint64(bound))
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// Drops tells whether the next n bytes of output, MaxData at most, overwrite the oldest segment; up to which offsets output is lost then.
func (j *Journal) Drops(n int) (upTo [2]uint64, drops bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.segs) < j.limits.Segments || j.last().size+recordHeader+int64(n) <= j.limits.SegmentBytes {
		return upTo, false
	}
	return j.segs[1].offsets, true
}

func (j *Journal) last() *segment { return j.segs[len(j.segs)-1] }

// Append adds output of a stream (0 stdout, 1 stderr), MaxData bytes at most. Where it cannot be written, as on a full disk, it counts as
// output that was dropped.
func (j *Journal) Append(now time.Time, stream int, p []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	defer func() { close(j.changed); j.changed = make(chan struct{}) }()
	at := j.end
	j.end[stream] += uint64(len(p))
	err := j.write(now, stream, at, p)
	if err != nil {
		j.dropped += uint64(len(p))
	}
	return err
}

func (j *Journal) write(now time.Time, stream int, at [2]uint64, p []byte) error {
	if j.closed {
		return fs.ErrClosed
	}
	need := recordHeader + int64(len(p))
	if j.last().size+need > j.limits.SegmentBytes {
		end := j.end
		j.end = at // what the header says
		err := j.rotate()
		j.end = end
		if err != nil {
			return err
		}
	}
	s := j.last()
	b := append(j.buf[:0], 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
	b = append(b, byte(stream))
	b = binary.BigEndian.AppendUint64(b, uint64(now.UnixNano()))
	b = binary.BigEndian.AppendUint64(b, at[stream])
	b = append(b, p...)
	binary.BigEndian.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
	j.buf = b
	w, ok := s.file.(io.WriterAt)
	if !ok {
		return fs.ErrPermission
	}
	if _, err := w.WriteAt(b, s.size); err != nil {
		return fmt.Errorf("write the log: %w", err)
	}
	s.add(at, len(p))
	return nil
}

// add counts a record in that was found at the end of a segment.
func (s *segment) add(offsets [2]uint64, n int) {
	if last := s.marks[len(s.marks)-1]; s.size-last.at >= markEvery {
		s.marks = append(s.marks, mark{s.size, offsets, s.output})
	}
	s.size += recordHeader + int64(n)
	s.output += int64(n)
}

// Sync writes everything to the disk.
func (j *Journal) Sync() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	var errs []error
	for _, s := range j.segs {
		if f, ok := s.file.(*os.File); ok {
			errs = append(errs, f.Sync())
		}
	}
	return errors.Join(errs...)
}

// End returns how much output there was of each stream, and how much of it no segment has any more.
func (j *Journal) End() (end [2]uint64, dropped uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.end, j.dropped
}

// Changed returns a channel that is closed when more output comes.
func (j *Journal) Changed() <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.changed
}

// Close closes the files. Reading and writing fail from then on.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil
	}
	j.closed = true
	for _, s := range j.segs {
		closeFile(s.file)
	}
	if j.dir != nil {
		return j.dir.Close()
	}
	return nil
}

func closeFile(f io.ReaderAt) {
	if c, ok := f.(io.Closer); ok {
		_ = c.Close() // what was written is in the page cache; Sync says more
	}
}
