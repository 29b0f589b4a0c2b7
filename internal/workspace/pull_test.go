package workspace

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/internal/progress"

	"github.com/google/go-cmp/cmp"
)

func (p *pair) pullConfig() PullConfig {
	return PullConfig{Config: p.config(), VM: "box", MaxBytes: 1 << 30, Report: progress.Discard}
}

func TestPullAndStatus(t *testing.T) {
	h := newHost(t)
	sub := h.repo("sub")
	dir := h.repo("repo")
	h.git(dir, "submodule", "--quiet", "add", sub, "lib")
	h.git(dir, "commit", "-qm", "lib")
	p := h.pairOf(dir, Options{Branch: "try-it"})
	st, err := Status(t.Context(), p.pullConfig(), p.guest, p.base)
	must(t, err)
	if st.GuestBranch != "try-it" || st.Against != "HEAD" || st.Ahead != 0 || st.Behind != 0 || len(st.Changes) != 0 || st.Unpulled != nil || st.ChangedHere != 0 {
		t.Errorf("at first: %+v", st)
	}
	p.there("lib/tracked", "in the submodule\n")
	h.git(filepath.Join(p.guest.dir, "lib"), "commit", "-qam", "in lib")
	p.there("work", "w\n")
	h.git(p.guest.dir, "add", "-A")
	h.git(p.guest.dir, "commit", "-qm", "work")
	p.there("stashed", "s\n")
	h.git(p.guest.dir, "stash", "-uq")
	p.there("stashed", "s2\n")
	h.git(p.guest.dir, "stash", "-uq")
	p.there("dirty", "d\n")
	p.there("tracked", "changed\n")
	h.file("repo/tracked", "changed here\n")
	h.file("repo/beside", "b\n")
	h.git(dir, "commit", "-qam", "here")
	st, err = Status(t.Context(), p.pullConfig(), p.guest, p.base)
	must(t, err)
	if st.Ahead != 1 || st.Behind != 1 || st.Modified != 1 || st.Untracked != 1 || st.ChangedHere != 2 {
		t.Errorf("%+v", st)
	}
	if diff := cmp.Diff([]string{"try-it", "stash", "stash@{1}", "lib/main"}, st.Unpulled); diff != "" {
		t.Errorf("unpulled: (-want +got)\n%s", diff)
	}
	var changes []string
	for _, c := range st.Changes {
		mark := ""
		if c.Here {
			mark = " here"
		}
		changes = append(changes, string(c.Kind)+" "+c.Path+mark)
	}
	if diff := cmp.Diff([]string{"added dirty", "modified lib/tracked", "modified tracked here", "added work"}, changes); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	before := p.everything(dir)
	out, err := Pull(t.Context(), p.pullConfig(), p.guest, p.base)
	must(t, err)
	for name := range p.everything(dir) {
		if before[name] == "" && !strings.Contains(name, "/refs/banger") && !strings.Contains(name, "/objects/") && !strings.Contains(name, "/logs") {
			t.Errorf("a pull made %s", name)
		}
	}
	if out.Current != "refs/banger/box/try-it" || len(out.Skipped) != 0 {
		t.Errorf("%+v", out)
	}
	for ref, want := range map[string]string{"refs/banger/box/try-it": "work", "refs/banger/box/@/stash": "WIP on try-it"} {
		if got := h.git(dir, "log", "-1", "--format=%s", ref); !strings.HasPrefix(got, want) {
			t.Errorf("%s is %q", ref, got)
		}
	}
	if st, err = Status(t.Context(), p.pullConfig(), p.guest, p.base); err != nil || st.Unpulled != nil {
		t.Errorf("after the pull: %q, %v", st.Unpulled, err)
	}
	h.git(dir, "merge", "-q", "--no-edit", "refs/banger/box/try-it")
	if _, err := os.Stat(filepath.Join(dir, "work")); err != nil {
		t.Error(err)
	}
}

// A repository that the host has no more is not forgotten: what the guest has committed in it would be lost.
func TestNestedRepositoryThatIsGone(t *testing.T) {
	h := newHost(t)
	sub := h.repo("sub")
	dir := h.repo("repo")
	h.git(dir, "submodule", "--quiet", "add", sub, "lib")
	h.git(dir, "commit", "-qm", "lib")
	p := h.pairOf(dir, Options{Branch: "work", From: "main"})
	p.mustUpdate(false)
	lib := filepath.Join(p.guest.dir, "lib")
	h.git(lib, "commit", "-q", "--allow-empty", "-m", "in lib")
	must(t, os.RemoveAll(filepath.Join(dir, "lib")))
	p.mustUpdate(false)
	out, err := Pull(t.Context(), p.pullConfig(), p.guest, p.base)
	if err != nil || len(out.Skipped) != 1 || !strings.HasPrefix(out.Skipped[0], "lib: ") {
		t.Errorf("%+v, %v", out, err)
	}
	missing, err := MissingRefs(t.Context(), p.pullConfig(), p.guest, p.base)
	if err != nil || len(missing) != 1 || !strings.HasPrefix(missing[0], "lib/") {
		t.Errorf("missing %q, %v", missing, err)
	}
	p.saveBase()
}
