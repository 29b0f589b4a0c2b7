package workspace

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/progress"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// wantError checks kind, message and hint of what Prepare says of a directory.
func (h *host) wantError(dir string, kind api.ErrorKind, texts ...string) {
	h.Helper()
	before, _ := filepath.Glob(filepath.Join(h.dir, "banger-workspace-*"))
	s, err := Prepare(h.Context(), h.config(), dir, Options{})
	if err == nil {
		s.Close()
	}
	if err == nil || api.KindOf(err) != kind {
		h.Fatalf("Prepare(%q): error %v of kind %q, want %q", dir, err, api.KindOf(err), kind)
	}
	e := api.AsError(err)
	for _, text := range texts {
		if !strings.Contains(e.Message+"\n"+e.Hint, text) {
			h.Errorf("error %q (hint %q) does not say %q", e.Message, e.Hint, text)
		}
	}
	if after, _ := filepath.Glob(filepath.Join(h.dir, "banger-workspace-*")); len(after) != len(before) {
		h.Errorf("left behind: %v", after)
	}
}

// asUser reports whether the test is to go on: it is not root's. Root runs it again as nobody instead.
func asUser(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		return true
	}
	dir := t.TempDir()
	binary := filepath.Join(dir, "test")
	must(t, copyFile(os.Args[0], binary))
	must(t, os.Chmod(binary, 0o755))
	must(t, os.Chmod(dir, 0o777))
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	out, err := hostexec.Runner{}.Output(t.Context(), hostexec.Cmd{Dir: dir, Env: append(os.Environ(), "TMPDIR="+dir, "HOME="+dir),
		Argv: []string{"setpriv", "--reuid=65534", "--clear-groups", binary, "-test.run=^" + t.Name() + "$", "-test.v"}})
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
	return false
}

func TestRefused(t *testing.T) {
	h := newHost(t)
	h.file("file", "x")
	h.wantError(filepath.Join(h.dir, "none"), api.KindInvalid, "there is no such directory")
	h.wantError(filepath.Join(h.dir, "file"), api.KindInvalid, "not a directory")
	h.wantError(filepath.Join(h.dir, "file/below"), api.KindInvalid)
	h.wantError("/", api.KindInvalid, "root of the host's file system")
	h.wantError(filepath.Join(h.dir, "home"), api.KindInvalid, "your home directory", "below it")
}

func TestBrokenRepositories(t *testing.T) {
	for _, tc := range []struct {
		name   string
		break_ func(h *host, dir string)
		texts  []string
	}{
		{"HEAD is nonsense", func(h *host, _ string) { h.file("r/.git/HEAD", "nonsense\n") }, []string{"HEAD", "symbolic-ref HEAD"}},
		{"HEAD is empty", func(h *host, _ string) { h.file("r/.git/HEAD", "") }, []string{"HEAD", "symbolic-ref HEAD"}},
		{"no HEAD", func(h *host, dir string) { must(h.T, os.Remove(dir+"/.git/HEAD")) }, []string{"HEAD"}},
		{"branch is nonsense", func(h *host, _ string) { h.file("r/.git/refs/heads/main", "nonsense\n") }, []string{"HEAD", "refs/heads/main", "fsck"}},
		{"commit is missing", func(h *host, _ string) { h.file("r/.git/refs/heads/main", strings.Repeat("12", 20)+"\n") }, []string{"HEAD", "refs/heads/main"}},
		{"detached commit is missing", func(h *host, _ string) { h.file("r/.git/HEAD", strings.Repeat("12", 20)+"\n") }, []string{"HEAD"}},
		{"blob is missing", func(h *host, dir string) {
			id := strings.TrimSpace(h.git(dir, "rev-parse", "HEAD:tracked"))
			must(h.T, os.Remove(dir+"/.git/objects/"+id[:2]+"/"+id[2:]))
		}, []string{"objects", "fsck"}},
		{"index is nonsense", func(h *host, _ string) { h.file("r/.git/index", "nonsense") }, []string{"index"}},
		{"config is nonsense", func(h *host, _ string) { h.file("r/.git/config", "[nonsense") }, []string{"config"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHost(t)
			dir := h.repo("r")
			tc.break_(h, dir)
			h.wantError(dir, api.KindInvalid, append(tc.texts, dir)...)
		})
	}
}

