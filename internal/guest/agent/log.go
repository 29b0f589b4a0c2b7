package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
)

const (
	// logBytes bounds the log that is kept in memory, and each of the two files of it under /run.
	logBytes = 256 << 10
	logFile  = runDir + "/agent.log"
)

// logbook is the agent's log: the last logBytes of it in memory, for the API; the same in a file, for a look
// from inside; and every line to the host, with the call. It is an io.Writer for slog.
type logbook struct {
	line func(string) // takes a line to the host; set before the first Write

	mu      sync.Mutex // guards what follows
	lines   []string
	first   int // number of lines[0]
	size    int
	changed chan struct{} // closed at the next line
	path    string        // empty for none
	file    *os.File
	written int
}

func newLogbook(path string, line func(string)) *logbook {
	return &logbook{path: path, line: line, changed: make(chan struct{})}
}

// Write implements io.Writer; p is one or more lines.
func (l *logbook) Write(p []byte) (int, error) {
	for line := range bytes.Lines(p) {
		l.add(strings.TrimSuffix(string(line), "\n"))
	}
	return len(p), nil
}

func (l *logbook) add(line string) {
	l.mu.Lock()
	l.lines = append(l.lines, line)
	l.size += len(line) + 1
	for l.size > logBytes && len(l.lines) > 1 {
		l.size -= len(l.lines[0]) + 1
		l.lines = l.lines[1:]
		l.first++
	}
	close(l.changed)
	l.changed = make(chan struct{})
	l.save(line)
	l.mu.Unlock()
	if l.line != nil {
		l.line(line)
	}
}

// save appends to the file. The log under /run is a convenience: where it cannot be written there is none.
func (l *logbook) save(line string) {
	if l.path == "" {
		return
	}
	if l.file == nil || l.written > logBytes {
		if l.file != nil {
			l.file.Close()
			_ = os.Rename(l.path, l.path+".1")
		}
		f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			l.path = ""
			return
		}
		l.file, l.written = f, 0
	}
	n, _ := l.file.WriteString(line + "\n")
	l.written += n
}

// copyTo writes the log to w, and with follow what comes until ctx ends.
func (l *logbook) copyTo(ctx context.Context, w io.Writer, follow bool) error {
	for next := 0; ; {
		l.mu.Lock()
		next = max(next, l.first)
		batch := l.lines[next-l.first:]
		next += len(batch)
		text := strings.Join(batch, "\n")
		changed := l.changed
		l.mu.Unlock()
		if len(batch) > 0 {
			if _, err := io.WriteString(w, text+"\n"); err != nil {
				return err
			}
		}
		if !follow {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errors.Join(ctx.Err())
		}
	}
}
