package supervise

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

// maxLog is how large a log may become before it is rotated, in bytes; there are two of each.
const maxLog = 8 << 20

// boundedLog is a log of at most two files of limit bytes: NAME and NAME.1. Writing to it never fails for its
// user: what a full disk does not take is lost.
type boundedLog struct {
	name  string
	limit int64
	// onRotate is called with every new file; may be nil.
	onRotate func(*os.File)

	mu   sync.Mutex // guards f, size
	f    *os.File
	size int64
}

// openLog opens name in the working directory for appending.
func openLog(name string, limit int64, onRotate func(*os.File)) (*boundedLog, error) {
	l := &boundedLog{name: name, limit: limit, onRotate: onRotate}
	return l, l.open()
}

func (l *boundedLog) open() error {
	f, err := os.OpenFile(l.name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.f, l.size = f, st.Size()
	if l.onRotate != nil {
		l.onRotate(f)
	}
	return nil
}

// Write appends p and reports it written, whatever happened.
func (l *boundedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	total := len(p)
	for len(p) > 0 {
		if l.size >= l.limit && !l.rotate() {
			return total, nil
		}
		n, err := l.f.Write(p[:min(int64(len(p)), l.limit-l.size)])
		l.size += int64(n)
		p = p[n:]
		if err != nil {
			return total, nil
		}
	}
	return total, nil
}

// rotate makes NAME the new NAME.1; called with mu held. Where that fails the file starts again from nothing.
func (l *boundedLog) rotate() bool {
	if os.Rename(l.name, l.name+".1") == nil {
		old := l.f
		if l.open() == nil {
			_ = old.Close()
			return true
		}
		l.f = old
	}
	if l.f.Truncate(0) != nil {
		return false
	}
	l.size = 0
	return true
}

// Close closes the file.
func (l *boundedLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}

// lastLine copies to also, and remembers the last line that went through, for messages.
type lastLine struct {
	also io.Writer

	mu        sync.Mutex // guards line, cur
	line, cur []byte
}

const maxLastLine = 400

// Write implements io.Writer.
func (l *lastLine) Write(p []byte) (int, error) {
	l.mu.Lock()
	for _, c := range p {
		switch {
		case c != '\n' && len(l.cur) < maxLastLine:
			l.cur = append(l.cur, c)
		case c == '\n' && len(l.cur) > 0:
			l.line, l.cur = l.cur, l.line[:0]
		}
	}
	l.mu.Unlock()
	return l.also.Write(p)
}

// String returns the last line, also where it has not ended.
func (l *lastLine) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.cur) > 0 {
		return string(l.cur)
	}
	return string(l.line)
}

// outputPipe carries what one VMM writes to a log.
type outputPipe struct {
	w    *os.File // for the VMM
	r    *os.File
	done chan struct{}
}

func newOutputPipe(to io.Writer) (*outputPipe, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p := &outputPipe{w: w, r: r, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		buf := make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			_, _ = to.Write(buf[:n])
			if err != nil {
				return
			}
		}
	}()
	return p, nil
}

// close returns when all the VMM wrote is in the log. The VMM is gone; should somebody else hold its end, that one is
// not waited for beyond a second.
func (p *outputPipe) close() {
	p.w.Close()
	_ = p.r.SetReadDeadline(time.Now().Add(time.Second))
	<-p.done
	p.r.Close()
}
