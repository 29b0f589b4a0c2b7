package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// confirm asks a question that is answered with y, n or, for yes, the return key. The end of stdin is a no.
func (a *App) confirm(ctx context.Context, question string) (bool, error) {
	return a.ask(ctx, question, true)
}

// ask asks for a yes or no; usual is what the return key alone stands for. The end of stdin is a no.
func (a *App) ask(ctx context.Context, question string, usual bool) (bool, error) {
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
			text, err := readLine(a.In)
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

// seat is stdin for somebody who does not read it to its end: once it has left, its reads are at their end, and what is typed then is
// for who comes next.
type seat struct {
	in   io.Reader
	wake *os.File // is readable once left; nil where in is no file, and a read cannot be broken off
	left *os.File
}

// takeSeat returns a seat at in.
func takeSeat(in io.Reader) (*seat, error) {
	s := &seat{in: in}
	if _, ok := in.(*os.File); !ok {
		return s, nil
	}
	var err error
	s.wake, s.left, err = os.Pipe()
	return s, err
}

// leave ends a Read that waits, and those to come.
func (s *seat) leave() {
	if s.left != nil {
		_ = s.left.Close()
	}
}

func (s *seat) Read(p []byte) (int, error) {
	f, ok := s.in.(*os.File)
	if !ok {
		return s.in.Read(p)
	}
	fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}, {Fd: int32(s.wake.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case fds[1].Revents != 0:
			return 0, io.EOF
		default:
			return f.Read(p)
		}
	}
}
