package workspace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/progress"

	"github.com/google/go-cmp/cmp"
)

// fetchFrom fetches what a guest has changed.
func (p *pair) fetchFrom(g Guest, max int64) (*Work, error) {
	p.Helper()
	return Fetch(p.Context(), WorkConfig{Config: p.config(), Store: p.store(), MaxBytes: max, Report: progress.Discard}, g, p.base)
}

func (p *pair) store() string { return filepath.Join(p.host.dir, "store") }

func (p *pair) fetch() *Work {
	p.Helper()
	w, err := p.fetchFrom(p.guest, 1<<30)
	must(p.T, err)
	p.Cleanup(func() { must(p.T, w.Close()) })
	return w
}

// saveBase keeps what the host has not committed.
func (p *pair) saveBase() {
	p.Helper()
	must(p.T, SaveBase(p.Context(), p.config(), p.base, nil, p.store()))
}

func kinds(changes []Change) (out []string) {
	for _, c := range changes {
		out = append(out, fmt.Sprintf("%s %s", c.Kind, c.Path))
	}
	return out
}

// busyPair is a copy in which the guest has done all sorts of things.
func busyPair(t *testing.T) *pair {
	h := newHost(t)
	dir := h.repo("repo")
	for _, name := range []string{"edit", "dir/gone", "mode", "move-me", "bad\xffname", "typechange"} {
		h.file("repo/"+name, name+"\nline\nline\nline\n")
	}
	must(t, os.Symlink("edit", filepath.Join(dir, "link")))
	h.git(dir, "add", "-A")
	h.git(dir, "commit", "-qm", "more")
	h.file("repo/edit", "not committed\n1\n2\n3\n4\n5\n6\n7\n")
	h.file("repo/untracked", "not committed\n")
	h.file("repo/.gitignore", "*.o\n")
	p := h.pairOf(dir, Options{})
	p.saveBase()
	p.there("edit", "not committed\n1\n2\n3\n4\n5\n6\n7, the guest's\n")
	p.there("dir/gone", "")
	must(t, os.Chmod(filepath.Join(p.guest.dir, "mode"), 0o755))
	h.git(p.guest.dir, "mv", "move-me", "moved")
	p.there("untracked", "the guest's\n")
	p.there("new/file", "new\n")
	p.there("binary", "\x00\x01\x02")
	p.there("ignored.o", "object\n")
	p.there("bad\xffname", "changed\n")
	must(t, os.Remove(filepath.Join(p.guest.dir, "link")))
	must(t, os.Symlink("untracked", filepath.Join(p.guest.dir, "link")))
	must(t, os.Remove(filepath.Join(p.guest.dir, "typechange")))
	must(t, os.Symlink("edit", filepath.Join(p.guest.dir, "typechange")))
	h.git(p.guest.dir, "commit", "-qm", "in the guest") // the move
	return p
}

func TestChanges(t *testing.T) {
	p := busyPair(t)
	changes, err := Changes(t.Context(), p.guest, p.base)
	must(t, err)
	want := []string{"modified bad\xffname", "added binary", "removed dir/gone", "modified edit", "modified link", "modified mode", "removed move-me",
		"added moved", "added new/file", "modified typechange", "modified untracked"}
	if diff := cmp.Diff(want, kinds(changes)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// A patch of what the guest has done turns the host's directory into the guest's, by the user's git.
func TestPatch(t *testing.T) {
	p := busyPair(t)
	w := p.fetch()
	var patch bytes.Buffer
	n, err := w.Patch(t.Context(), &patch)
	must(t, err)
	if n != 11 || len(w.Skipped) != 0 {
		t.Errorf("%d files, skipped %q", n, w.Skipped)
	}
	if !strings.Contains(patch.String(), "-7\n+7, the guest's\n") || !strings.Contains(patch.String(), "rename from move-me\n") {
		t.Errorf("patch:\n%s", patch.String())
	}
	err = hostexec.Runner{}.Run(t.Context(), hostexec.Cmd{Argv: []string{"git", "apply"}, Dir: p.dir, Env: p.env, Stdin: &patch})
	must(t, err)
	if diff := cmp.Diff(contents(t, p.guest.dir), contents(t, p.dir)); diff != "" {
		t.Errorf("(-guest +host)\n%s", diff)
	}
}

// contents is what is in a directory beside .git and what is ignored.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() == ".git" {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return err
		}
		if d.IsDir() || strings.HasSuffix(p, ".o") {
			return nil
		}
		st, err := d.Info()
		must(t, err)
		if st.Mode().Type() == fs.ModeSymlink {
			target, _ := os.Readlink(p)
			all[strings.TrimPrefix(p, dir)] = "-> " + target
			return nil
		}
		b, err := os.ReadFile(p)
		must(t, err)
		all[strings.TrimPrefix(p, dir)] = fmt.Sprintf("%v %q", executable(st.Mode()), b)
		return nil
	}))
	return all
}

