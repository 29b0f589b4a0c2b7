package content

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

type note struct {
	Version int    `json:"version"`
	Text    string `json:"text"`
}

const noteVersion = 3

func readNote(dir string) (note, error) {
	return ReadRecord[note](filepath.Join(dir, "note.json"), noteVersion)
}

// digest is of a letter for each digit.
func digest(letter string) string { return "sha256:" + strings.Repeat(letter, 64) }

// newStore returns a store with a directory for each of the letters.
func newStore(t *testing.T, letters ...string) Store {
	t.Helper()
	s := Store{Dir: filepath.Join(t.TempDir(), "notes"), Noun: "note", Log: slog.New(slog.DiscardHandler)}
	for _, l := range letters {
		dir, err := s.Path(digest(l))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.MkdirAll(dir, 0o755), WriteRecord(filepath.Join(dir, "note.json"), note{noteVersion, l})); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestBeforeThereIsADirectory(t *testing.T) {
	s := newStore(t)
	if got, err := List(s, readNote); got != nil || err != nil {
		t.Errorf("List: %v, %v", got, err)
	}
	if err := s.Sweep(time.Now(), os.RemoveAll); err != nil {
		t.Error(err)
	}
	if err := s.Remove(digest("a")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(s.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory was made: %v", err)
	}
}

func TestPathRefusesWhatIsNoDigest(t *testing.T) {
	for _, d := range []string{"", "sha256:", "sha256:../../etc", digest("A"), digest("a") + "a", digest("g"), strings.Repeat("a", 64)} {
		if dir, err := newStore(t).Path(d); api.KindOf(err) != api.KindInvalid {
			t.Errorf("Path(%q): %q, %v", d, dir, err)
		}
	}
}

func TestListAndRemove(t *testing.T) {
	s := newStore(t, "b", "a", "c")
	damaged, err := s.Path(digest("b"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(filepath.Join(damaged, "note.json")), os.Mkdir(filepath.Join(s.Dir, "other"), 0o755)); err != nil {
		t.Fatal(err)
	}
	got, err := List(s, readNote)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]note{{noteVersion, "a"}, {noteVersion, "c"}}, got); diff != "" {
		t.Error(diff)
	}
	for range 2 {
		if err := s.Remove(digest("a")); err != nil {
			t.Error(err)
		}
	}
	want := []string{"other", filepath.Base(damaged), "sha256-" + strings.Repeat("c", 64)}
	if diff := cmp.Diff(want, names(t, s.Dir)); diff != "" {
		t.Error(diff)
	}
}

// A directory that cannot be removed keeps none of the others.
func TestSweepGoesOn(t *testing.T) {
	s := newStore(t, "a")
	now := time.Now()
	for name, at := range map[string]time.Time{"1": now.Add(-time.Hour), "2": now.Add(-time.Hour), "3": now.Add(time.Hour)} {
		dir := filepath.Join(s.Dir, TmpPrefix+name)
		if err := errors.Join(os.Mkdir(dir, 0o755), os.Chtimes(dir, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	busy := errors.New("busy")
	err := s.Sweep(now, func(dir string) error {
		if filepath.Base(dir) == TmpPrefix+"1" {
			return busy
		}
		return os.RemoveAll(dir)
	})
	if !errors.Is(err, busy) || err.Error() != "sweep notes: busy" {
		t.Errorf("Sweep: %v", err)
	}
	want := []string{TmpPrefix + "1", TmpPrefix + "3", "sha256-" + strings.Repeat("a", 64)}
	if diff := cmp.Diff(want, names(t, s.Dir)); diff != "" {
		t.Error(diff)
	}
}

func TestRecord(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "note.json")
	if _, err := readNote(dir); !errors.Is(err, fs.ErrNotExist) || Absent(dir, err) {
		t.Errorf("dir without a record: %v", err)
	}
	if _, err := readNote(path); !Absent(path, err) {
		t.Errorf("no dir: %v", err)
	}
	for _, text := range []string{"one", "two"} {
		if err := WriteRecord(path, note{noteVersion, text}); err != nil {
			t.Fatal(err)
		}
		if got, err := readNote(dir); err != nil || got.Text != text {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "{\n\t\"version\": 3,\n\t\"text\": \"two\"\n}\n" {
		t.Errorf("%q, %v", data, err)
	}
	if diff := cmp.Diff([]string{"note.json"}, names(t, dir)); diff != "" {
		t.Error(diff)
	}
	for text, want := range map[string]string{
		`{`:                         "unexpected end of JSON input",
		`{"text": "x"}`:             "version 0, not 3: another version of banger wrote it",
		`{"version": 4}`:            "version 4, not 3: another version of banger wrote it",
		`{"version": 3, "text": 1}`: "cannot unmarshal number",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := readNote(dir); err == nil || !strings.Contains(err.Error(), want) || got != (note{}) {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}

// A record that cannot be put in its place leaves nothing beside it.
func TestWriteRecordCleansUp(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "note.json", "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := WriteRecord(filepath.Join(dir, "note.json"), note{Version: noteVersion}); err == nil {
		t.Error("a directory was replaced")
	}
	if diff := cmp.Diff([]string{"note.json"}, names(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestLook(t *testing.T) {
	dir := t.TempDir()
	path, at := filepath.Join(dir, "f"), time.Unix(1_700_000_000, 5)
	write := func(text string, at time.Time) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	write("abc", at)
	was, err := Hash(t.Context(), dir, "f", progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	const abc, abd = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
		"a52d159f262b2c6ddb724a61840befc36eb30c88877a4030b65cbe86298449c9"
	if diff := cmp.Diff(File{Name: "f", SHA256: abc, Size: 3, ModTime: at.UnixNano()}, was); diff != "" {
		t.Fatal(diff)
	}
	later := at.Add(time.Second)
	for _, c := range []struct {
		name, text string
		at         time.Time
		full       bool
		want       File
	}{
		{"untouched", "abc", at, false, was},
		{"changed unseen", "abd", at, false, was},
		{"changed, read", "abd", at, true, File{"f", abd, 3, at.UnixNano()}},
		{"restored", "abc", later, false, File{"f", abc, 3, later.UnixNano()}},
		{"changed", "abd", later, false, File{"f", abd, 3, later.UnixNano()}},
	} {
		write(c.text, c.at)
		got, err := was.Look(t.Context(), dir, c.full)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
	ended := errors.New("ended")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(ended)
	if _, err := was.Look(ctx, dir, true); !errors.Is(err, ended) {
		t.Errorf("ended: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := was.Look(t.Context(), dir, false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("gone: %v", err)
	}
}
