package tree

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"

	"git.thaloco.com/thaloco/banger/api"
)

// Writer writes an answer: records that end with a NUL, and at its end one that says how many there were, or what went wrong.
//
//	f644 1234 1700000000 PATH   of a listing: file (f), link (l) or directory (d), permissions in octal, size, mtime, path
//	f644 1234 1700000000 ID     of a path that was asked for, in the order of the request: as above, with the id of the blob, of a directory "-"
//	s                           of one where something special is
//	-                           of one where nothing is
//	.2                          the end, after two records
//	!{"kind":"…","message":"…"} a failure, as JSON of an api.Error
type Writer struct {
	ctx context.Context
	out *bufio.Writer
	rec []byte
	n   int
}

// NewWriter returns a Writer of an answer; it fails once ctx has ended.
func NewWriter(ctx context.Context, out io.Writer) *Writer {
	return &Writer{ctx: ctx, out: bufio.NewWriterSize(out, buffer)}
}

// End ends the answer: with failed where that is not nil.
func (w *Writer) End(failed *api.Error) error {
	if failed != nil {
		w.rec = append(w.rec[:0], kindFailure)
		text, err := json.Marshal(&api.Error{Kind: failed.Kind, Message: failed.Message[:min(len(failed.Message), maxSaid)], Hint: failed.Hint[:min(len(failed.Hint), maxSaid)]})
		if err != nil || len(text) >= maxFailure { // of escapes
			text = []byte(`{"kind":"guest","message":"an error too long to tell"}`)
		}
		w.rec = append(append(w.rec, text...), 0)
	} else {
		w.rec = append(strconv.AppendInt(append(w.rec[:0], kindEnd), int64(w.n), 10), 0)
	}
	if _, err := w.out.Write(w.rec); err != nil {
		return err
	}
	return w.out.Flush()
}

// records writes n records.
func (w *Writer) records(b []byte, n int) error {
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	if w.n += n; w.n > MaxEntries {
		return api.Errorf(api.KindInvalid, "there are more than %d files", MaxEntries)
	}
	if _, err := w.out.Write(b); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return nil
}

// appendEntry appends the record of an entry whose path is prefix and name.
func appendEntry(b []byte, st *status, prefix string, name []byte) ([]byte, error) {
	if len(prefix)+len(name) > MaxPath {
		return b, api.Errorf(api.KindInvalid, "the path %q… is longer than %d bytes", prefix+string(name[:min(len(name), maxShown)]), MaxPath)
	}
	return append(append(append(appendStatus(b, st), prefix...), name...), 0), nil
}

// appendStatus appends what precedes a path or an id.
func appendStatus(b []byte, st *status) []byte {
	b = append(b, st.kind)
	b = append(strconv.AppendUint(b, uint64(st.perm), 8), ' ')
	b = append(strconv.AppendInt(b, st.size, 10), ' ')
	return append(strconv.AppendInt(b, st.mtime, 10), ' ')
}