func TestApply(t *testing.T) {
	p := busyPair(t)
	git := p.gitState()
	made, err := p.fetch().Apply(t.Context())
	must(t, err)
	if len(made) != 11 {
		t.Errorf("made %+v", made)
	}
	if diff := cmp.Diff(contents(t, p.guest.dir), contents(t, p.dir)); diff != "" {
		t.Errorf("(-guest +host)\n%s", diff)
	}
	if diff := cmp.Diff(git, p.gitState()); diff != "" {
		t.Errorf("the host's git directory was touched: (-before +after)\n%s", diff)
	}
	p.saved()
	// What was taken over is common now: nothing is left to do, in either direction.
	if w := p.fetch(); len(w.Changes) != 0 {
		t.Errorf("left: %q", kinds(w.Changes))
	}
	if ws := p.mustUpdate(false); ws.Files != 0 {
		t.Errorf("%+v", ws)
	}
	// And the guest goes on from there.
	p.there("untracked", "the guest's, again\n")
	if _, err := p.fetch().Apply(t.Context()); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(filepath.Join(p.dir, "untracked")); string(b) != "the guest's, again\n" {
		t.Errorf("untracked is %q", b)
	}
}

// gitState lists the git directory of the host.
func (p *pair) gitState() map[string]string {
	p.Helper()
	all := p.everything(filepath.Join(p.dir, ".git"))
	delete(all, filepath.Join(p.dir, ".git")) // its time, for the directory that comes and goes
	return all
}

func TestApplyJoinsAndRefuses(t *testing.T) {
	h := newHost(t)
	dir := h.repo("repo")
	lines := "1\n2\n3\n4\n5\n6\n7\n8\n9\n"
	h.file("repo/apart", lines)
	h.file("repo/together", lines)
	h.git(dir, "add", "-A")
	h.git(dir, "commit", "-qm", "lines")
	p := h.pairOf(dir, Options{})
	p.saveBase()
	p.here("apart", "one\n2\n3\n4\n5\n6\n7\n8\n9\n")
	p.there("apart", "1\n2\n3\n4\n5\n6\n7\n8\nnine\n")
	p.here("together", "1\n2\n3\n4\nhost\n6\n7\n8\n9\n")
	p.there("together", "1\n2\n3\n4\nguest\n6\n7\n8\n9\n")
	p.here("both-new", "host\n")
	p.there("both-new", "guest\n")
	p.there("fine", "fine\n")
	before := p.everything(dir)
	_, err := p.fetch().Apply(t.Context())
	if api.KindOf(err) != api.KindConflict || !strings.Contains(err.Error(), "both-new\n  together") || strings.Contains(err.Error(), "apart") {
		t.Errorf("error %v", err)
	}
	if diff := cmp.Diff(before, p.everything(dir)); diff != "" {
		t.Errorf("the host's directory was touched: (-before +after)\n%s", diff)
	}
	p.here("together", lines)
	p.here("both-new", "")
	if _, err := p.fetch().Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"apart": "one\n2\n3\n4\n5\n6\n7\n8\nnine\n", "together": "1\n2\n3\n4\nguest\n6\n7\n8\n9\n", "both-new": "guest\n", "fine": "fine\n"} {
		if b, _ := os.ReadFile(filepath.Join(dir, name)); string(b) != want {
			t.Errorf("%s is %q, want %q", name, b, want)
		}
	}
	p.mustUpdate(false) // what was joined goes back
	if got := p.content("apart"); got != "one\n2\n3\n4\n5\n6\n7\n8\nnine\n" {
		t.Errorf("the guest has %q", got)
	}
}

// liar is a guest that lists and sends what it likes.
type liar struct {
	*localGuest
	list []GuestFile
	send map[string]string // contents, or "-> " and a target
}

func (l *liar) List(_ context.Context, _ bool, fn func(GuestFile) error) error {
	for _, f := range l.list {
		if err := fn(f); err != nil {
			return err
		}
	}
	return nil
}

func (l *liar) Hash(_ context.Context, format string, paths []string, fn func(GuestFile) error) error {
	for _, p := range paths {
		f := GuestFile{Path: p, Missing: true}
		if i := slices.IndexFunc(l.list, func(f GuestFile) bool { return f.Path == p }); i >= 0 {
			f = l.list[i]
			f.ID = idOf(format, []byte(p))
		}
		if err := fn(f); err != nil {
			return err
		}
	}
	return nil
}

