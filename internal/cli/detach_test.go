package cli

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
)

func TestDetachSearch(t *testing.T) {
	for _, tt := range []struct {
		key   byte
		typed string
		want  int
	}{
		{0x1c, "abc", -1},
		{0x1c, "abc\x1cd", 3},
		{0x1c, "ab\x1b[92;5u\x1c", 2},
		{0x1c, "\x1c\x1b[92;5u", 0},
		{0x1c, "\x1b[27;5;92~", 0},
		{0x1c, "\x1b[92;133u", 0},
		{0x1c, "\x1b[92:124;5:1u", 0},
		{0x1c, "\x1b[92;5:3u", -1}, // let go
		{0x1c, "\x1b[92;1u", -1},
		{0x1c, "\x1b[93;5u", -1},
		{0x1d, "\x1b[93;5u", 0},
		{0x01, "x\x1b[97;5u", 1},
		{0, "\x00", -1},
	} {
		if got := detachSearch(tt.key)([]byte(tt.typed)); got != tt.want {
			t.Errorf("%#x in %q: %d, want %d", tt.key, tt.typed, got, tt.want)
		}
	}
}

// TestTypedInFrontOfKey: what is read together with the key that leaves, in front of it, is input; nothing behind it is.
func TestTypedInFrontOfKey(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	s := remoteSession{app: newTestApp(t).App, in: strings.NewReader("abc\x1cdef"), detach: detachSearch(0x1c), cancel: cancel}
	p := make([]byte, 100)
	if n, err := s.Read(p); err != nil || string(p[:n]) != "abc" || ctx.Err() != nil {
		t.Errorf("read %q, %v, %v", p[:n], err, ctx.Err())
	}
	go func() { _, _ = s.Read(p) }()
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.As(err, new(detachedError)) {
		t.Errorf("ended with %v", err)
	}
}

// TestScreenWriter: a terminal is put back from its other screen only where it shows that.
func TestScreenWriter(t *testing.T) {
	for _, tt := range []struct {
		printed string
		other   bool
	}{{"plain", false}, {"a\x1b[?1049hb", true}, {"a\x1b[?1049hb\x1b[?1049lc", false}, {"\x1b[?1049l\x1b[?1049h", true}} {
		for _, piece := range []int{1, 3, 100} {
			var out bytes.Buffer
			s := &screenWriter{w: &out}
			for b := []byte(tt.printed); len(b) > 0; b = b[min(piece, len(b)):] {
				_, _ = s.Write(b[:min(piece, len(b))])
			}
			s.reset()
			want := tt.printed + resetTerminal
			if tt.other {
				want = tt.printed + mainScreen + resetTerminal
			}
			if out.String() != want {
				t.Errorf("%q in pieces of %d: %q", tt.printed, piece, out.String())
			}
		}
	}
}
