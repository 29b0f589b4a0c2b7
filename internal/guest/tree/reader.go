package tree

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"math"

	"git.thaloco.com/thaloco/banger/api"
)

// Reader reads an answer of a Writer that nobody vouches for. A stream that does not end as it should is an error, as is every record that
// a Writer would not have written.
type Reader struct {
	in    *bufio.Reader
	n     int   // records
	bytes int64 // of them
	// seen are hashes of the paths so far: 16 bytes for each, whatever its length. The guest does not know the seeds, so no two share one.
	seen map[[2]uint64]struct{}
	seed [2]maphash.Seed
}

// NewReader returns a Reader of an answer.
func NewReader(in io.Reader) *Reader {
	return &Reader{in: bufio.NewReaderSize(in, buffer), seen: map[[2]uint64]struct{}{}, seed: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}}
}

// Failure is what the other side says went wrong.
type Failure struct{ Said *api.Error }

// Error implements error.
func (f *Failure) Error() string { return f.Said.Error() }

// errMalformed is a record no Writer writes.
var errMalformed = errors.New("a malformed record")

// Entry returns the next entry of a listing; io.EOF at its end. Each path comes once: of several, as a tree has that is renamed in while it is
// listed, or git of a conflict with a submodule, the first. None has a part ".git" in any case. A file may be above another one: what
// a listing says need not be possible.
func (r *Reader) Entry() (Entry, error) {
	for {
		rec, err := r.next(MaxEntries)
		if err != nil {
			return Entry{}, err
		}
		e, path, ok := parseStatus(rec)
		if !ok || !valid(path) || hidden(path) || e.Mode.IsDir() && e.Size != 0 {
			return Entry{}, malformed(rec)
		}
		h := [2]uint64{maphash.Bytes(r.seed[0], path), maphash.Bytes(r.seed[1], path)}
		if _, again := r.seen[h]; again {
			continue
		}
		r.seen[h] = struct{}{}
		e.Path = string(path)
		return e, nil
	}
}

// State returns the next state, that of path, with an id of so many hexadecimal digits. An answer that ends before is an error.
func (r *Reader) State(path string, digits int) (State, error) {
	rec, err := r.next(MaxPaths)
	if errors.Is(err, io.EOF) {
		err = errors.New("the answer ends early")
	}
	if err != nil {
		return State{}, err
	}
	s := State{Entry: Entry{Path: path}}
	switch {
	case len(rec) == 1 && rec[0] == kindMissing:
		s.Missing = true
		return s, nil
	case len(rec) == 1 && rec[0] == kindSpecial:
		s.Special = true
		return s, nil
	}
	e, id, ok := parseStatus(rec)
	switch {
	case !ok:
		return State{}, malformed(rec)
	case e.Mode.IsDir() && len(id) == 1 && id[0] == '-' && e.Size == 0:
		s.Dir = true
	case !e.Mode.IsDir() && len(id) == digits && len(bytes.Trim(id, "0123456789abcdef")) == 0:
		s.ID = string(id)
	default:
		return State{}, malformed(rec)
	}
	e.Path = path
	s.Entry = e
	return s, nil
}

// End is nil where the answer ends here as it should.
func (r *Reader) End() error {
	rec, err := r.next(MaxPaths)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("%w after the last one", malformed(rec))
}

// next returns the next record without its NUL, which is good until the next call; io.EOF at the end of a whole answer.
func (r *Reader) next(most int) ([]byte, error) {
	rec, err := r.in.ReadSlice(0)
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, malformed(rec)
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("the answer was cut: %w", io.ErrUnexpectedEOF)
	case err != nil:
		return nil, err
	}
	rec = rec[:len(rec)-1]
	if len(rec) == 0 {
		return nil, malformed(rec)
	}
	switch rec[0] {
	case kindEnd:
		return nil, r.end(rec)
	case kindFailure:
		f := &Failure{}
		if len(rec) > maxFailure || json.Unmarshal(rec[1:], &f.Said) != nil || f.Said == nil || f.Said.Message == "" {
			return nil, malformed(rec)
		}
		return nil, f
	}
	r.n++
	r.bytes += int64(len(rec))
	if r.n > most || r.bytes > maxAnswer {
		return nil, fmt.Errorf("more than %d records or %d bytes of them", most, maxAnswer)
	}
	return rec, nil
}

// end is io.EOF where the record of the end is right and the last.
func (r *Reader) end(rec []byte) error {
	if n, rest, ok := number(rec[1:]); !ok || len(rest) > 0 || n != int64(r.n) {
		return malformed(rec)
	}
	_, err := r.in.ReadByte()
	if err == nil {
		return errors.New("the answer goes on after its end")
	}
	return err
}

func malformed(rec []byte) error { return fmt.Errorf("%w: %.80q", errMalformed, rec) }

// parseStatus reads what appendStatus writes, and returns what comes after it.
func parseStatus(rec []byte) (e Entry, rest []byte, ok bool) {
	if len(rec) == 0 {
		return e, nil, false
	}
	switch rec[0] {
	case kindFile:
	case kindLink:
		e.Mode = fs.ModeSymlink
	case kindDir:
		e.Mode = fs.ModeDir
	default:
		return e, nil, false
	}
	perm, rest, ok := octal(rec[1:])
	if !ok {
		return e, nil, false
	}
	e.Mode |= perm
	if rest, ok = space(rest); !ok {
		return e, nil, false
	}
	if e.Size, rest, ok = number(rest); !ok {
		return e, nil, false
	}
	if rest, ok = space(rest); !ok {
		return e, nil, false
	}
	minus := len(rest) > 1 && rest[0] == '-'
	if minus {
		rest = rest[1:]
	}
	if e.MTime, rest, ok = number(rest); !ok || minus && e.MTime == 0 {
		return e, nil, false
	}
	if minus {
		e.MTime = -e.MTime
	}
	rest, ok = space(rest)
	return e, rest, ok
}

func space(b []byte) ([]byte, bool) {
	if len(b) == 0 || b[0] != ' ' {
		return nil, false
	}
	return b[1:], true
}

// octal reads permissions, number a number that is not negative; both without leading zeros.
func octal(b []byte) (fs.FileMode, []byte, bool) {
	n, i := fs.FileMode(0), 0
	for ; i < len(b) && i < 4 && b[i] >= '0' && b[i] <= '7'; i++ {
		n = n<<3 | fs.FileMode(b[i]-'0')
	}
	return n, b[i:], i > 0 && i < 4 && (b[0] != '0' || i == 1)
}

func number(b []byte) (n int64, rest []byte, ok bool) {
	i := 0
	for ; i < len(b) && b[i] >= '0' && b[i] <= '9'; i++ {
		d := int64(b[i] - '0')
		if n > (math.MaxInt64-d)/10 {
			return 0, nil, false
		}
		n = n*10 + d
	}
	return n, b[i:], i > 0 && (b[0] != '0' || i == 1)
}
