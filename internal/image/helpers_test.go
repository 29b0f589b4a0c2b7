package image

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	run := hostexec.Runner{}
	if _, err := run.LookPath(name); err != nil {
		t.Skip(err)
	}
	var errs strings.Builder
	out, err := run.Output(t.Context(), hostexec.Cmd{Argv: append([]string{name}, args...), Stderr: &errs})
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out) + errs.String()
}

func debugfs(t *testing.T, path, command string) string {
	t.Helper()
	return output(t, "debugfs", "-R", command, path)
}

// fsck fails the test on the least remark of e2fsck.
func fsck(t *testing.T, path string) {
	t.Helper()
	for line := range strings.Lines(output(t, "e2fsck", "-fn", path)) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "Pass ") && !strings.HasPrefix(line, "e2fsck ") && !strings.Contains(line, "files (") {
			t.Errorf("e2fsck: %s", line)
		}
	}
}

// assertOnly fails the test where dir holds anything but names.
func assertOnly(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if diff := cmp.Diff(names, got); diff != "" {
		t.Errorf("%s: %s", dir, diff)
	}
}
