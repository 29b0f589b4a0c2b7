package tree_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/tree"
)

// entries reads a listing, with | for NUL.
func entries(answer string) (all []tree.Entry, err error) {
	r := tree.NewReader(strings.NewReader(strings.ReplaceAll(answer, "|", "\x00")))
	for {
		e, err := r.Entry()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, e)
	}
}

// TestLies: answers of a guest that are none.
func TestLies(t *testing.T) {
	for _, good := range []string{".0|", "f644 1 2 a|l777 0 -2 a/b|d755 0 0 c|.3|", "f0 1 0 a|f644 1 2 a|.2|", "f644 9223372036854775807 9223372036854775807 a|.1|"} {
		if _, err := entries(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	if all, err := entries("f644 1 2 a|f755 1 2 a|f755 1 2 b|.3|"); err != nil || len(all) != 2 || all[0].Mode != 0o644 {
		t.Errorf("a path twice: %+v, %v", all, err)
	}
	for _, bad := range []string{
		"", "|", "f644 1 2 a|", "f644 1 2 a", ".", ".0", ".1|", ".00|", ".|", ".-0|", ".0|x", ".0|.0|", "f644 1 2 a|.2|", "f644 1 2 a|.0|",
		"f644 1 2 |.1|", "f644 1 2 ../a|.1|", "f644 1 2 a/../b|.1|", "f644 1 2 /a|.1|", "f644 1 2 a/|.1|", "f644 1 2 a//b|.1|", "f644 1 2 .|.1|",
		"f644 1 2 .git|.1|", "f644 1 2 a/.Git/b|.1|", "d755 0 2 .GIT|.1|", "f644 1 2 " + strings.Repeat("a", 4097) + "|.1|", strings.Repeat("a", 1<<20),
		"x644 1 2 a|.1|", "s|.1|", "-|.1|", "f1000 1 2 a|.1|", "f0644 1 2 a|.1|", "f8 1 2 a|.1|", "f644 -1 2 a|.1|", "f644 01 2 a|.1|", "f644 1 -0 a|.1|",
		"f644 1 - a|.1|", "f644 9223372036854775808 2 a|.1|", "f644 1 9223372036854775808 a|.1|", "f644  1 2 a|.1|", "f644 1 2|.1|", "f 1 2 a|.1|", "f644 +1 2 a|.1|",
		"f644 1 --2 a|.1|", "d755 1 2 a|.1|", "!|", "!x|", "!{}|", "!null|", `!{"kind":"invalid","message":""}|`, `!{"kind":"invalid","message":"` + strings.Repeat("x", 20<<10) + `"}|`,
	} {
		if _, err := entries(bad); err == nil {
			t.Errorf("%.100q is believed", bad)
		} else if _, said := errors.AsType[*tree.Failure](err); said {
			t.Errorf("%.100q is a failure: %v", bad, err)
		}
	}
	if _, err := entries(`f644 1 2 a|!{"kind":"invalid","message":"no"}|`); err == nil || err.Error() != "no" {
		t.Error(err)
	}
}

func TestStateLies(t *testing.T) {
	id := strings.Repeat("ab", 20)
	read := func(answer string) error {
		r := tree.NewReader(strings.NewReader(strings.ReplaceAll(answer, "|", "\x00")))
		for _, p := range []string{"x", "y"} {
			if _, err := r.State(p, 40); err != nil {
				return err
			}
		}
		return r.End()
	}
	for _, good := range []string{"f644 1 2 " + id + "|-|.2|", "s|d755 0 1 -|.2|", "l777 1 1 " + id + "|f644 0 0 " + id + "|.2|"} {
		if err := read(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{
		"", "-|-|", "-|.1|", "-|-|-|.3|", "-|-|.2|x", "-|-|.3|", "-|-|.2", "-|.2|", "f644 1 2 a|-|.2|", "f644 1 2 -|-|.2|", "f644 1 2 " + id + "0|-|.2|",
		"f644 1 2 " + strings.ToUpper(id) + "|-|.2|", "d755 0 1 " + id + "|-|.2|", "d755 1 1 -|-|.2|", "--|-|.2|", "s |-|.2|",
	} {
		if read(bad) == nil {
			t.Errorf("%q is believed", bad)
		}
	}
}

// TestFailure: a failure comes through, also one that is too long.
func TestFailure(t *testing.T) {
	for _, message := range []string{"no", strings.Repeat("x", 10_000), strings.Repeat("\x01", 10_000), "ü\xff"} {
		var b bytes.Buffer
		w := tree.NewWriter(t.Context(), &b)
		if err := w.End(api.Errorf(api.KindUnavailable, "%s", message).WithHint("%s", message)); err != nil {
			t.Fatal(err)
		}
		_, err := tree.NewReader(&b).Entry()
		if f, ok := errors.AsType[*tree.Failure](err); !ok || f.Said.Message == "" {
			t.Errorf("%.20q: %v", message, err)
		}
	}
}

// FuzzReader: whatever comes is an error or a tree with paths that can be used.
func FuzzReader(f *testing.F) {
	f.Add([]byte("f644 1 2 a\x00l777 0 -2 a/b\x00d755 0 0 c\x00.3\x00"))
	f.Add([]byte("s\x00-\x00f644 1 2 da39a3ee5e6b4b0d3255bfef95601890afd80709\x00.3\x00"))
	f.Add([]byte("!{\"kind\":\"invalid\",\"message\":\"no\"}\x00"))
	f.Add([]byte("f644 1 2 a/../b\x00.1\x00"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		r := tree.NewReader(bytes.NewReader(answer))
		for {
			e, err := r.Entry()
			if err != nil {
				break
			}
			if _, err := tree.EncodePaths([]string{e.Path}); err != nil || e.Size < 0 || strings.Contains("/"+strings.ToLower(e.Path)+"/", "/.git/") {
				t.Errorf("%+v, %v", e, err)
			}
		}
		r = tree.NewReader(bytes.NewReader(answer))
		for {
			s, err := r.State("p", 40)
			if err != nil {
				break
			}
			if s.Path != "p" || (s.ID == "") != (s.Missing || s.Dir || s.Special) {
				t.Errorf("%+v", s)
			}
		}
	})
}

// FuzzReadPaths: what is read is what is written.
func FuzzReadPaths(f *testing.F) {
	f.Add([]byte("a\x00b/c\x00"))
	f.Add([]byte("a/../b\x00"))
	f.Fuzz(func(t *testing.T, request []byte) {
		p, err := tree.ReadPaths(bytes.NewReader(request))
		if err != nil || len(p) == 0 {
			return
		}
		again, err := tree.EncodePaths(strings.Split(strings.TrimSuffix(string(p), "\x00"), "\x00"))
		if err != nil || !bytes.Equal(again, request) {
			t.Errorf("%q became %q, %v", request, again, err)
		}
	})
}
