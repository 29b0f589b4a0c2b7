package cli

import (
	"bytes"
	"io"
	"unicode/utf8"
)

// maxSafeLine is the most text held back for the rest of its line, in bytes.
const maxSafeLine = 4096

// safeWriter passes text of a guest on to a terminal: colours and carriage returns are taken out,
// other control characters are escaped. It works in whole lines, as an escape sequence may come in
// pieces; a line longer than maxSafeLine is passed on in parts.
type safeWriter struct {
	w   io.Writer
	buf []byte
}

func newSafeWriter(w io.Writer) *safeWriter { return &safeWriter{w: w} }

func (s *safeWriter) Write(p []byte) (int, error) {
	s.buf = append(s.buf, p...)
	end := bytes.LastIndexByte(s.buf, '\n') + 1
	if end == 0 && len(s.buf) > maxSafeLine {
		end = len(s.buf)
		for i := 1; i < utf8.UTFMax && !utf8.RuneStart(s.buf[end-1]); i++ {
			end--
		}
		if end > 1 && s.buf[end-1] >= utf8.RuneSelf {
			end--
		}
	}
	if end == 0 {
		return len(p), nil
	}
	_, err := io.WriteString(s.w, safeLines(string(withoutColours(s.buf[:end]))))
	s.buf = append(s.buf[:0], s.buf[end:]...)
	return len(p), err
}

// flush passes on what is left of an unfinished line.
func (s *safeWriter) flush() {
	if len(s.buf) > 0 {
		_, _ = io.WriteString(s.w, safeLines(string(withoutColours(s.buf)))+"\n")
		s.buf = nil
	}
}

// withoutColours takes out SGR sequences (ESC [ digits and semicolons m), which change how text
// looks and nothing else, and the carriage returns that end lines.
func withoutColours(p []byte) []byte {
	if !bytes.ContainsAny(p, "\x1b\r") {
		return p
	}
	out := make([]byte, 0, len(p))
	for i := 0; i < len(p); {
		n, keep := 1, true
		switch p[i] {
		case 0x1b:
			if k := sgr(p[i:]); k > 0 {
				n, keep = k, false
			}
		case '\r':
			n = len(p[i:]) - len(bytes.TrimLeft(p[i:], "\r"))
			keep = i+n == len(p) || p[i+n] != '\n'
		}
		if keep {
			out = append(out, p[i:i+n]...)
		}
		i += n
	}
	return out
}

// sgr is the length of the SGR sequence that p starts with, 0 where it starts with none.
func sgr(p []byte) int {
	if len(p) < 2 || p[1] != '[' {
		return 0
	}
	for i, c := range p[2:] {
		switch {
		case c == 'm':
			return i + 3
		case (c < '0' || c > '9') && c != ';':
			return 0
		}
	}
	return 0
}
