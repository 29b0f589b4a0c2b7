package workspace

import (
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// Where the only branch moves past what a depth left behind, the guest's history stays sound.
func TestDepthThatIsPassed(t *testing.T) {
	h := newHost(t)
	dir := h.repo("repo")
	for _, n := range []string{"2", "3"} {
		h.file("repo/tracked", n+"\n")
		h.git(dir, "commit", "-qam", n)
	}
	p := h.pairOf(dir, Options{Depth: 1, Branch: "work"})
	h.git(p.guest.dir, "commit", "-q", "--allow-empty", "-m", "the guest's")
	for _, n := range []string{"4", "5"} {
		h.file("repo/tracked", n+"\n")
		h.git(dir, "commit", "-qam", n)
	}
	p.mustUpdate(false)
	h.git(p.guest.dir, "fsck", "--strict", "--no-dangling")
	if got := h.git(p.guest.dir, "log", "--format=%s", "work"); got != "the guest's\n3\n" {
		t.Errorf("history %q", got)
	}
	if _, err := Pull(t.Context(), p.pullConfig(), p.guest, p.base); err != nil {
		t.Fatal(err)
	}
	h.git(dir, "rev-parse", "refs/banger/box/work")
	h.git(p.guest.dir, "checkout", "-q", "--orphan", "unborn")
	if _, err := Pull(t.Context(), p.pullConfig(), p.guest, p.base); err != nil {
		t.Fatal(err)
	}
}

// A branch that takes the place of one above it, and back.
func TestUpdateRenamesBranches(t *testing.T) {
	h := newHost(t)
	dir := h.repo("repo")
	h.git(dir, "branch", "feature")
	p := h.pairOf(dir, Options{})
	h.git(dir, "branch", "-m", "feature", "feature/x")
	p.mustUpdate(false)
	h.git(dir, "branch", "-m", "feature/x", "other")
	h.git(dir, "branch", "feature")
	p.mustUpdate(false)
	p.same(dir, p.guest.dir)
	h.git(p.guest.dir, "branch", "mine")
	h.git(dir, "branch", "mine/too")
	if _, err := p.update(true); api.KindOf(err) != api.KindConflict || !strings.Contains(err.Error(), "refs/heads/mine/too") {
		t.Errorf("error %v", err)
	}
}

// An update that was cut off at any point is finished by one after the host has gone on: what the first one brought is no change of the guest's.
func TestUpdateGoesOnAfterAnother(t *testing.T) {
	h := newHost(t)
	dir := h.repo("repo")
	h.file("repo/a", "1\n")
	h.git(dir, "add", "-A")
	h.git(dir, "commit", "-qm", "a")
	p := h.pairOf(dir, Options{})
	old := p.base
	h.file("repo/a", "2\n")
	h.file("repo/untracked", "2\n")
	h.git(dir, "commit", "-qam", "2")
	h.git(dir, "init", "-q", "nested")
	h.file("repo/nested/n", "n\n")
	var begun *Manifest
	_, _, err := Update(t.Context(), p.config(), p.guest, UpdateRequest{Base: p.base, Report: progress.Discard, Begin: func(m *Manifest) error { begun = m; return nil }})
	must(t, err)
	p.base, p.pending = old, begun
	h.file("repo/a", "3\n")
	h.file("repo/untracked", "3\n")
	h.git(dir, "commit", "-qam", "3")
	p.mustUpdate(false)
	p.same(dir, p.guest.dir)
}

// What force takes a name from keeps one of its own.
func TestForceKeepsCommits(t *testing.T) {
	h := newHost(t)
	dir := h.repo("repo")
	h.file("repo/tracked", "stashed\n")
	h.git(dir, "stash", "-q")
	p := h.pairOf(dir, Options{})
	var want []string
	for _, s := range []string{"one", "two"} {
		p.there("tracked", s+"\n")
		h.git(p.guest.dir, "stash", "-q")
		want = append(want, strings.TrimSpace(h.git(p.guest.dir, "rev-parse", "refs/stash")))
	}
	h.git(p.guest.dir, "checkout", "-q", "--detach")
	h.git(p.guest.dir, "commit", "-q", "--allow-empty", "-m", "on no branch")
	want = append(want, strings.TrimSpace(h.git(p.guest.dir, "rev-parse", "HEAD")))
	h.git(dir, "stash", "drop", "-q")
	h.git(dir, "checkout", "-qb", "elsewhere")
	if _, err := p.update(false); api.KindOf(err) != api.KindConflict {
		t.Errorf("error %v", err)
	}
	p.mustUpdate(true)
	for _, id := range want {
		if got := strings.TrimSpace(h.git(p.guest.dir, "rev-parse", overwritten+id)); got != id {
			t.Errorf("%s is kept as %q", id, got)
		}
	}
}
