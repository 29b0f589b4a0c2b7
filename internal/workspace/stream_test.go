package workspace

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// Files that change between listing and reading leave a correct tar stream, and a line.
func TestFilesThatChange(t *testing.T) {
	h := newHost(t)
	for _, f := range []string{"grows", "shrinks", "goes", "becomes a link", "becomes a pipe", "stays"} {
		h.file("plain/"+f, strings.Repeat("x", 1000))
	}
	s := h.prepare(h.dir + "/plain")
	h.file("plain/grows", strings.Repeat("y", 2000))
	h.file("plain/shrinks", "z")
	for _, f := range []string{"goes", "becomes a link", "becomes a pipe"} {
		must(t, os.Remove(h.dir+"/plain/"+f))
	}
	must(t, os.Symlink("/etc/passwd", h.dir+"/plain/becomes a link"))
	must(t, unix.Mkfifo(h.dir+"/plain/becomes a pipe", 0o600))
	guest, ws := h.stream(s)
	slices.Sort(ws.Skipped)
	want := []string{`"becomes a link": it went away while the workspace was copied`,
		`"becomes a pipe": it went away while the workspace was copied`, "goes: it went away while the workspace was copied"}
	if diff := cmp.Diff(want, ws.Skipped); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for f, size := range map[string]int{"grows": 2000, "shrinks": 1, "stays": 1000} {
		if b, err := os.ReadFile(guest + "/" + f); err != nil || len(b) != size {
			t.Errorf("%s: %d bytes, %v", f, len(b), err)
		}
	}
}

// writerFunc is a writer that does something at each write.
type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A file that shrinks or grows while it is being read keeps the size its header said.
func TestFileThatChangesInTheMiddle(t *testing.T) {
	const size = 4 << 20
	for _, to := range []int64{0, 1 << 20, 9 << 20} {
		h := newHost(t)
		h.file("plain/big", strings.Repeat("x", size))
		h.file("plain/next", "next")
		s := h.prepare(h.dir + "/plain")
		var b bytes.Buffer
		done := false
		ws, _, err := s.Stream(t.Context(), writerFunc(func(p []byte) (int, error) {
			if !done {
				done = true
				must(t, os.Truncate(h.dir+"/plain/big", to))
			}
			return b.Write(p)
		}), progress.Discard)
		must(t, err)
		if len(ws.Skipped) != 1 || !strings.HasPrefix(ws.Skipped[0], "big: it ") {
			t.Errorf("skipped %q", ws.Skipped)
		}
		r := tar.NewReader(&b)
		sizes := map[string]int64{}
		for {
			hd, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			must(t, err)
			n, err := io.Copy(io.Discard, r)
			must(t, err)
			sizes[hd.Name] = n
		}
		if diff := cmp.Diff(map[string]int64{"./": 0, "big": size, "next": 4}, sizes); diff != "" {
			t.Errorf("truncated to %d: (-want +got)\n%s", to, diff)
		}
	}
}

func TestStreamEnds(t *testing.T) {
	h := newHost(t)
	h.file("plain/big", strings.Repeat("x", 4<<20))
	s := h.prepare(h.dir + "/plain")
	broken := errors.New("broken pipe")
	if _, _, err := s.Stream(t.Context(), writerFunc(func([]byte) (int, error) { return 0, broken }), progress.Discard); !errors.Is(err, broken) {
		t.Errorf("%v, want the writer's error", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("stopped")
	_, _, err := s.Stream(ctx, writerFunc(func(p []byte) (int, error) { cancel(stopped); return len(p), nil }), progress.Discard)
	if !errors.Is(err, stopped) {
		t.Errorf("%v, want the cause of the end", err)
	}
	if _, err := Prepare(ctx, h.config(), h.dir+"/plain", Options{}); !errors.Is(err, stopped) {
		t.Errorf("%v, want the cause of the end", err)
	}
}

func TestRemoveStale(t *testing.T) {
	h := newHost(t)
	cfg := h.config()
	cfg.TempDir = h.dir + "/new/temp"
	must(t, RemoveStale(cfg.TempDir))
	if _, err := Prepare(t.Context(), cfg, h.repo("r"), Options{}); err != nil { // and never closed
		t.Fatal(err)
	}
	h.file("new/temp/other", "x")
	must(t, RemoveStale(cfg.TempDir))
	left, err := os.ReadDir(cfg.TempDir)
	if err != nil || len(left) != 1 || left[0].Name() != "other" {
		t.Errorf("%v, %v", left, err)
	}
}

// A temporary directory without room is named, and nothing stays in it.
func TestTemporaryDirectoryFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small file system")
	}
	h := newHost(t)
	dir := h.repo("r")
	random := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{}).Read(random)
	h.file("r/big", string(random))
	h.git(dir, "add", "-A")
	cfg := h.config()
	cfg.TempDir = t.TempDir()
	must(t, unix.Mount("banger-test", cfg.TempDir, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() {
		if err := unix.Unmount(cfg.TempDir, 0); err != nil {
			t.Error(err)
		}
	})
	_, err := Prepare(t.Context(), cfg, dir, Options{})
	if api.KindOf(err) != api.KindUnavailable || !strings.Contains(err.Error(), "disk is full") {
		t.Errorf("%v", err)
	}
	if left, err := os.ReadDir(cfg.TempDir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestManySkipped(t *testing.T) {
	h := newHost(t)
	for _, c := range "abcdefghijklmnopqrstuvwxyz" {
		must(t, os.MkdirAll(h.dir+"/plain", 0o755))
		must(t, unix.Mkfifo(h.dir+"/plain/"+string(c), 0o600))
	}
	_, ws := h.copy(h.dir + "/plain")
	if len(ws.Skipped) != maxSkipped || ws.Skipped[maxSkipped-1] != "and 7 more" {
		t.Errorf("%d lines, the last %q", len(ws.Skipped), ws.Skipped[len(ws.Skipped)-1])
	}
}
