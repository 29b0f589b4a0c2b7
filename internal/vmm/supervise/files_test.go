package supervise

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBoundedLog(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("log", []byte("old "), 0o600); err != nil {
		t.Fatal(err)
	}
	rotated := 0
	l, err := openLog("log", 10, func(*os.File) { rotated++ })
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"abcdef", "ghi", "jklmnopqrstuvwxyz0123"} {
		if n, err := l.Write([]byte(s)); n != len(s) || err != nil {
			t.Errorf("Write(%q) = %d, %v", s, n, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"log": "0123", "log.1": "qrstuvwxyz"} {
		if b, err := os.ReadFile(name); err != nil || string(b) != want {
			t.Errorf("%s holds %q, %v; want %q", name, b, err, want)
		}
	}
	if rotated != 4 {
		t.Errorf("there were %d files", rotated)
	}
}

func TestBoundedLogThatCannotRotate(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.MkdirAll("log.1/not-empty", 0o700); err != nil { // rename onto it fails
		t.Fatal(err)
	}
	l, err := openLog("log", 10, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, _ = l.Write([]byte("0123456789abc"))
	if b, err := os.ReadFile("log"); err != nil || string(b) != "abc" {
		t.Errorf("log holds %q, %v", b, err)
	}
}

func TestLastLine(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "",
		"one\n":                     "one",
		"one\ntwo\n\n":              "two",
		"one\nnot ended":            "not ended",
		strings.Repeat("x", 10_000): strings.Repeat("x", maxLastLine),
	} {
		var also bytes.Buffer
		l := &lastLine{also: &also}
		for i := range len(text) {
			_, _ = l.Write([]byte{text[i]})
		}
		if got := l.String(); got != want || also.String() != text {
			t.Errorf("the last line of %.40q is %.40q, want %.40q", text, got, want)
		}
	}
}

func TestWriteJSONIsAllOrNothing(t *testing.T) {
	dir := t.TempDir()
	if err := writeJSON(dir, "a", map[string]int{"x": 1}, true); err != nil {
		t.Fatal(err)
	}
	if err := writeJSON(dir, "a", func() {}, true); err == nil {
		t.Error("a function was written as JSON")
	}
	var got map[string]int
	if err := readJSON(dir, "a", &got); err != nil || got["x"] != 1 {
		t.Errorf("it reads %v, %v", got, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("the directory holds %v, %v", entries, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "a")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its mode: %v, %v", info, err)
	}
	if err := readJSON(dir, "b", &got); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not there: %v", err)
	}
}

func FuzzParseConnect(f *testing.F) {
	for _, s := range []string{"CONNECT 1000", "connect 1", "CONNECT", "CONNECT  1", "CONNECT -1", "CONNECT 4294967296"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		port, err := parseConnect(line)
		if err != nil {
			return
		}
		if word, _, ok := strings.Cut(line, " "); !ok || !strings.EqualFold(word, "connect") {
			t.Errorf("parseConnect(%q) = %d", line, port)
		}
	})
}
