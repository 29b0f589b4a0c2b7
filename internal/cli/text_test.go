package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestSafeText(t *testing.T) {
	for _, c := range []struct{ in, text, lines string }{
		{"plain ünïcode 漢字", "plain ünïcode 漢字", "plain ünïcode 漢字"},
		{"a\x1b[31mb", `a\x1b[31mb`, `a\x1b[31mb`},
		{"a\nb\tc\rd", `a\nb\tc\rd`, "a\nb\tc\\rd"},
		{"\x9b31m", `\x9b31m`, `\x9b31m`},
		{"\u009b31m", `\u009b31m`, `\u009b31m`},
		{"abc\u202etxt.exe", `abc\u202etxt.exe`, `abc\u202etxt.exe`},
		{"\x7f\x00", `\x7f\x00`, `\x7f\x00`},
		{"line\u2028sep", `line\u2028sep`, `line\u2028sep`},
		{"\xff\xfe", `\xff\xfe`, `\xff\xfe`},
	} {
		if got := safeText(c.in); got != c.text {
			t.Errorf("safeText(%q) = %q, want %q", c.in, got, c.text)
		}
		if got := safeLines(c.in); got != c.lines {
			t.Errorf("safeLines(%q) = %q, want %q", c.in, got, c.lines)
		}
	}
}

func TestSizes(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 1023: "1023B", 1024: "1KiB", 1536: "1.5KiB", 1<<20 - 1: "1MiB", 1 << 20: "1MiB",
		2 << 30: "2GiB", 20<<30 + 1<<29: "20.5GiB", 1 << 60: "1EiB", 1<<63 - 1: "8EiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Second: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m",
		90 * time.Minute: "1h", 47 * time.Hour: "47h", 50 * time.Hour: "2d"} {
		if got := age(d); got != want {
			t.Errorf("age(%s) = %q, want %q", d, got, want)
		}
	}
	for _, c := range []struct {
		s     string
		width int
		want  string
	}{{"abc", 0, "abc"}, {"abc", 3, "abc"}, {"abcd", 3, "ab…"}, {"äöüß", 3, "äö…"}, {"abc", 1, "…"}} {
		if got := clip(c.s, c.width); got != c.want {
			t.Errorf("clip(%q, %d) = %q, want %q", c.s, c.width, got, c.want)
		}
	}
	if got, want := quoted("sh", "-c", "it's $HOME", ""), `sh -c 'it'\''s $HOME' ''`; got != want {
		t.Errorf("quoted: %s, want %s", got, want)
	}
}

// throughSafeWriter is what a terminal gets of p, written in pieces of n bytes.
func throughSafeWriter(p []byte, n int) string {
	var out bytes.Buffer
	w := newSafeWriter(&out)
	for len(p) > 0 {
		k := min(n, len(p))
		w.Write(p[:k])
		p = p[k:]
	}
	w.flush()
	return out.String()
}

func TestSafeWriter(t *testing.T) {
	in := "[ \x1b[0;32mOK\x1b[0m ] Started\r\n\x1b[2Jcleared\r\r\nprogress 1\rprogress 2\n漢字\nlast"
	want := "[ OK ] Started\n\\x1b[2Jcleared\nprogress 1\\rprogress 2\n漢字\nlast\n"
	for n := 1; n <= len(in); n++ {
		if got := throughSafeWriter([]byte(in), n); got != want {
			t.Fatalf("in pieces of %d: %q, want %q", n, got, want)
		}
	}
	long := strings.Repeat("漢", 3*maxSafeLine) + "\n"
	if got := throughSafeWriter([]byte(long), 1000); got != long {
		t.Error("a long line was changed")
	}
}

// FuzzSafeWriter checks that nothing a guest prints reaches a terminal as a control character.
func FuzzSafeWriter(f *testing.F) {
	f.Add([]byte("a\x1b[31mb\r\n"), uint8(1))
	f.Add([]byte("\x1b]0;title\x07\x9b5n"), uint8(3))
	f.Add(bytes.Repeat([]byte("\xe6\xbc"), maxSafeLine), uint8(255))
	f.Fuzz(func(t *testing.T, p []byte, n uint8) {
		out := throughSafeWriter(p, int(n)+1)
		if !utf8.ValidString(out) {
			t.Errorf("%q became %q, which is not UTF-8", p, out)
		}
		if strings.ContainsFunc(out, func(r rune) bool { return r != '\n' && r != '\t' && unsafeRune(r) }) {
			t.Errorf("%q became %q", p, out)
		}
	})
}

func TestWrap(t *testing.T) {
	for _, c := range []struct {
		in    string
		width int
		want  string
	}{
		{"", 10, ""},
		{"short", 10, "short"},
		{"exactly 10", 10, "exactly 10"},
		{"exactly 11!", 10, "exactly\n11!"},
		{"one two three four", 9, "one two\nthree\nfour"},
		{"a/path/that/is/long then more", 9, "a/path/that/is/long\nthen more"},
		{"two\nlines here", 5, "two\nlines\nhere"},
		{"größer als vorher", 10, "größer als\nvorher"},
	} {
		if got := wrap(c.in, c.width); got != c.want {
			t.Errorf("wrap(%q, %d): %q, want %q", c.in, c.width, got, c.want)
		}
	}
}