// A damaged ref that is not HEAD's is left behind, and said.
func TestBrokenOtherRef(t *testing.T) {
	h := newHost(t)
	dir := h.repo("r")
	h.file("r/.git/refs/heads/gone", strings.Repeat("12", 20)+"\n")
	guest, ws := h.copy(dir)
	if len(ws.Skipped) != 1 || !strings.Contains(ws.Skipped[0], "refs/heads/gone") {
		t.Errorf("skipped %q", ws.Skipped)
	}
	if got := h.git(guest, "log", "--format=%s", "--all"); got != "first\n" {
		t.Errorf("log %q", got)
	}
}

func TestOwnedBySomebodyElse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give files away")
	}
	h := newHost(t)
	dir := h.repo("r")
	must(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(p, 12345, 12345))
	}))
	h.wantError(dir, api.KindInvalid, "another user", "safe.directory "+dir)
}

func TestUnreadable(t *testing.T) {
	if !asUser(t) {
		return
	}
	h := newHost(t)
	dir := h.repo("r")
	h.file("r/secret", "x")
	must(t, os.Chmod(dir+"/secret", 0))
	h.wantError(dir, api.KindInvalid, dir+"/secret", "permission denied", "chmod")
	h.file("r/.gitignore", "secret\n")
	h.copy(dir)
	h.file("plain/dir/f", "x")
	must(t, os.Chmod(h.dir+"/plain/dir", 0))
	t.Cleanup(func() { os.Chmod(h.dir+"/plain/dir", 0o755) })
	h.wantError(h.dir+"/plain", api.KindInvalid, h.dir+"/plain/dir", "permission denied")
}

func TestGitNotInstalled(t *testing.T) {
	h := newHost(t)
	dir := h.repo("r")
	h.file("plain/f", "x")
	t.Setenv("PATH", t.TempDir())
	if _, err := h.config().Run.LookPath("git"); err == nil {
		t.Skip("git is in a directory that is always searched")
	}
	h.wantError(dir, api.KindUnavailable, "git is not installed", "apt install git")
	if s := h.prepare(h.dir + "/plain"); s.Git {
		t.Error("a plain directory is a git work tree")
	}
}

func TestPlainDirectory(t *testing.T) {
	h := newHost(t)
	h.file("plain/a", "a")
	h.file("plain/dir/b", "b")
	h.file("plain/bad\xff/new\nline", "c")
	h.file("plain/.gitignore", "*")
	must(t, os.Mkdir(h.dir+"/plain/empty", 0o711))
	must(t, os.Chmod(h.dir+"/plain/a", 0o4751))
	must(t, os.Symlink("../../outside", h.dir+"/plain/link"))
	must(t, unix.Mkfifo(h.dir+"/plain/pipe", 0o600))
	must(t, os.Chmod(h.dir+"/plain", 0o750))
	at := time.Unix(1_600_000_000, 0)
	must(t, os.Chtimes(h.dir+"/plain/dir/b", at, at))

	s := h.prepare(h.dir + "/plain/.")
	if s.Git || s.Name != "plain" || s.Root != h.dir+"/plain" || s.Subdir != "." {
		t.Errorf("%+v", s)
	}
	guest, ws := h.stream(s)
	want := api.Workspace{Path: h.dir + "/plain", Files: 5, Bytes: 4, Skipped: []string{"pipe: it is a named pipe"}}
	if diff := cmp.Diff(want, ws); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	got := map[string]string{}
	must(t, filepath.WalkDir(guest, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		got[strings.TrimPrefix(p, guest)] = st.Mode().String()
		return err
	}))
	wantModes := map[string]string{"": "drwxr-x---", "/a": "-rwxr-x--x", "/dir": "drwxr-xr-x", "/dir/b": "-rw-r--r--", "/bad\xff": "drwxr-xr-x",
		"/bad\xff/new\nline": "-rw-r--r--", "/.gitignore": "-rw-r--r--", "/empty": "drwx--x--x", "/link": "Lrwxrwxrwx"}
	if diff := cmp.Diff(wantModes, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if st, err := os.Stat(guest + "/dir/b"); err != nil || !st.ModTime().Equal(at) {
		t.Errorf("mtime %v, %v", st.ModTime(), err)
	}
	if target, err := os.Readlink(guest + "/link"); err != nil || target != "../../outside" {
		t.Errorf("link to %q, %v", target, err)
	}
}

func TestPathsThatHurt(t *testing.T) {
	h := newHost(t)
	for _, name := range []string{"a b:c\"d\\e;$(x)\xff'/-r", "line\nbreak"} {
		dir := h.repo(name)
		guest, _ := h.copy(dir)
		h.same(dir, guest)
	}
}