func (l *liar) Pack(context.Context, []string) (io.ReadCloser, error) {
	dir := l.h.TempDir()
	other := &localGuest{h: l.h, dir: dir}
	var paths []string
	i := 0
	for name, content := range l.send {
		i++
		plain := fmt.Sprint(i)
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			must(l.h.T, os.Symlink(target, filepath.Join(dir, plain)))
		} else {
			must(l.h.T, os.WriteFile(filepath.Join(dir, plain), []byte(content), 0o755))
		}
		paths = append(paths, plain)
		other.rename = append(other.rename, [2]string{plain, name})
	}
	return other.Pack(l.h.Context(), paths)
}

// A hostile guest writes nothing where it should not, and nothing outside.
func TestHostileWork(t *testing.T) {
	file := func(name string) GuestFile { return GuestFile{Path: name, Mode: 0o755, Size: 5} }
	link := func(name string) GuestFile { return GuestFile{Path: name, Mode: fs.ModeSymlink | 0o777, Size: 5} }
	for name, tt := range map[string]struct {
		list []GuestFile
		send map[string]string
	}{
		"git directory":        {[]GuestFile{file(".git/hooks/post-checkout")}, map[string]string{".git/hooks/post-checkout": "evil"}},
		"nested git directory": {[]GuestFile{file("sub/.git/config")}, map[string]string{"sub/.git/config": "evil"}},
		"case":                 {[]GuestFile{file(".GIT/config")}, map[string]string{".GIT/config": "evil"}},
		"ntfs":                 {[]GuestFile{file("git~1/config")}, map[string]string{"git~1/config": "evil"}},
		"ntfs stream":          {[]GuestFile{file(".git::$INDEX_ALLOCATION/config")}, map[string]string{".git::$INDEX_ALLOCATION/config": "evil"}},
		"dots at the end":      {[]GuestFile{file(".git. ./config")}, map[string]string{".git. ./config": "evil"}},
		"hfs":                  {[]GuestFile{file(".g\u200cit/config")}, map[string]string{".g\u200cit/config": "evil"}},
		"dot dot":              {[]GuestFile{file("a/../../evil")}, map[string]string{"a/../../evil": "evil"}},
		"link as a directory":  {[]GuestFile{link("x"), file("x/evil")}, map[string]string{"x": "-> .git/hooks", "x/evil": "evil"}},
		"link outside":         {[]GuestFile{link("x")}, map[string]string{"x": "-> ../../outside"}},
		"absolute link":        {[]GuestFile{link("x")}, map[string]string{"x": "-> /etc/passwd"}},
		"link to git":          {[]GuestFile{link("x")}, map[string]string{"x": "-> .git/hooks"}},
		"through a link here":  {[]GuestFile{file("here/evil")}, map[string]string{"here/evil": "evil"}},
		"not asked for":        {[]GuestFile{file("x")}, map[string]string{"y": "evil"}},
		"too large":            {[]GuestFile{{Path: "x", Mode: 0o644, Size: 1 << 40}}, nil},
		"larger than it said":  {[]GuestFile{file("x")}, map[string]string{"x": strings.Repeat("x", 2<<20)}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			dir := h.repo("repo")
			must(t, os.Symlink(".git/hooks", filepath.Join(dir, "here")))
			p := h.pairOf(dir, Options{})
			p.saveBase()
			before := p.everything(h.dir)
			tt.list = append(tt.list, p.guest.state("tracked", formatSHA1))
			tt.list[len(tt.list)-1].MTime = 1
			l := &liar{localGuest: p.guest, list: tt.list, send: tt.send}
			w, err := p.fetchFrom(l, 1<<20)
			if err == nil {
				_, err = w.Apply(t.Context())
				must(t, w.Close())
			}
			if err == nil {
				t.Error("it was taken over")
			}
			after := p.everything(h.dir)
			for _, m := range []map[string]string{before, after} { // the directory that comes and goes changes their times
				delete(m, filepath.Join(dir, ".git"))
				delete(m, h.dir)
			}
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("%v: the host was touched: (-before +after)\n%s", err, diff)
			}
		})
	}
}

