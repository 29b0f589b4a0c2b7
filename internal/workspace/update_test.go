package workspace

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"

	"github.com/google/go-cmp/cmp"
)

// pair is a directory of the host and its copy.
type pair struct {
	*host
	dir   string
	guest *localGuest
	base  *Manifest
	// pending is what an update was about to bring that did not end.
	pending *Manifest
}

// pairOf copies dir for the first time.
func (h *host) pairOf(dir string, opts Options) *pair {
	h.Helper()
	s, err := Prepare(h.Context(), h.config(), dir, opts)
	if err != nil {
		h.Fatal(err)
	}
	p := &pair{host: h, dir: dir, guest: &localGuest{h: h, dir: filepath.Join(h.TempDir(), "copy")}}
	pr, pw := newPipe()
	go func() {
		var err error
		_, p.base, err = s.Stream(h.Context(), pw, progress.Discard)
		_ = pw.CloseWithError(err)
	}()
	if err := p.guest.Put(h.Context(), pr); err != nil {
		h.Fatal(err)
	}
	must(h.T, s.Close())
	p.guest.puts = nil
	p.saved()
	return p
}

// saved saves the base and reads it again.
func (p *pair) saved() {
	p.Helper()
	file := filepath.Join(p.host.dir, "manifest")
	must(p.T, p.base.Save(file))
	back, err := Load(file)
	must(p.T, err)
	if diff := cmp.Diff(p.base, back); diff != "" {
		p.Fatalf("a saved manifest: (-saved +read)\n%s", diff)
	}
	p.base = back
}

// update brings the copy up to date.
func (p *pair) update(force bool) (api.Workspace, error) {
	p.Helper()
	before := p.everything(p.dir)
	ws, next, err := Update(p.Context(), p.config(), p.guest, UpdateRequest{Base: p.base, Pending: p.pending, Force: force, Report: progress.Discard,
		Begin: func(m *Manifest) error { p.pending = m; return nil }})
	if err == nil {
		p.base, p.pending = next, nil
		p.saved()
	}
	if diff := cmp.Diff(before, p.everything(p.dir)); diff != "" {
		p.Errorf("the host's directory was touched: (-before +after)\n%s", diff)
	}
	return ws, err
}

func (p *pair) mustUpdate(force bool) api.Workspace {
	p.Helper()
	ws, err := p.update(force)
	if err != nil {
		p.Fatal(err)
	}
	return ws
}

// same is host.same for a guest whose git has written reflogs.
func (p *pair) same(dir, guest string) {
	p.Helper()
	must(p.T, os.RemoveAll(filepath.Join(guest, ".git", "logs")))
	p.host.same(dir, guest)
}

// here and there write a file on the host and in the guest; "" removes it.
func (p *pair) here(name, content string)  { p.Helper(); p.put(p.dir, name, content) }
func (p *pair) there(name, content string) { p.Helper(); p.put(p.guest.dir, name, content) }

func (p *pair) put(dir, name, content string) {
	p.Helper()
	path := filepath.Join(dir, name)
	if content == "" {
		must(p.T, os.RemoveAll(path))
		return
	}
	must(p.T, os.MkdirAll(filepath.Dir(path), 0o755))
	must(p.T, os.WriteFile(path, []byte(content), 0o644))
}

