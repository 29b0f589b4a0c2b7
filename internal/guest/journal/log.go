package journal

import (
	"context"
	"io"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// MaxTail is the most lines that Print can be asked for the last of.
const MaxTail = 100_000

// Print says what of a journal is printed.
type Print struct {
	// Stdout and Stderr choose streams; where neither is set, both are printed.
	Stdout, Stderr bool
	// Since leaves out what was printed earlier; the zero value leaves out nothing.
	Since time.Time
	// Tail prints the last so many lines only, MaxTail at most; negative for all.
	Tail int
	// Ended is closed when nothing more comes, and asks to follow until then; nil prints what there is.
	Ended <-chan struct{}
}

// printer writes entries.
type printer struct {
	w    io.Writer
	opts Print
	mid  bool // the last byte was no end of a line
}

// Log prints a journal: output as it was printed, and a line of its own for what was dropped.
func (j *Journal) Log(ctx context.Context, w io.Writer, opts Print) error {
	p := &printer{w: w, opts: opts}
	c := j.Start()
	if opts.Tail >= 0 {
		var err error
		if c, err = j.lastLines(p, min(opts.Tail, MaxTail)); err != nil {
			return err
		}
	}
	for last := false; ; {
		changed := j.Changed() // asked first, so that nothing is missed
		for {
			e, ok, err := j.Read(c)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			if err := p.entry(e); err != nil {
				return err
			}
		}
		if last || opts.Ended == nil {
			return nil
		}
		select {
		case <-changed:
		case <-opts.Ended:
			last = true
		case <-ctx.Done():
			return nil
		}
	}
}

// wants tells whether an entry is among what is printed.
func (p *printer) wants(e Entry) bool {
	if p.opts.Stdout != p.opts.Stderr && p.opts.Stderr != (e.Stream == 1) {
		return false
	}
	return p.opts.Since.IsZero() || e.Time.IsZero() || !e.Time.Before(p.opts.Since)
}

func (p *printer) entry(e Entry) error {
	if !p.wants(e) {
		return nil
	}
	data := e.Data
	if e.Lost > 0 {
		text := wire.DroppedLine(e.Lost)
		if p.mid {
			text = "\n" + text
		}
		data = []byte(text)
	}
	if len(data) == 0 {
		return nil
	}
	p.mid = data[len(data)-1] != '\n'
	_, err := p.w.Write(data)
	return err
}

// line is where a line begins.
type line struct {
	cursor Cursor
}

// lastLines is a cursor before the last n lines.
func (j *Journal) lastLines(p *printer, n int) (*Cursor, error) {
	c := j.Start()
	ring := make([]line, 0, min(n, 1024))
	first := 0
	begin := func(at Cursor) {
		at.buf = nil
		if len(ring) < n {
			ring = append(ring, line{at})
		} else if n > 0 {
			ring[first] = line{at}
			first = (first + 1) % n
		}
	}
	fresh := true
	for {
		before := *c
		e, ok, err := j.Read(c)
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		if !p.wants(e) {
			continue
		}
		if e.Lost > 0 { // a line of its own, which is not counted as one
			continue
		}
		for i, b := range e.Data {
			if fresh {
				at := before
				if before.number != c.number { // the record is the first of its segment
					at = Cursor{number: c.number, at: headerSize, next: before.next}
				}
				at.next[e.Stream] = e.Offset + uint64(i)
				begin(at)
			}
			fresh = b == '\n'
		}
	}
	if len(ring) == 0 || n == 0 {
		return c, nil
	}
	at := ring[first%len(ring)].cursor
	return &at, nil
}
