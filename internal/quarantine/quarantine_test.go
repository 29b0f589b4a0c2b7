package quarantine

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPull(t *testing.T) {
	w := newWorld(t)
	if res := w.mustPull(); len(res.Refs) > 0 || len(res.Skipped) > 0 {
		t.Errorf("there is nothing new, and it says %+v", res)
	}
	a := w.commit(w.guest, "a")
	b := w.commit(w.guest, "b")
	w.git(w.guest, "branch", "same", "HEAD~2")
	w.git(w.guest, "branch", "topic/x", a)
	res := w.mustPull()
	want := []Pulled{
		{Guest: "refs/heads/main", Host: "refs/banger/dev/main", New: b, Commits: 2},
		{Guest: "refs/heads/topic/x", Host: "refs/banger/dev/topic/x", New: a, Commits: 1},
	}
	if diff := cmp.Diff(want, res.Refs); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"dev/main": b, "dev/topic/x": a}, w.pulled()); diff != "" {
		t.Error(diff)
	}
	if res := w.mustPull(); len(res.Refs) > 0 || res.UpToDate != 5 {
		t.Errorf("the second time: %+v", res)
	}
	w.git(w.guest, "commit", "-q", "--amend", "-m", "b'")
	amended := w.id(w.guest, "main")
	res = w.mustPull()
	want = []Pulled{{Guest: "refs/heads/main", Host: "refs/banger/dev/main", Old: b, New: amended, Commits: 1, Rewritten: true}}
	if diff := cmp.Diff(want, res.Refs); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"refs/banger/dev/@/kept/" + b}, res.Kept); diff != "" {
		t.Error(diff)
	}
}
