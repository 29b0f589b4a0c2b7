package cli

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"sync/atomic"
	"time"
)

// leaveWithin is how long what was typed in front of the key that leaves a session may take to be on its way.
const leaveWithin = 200 * time.Millisecond

// detachSearch returns what finds the key that leaves a session in what is typed: where it begins, or -1. Programs may have asked the terminal to send
// keys as sequences instead of bytes: kitty's, or xterm's of modifyOtherKeys. Both number modifiers from 1: Ctrl is 4, Caps Lock 64, Num Lock 128.
func detachSearch(key byte) func(typed []byte) int {
	if key == 0 {
		return func([]byte) int { return -1 }
	}
	char := key | 0x40
	if key <= 26 {
		char = key | 0x60
	}
	const ctrl = "(?:5|69|133|197)"
	sequence := regexp.MustCompile(fmt.Sprintf(`\x1b\[(?:%d(?::[0-9:]*)?;%s(?::[12])?(?:;[0-9:]*)?u|27;%s;%d~)`, char, ctrl, ctrl, char))
	return func(typed []byte) int {
		at := bytes.IndexByte(typed, key)
		if m := sequence.FindIndex(typed); m != nil && (at < 0 || m[0] < at) {
			return m[0]
		}
		return at
	}
}

// What switches a terminal to its other screen and back. Who switches back without having been there moves the cursor.
const (
	otherScreen = "\x1b[?1049h"
	mainScreen  = "\x1b[?1049l"
)

// resetTerminal undoes what programs ask of a terminal and a session that goes on does not take back: a cursor that is hidden, a mouse that is
// reported, pastes that are marked, and colours.
const resetTerminal = "\x1b[?25h\x1b[?1000;1002;1003;1006l\x1b[?2004l\x1b[0m"

// screenWriter passes output on to a terminal, and knows which screen it shows.
type screenWriter struct {
	w     io.Writer
	last  []byte // the end of what was written, shorter than a switch
	other atomic.Bool
}

// Write implements io.Writer.
func (s *screenWriter) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	b := append(s.last, p[:n]...)
	if on, off := bytes.LastIndex(b, []byte(otherScreen)), bytes.LastIndex(b, []byte(mainScreen)); on != off {
		s.other.Store(on > off)
	}
	s.last = append([]byte(nil), b[max(0, len(b)-len(otherScreen)+1):]...)
	return n, err
}

// reset makes the terminal as it is without the session.
func (s *screenWriter) reset() {
	text := resetTerminal
	if s.other.Load() {
		text = mainScreen + text
	}
	_, _ = io.WriteString(s.w, text)
}