func (p *pair) content(name string) string {
	p.Helper()
	b, err := os.ReadFile(filepath.Join(p.guest.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	must(p.T, err)
	return string(b)
}

func TestUpdateSendsOnlyWhatChanged(t *testing.T) {
	h := newHost(t)
	dir := h.repo("repo")
	for _, name := range []string{"a", "b", "dir/c", "old/d", "exe"} {
		h.file("repo/"+name, name+"\n")
	}
	p := h.pairOf(dir, Options{})
	if ws := p.mustUpdate(false); ws.Files != 0 || len(p.guest.puts) != 0 || !ws.Updated {
		t.Errorf("nothing had changed: %+v, sent %q", ws, p.guest.puts)
	}
	p.here("a", "a, changed\n")
	p.here("old", "")
	p.here("new/e", "new\n")
	must(t, os.Chmod(filepath.Join(dir, "exe"), 0o755))
	p.there("guest", "the guest's\n")
	p.there("b", "the guest's, too\n")
	ws := p.mustUpdate(false)
	if ws.Files != 3 || ws.Removed != 1 {
		t.Errorf("%+v", ws)
	}
	if diff := cmp.Diff([][]string{{"a", "exe", "new/", "new/e"}}, p.guest.puts); diff != "" {
		t.Errorf("sent: (-want +got)\n%s", diff)
	}
	for name, want := range map[string]string{"a": "a, changed\n", "old/d": "", "new/e": "new\n", "guest": "the guest's\n", "b": "the guest's, too\n"} {
		if got := p.content(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if st, err := os.Stat(filepath.Join(p.guest.dir, "exe")); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("exe: %v, %v", st.Mode(), err)
	}
	if _, err := os.Stat(filepath.Join(p.guest.dir, "old")); err == nil {
		t.Error("the directory that became empty is still there")
	}
	must(t, os.Remove(filepath.Join(p.guest.dir, "guest")))
	p.there("b", "b\n")
	h.timeless = true
	p.same(dir, p.guest.dir)
}

func TestUpdateConflicts(t *testing.T) {
	h := newHost(t)
	dir := h.repo("repo")
	for _, name := range []string{"both", "same", "gone-here", "gone-there", "mine"} {
		h.file("repo/"+name, name+"\n")
	}
	p := h.pairOf(dir, Options{})
	p.here("both", "host\n")
	p.there("both", "guest\n")
	p.here("same", "equal\n")
	p.there("same", "equal\n")
	p.here("gone-here", "")
	p.there("gone-here", "guest\n")
	p.here("gone-there", "host\n")
	p.there("gone-there", "")
	p.here("mine", "host\n")
	p.here("untracked", "host\n")
	p.there("untracked", "guest\n")
	_, err := p.update(false)
	if api.KindOf(err) != api.KindConflict {
		t.Fatalf("error %v", err)
	}
	for _, want := range []string{"  both\n", "  gone-here (removed here)\n", "  gone-there (removed in the VM)\n", "  untracked"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %v lacks %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "same") || strings.Contains(err.Error(), "mine") {
		t.Errorf("error %v names what is no conflict", err)
	}
	if p.content("mine") != "mine\n" || len(p.guest.puts) != 0 {
		t.Errorf("something was changed: %q", p.guest.puts)
	}
	p.mustUpdate(true)
	for name, want := range map[string]string{"both": "host\n", "same": "equal\n", "gone-here": "", "gone-there": "host\n", "mine": "host\n", "untracked": "host\n"} {
		if got := p.content(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	p.same(dir, p.guest.dir)
}

func TestUpdateThatCannotBeForced(t *testing.T) {
	h := newHost(t)
	dir := h.repo("repo")
	p := h.pairOf(dir, Options{})
	p.here("thing", "a file\n")
	p.there("thing/inside", "the guest's\n")
	_, err := p.update(true)
	if api.KindOf(err) != api.KindConflict || !strings.Contains(err.Error(), "thing") || p.content("thing/inside") == "" {
		t.Errorf("error %v", err)
	}
	p.here("thing", "")
	p.here("dir/file", "x\n")
	p.there("dir", "a file of the guest's\n")
	if _, err := p.update(true); api.KindOf(err) != api.KindConflict {
		t.Errorf("error %v", err)
	}
}

func TestUpdateTurnsFilesAndDirectories(t *testing.T) {
	h := newHost(t)
	dir := h.repo("repo")
	h.file("repo/was-dir/x", "x\n")
	h.file("repo/was-file", "y\n")
	must(t, os.Symlink("was-file", filepath.Join(dir, "link")))
	p := h.pairOf(dir, Options{})
	p.here("was-dir", "")
	p.here("was-dir", "now a file\n")
	p.here("was-file", "")
	p.here("was-file/z", "now a directory\n")
	must(t, os.Remove(filepath.Join(dir, "link")))
	must(t, os.Symlink("elsewhere", filepath.Join(dir, "link")))
	p.mustUpdate(false)
	p.same(dir, p.guest.dir)
}

func TestUpdateFollowsCommits(t *testing.T) {
	h := newHost(t)
	dir := h.repo("repo")
	h.git(dir, "branch", "other")
	h.git(dir, "branch", "doomed")
	p := h.pairOf(dir, Options{})
	h.file("repo/second", "2\n")
	h.git(dir, "add", "-A")
	h.git(dir, "commit", "-qm", "second")
	h.git(dir, "tag", "-am", "a tag", "v1")
	h.git(dir, "branch", "-D", "doomed")
	h.file("repo/staged", "3\n")
	h.git(dir, "add", "staged")
	h.git(dir, "branch", "-f", "other", "HEAD")
	p.mustUpdate(false)
	p.same(dir, p.guest.dir)
	// And on to another branch, with work of the guest's in a file that nobody touched.
	p.there("notes", "the guest's\n")
	h.git(dir, "commit", "-qm", "third")
	h.git(dir, "checkout", "-qb", "feature")
	p.mustUpdate(false)
	if p.content("notes") != "the guest's\n" {
		t.Error("the guest's file is gone")
	}
	must(t, os.Remove(filepath.Join(p.guest.dir, "notes")))
	p.same(dir, p.guest.dir)
	// A pack holds only what is new.
	for _, put := range p.guest.puts {
		for _, name := range put {
			if pack, ok := strings.CutSuffix(name, ".pack"); ok {
				out := h.git(p.guest.dir, "verify-pack", "-v", pack+".idx")
				if strings.Count(out, " blob ") > 2 {
					t.Errorf("%s holds more than is new:\n%s", name, out)
				}
			}
		}
	}
}

func TestUpdateKeepsCommitsOfTheGuest(t *testing.T) {
	h := newHost(t)
	dir := h.repo("repo")
	p := h.pairOf(dir, Options{})
	p.there("work", "of the guest\n")
	h.git(p.guest.dir, "add", "-A")
	h.git(p.guest.dir, "commit", "-qm", "the guest's")
	commit := strings.TrimSpace(h.git(p.guest.dir, "rev-parse", "HEAD"))
	// What the host does beside it comes.
	h.file("repo/beside", "1\n")
	h.git(dir, "branch", "beside")
	p.mustUpdate(false)
	if p.content("beside") == "" || strings.TrimSpace(h.git(p.guest.dir, "rev-parse", "HEAD")) != commit {
		t.Error("the copy is not what it should be")
	}
	h.git(p.guest.dir, "rev-parse", "beside")
	// A commit on the same branch is a conflict.
	h.git(dir, "add", "-A")
	h.git(dir, "commit", "-qm", "the host's")
	_, err := p.update(false)
	if api.KindOf(err) != api.KindConflict || !strings.Contains(err.Error(), "refs/heads/main") {
		t.Errorf("error %v", err)
	}
	p.mustUpdate(true)
	if got := strings.TrimSpace(h.git(p.guest.dir, "rev-parse", overwritten+commit)); got != commit {
		t.Errorf("the guest's commit is kept as %q", got)
	}
	h.git(p.guest.dir, "update-ref", "-d", overwritten+commit)
	must(t, os.Remove(filepath.Join(p.guest.dir, "work")))
	p.same(dir, p.guest.dir)
}

func TestUpdateOfABranchOfTheGuest(t *testing.T) {
	h := newHost(t)
	dir := h.repo("repo")
	first := strings.TrimSpace(h.git(dir, "rev-parse", "HEAD"))
	h.file("repo/dirty", "uncommitted\n")
	p := h.pairOf(dir, Options{Branch: "try/it"})
	if got := strings.TrimSpace(h.git(p.guest.dir, "symbolic-ref", "HEAD")); got != "refs/heads/try/it" {
		t.Errorf("HEAD is %q", got)
	}
	if p.content("dirty") == "" || strings.TrimSpace(h.git(p.guest.dir, "rev-parse", "HEAD")) != first {
		t.Error("the branch is not where it should be")
	}
	p.there("work", "w\n")
	h.git(p.guest.dir, "add", "work")
	h.git(p.guest.dir, "commit", "-qm", "work")
	h.git(dir, "add", "-A")
	h.git(dir, "commit", "-qm", "second")
	p.mustUpdate(false)
	if got := strings.TrimSpace(h.git(p.guest.dir, "rev-parse", "main")); got != strings.TrimSpace(h.git(dir, "rev-parse", "main")) {
		t.Errorf("main is %s", got)
	}
	if got := h.git(p.guest.dir, "log", "--format=%s"); got != "work\nfirst\n" {
		t.Errorf("the branch has %q", got)
	}
	p.mustUpdate(false)
}

func TestBranchFromElsewhere(t *testing.T) {
	h := newHost(t)
	up := h.repo("up")
	dir := filepath.Join(h.dir, "repo")
	h.git(h.dir, "clone", "-q", up, dir)
	h.file("up/later", "later\n")
	h.git(up, "add", "-A")
	h.git(up, "commit", "-qm", "later")
	h.git(dir, "fetch", "-q")
	h.file("repo/dirty", "uncommitted\n")
	h.file("repo/tracked", "changed\n")
	p := h.pairOf(dir, Options{Branch: "try", From: "origin/main"})
	if p.content("later") != "later\n" || p.content("dirty") != "" || p.content("tracked") != "tracked\n" {
		t.Error("the copy is not the commit's")
	}
	if out := h.git(p.guest.dir, "status", "--porcelain=v2", "--branch"); !strings.Contains(out, "# branch.upstream origin/main") || strings.Contains(out, "\n1 ") || strings.Contains(out, "\n? ") {
		t.Errorf("status: %s", out)
	}
	h.git(p.guest.dir, "fsck", "--strict", "--no-dangling")
	h.file("up/latest", "latest\n")
	h.git(up, "add", "-A")
	h.git(up, "commit", "-qm", "latest")
	h.git(dir, "fetch", "-q")
	p.mustUpdate(false)
	if p.content("latest") != "" || p.content("dirty") != "" || !strings.Contains(h.git(p.guest.dir, "log", "--format=%s", "origin/main"), "latest") {
		t.Error("an update of a branch from elsewhere brings commits and no files")
	}
	p.mustUpdate(false)
}

func TestBranchRefused(t *testing.T) {
	h := newHost(t)
	dir := h.repo("repo")
	h.git(dir, "branch", "there/is")
	plain := filepath.Join(h.dir, "plain")
	must(t, os.Mkdir(plain, 0o755))
	for name, tt := range map[string]struct {
		dir  string
		opts Options
		kind api.ErrorKind
		text string
	}{
		"exists":  {dir, Options{Branch: "main"}, api.KindConflict, `has the branch "main" already`},
		"below":   {dir, Options{Branch: "main/x"}, api.KindConflict, `has the branch "main" already`},
		"above":   {dir, Options{Branch: "there"}, api.KindConflict, `has the branch "there/is" already`},
		"name":    {dir, Options{Branch: "a..b"}, api.KindInvalid, "does not allow this name"},
		"option":  {dir, Options{Branch: "-x"}, api.KindInvalid, "does not allow this name"},
		"no ref":  {dir, Options{Branch: "b", From: "nowhere"}, api.KindInvalid, "no such commit"},
		"an evil": {dir, Options{Branch: "b", From: "--all"}, api.KindInvalid, "no such commit"},
		"plain":   {plain, Options{Branch: "b"}, api.KindInvalid, "not a git work tree"},
		"depth":   {plain, Options{Depth: 1}, api.KindInvalid, "not a git work tree"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Prepare(t.Context(), h.config(), tt.dir, tt.opts)
			if api.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.text) || api.AsError(err).Hint == "" {
				t.Errorf("error %v of kind %q", err, api.KindOf(err))
			}
		})
	}
}

func TestDepth(t *testing.T) {
	h := newHost(t)
	dir := h.repo("repo")
	for _, n := range []string{"2", "3", "4", "5"} {
		h.file("repo/tracked", n+"\n")
		h.git(dir, "commit", "-qam", n)
	}
	h.git(dir, "branch", "old", "HEAD~3")
	p := h.pairOf(dir, Options{Depth: 2})
	if got := h.git(p.guest.dir, "log", "--format=%s"); got != "5\n4\n" {
		t.Errorf("history %q", got)
	}
	h.git(p.guest.dir, "fsck", "--strict", "--no-dangling")
	h.git(dir, "branch", "older", "HEAD~4")
	h.git(dir, "checkout", "-q", "-b", "side", "HEAD~3")
	h.file("repo/side", "s\n")
	h.git(dir, "add", "-A")
	h.git(dir, "commit", "-qm", "side")
	p.mustUpdate(false)
	h.git(p.guest.dir, "fsck", "--strict", "--no-dangling")
	if got := h.git(p.guest.dir, "log", "-1", "--format=%s"); got != "side\n" {
		t.Errorf("history %q", got)
	}
	if got := h.git(p.guest.dir, "status", "--porcelain"); got != "" {
		t.Errorf("status %q", got)
	}
}

func TestUpdateOfSubmodules(t *testing.T) {
	h := newHost(t)
	sub := h.repo("sub")
	dir := h.repo("repo")
	h.git(dir, "submodule", "--quiet", "add", sub, "lib")
	h.git(dir, "commit", "-qm", "lib")
	p := h.pairOf(dir, Options{})
	h.file("repo/lib/tracked", "changed\n")
	h.git(filepath.Join(dir, "lib"), "commit", "-qam", "in lib")
	h.git(dir, "add", "lib")
	h.file("repo/lib/dirty", "d\n")
	h.git(dir, "init", "-q", "nested")
	h.file("repo/nested/n", "n\n")
	p.mustUpdate(false)
	p.same(dir, p.guest.dir)
	p.same(filepath.Join(dir, "lib"), filepath.Join(p.guest.dir, "lib"))
	if p.content("nested/n") != "n\n" {
		t.Error("the new repository did not come")
	}
}

func TestUpdateOfAPlainDirectory(t *testing.T) {
	h := newHost(t)
	h.file("plain/a", "a\n")
	h.file("plain/b/c", "c\n")
	dir := filepath.Join(h.dir, "plain")
	p := h.pairOf(dir, Options{})
	p.here("a", "changed\n")
	p.here("b", "")
	must(t, os.Mkdir(filepath.Join(dir, "empty"), 0o750))
	p.mustUpdate(false)
	if diff := cmp.Diff(namesOf(h.everything(dir), dir), namesOf(h.everything(p.guest.dir), p.guest.dir)); diff != "" {
		t.Errorf("(-host +guest)\n%s", diff)
	}
}

func namesOf(all map[string]string, root string) (out []string) {
	for name := range all {
		out = append(out, strings.TrimPrefix(name, root))
	}
	slices.Sort(out)
	return out
}

func TestUpdateIsFinishedByAnother(t *testing.T) {
	h := newHost(t)
	dir := h.repo("repo")
	p := h.pairOf(dir, Options{})
	old := p.base
	h.file("repo/new", "n\n")
	h.git(dir, "add", "-A")
	h.git(dir, "commit", "-qm", "second")
	p.mustUpdate(false)
	p.base = old // as if the daemon had died before it could write down what it did
	p.mustUpdate(false)
	p.same(dir, p.guest.dir)
}

// A first copy over a repository that an image brings makes it the host's.
func TestCopyOverARepository(t *testing.T) {
	h := newHost(t)
	dir := h.repo("repo")
	p := h.pairOf(dir, Options{})
	h.git(p.guest.dir, "commit", "-q", "--allow-empty", "-m", "of the image")
	h.git(p.guest.dir, "branch", "-f", "extra")
	h.git(dir, "commit", "-q", "--allow-empty", "-m", "second")
	s, err := Prepare(t.Context(), h.config(), dir, Options{Over: true})
	must(t, err)
	pr, pw := newPipe()
	go func() {
		_, _, err := s.Stream(t.Context(), pw, progress.Discard)
		_ = pw.CloseWithError(err)
	}()
	must(t, p.guest.Put(t.Context(), pr))
	must(t, s.Close())
	h.git(p.guest.dir, "branch", "-D", "extra")
	p.same(dir, p.guest.dir)
}