// What the guest sets up for git does not run when its work is made a patch of, or applied.
func TestNothingOfTheGuestRuns(t *testing.T) {
	h := newHost(t)
	dir := h.repo("repo")
	canary := filepath.Join(h.dir, "canary")
	evil := "touch " + canary
	// The host's own user has filters and hooks as well: they do not run either.
	h.git(dir, "config", "filter.evil.smudge", evil)
	h.git(dir, "config", "filter.evil.clean", evil)
	h.git(dir, "config", "diff.evil.textconv", evil)
	h.git(dir, "config", "diff.evil.command", evil)
	h.git(dir, "config", "diff.external", evil)
	h.git(dir, "config", "merge.evil.driver", evil)
	p := h.pairOf(dir, Options{})
	p.saveBase()
	p.there(".gitattributes", "* filter=evil diff=evil merge=evil\n")
	p.there("tracked", "changed\n")
	w := p.fetch()
	var patch bytes.Buffer
	if _, err := w.Patch(t.Context(), &patch); err != nil || !strings.Contains(patch.String(), "+changed") {
		t.Errorf("%v\n%s", err, patch.String())
	}
	if _, err := w.Apply(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(canary); err == nil {
		t.Error("something ran")
	}
}

func TestApplyUndoes(t *testing.T) {
	h := newHost(t)
	dir := h.repo("repo")
	h.file("repo/gone", "gone\n")
	h.file("repo/d/e", "e\n")
	p := h.pairOf(dir, Options{})
	p.there("gone", "")
	p.there("d", "")
	p.there("tracked", "changed\n")
	p.there("zz/new", "new\n")
	w := p.fetch()
	a := application{w: w, base: w.base, seen: map[string]HostStat{}}
	var err error
	a.root, err = os.OpenRoot(dir)
	must(t, err)
	defer a.root.Close()
	must(t, a.plan(t.Context()))
	before := contents(t, dir)
	a.steps = append(a.steps, step{Change: Change{Path: "tracked/below"}, before: GuestFile{Missing: true}, content: w.files["zz/new"]}) // cannot be done
	if _, err := a.run(); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("error %v", err)
	}
	if diff := cmp.Diff(before, contents(t, dir)); diff != "" {
		t.Errorf("(-before +after)\n%s", diff)
	}
}

// A file that the user saves while changes are put in place is left alone, and so is everything else.
func TestApplySeesWhatChangesMeanwhile(t *testing.T) {
	for name, edit := range map[string]func(p *pair){
		"changed": func(p *pair) { p.here("tracked", "saved meanwhile\n") },
		"made":    func(p *pair) { p.here("new", "made meanwhile\n") },
		"removed": func(p *pair) { p.here("tracked", "") },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			p := h.pairOf(h.repo("repo"), Options{})
			p.there("a", "first\n")
			p.there("tracked", "changed there\n")
			p.there("new", "made there\n")
			w := p.fetch()
			a := application{w: w, base: w.base, seen: map[string]HostStat{}}
			var err error
			a.root, err = os.OpenRoot(p.dir)
			must(t, err)
			defer a.root.Close()
			must(t, a.plan(t.Context()))
			edit(p)
			before := contents(t, p.dir)
			if _, err := a.run(); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
				t.Errorf("error %v", err)
			}
			if diff := cmp.Diff(before, contents(t, p.dir)); diff != "" {
				t.Errorf("(-before +after)\n%s", diff)
			}
		})
	}
}

// A directory that the guest has made a file is one in a patch, too.
func TestPatchOfADirectoryThatBecameAFile(t *testing.T) {
	h := newHost(t)
	dir := h.repo("repo")
	h.file("repo/d/x", "x\n")
	h.git(dir, "add", "-A")
	h.git(dir, "commit", "-qm", "d")
	p := h.pairOf(dir, Options{})
	p.there("d", "")
	p.there("d", "a file\n")
	w := p.fetch()
	var patch bytes.Buffer
	if _, err := w.Patch(t.Context(), &patch); err != nil {
		t.Fatal(err)
	}
	must(t, hostexec.Runner{}.Run(t.Context(), hostexec.Cmd{Argv: []string{"git", "apply", "--check"}, Dir: dir, Env: p.env, Stdin: &patch}))
	if _, err := w.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "d")); err != nil || string(b) != "a file\n" {
		t.Errorf("d is %q, %v", b, err)
	}
}

// Where what was put in place cannot be taken back, what the files held is not thrown away, and the user is told where it is.
func TestApplyThatCannotBeUndone(t *testing.T) {
	h := newHost(t)
	dir := h.repo("repo")
	p := h.pairOf(dir, Options{})
	p.there("tracked", "changed\n")
	p.there("zz", "new\n")
	w := p.fetch()
	a := application{w: w, base: w.base, seen: map[string]HostStat{}}
	var err error
	a.root, err = os.OpenRoot(dir)
	must(t, err)
	defer a.root.Close()
	must(t, a.plan(t.Context()))
	a.undo = append(a.undo, func() error { return errors.New("the disk is broken") })
	a.steps = append(a.steps, step{Change: Change{Path: "tracked/below"}, before: GuestFile{Missing: true}, content: w.files["zz"]}) // cannot be done
	_, err = a.run()
	if err == nil || !strings.Contains(err.Error(), "the disk is broken") || strings.Contains(err.Error(), "nothing was changed") || !strings.Contains(api.AsError(err).Hint, a.dir) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, a.dir)); err != nil {
		t.Errorf("what the files held is gone: %v", err)
	}
}