func TestThroughASymlink(t *testing.T) {
	h := newHost(t)
	dir := h.repo("r")
	must(t, os.Symlink(dir, h.dir+"/link"))
	if s := h.prepare(h.dir + "/link"); s.Root != dir || s.Name != "r" || !s.Git {
		t.Errorf("%+v", s)
	}
}

// A repository inside a plain directory has its .git made as well: nothing of its hooks and credentials travels.
func TestRepositoryInPlainDirectory(t *testing.T) {
	h := newHost(t)
	dir := h.repo("plain/r")
	h.file("plain/r/ignored.o", "o")
	h.file("plain/r/.gitignore", "*.o\n")
	h.file("plain/notes", "n")
	h.file("plain/broken/.git/HEAD", "nonsense")
	h.file("plain/broken/.git/objects/x", "")
	h.file("plain/broken/.git/refs/x", "")
	h.file("plain/broken/f", "f")
	h.git(dir, "remote", "add", "origin", "https://me:secret@example.org/r")
	guest, ws := h.copy(h.dir + "/plain")
	if ws.Git || len(ws.Skipped) != 1 || !strings.Contains(ws.Skipped[0], "broken/.git") {
		t.Errorf("%+v", ws)
	}
	h.same(dir, guest+"/r")
	for name, want := range map[string]bool{"r/ignored.o": true, "notes": true, "broken/f": true, "broken/.git": false, "r/.git/hooks": false} {
		if _, err := os.Lstat(filepath.Join(guest, name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := h.git(guest+"/r", "remote", "get-url", "origin"); got != "https://example.org/r\n" {
		t.Errorf("url %q", got)
	}
}

func TestSubdirectory(t *testing.T) {
	h := newHost(t)
	dir := h.repo("r")
	h.file("r/sub/deep/f", "f")
	s := h.prepare(dir + "/sub/deep")
	if s.Root != dir || s.Subdir != "sub/deep" || s.Name != "r" {
		t.Errorf("%+v", s)
	}
	var rep recorder
	if _, _, err := s.Stream(t.Context(), io.Discard, &rep); err != nil {
		t.Fatal(err)
	}
	if len(rep.notes) != 1 || !strings.Contains(rep.notes[0], "whole work tree") {
		t.Errorf("notes %q", rep.notes)
	}
	if rep.done != rep.total || rep.done == 0 {
		t.Errorf("progress ended at %d of %d", rep.done, rep.total)
	}
	guest, _ := h.stream(s)
	h.same(dir, guest)
}

type recorder struct {
	notes       []string
	done, total int64
}

func (r *recorder) Step(string)             {}
func (r *recorder) Note(text string)        { r.notes = append(r.notes, text) }
func (r *recorder) Bytes(done, total int64) { r.done, r.total = done, total }

// Somebody who keeps dotfiles in git at home does not send all of the home along with a project in it.
func TestProjectInAHomeThatIsARepository(t *testing.T) {
	h := newHost(t)
	home := h.repo("home")
	h.file("home/.ssh/id", "secret")
	h.file("home/project/f", "f")
	s := h.prepare(home + "/project")
	if s.Git || s.Root != home+"/project" {
		t.Errorf("%+v", s)
	}
	h.file("home/dots/f", "f")
	h.git(home, "add", "dots")
	if s := h.prepare(home + "/dots"); !s.Git || s.Root != home {
		t.Errorf("%+v", s)
	}
}

func TestNoCommits(t *testing.T) {
	h := newHost(t)
	dir := filepath.Join(h.dir, "r")
	h.git(h.dir, "init", "-q", "-b", "trunk", dir)
	guest, _ := h.copy(dir)
	h.same(dir, guest)
	h.file("r/staged", "x")
	h.git(dir, "add", "-A")
	h.file("r/untracked", "x")
	guest, _ = h.copy(dir)
	h.same(dir, guest)
}

// What was going on goes on in the guest: a merge with conflicts, a rebase that stopped.
func TestUnfinishedBusiness(t *testing.T) {
	for _, verb := range []string{"merge", "rebase", "cherry-pick", "revert"} {
		t.Run(verb, func(t *testing.T) {
			h := newHost(t)
			dir := h.repo("r")
			commit := func(content string) {
				h.file("r/tracked", content)
				h.git(dir, "commit", "-qam", content)
			}
			h.git(dir, "checkout", "-q", "-b", "side")
			commit("side 1\n")
			commit("side 2\n")
			h.git(dir, "checkout", "-q", "main")
			commit("main\n")
			target := "side"
			if verb == "revert" {
				target = "HEAD^"
			}
			if out, err := h.try(dir, verb, target); err == nil {
				t.Fatalf("no conflict: %s", out)
			}
			guest, _ := h.copy(dir)
			h.same(dir, guest)
			must(t, os.WriteFile(guest+"/tracked", []byte("resolved\n"), 0o644))
			h.git(guest, "add", "-A")
			h.git(guest, "-c", "core.editor=true", verb, "--continue")
			if h.git(guest, "status", "--porcelain") != "" {
				t.Error("not finished")
			}
		})
	}
}

func TestSubmodules(t *testing.T) {
	h := newHost(t)
	inner, lib, dir := h.repo("inner"), h.repo("lib"), h.repo("r")
	h.git(lib, "submodule", "--quiet", "add", inner, "in")
	h.git(lib, "commit", "-qam", "inner")
	h.git(dir, "submodule", "--quiet", "add", lib, "lib")
	h.git(dir, "submodule", "--quiet", "add", lib, "not here")
	h.git(dir, "commit", "-qam", "libs")
	h.git(dir, "submodule", "--quiet", "update", "--init", "--recursive", "lib")
	h.git(dir, "submodule", "--quiet", "deinit", "-f", "not here")
	h.file("r/lib/tracked", "changed\n")
	h.file("r/lib/in/new", "new\n")
	guest, ws := h.copy(dir)
	if len(ws.Skipped) > 0 {
		t.Errorf("skipped %q", ws.Skipped)
	}
	h.same(dir, guest)
	h.same(dir+"/lib", guest+"/lib")
	h.same(dir+"/lib/in", guest+"/lib/in")
	if st, err := os.Stat(guest + "/not here"); err != nil || !st.IsDir() {
		t.Errorf("%v, %v", st, err)
	}
}

func TestLinkedWorktree(t *testing.T) {
	h := newHost(t)
	dir := h.repo("r")
	h.file("r/.git/info/exclude", "*.skip\n")
	h.git(dir, "worktree", "add", "-q", h.dir+"/linked", "-b", "other")
	h.file("linked/new", "n")
	h.file("linked/x.skip", "n")
	h.git(h.dir+"/linked", "add", "new")
	guest, ws := h.copy(h.dir + "/linked")
	if ws.Path != h.dir+"/linked" {
		t.Errorf("%+v", ws)
	}
	h.same(h.dir+"/linked", guest)
	if st, err := os.Stat(guest + "/.git"); err != nil || !st.IsDir() {
		t.Errorf("%v, %v", st, err)
	}
	must(t, os.WriteFile(guest+"/y.skip", nil, 0o644))
	if out := h.git(guest, "status", "--porcelain"); strings.Contains(out, "y.skip") {
		t.Errorf("info/exclude did not travel: %s", out)
	}
}

func TestSHA256(t *testing.T) {
	h := newHost(t)
	dir := h.dir + "/r"
	if _, err := h.try(h.dir, "init", "-q", "--object-format=sha256", dir); err != nil {
		t.Skip("this git has no SHA-256")
	}
	h.file("r/f", "x")
	h.git(dir, "add", "-A")
	h.git(dir, "commit", "-qm", "x")
	guest, _ := h.copy(dir)
	h.same(dir, guest)
}

// Tracked files below what is a symbolic link now are not read through it.
func TestDirectoryBecameALink(t *testing.T) {
	h := newHost(t)
	h.file("outside/f", "secret")
	dir := h.repo("r")
	h.file("r/d/f", "mine")
	h.git(dir, "add", "-A")
	h.git(dir, "commit", "-qm", "d")
	must(t, os.RemoveAll(dir+"/d"))
	must(t, os.Symlink(h.dir+"/outside", dir+"/d"))
	guest, _ := h.copy(dir)
	if target, err := os.Readlink(guest + "/d"); err != nil || target != h.dir+"/outside" {
		t.Errorf("%q, %v", target, err)
	}
	h.same(dir, guest)
}

// The environment of whoever started the daemon does not lead git elsewhere.
func TestInheritedGitVariables(t *testing.T) {
	h := newHost(t)
	dir, other := h.repo("r"), h.repo("other")
	h.env = append(h.env, "GIT_DIR="+other+"/.git", "GIT_INDEX_FILE=/nowhere", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=core.bare", "GIT_CONFIG_VALUE_0=true")
	s := h.prepare(dir)
	h.env = h.env[:len(h.env)-5]
	guest, _ := h.stream(s)
	h.same(dir, guest)
}

// Nothing of the host's repository that could run or tell a secret is in the stream.
func TestNothingSecret(t *testing.T) {
	h := newHost(t)
	dir := h.repo("r")
	secret := "s3cr3t"
	h.file("r/.git/hooks/post-checkout", "#!/bin/sh\n# "+secret)
	h.file("included", "[http]\n\textraheader = "+secret+"\n[remote \"inc\"]\n\turl = https://"+secret+"@x.org/\n")
	for _, kv := range [][2]string{{"include.path", h.dir + "/included"}, {"http.extraheader", "Authorization: " + secret}, {"credential.helper", "!echo " + secret},
		{"core.sshCommand", "ssh -i " + secret}, {"core.hooksPath", "/" + secret}, {"core.fsmonitor", "/bin/" + secret}, {"filter.x.clean", secret},
		{"url.https://" + secret + "@x.org/.insteadOf", "x:"}, {"remote.origin.url", "https://user:" + secret + "@x.org/r.git?token=" + secret},
		{"remote.origin.proxy", "http://" + secret + "@proxy"}, {"remote.push.pushurl", "ssh://git:" + secret + "@x.org/r"}, {"submodule.s.update", "!" + secret},
		{"submodule.s.url", "https://" + secret + "@x.org/s"}, {"branch.main.remote", "https://" + secret + "@x.org/"}, {"alias.x", "!" + secret}} {
		h.git(dir, "config", kv[0], kv[1])
	}
	// An object that nothing refers to any more, and a reflog that did.
	h.file("r/password", secret+"-in-an-object")
	h.git(dir, "add", "-A")
	h.git(dir, "commit", "-qm", secret)
	id := strings.TrimSpace(h.git(dir, "rev-parse", "HEAD:password"))
	h.git(dir, "reset", "-q", "--hard", "HEAD^")
	must(t, os.Remove(dir+"/.git/ORIG_HEAD"))
	guest, _ := h.copy(dir)
	must(t, filepath.WalkDir(guest, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		if bytes.Contains(b, []byte(secret)) {
			t.Errorf("%s: %s", strings.TrimPrefix(p, guest), b)
		}
		return err
	}))
	if _, err := h.try(guest, "cat-file", "-e", id); err == nil {
		t.Error("an object that nothing refers to travelled")
	}
	if got := h.git(guest, "config", "remote.push.pushurl"); got != "ssh://git@x.org/r\n" {
		t.Errorf("%q", got)
	}
}

// notes collects what a stream says beside its progress.
type notes struct {
	progress.Reporter
	lines []string
}

func (n *notes) Note(text string) { n.lines = append(n.lines, text) }

// Files that a filter of the host's git changes travel as they are on the disk, pointers of git-lfs as pointers, and the user is told.
func TestFilters(t *testing.T) {
	h := newHost(t)
	dir := h.repo("repo")
	h.file("repo/.gitattributes", "*.bin filter=lfs\n*.other filter=unknown\n")
	h.file("repo/a.bin", "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3\n")
	h.file("repo/b.other", "x\n")
	h.git(dir, "add", "-A")
	h.git(dir, "commit", "-qm", "a pointer")
	guest, _ := h.copy(dir)
	h.same(dir, guest) // nobody has the filter
	h.git(dir, "config", "filter.lfs.clean", "sed s/large/pointer/")
	h.git(dir, "config", "filter.lfs.smudge", "sed s/pointer/large/")
	h.file("repo/c.bin", "large\n")
	h.git(dir, "add", "c.bin")
	h.git(dir, "commit", "-qm", "filtered")
	n := &notes{Reporter: progress.Discard}
	if _, _, err := h.prepare(dir).Stream(t.Context(), io.Discard, n); err != nil {
		t.Fatal(err)
	}
	if len(n.lines) != 1 || !strings.HasPrefix(n.lines[0], "2 files pass the filter lfs of git here") {
		t.Errorf("notes %q", n.lines)
	}
	guest, _ = h.copy(dir)
	if b, err := os.ReadFile(filepath.Join(guest, "c.bin")); err != nil || string(b) != "large\n" {
		t.Errorf("c.bin is %q, %v", b, err)
	}
}
