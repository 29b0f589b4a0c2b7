package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
)

// confirm asks a question that is answered with y, n or, for yes, the return key. The end of stdin is a no.
func (a *App) confirm(ctx context.Context, question string) (bool, error) {
	return a.ask(ctx, a.In, question, true)
}

// ask asks in for a yes or no; usual is what the return key alone stands for. The end of in is a no.
func (a *App) ask(ctx context.Context, in io.Reader, question string, usual bool) (bool, error) {
	keys := "[Y/n]"
	if !usual {
		keys = "[y/N]"
	}
	for {
		fmt.Fprintf(a.Err, "banger: %s %s ", safeText(question), keys)
		type answer struct {
			text string
			err  error
		}
		got := make(chan answer, 1)
		go func() { // a read does not end with ctx; the program does
			text, err := readLine(in)
			got <- answer{text, err}
		}()
		select {
		case <-ctx.Done():
			fmt.Fprintln(a.Err)
			return false, context.Cause(ctx)
		case ans := <-got:
			switch text := strings.ToLower(strings.TrimSpace(ans.text)); {
			case ans.err != nil:
				fmt.Fprintln(a.Err)
				if errors.Is(ans.err, io.EOF) {
					return false, nil
				}
				return false, ans.err
			case text == "":
				return usual, nil
			case text == "y" || text == "yes":
				return true, nil
			case text == "n" || text == "no":
				return false, nil
			}
		}
	}
}

// readLine reads a line and not a byte more: what follows is for somebody else.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for b := make([]byte, 1); len(line) < 1024; {
		n, err := r.Read(b)
		if n > 0 && b[0] == '\n' {
			break
		}
		if line = append(line, b[:n]...); err != nil {
			return string(line), err
		}
	}
	return string(line), nil
}

// keyboard hands what is typed to one reader after another. A read of a terminal cannot be broken off: one that still waits for a
// reader that has left goes on for the next.
type keyboard struct {
	in io.Reader

	mu      sync.Mutex // guards what follows
	reading bool       // a read is under way, or its end lies in typed
	rest    []byte     // of what was read
	typed   chan keys  // has room for one
}

// keys is what one read has brought.
type keys struct {
	data []byte
	err  error
}

func newKeyboard(in io.Reader) *keyboard { return &keyboard{in: in, typed: make(chan keys, 1)} }

// seat returns a reader of the keyboard. Once it has left, its reads are at their end, and another may take a seat.
func (k *keyboard) seat() (in io.Reader, leave func()) {
	s := &seat{keyboard: k, left: make(chan struct{})}
	return s, sync.OnceFunc(func() { close(s.left) })
}

// seat is one reader of a keyboard.
type seat struct {
	keyboard *keyboard
	left     chan struct{}
}

func (s *seat) Read(p []byte) (int, error) {
	k := s.keyboard
	k.mu.Lock()
	if len(k.rest) > 0 && !s.hasLeft() {
		n := copy(p, k.rest)
		k.rest = k.rest[n:]
		k.mu.Unlock()
		return n, nil
	}
	if !k.reading && !s.hasLeft() {
		k.reading = true
		go k.read()
	}
	k.mu.Unlock()
	select {
	case <-s.left:
		return 0, io.EOF
	case got := <-k.typed:
		if s.hasLeft() {
			k.typed <- got
			return 0, io.EOF
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		k.reading = false
		n := copy(p, got.data)
		if k.rest = got.data[n:]; len(k.rest) > 0 {
			return n, nil // the error comes again
		}
		return n, got.err
	}
}

func (s *seat) hasLeft() bool {
	select {
	case <-s.left:
		return true
	default:
		return false
	}
}

// read reads once.
func (k *keyboard) read() {
	buf := make([]byte, 4096) // a line of a terminal is no longer
	n, err := k.in.Read(buf)
	k.typed <- keys{buf[:n], err}
}
