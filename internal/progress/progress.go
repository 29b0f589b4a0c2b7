// Package progress is how long work tells where it is: a Reporter goes in, and
// whoever runs the work decides what becomes of it.
package progress

import "io"

// Reporter receives the progress of one piece of work, from one goroutine at a time.
type Reporter interface {
	// Step starts a step, such as "unpack linux-image-6.12". It ends the one before.
	Step(name string)
	// Bytes says that done of total bytes of the step are done; total is 0 where it is unknown. It is cheap
	// and may be called for every read.
	Bytes(done, total int64)
	// Note adds a line for the user that stays after the work has ended.
	Note(text string)
}

// Discard is a Reporter that forgets everything.
var Discard Reporter = discard{}

type discard struct{}

func (discard) Step(string)        {}
func (discard) Bytes(int64, int64) {}
func (discard) Note(string)        {}

// Reader reports how much has been read from r, of total bytes.
func Reader(r io.Reader, rep Reporter, total int64) io.Reader {
	return &reader{r: r, rep: rep, total: total}
}

type reader struct {
	r           io.Reader
	rep         Reporter
	done, total int64
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.done += int64(n)
	r.rep.Bytes(r.done, r.total)
	return n, err
}
