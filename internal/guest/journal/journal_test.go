package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"
)

// root opens a directory of the test's own.
func root(t testing.TB, path string) *os.Root {
	t.Helper()
	r, err := os.OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func create(t testing.TB, l Limits) (*Journal, string) {
	t.Helper()
	path := t.TempDir()
	j, err := Create(root(t, path), l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j, path
}

// byteAt is what a stream has at an offset: whoever reads can tell whether it is the right one.
func byteAt(stream int, offset uint64) byte {
	return byte((offset*2654435761 ^ offset>>8*40503) >> (3 + stream))
}

func piece(stream int, offset uint64, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byteAt(stream, offset+uint64(i))
	}
	return p
}

// reader checks what a cursor gives: every byte is there once and right, or counted as lost.
type reader struct {
	c    *Cursor
	next [2]uint64
	lost uint64
}

func (r *reader) read(t *testing.T, j *Journal, most int) {
	t.Helper()
	for range most {
		e, ok, err := j.Read(r.c)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return
		}
		if e.Lost > 0 {
			if e.Offset != r.next[e.Stream]+e.Lost || len(e.Data) > 0 {
				t.Fatalf("a gap of %d up to %d, after %d", e.Lost, e.Offset, r.next[e.Stream])
			}
			r.next[e.Stream], r.lost = e.Offset, r.lost+e.Lost
			continue
		}
		if e.Offset != r.next[e.Stream] || len(e.Data) == 0 {
			t.Fatalf("stream %d: %d bytes at %d, expected them at %d", e.Stream, len(e.Data), e.Offset, r.next[e.Stream])
		}
		if !bytes.Equal(e.Data, piece(e.Stream, e.Offset, len(e.Data))) {
			t.Fatalf("stream %d at %d: other bytes than were written", e.Stream, e.Offset)
		}
		r.next[e.Stream] += uint64(len(e.Data))
	}
}

// TestJournal writes at random and reads from random places, from the journal that is written and from the files: nothing is lost within the
// bounds, what is lost is counted exactly, and the disk holds no more than the limits say.
func TestJournal(t *testing.T) {
	for seed := range uint64(5) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			limits := Limits{SegmentBytes: MinSegment, Segments: 2 + rnd.IntN(3)}
			j, path := create(t, limits)
			var written [2]uint64
			var readers []*reader
			follow := &reader{c: j.Start()}
			for range 600 {
				stream := rnd.IntN(2)
				n := 1 + rnd.IntN(1<<rnd.IntN(17))
				n = min(n, MaxData)
				if err := j.Append(time.Unix(1e9, 0), stream, piece(stream, written[stream], n)); err != nil {
					t.Fatal(err)
				}
				written[stream] += uint64(n)
				follow.read(t, j, 1000)
				if rnd.IntN(20) == 0 {
					readers = append(readers, randomReader(rnd, j, written))
				}
				for _, r := range readers {
					r.read(t, j, rnd.IntN(4))
				}
			}
			if follow.lost > 0 || follow.next != written {
				t.Errorf("who kept up lost %d bytes, has %v of %v", follow.lost, follow.next, written)
			}
			for _, r := range readers {
				if r.read(t, j, 1<<20); r.next != written {
					t.Errorf("a reader ended at %v of %v", r.next, written)
				}
			}
			end, dropped := j.End()
			again, err := OpenDir(root(t, path))
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			if e, d := again.End(); e != end || d != dropped {
				t.Errorf("opened again: %v, %d dropped; was %v, %d", e, d, end, dropped)
			}
			all := &reader{c: again.Start()}
			if all.read(t, again, 1<<20); all.next != written || all.lost != dropped {
				t.Errorf("from the files: %v and %d lost; want %v and %d", all.next, all.lost, written, dropped)
			}
			bounded(t, path, limits)
		})
	}
}

// randomReader begins somewhere.
func randomReader(rnd *rand.Rand, j *Journal, written [2]uint64) *reader {
	switch rnd.IntN(3) {
	case 0:
		c := j.Tail(rnd.Int64N(int64(written[0]+written[1]) + 1))
		return &reader{c: c, next: c.Offsets()}
	case 1:
		return &reader{c: j.Start()}
	}
	have := [2]uint64{rnd.Uint64N(written[0] + 1), rnd.Uint64N(written[1] + 1)}
	return &reader{c: j.From(have), next: have}
}

