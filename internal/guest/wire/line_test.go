package wire

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLines(t *testing.T) {
	var stream bytes.Buffer
	want := []Call{{Type: CallHello, Secret: "s", Version: 1}, {Type: CallMark, Mark: "ready"}}
	for _, c := range want {
		if err := WriteLine(&stream, c); err != nil {
			t.Fatal(err)
		}
	}
	lr := NewLineReader(&stream)
	for _, w := range want {
		var got Call
		if err := lr.Read(&got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(w, got); diff != "" {
			t.Error(diff)
		}
	}
	if err := lr.Read(&Call{}); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

func TestBadLines(t *testing.T) {
	for _, tc := range []struct {
		name, line string
		want       error
	}{
		{"cut", `{"type":"mark"}`, io.ErrUnexpectedEOF},
		{"no json", "hello\n", ErrProtocol},
		{"two values", "{}{}\n", ErrProtocol},
		{"empty", "\n", ErrProtocol},
		{"array", "[]\n", ErrProtocol},
		{"endless", strings.Repeat("x", MaxCallLine+1), ErrProtocol},
		{"longest", `{"type":"` + strings.Repeat("x", MaxCallLine-12) + "\"}\n", nil},
	} {
		if err := NewLineReader(strings.NewReader(tc.line)).Read(&Call{}); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
	if err := WriteLine(io.Discard, strings.Repeat("x", MaxCallLine)); err == nil {
		t.Error("a line beyond MaxCallLine was written")
	}
	if err := WriteLine(io.Discard, func() {}); err == nil {
		t.Error("a func was written")
	}
}

func FuzzLineReader(f *testing.F) {
	f.Add([]byte("{\"type\":\"hello\",\"version\":1}\n{\"type\":\"mark\"}\n"))
	f.Add([]byte("\n\n{"))
	f.Fuzz(func(t *testing.T, in []byte) {
		lr := NewLineReader(bytes.NewReader(in))
		for range len(in) + 2 {
			var c Call
			err := lr.Read(&c)
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return
			}
			if err != nil && !errors.Is(err, ErrProtocol) {
				t.Fatal(err)
			}
		}
		t.Fatal("more lines than bytes")
	})
}
