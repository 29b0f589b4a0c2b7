package kernel

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/internal/deb"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
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
	files, err := s.Files(t.Context(), k.Digest)
	if err != nil {
		t.Fatal(err)
	}
	compareWithDepmod(t, files)
}

// compareWithDepmod has depmod work on the modules drive's content and compares what it writes with what is there.
func compareWithDepmod(t *testing.T, files Files) {
	t.Helper()
	run := hostexec.Runner{}
	for _, program := range []string{"debugfs", "depmod"} {
		if _, err := run.LookPath(program); err != nil {
			t.Logf("%s is not installed: depmod's files are not compared", program)
			return
		}
	}
	root := t.TempDir()
	modules := filepath.Join(root, "lib", "modules")
	if err := os.MkdirAll(modules, 0o755); err != nil {
		t.Fatal(err)
	}
	err := run.Run(t.Context(), hostexec.Cmd{Argv: []string{"debugfs", "-R", "rdump / " + modules, files.ModulesDrive}})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(modules, files.Release)
	ours := map[string][]byte{}
	made, _ := filepath.Glob(filepath.Join(dir, "modules.*"))
	if len(made) < 10 {
		t.Fatalf("the drive has %v", made)
	}
	for _, path := range made {
		if ours[path], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := run.Run(t.Context(), hostexec.Cmd{Argv: []string{"depmod", "-b", root, files.Release}}); err != nil {
		t.Fatal(err)
	}
	for path, data := range ours {
		theirs, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		switch filepath.Base(path) {
		case "modules.dep": // which of two that do not need each other comes first is open
			data, theirs = sortWords(data), sortWords(theirs)
		case "modules.symbols": // depmod's is in the order of a hash table
			data, theirs = sortLines(data), sortLines(theirs)
		case "modules.dep.bin":
			if len(data) == len(theirs) { // the lines of modules.dep
				continue
			}
		}
		if !bytes.Equal(data, theirs) {
			t.Errorf("%s: %d bytes, depmod's %d differ", filepath.Base(path), len(data), len(theirs))
		}
	}
}

func sortLines(data []byte) []byte {
	return []byte(strings.Join(slices.Sorted(strings.Lines(string(data))), ""))
}

// sortWords sorts the words of each line after its first.
func sortWords(data []byte) []byte {
	var out []string
	for line := range strings.Lines(string(data)) {
		words := strings.Fields(line)
		slices.Sort(words[1:])
		out = append(out, strings.Join(words, " "))
	}
	return []byte(strings.Join(out, "\n"))
}
