package journal

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"slices"
)

// maxOffset is the greatest offset of output that is believed.
const maxOffset = 1<<62 - 1

// Open opens what there is of a journal, to be read: file returns the file of a name of File, of which size bytes are there, and an error
// that is fs.ErrNotExist where there is none. What is damaged is left out from there on. The files are closed by Close, as far
// as they can be.
func Open(file func(name string) (f io.ReaderAt, size int64, err error)) (*Journal, error) {
	j := &Journal{changed: make(chan struct{})}
	for slot := range MaxSegments {
		f, size, err := file(File(slot))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			_ = j.Close()
			return nil, err
		}
		s, err := scan(f, min(size, MaxSegment))
		if err != nil {
			closeFile(f)
			continue // not one of ours, or its making was cut off
		}
		j.segs = append(j.segs, s.segment)
		if s.end[0] > j.end[0] || s.end[1] > j.end[1] {
			j.end = [2]uint64{max(j.end[0], s.end[0]), max(j.end[1], s.end[1])}
		}
	}
	slices.SortFunc(j.segs, func(a, b *segment) int { return cmp.Compare(a.number, b.number) })
	j.keepOrdered()
	total := j.end[0] + j.end[1]
	for _, s := range j.segs {
		total -= min(total, uint64(s.output))
	}
	j.dropped = total
	return j, nil
}

// OpenDir opens the journal in a directory.
func OpenDir(dir *os.Root) (*Journal, error) {
	return Open(func(name string) (io.ReaderAt, int64, error) {
		f, err := dir.Open(name)
		if err != nil {
			return nil, 0, err
		}
		st, err := f.Stat()
		if err == nil && !st.Mode().IsRegular() {
			err = fs.ErrNotExist
		}
		if err != nil {
			_ = f.Close()
			return nil, 0, err
		}
		return f, st.Size(), nil
	})
}

// keepOrdered drops the segments before one that contradicts them.
func (j *Journal) keepOrdered() {
	for i := len(j.segs) - 1; i > 0; i-- {
		a, b := j.segs[i-1], j.segs[i]
		if a.number == b.number || a.offsets[0] > b.offsets[0] || a.offsets[1] > b.offsets[1] {
			for _, s := range j.segs[:i] {
				closeFile(s.file)
			}
			j.segs = slices.Clone(j.segs[i:])
			return
		}
	}
}

// scanned is a segment as it was found.
type scanned struct {
	*segment
	end [2]uint64
}

// errNoSegment is a file that is none.
var errNoSegment = errors.New("not a log file of a session")

// scan reads a segment once, up to what is damaged.
func scan(f io.ReaderAt, size int64) (scanned, error) {
	r := bufio.NewReaderSize(io.NewSectionReader(f, 0, size), 64<<10)
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return scanned{}, errNoSegment
	}
	sum := binary.BigEndian.Uint32(h[headerSize-4:])
	if string(h[:8]) != magic || crc32.Checksum(h[:headerSize-4], castagnoli) != sum {
		return scanned{}, errNoSegment
	}
	s := &segment{number: binary.BigEndian.Uint64(h[8:]), size: headerSize, file: f}
	s.offsets = [2]uint64{binary.BigEndian.Uint64(h[16:]), binary.BigEndian.Uint64(h[24:])}
	if s.offsets[0] > maxOffset || s.offsets[1] > maxOffset {
		return scanned{}, errNoSegment
	}
	s.marks = []mark{{headerSize, s.offsets, 0}}
	end := s.offsets
	buf := make([]byte, recordHeader+MaxData)
	for {
		if _, err := io.ReadFull(r, buf[:recordHeader]); err != nil {
			return scanned{s, end}, nil
		}
		n := int(binary.BigEndian.Uint32(buf[4:]))
		if n < 1 || n > MaxData {
			return scanned{s, end}, nil
		}
		if _, err := io.ReadFull(r, buf[recordHeader:recordHeader+n]); err != nil {
			return scanned{s, end}, nil
		}
		e, ok := parse(buf[:recordHeader+n])
		if !ok || e.Offset < end[e.Stream] {
			return scanned{s, end}, nil
		}
		at := end
		at[e.Stream] = e.Offset
		s.add(at, n)
		end[e.Stream] = e.Offset + uint64(n)
	}
}
