package kernel

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/internal/deb"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// mirrorDir returns where tests that use a real mirror keep what they fetch; they are skipped unless BANGER_TEST_MIRROR
// is set.
func mirrorDir(t *testing.T) string {
	t.Helper()
	if os.Getenv("BANGER_TEST_MIRROR") == "" {
		t.Skip("BANGER_TEST_MIRROR is not set: no real mirror is used")
	}
	if dir := os.Getenv("BANGER_TEST_KERNEL_DIR"); dir != "" {
		return dir
	}
	return t.TempDir()
}

type logReporter struct {
	progress.Reporter
	t     *testing.T
	start time.Time
}

func (l logReporter) Step(name string) {
	l.t.Logf("%6.2fs %s", time.Since(l.start).Seconds(), name)
}
func (l logReporter) Note(text string) { l.t.Log("note:", text) }

func TestPullFromMirror(t *testing.T) {
	dir := mirrorDir(t)
	s, err := New(Config{Dir: filepath.Join(dir, "kernels"), CacheDir: filepath.Join(dir, "deb"),
		Mirrors: deb.ChooseMirrors("", os.DirFS("/")), Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	rep := logReporter{progress.Discard, t, time.Now()}
	k, err := s.Pull(t.Context(), DefaultName, rep)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%6.2fs done: %+v", time.Since(rep.start).Seconds(), k)
	if _, err := s.Files(t.Context(), k.Digest); err != nil {
		t.Fatal(err)
	}
}
