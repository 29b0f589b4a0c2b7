package kernel

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
)

func TestDamage(t *testing.T) {
	for _, name := range append(contentFiles(), fileJSON) {
		for how, damage := range map[string]func(path string) error{
			"missing": os.Remove,
			"shorter": func(p string) error { return errors.Join(os.Chmod(p, 0o600), os.Truncate(p, 10)) },
			"changed": func(p string) error {
				data, err := os.ReadFile(p)
				if err != nil {
					return err
				}
				data[len(data)/2] ^= 1
				return errors.Join(os.Remove(p), os.WriteFile(p, data, 0o600))
			},
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				f := newFixture(t)
				k := f.mustPull(t)
				dir, err := f.path(k.Digest)
				if err != nil {
					t.Fatal(err)
				}
				if err := damage(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
				_, err = f.Files(t.Context(), k.Digest)
				var e *api.Error
				if name == fileJSON && how == "changed" && err == nil {
					return // a bit of its description, say: the files are what counts
				}
				if !errors.As(err, &e) || e.Kind != api.KindUnavailable || !strings.HasPrefix(e.Hint, "banger kernel pull ") ||
					!strings.Contains(e.Message, name) {
					t.Fatalf("Files: %v, %+v", err, e)
				}
				if how == "changed" && name != fileJSON && !strings.Contains(e.Message, "expected sha256") {
					t.Errorf("the error names no digests: %v", err)
				}
				if again := f.mustPull(t); again.Digest != k.Digest {
					t.Errorf("pulled again: %s, was %s", again.Digest, k.Digest)
				}
				if err := f.Verify(t.Context(), k.Digest); err != nil {
					t.Error(err)
				}
				if got := f.stored(t); len(got) != 1 {
					t.Errorf("in the store: %v", got)
				}
			})
		}
	}
}

// A change that keeps size and time is what only Verify finds.
func TestVerifyReadsEverything(t *testing.T) {
	f := newFixture(t)
	k := f.mustPull(t)
	files, err := f.Files(t.Context(), k.Digest)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(files.Vmlinux)
	if err != nil {
		t.Fatal(err)
	}
	data := vmlinux()
	data[1000] ^= 1
	err = errors.Join(os.Remove(files.Vmlinux), os.WriteFile(files.Vmlinux, data, 0o600), os.Chtimes(files.Vmlinux, info.ModTime(), info.ModTime()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Files(t.Context(), k.Digest); err != nil {
		t.Errorf("Files: %v", err)
	}
	if err := f.Verify(t.Context(), k.Digest); err == nil || !strings.Contains(err.Error(), "expected sha256") {
		t.Errorf("Verify: %v", err)
	}
}

// Files with other times, such as restored ones, are read once and then trusted again.
func TestFilesWithOtherTimes(t *testing.T) {
	f := newFixture(t)
	k := f.mustPull(t)
	files, err := f.Files(t.Context(), k.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(files.Vmlinux, today, today); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Files(t.Context(), k.Digest); err != nil {
		t.Fatal(err)
	}
	r, err := readRecord(filepath.Dir(files.Vmlinux))
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Files[2]; got.Name != fileVmlinux || got.ModTime != today.UnixNano() {
		t.Errorf("recorded: %+v", got)
	}
}

func TestBadDigest(t *testing.T) {
	f := newFixture(t)
	for _, d := range []string{"", "sha256:", "sha256:../../etc", "sha256:" + strings.Repeat("A", 64), strings.Repeat("a", 64)} {
		if _, err := f.Files(t.Context(), d); api.KindOf(err) != api.KindInvalid {
			t.Errorf("Files(%q): %v", d, err)
		}
		if err := f.Remove(d); api.KindOf(err) != api.KindInvalid {
			t.Errorf("Remove(%q): %v", d, err)
		}
	}
}

func TestSweep(t *testing.T) {
	f := newFixture(t)
	if err := f.Sweep(today); err != nil {
		t.Errorf("before there is a directory: %v", err)
	}
	k := f.mustPull(t)
	dir := filepath.Join(f.dir, "kernels")
	for name, at := range map[string]time.Time{".tmp-old": today.Add(-time.Hour), ".tmp-new": today.Add(time.Hour)} {
		path := filepath.Join(dir, name)
		err := errors.Join(os.MkdirAll(filepath.Join(path, "stage", "kernel"), 0o700),
			os.WriteFile(filepath.Join(path, "stage", "kernel", "x.ko"), []byte("x"), 0o600), os.Chtimes(path, at, at))
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sweep(today); err != nil {
		t.Fatal(err)
	}
	want := []string{".tmp-new", strings.Replace(k.Digest, ":", "-", 1)}
	if diff := cmp.Diff(want, f.stored(t)); diff != "" {
		t.Error(diff)
	}
}