func bounded(t *testing.T, path string, l Limits) {
	t.Helper()
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			total += info.Size()
		}
	}
	if len(entries) > l.Segments || total > l.SegmentBytes*int64(l.Segments) {
		t.Errorf("%d files of %d bytes in all, with %+v", len(entries), total, l)
	}
}

// TestTail: of the last n bytes not one is missing.
func TestTail(t *testing.T) {
	j, _ := create(t, Limits{SegmentBytes: 1 << 20, Segments: 2})
	written := uint64(0)
	for range 500 {
		if err := j.Append(time.Unix(1e9, 0), 0, piece(0, written, 1000)); err != nil {
			t.Fatal(err)
		}
		written += 1000
	}
	for _, n := range []int64{0, 1, 999, 1000, 1001, 70_000, 499_999, 500_000, 1 << 30} {
		c := j.Tail(n)
		if got := written - c.Offsets()[0]; int64(got) != min(n, int64(written)) {
			t.Errorf("the last %d bytes are %d", n, got)
		}
		r := &reader{c: c, next: c.Offsets()}
		if r.read(t, j, 1000); r.next[0] != written || r.lost > 0 {
			t.Errorf("tail %d ended at %d with %d lost", n, r.next[0], r.lost)
		}
	}
}

// TestCutOff: a record that is not whole, or damaged, ends what is read; the rest is as it was.
func TestCutOff(t *testing.T) {
	j, path := create(t, Limits{})
	for _, s := range []string{"one\n", "two\n", "three\n"} {
		if err := j.Append(time.Unix(1e9, 0), 0, []byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	_ = j.Close()
	whole, err := os.ReadFile(path + "/log.0")
	if err != nil {
		t.Fatal(err)
	}
	show := func(b []byte) string {
		j, err := Open(func(name string) (io.ReaderAt, int64, error) {
			if name != "log.0" {
				return nil, 0, fs.ErrNotExist
			}
			return bytes.NewReader(b), int64(len(b)), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := j.Log(t.Context(), &out, Print{Tail: -1}); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	if got := show(whole); got != "one\ntwo\nthree\n" {
		t.Errorf("whole: %q", got)
	}
	if got := show(whole[:len(whole)-1]); got != "one\ntwo\n" {
		t.Errorf("cut: %q", got)
	}
	bad := bytes.Clone(whole)
	bad[len(bad)-8] ^= 1
	if got := show(bad); got != "one\ntwo\n" {
		t.Errorf("damaged: %q", got)
	}
	bad = bytes.Clone(whole)
	bad[3] ^= 1
	if got := show(bad); got != "" {
		t.Errorf("without its head: %q", got)
	}
}

// TestDiskFull: what cannot be written is lost, is counted, and does not end the journal.
func TestDiskFull(t *testing.T) {
	j, path := create(t, Limits{})
	write := func(s string) error { return j.Append(time.Unix(1e9, 0), 0, []byte(s)) }
	if err := write("before\n"); err != nil {
		t.Fatal(err)
	}
	f := j.segs[0].file
	j.segs[0].file = failing{f}
	if err := write("lost\n"); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("err = %v", err)
	}
	var out bytes.Buffer
	if err := j.Log(t.Context(), &out, Print{Tail: -1}); err != nil || out.String() != "before\n[banger: 5 bytes were dropped here]\n" {
		t.Errorf("at the end: %q, %v", out.String(), err)
	}
	j.segs[0].file = f
	if err := write("after\n"); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if err := j.Log(t.Context(), &out, Print{Tail: -1}); err != nil || out.String() != "before\n[banger: 5 bytes were dropped here]\nafter\n" {
		t.Errorf("in between: %q, %v", out.String(), err)
	}
	if _, dropped := j.End(); dropped != 5 {
		t.Errorf("%d dropped", dropped)
	}
	_ = path
}

// failing is a file that cannot be written.
type failing struct{ io.ReaderAt }

// TestLog: streams, times and last lines.
func TestLog(t *testing.T) {
	j, _ := create(t, Limits{})
	begin := time.Unix(1e9, 0)
	for i, e := range []struct {
		stream int
		text   string
	}{{0, "a\nb"}, {1, "E\n"}, {0, "c\n"}, {0, "d\n"}, {1, "F\n"}, {0, "no end"}} {
		if err := j.Append(begin.Add(time.Duration(i)*time.Minute), e.stream, []byte(e.text)); err != nil {
			t.Fatal(err)
		}
	}
	for name, tt := range map[string]struct {
		opts Print
		want string
	}{
		"all":       {Print{Tail: -1}, "a\nbE\nc\nd\nF\nno end"},
		"stdout":    {Print{Tail: -1, Stdout: true}, "a\nbc\nd\nno end"},
		"stderr":    {Print{Tail: -1, Stderr: true}, "E\nF\n"},
		"since":     {Print{Tail: -1, Since: begin.Add(3 * time.Minute)}, "d\nF\nno end"},
		"none":      {Print{Tail: 0}, ""},
		"one line":  {Print{Tail: 1}, "no end"},
		"two lines": {Print{Tail: 2, Stdout: true}, "d\nno end"},
		"three":     {Print{Tail: 3, Stdout: true}, "bc\nd\nno end"},
		"many":      {Print{Tail: 1000, Stdout: true}, "a\nbc\nd\nno end"},
	} {
		var out bytes.Buffer
		if err := j.Log(t.Context(), &out, tt.opts); err != nil || out.String() != tt.want {
			t.Errorf("%s: %q, %v; want %q", name, out.String(), err, tt.want)
		}
	}
}

// TestLogTailOverSegments: last lines that begin in a segment before the last.
func TestLogTailOverSegments(t *testing.T) {
	j, _ := create(t, Limits{Segments: 3})
	var all strings.Builder
	for i := range 30_000 {
		text := fmt.Sprintf("line %d\n", i)
		all.WriteString(text)
		if err := j.Append(time.Unix(1e9, 0), 0, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	lines := strings.SplitAfter(strings.TrimSuffix(all.String(), "\n"), "\n")
	for _, n := range []int{1, 3000, 3500, 5000, 7000} {
		var out bytes.Buffer
		if err := j.Log(t.Context(), &out, Print{Tail: n}); err != nil {
			t.Fatal(err)
		}
		if want := strings.Join(lines[len(lines)-n:], "") + "\n"; out.String() != want {
			t.Errorf("the last %d lines: got %d bytes that begin %.40q, want %d that begin %.40q", n, out.Len(), out.String(), len(want), want)
		}
	}
}

// TestLogFollows: what comes later is printed until the end.
func TestLogFollows(t *testing.T) {
	j, _ := create(t, Limits{})
	ended := make(chan struct{})
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- j.Log(context.Background(), pw, Print{Tail: -1, Ended: ended})
		_ = pw.Close()
	}()
	for _, s := range []string{"one", "two"} {
		if err := j.Append(time.Unix(1e9, 0), 0, []byte(s)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 3)
		if _, err := io.ReadFull(pr, got); err != nil || string(got) != s {
			t.Errorf("followed %q, %v", got, err)
		}
	}
	close(ended)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// FuzzOpen: whatever is in the files, memory stays bounded and a reader comes to an end.
func FuzzOpen(f *testing.F) {
	path := f.TempDir()
	j, err := Create(root(f, path), Limits{})
	if err != nil {
		f.Fatal(err)
	}
	for i := range 3 {
		_ = j.Append(time.Unix(1e9, 0), i%2, []byte("text\n"))
	}
	_ = j.Close()
	one, _ := os.ReadFile(path + "/log.0")
	f.Add(one, []byte{})
	f.Add(one, one)
	f.Add(append(bytes.Clone(one), header(1, [2]uint64{10, 5}, 0)...), header(1, [2]uint64{20, 20}, 0))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		files := map[string][]byte{"log.0": a, "log.1": b}
		j, err := Open(func(name string) (io.ReaderAt, int64, error) {
			data, ok := files[name]
			if !ok {
				return nil, 0, fs.ErrNotExist
			}
			return bytes.NewReader(data), int64(len(data)), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		n := &counter{}
		for _, tail := range []int{-1, 3} {
			if err := j.Log(t.Context(), n, Print{Tail: tail}); err != nil {
				t.Fatal(err)
			}
		}
		if n.n > 4*(len(a)+len(b))+4096 {
			t.Errorf("%d bytes were printed of files of %d and %d", n.n, len(a), len(b))
		}
		j.Tail(10)
	})
}

type counter struct{ n int }

func (c *counter) Write(p []byte) (int, error) {
	c.n += len(p)
	return len(p), nil
}
