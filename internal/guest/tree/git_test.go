package tree_test

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/tree"
)

// ownGit keeps the configuration of who runs the tests out of them.
func ownGit(t *testing.T) (home string) {
	t.Helper()
	home = t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", home+"/none")
	t.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	t.Setenv("GIT_AUTHOR_NAME", "a")
	t.Setenv("GIT_AUTHOR_EMAIL", "a@b")
	t.Setenv("GIT_COMMITTER_NAME", "a")
	t.Setenv("GIT_COMMITTER_EMAIL", "a@b")
	return home
}

func git(t *testing.T, dir string, args ...string) {
	t.Helper()
	run(t, dir, append([]string{"git", "-c", "protocol.file.allow=always"}, args...)...)
}

func commitAll(t *testing.T, dir string) {
	t.Helper()
	git(t, dir, "add", "-A")
	git(t, dir, "commit", "-qm", "x")
}

var withGit = tree.ListOptions{Git: true}

// TestListGit: tracked files that are there, new ones, and neither ignored ones nor what git does not keep.
func TestListGit(t *testing.T) {
	home := ownGit(t)
	root := t.TempDir()
	git(t, root, "init", "-q")
	write(t, root, "tracked", "gone", "a/b.c", "a/b/x", "a/c", "forced.o", "becomes/link", "becomesDir", "becomesFifo")
	if err := os.WriteFile(root+"/.gitignore", []byte("*.o\nbuild/\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	want := []string{".gitignore", "tracked", "a/b.c", "a/b/x", "a/c", "forced.o", "becomesDir/inside", "becomes", "link", "a/new"}
	for _, name := range odd {
		if name != ".gitignore" {
			write(t, root, "odd/"+name)
			want = append(want, "odd/"+name, "new/"+name)
		}
	}
	git(t, root, "add", "-f", "forced.o")
	commitAll(t, root)
	for _, p := range []string{"gone", "becomes", "becomesDir", "becomesFifo"} {
		if err := os.RemoveAll(root + "/" + p); err != nil {
			t.Fatal(err)
		}
	}
	link(t, "/etc", root+"/becomes")
	link(t, "tracked", root+"/link")
	if err := unix.Mkfifo(root+"/becomesFifo", 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, root, "becomesDir/inside", "a/new", "ignored.o", "build/x", "mine", "a/.GIT/x")
	for _, name := range odd {
		if name != ".gitignore" {
			write(t, root, "new/"+name)
		}
	}
	if err := os.MkdirAll(home+"/.config/git", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(home+"/.config/git/ignore", []byte("mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", "/nowhere")
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("GIT_DIR", "/nowhere")
	got := list(t, root, tree.ListOptions{Git: true, Home: home})
	if diff := cmp.Diff(sorted(want...), names(got)); diff != "" {
		t.Error(diff)
	}
	if got["a/c"].Size != 3 || got["a/c"].Mode != 0o644 {
		t.Errorf("%+v", got["a/c"])
	}
	if diff := cmp.Diff([]string{"b.c", "b/x", "c", "new"}, names(list(t, root+"/a", withGit))); diff != "" {
		t.Error("a directory of a work tree:", diff)
	}
}

// TestListNested: repositories in the work tree, and what looks like some.
func TestListNested(t *testing.T) {
	ownGit(t)
	other := t.TempDir()
	git(t, other, "init", "-q")
	write(t, other, "s1", "s2.o", "deep/s3")
	commitAll(t, other)
	root := t.TempDir()
	git(t, root, "init", "-q")
	write(t, root, "top", "conflict")
	commitAll(t, root)
	git(t, root, "submodule", "--quiet", "add", other, "sub")
	git(t, root, "submodule", "--quiet", "add", other, "lost")
	git(t, root, "submodule", "--quiet", "add", other, "bare")
	commitAll(t, root)
	write(t, root, "sub/new", "sub/ignored", "nested/a", "nested/in/b", "ignoredrepo/x", "broken/x", "lost/new")
	if err := os.WriteFile(root+"/.git/modules/sub/info/exclude", []byte("ignored\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"nested", "nested/in", "ignoredrepo"} {
		git(t, root+"/"+dir, "init", "-q")
	}
	commitAll(t, root+"/nested/in")
	write(t, root, ".git/info/exclude")
	if err := os.WriteFile(root+"/.git/info/exclude", []byte("ignoredrepo\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	// A submodule whose repository is lost, one without a work tree, and a .git that is nothing.
	if err := os.RemoveAll(root + "/.git/modules/lost"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(root + "/bare"); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(root+"/bare", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, root, "broken/.git")
	want := sorted("top", "conflict", ".gitmodules", "sub/s1", "sub/s2.o", "sub/deep/s3", "sub/new", "nested/a", "nested/in/b", "broken/x",
		"lost/s1", "lost/s2.o", "lost/deep/s3", "lost/new")
	if diff := cmp.Diff(want, names(list(t, root, withGit))); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(sorted("s1", "s2.o", "deep/s3", "new"), names(list(t, root+"/sub", withGit))); diff != "" {
		t.Error("a submodule as root:", diff)
	}
	git(t, root, "worktree", "add", "-q", root+"/nested/linked")
	if diff := cmp.Diff(sorted("top", "conflict", ".gitmodules"), names(list(t, root+"/nested/linked", withGit))); diff != "" {
		t.Error("a linked work tree:", diff)
	}
}

// TestListConflict: a file with a conflict comes once.
func TestListConflict(t *testing.T) {
	ownGit(t)
	root := t.TempDir()
	git(t, root, "init", "-q", "-b", "main")
	write(t, root, "file", "other")
	commitAll(t, root)
	var info strings.Builder
	for stage := 1; stage <= 3; stage++ {
		fmt.Fprintf(&info, "100644 %s %d\tfile\n", blob("file"), stage)
	}
	if err := os.WriteFile(root+"/.git/info.txt", []byte(info.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, root, "sh", "-c", "git update-index --index-info < .git/info.txt")
	if diff := cmp.Diff([]string{"file", "other"}, names(list(t, root, withGit))); diff != "" {
		t.Error(diff)
	}
}

// TestListForeign: a repository of another user's is listed all the same, and runs nothing its configuration names.
func TestListForeign(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	home := ownGit(t)
	root := t.TempDir()
	git(t, root, "init", "-q")
	write(t, root, "d/file")
	commitAll(t, root)
	git(t, root, "config", "core.fsmonitor", "touch "+home+"/ran; false")
	run(t, root, "chown", "-R", "1234:1234", ".")
	for dir, want := range map[string]string{root: "d/file", root + "/d": "file"} {
		if diff := cmp.Diff([]string{want}, names(list(t, dir, withGit))); diff != "" {
			t.Error(diff)
		}
	}
	if _, err := os.Stat(home + "/ran"); err == nil {
		t.Error("the monitor ran")
	}
}

func TestListGitFails(t *testing.T) {
	ownGit(t)
	plain, broken, deep := t.TempDir(), t.TempDir(), t.TempDir()
	write(t, plain, "x")
	git(t, broken, "init", "-q")
	write(t, broken, "x")
	commitAll(t, broken)
	if err := os.WriteFile(broken+"/.git/index", []byte("DIRCgarbage"), 0o644); err != nil {
		t.Fatal(err)
	}
	at := deep
	for range 18 {
		git(t, at, "init", "-q")
		write(t, at, "x")
		at += "/r"
		if err := os.Mkdir(at, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	check := func(root string, kind api.ErrorKind, text string) {
		t.Helper()
		err := tree.List(t.Context(), tree.NewWriter(t.Context(), io.Discard), root, withGit)
		if api.KindOf(err) != kind || err == nil || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", api.KindOf(err), err)
		}
	}
	check(plain, api.KindInvalid, "not a git repository")
	check(broken, api.KindInvalid, "index")
	check(deep, api.KindInvalid, "16 deep")
	t.Setenv("PATH", plain)
	check(broken, api.KindUnavailable, "not installed in the guest")
}
