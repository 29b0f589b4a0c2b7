package quarantine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"

	"github.com/google/go-cmp/cmp"
)

// A pull works into repositories of every sort.
func TestRepositories(t *testing.T) {
	simple := func(w *world) { w.git("", "clone", "-q", w.host, w.guest) }
	upstream := func(w *world, args ...string) { // host and guest are clones of it
		w.firstCommit()
		for i := range 3 {
			w.write(w.host, fmt.Sprint("f", i), strings.Repeat("line\n", i+1))
			w.commit(w.host, fmt.Sprint("c", i))
		}
		w.git(w.host, "config", "uploadpack.allowFilter", "true")
		up := filepath.Join(w.dir, "upstream")
		must(w, os.Rename(w.host, up))
		for _, to := range []string{w.host, w.guest} {
			w.git("", append(append([]string{"clone", "-q"}, args...), "file://"+up, to)...)
		}
		must(w, os.Rename(up, up+"-away")) // nothing may be fetched from it
		w.have = []string{w.id(w.host, "main")}
	}
	tests := map[string]func(w *world){
		"sha256": func(w *world) { w.firstCommit("--object-format=sha256"); simple(w) },
		"reftable": func(w *world) {
			if _, err := w.try("", nil, "init", "-q", "--ref-format=reftable", w.host+"-try"); err != nil {
				w.Skip("this git has no reftables")
			}
			w.firstCommit("--ref-format=reftable")
			simple(w)
		},
		"shallow":      func(w *world) { upstream(w, "--depth=2") },
		"partial":      func(w *world) { upstream(w, "--filter=blob:none") },
		"partial tree": func(w *world) { upstream(w, "--filter=tree:0") },
		"shared": func(w *world) {
			w.firstCommit()
			must(w, os.Rename(w.host, w.host+"-lender"))
			w.git("", "clone", "-q", "--shared", w.host+"-lender", w.host)
			simple(w)
		},
		"odd path": func(w *world) {
			w.host = filepath.Join(w.dir, "ho\"s't\\ #é*[a]\t;x:y")
			w.cfg.TempDir = filepath.Join(w.dir, "te\"m'p #:;\\")
			w.firstCommit()
			simple(w)
		},
		"linked worktree": func(w *world) {
			w.firstCommit()
			simple(w)
			w.git(w.host, "worktree", "add", "-q", w.host+"-linked")
		},
		"no commit": func(w *world) {
			w.git("", "init", "-q", "-b", "main", w.host)
			simple(w)
		},
		"sparse, packed": func(w *world) {
			w.firstCommit()
			simple(w)
			w.git(w.host, "sparse-checkout", "set", "dir")
			w.git(w.host, "gc", "-q")
		},
		"commit-graph": func(w *world) {
			w.firstCommit()
			simple(w)
			w.git(w.host, "commit-graph", "write", "--reachable")
		},
		"guest without what the host had": func(w *world) {
			w.firstCommit()
			w.git("", "init", "-q", "-b", "main", w.guest)
		},
	}
	for name, setup := range tests {
		t.Run(name, func(t *testing.T) {
			w := emptyWorld(t)
			setup(w)
			req := func() Request {
				r := w.request()
				if name == "linked worktree" {
					r.Repo += "-linked"
				}
				return r
			}
			w.commit(w.guest, "a")
			for i := range 3 {
				w.write(w.guest, fmt.Sprint("dir/new", i), fmt.Sprint(i))
				id := w.commit(w.guest, fmt.Sprint("b", i))
				if res, err := w.pullReq(req()); err != nil || len(res.Skipped) > 0 {
					t.Fatalf("%+v, %v", res, err)
				}
				if got := w.pulled()["dev/main"]; got != id {
					t.Errorf("refs/banger/dev/main is %s, want %s", got, id)
				}
				w.git(w.guest, "commit", "-q", "--amend", "-m", "amended")
			}
			w.whole()
			missing, err := Missing(t.Context(), w.cfg, req().Repo, w.refs())
			if want := []Ref{{"refs/heads/main", w.id(w.guest, "main")}}; err != nil || !cmp.Equal(missing, want) {
				t.Errorf("missing %v, %v, want %v", missing, err, want)
			}
		})
	}
}

// Each sort of ref goes where it belongs, and only where it has something that the host has not.
func TestWhatGoesWhere(t *testing.T) {
	w := newWorld(t)
	g := w.guest
	first := w.id(g, "HEAD")
	for _, dir := range []string{w.host, g} { // as Linux has one
		w.git(dir, "update-ref", "refs/tags/tree", first+"^{tree}")
	}
	if missing, err := Missing(t.Context(), w.cfg, w.host, w.refs()); err != nil || len(missing) > 0 {
		t.Errorf("missing %v, %v", missing, err)
	}
	w.git(g, "tag", "old", first)
	w.git(g, "tag", "-a", "-m", "x", "annotated", first)
	w.git(g, "update-ref", "refs/notes/known", first)
	main := w.commit(g, "main")
	w.git(g, "tag", "reached", main)
	w.git(g, "tag", "-a", "-m", "x", "-f", "outer", "annotated")
	w.git(g, "update-ref", "refs/remotes/origin/main", main)
	var stashes []string
	for range 3 {
		w.write(g, "file", fmt.Sprint(len(stashes)))
		w.git(g, "stash", "-q")
		stashes = append(stashes, w.id(g, "refs/stash"))
	}
	w.git(g, "checkout", "-q", "--detach")
	detached := w.commit(g, "detached")
	other := w.gitIn(g, "", "commit-tree", "-p", main, "-m", "other", main+"^{tree}")
	w.git(g, "update-ref", "refs/pull/1", other)
	tagged := w.gitIn(g, "", "commit-tree", "-p", main, "-m", "tagged", main+"^{tree}")
	w.git(g, "tag", "light", tagged)
	w.git(g, "branch", "@/x", w.gitIn(g, "", "commit-tree", "-m", "at", main+"^{tree}"))
	blob := w.object("blob", "x\n")
	w.git(g, "tag", "blob", blob)
	w.git(g, "tag", "-a", "-m", "x", "tagged-tree", main+"^{tree}")
	res := w.mustPull()
	want := map[string]string{"dev/main": main, "dev/@/HEAD": detached, "dev/@/stash": stashes[2], "dev/@/stashed/" + stashes[1]: stashes[1],
		"dev/@/stashed/" + stashes[0]: stashes[0], "dev/@/other/pull/1": other, "dev/@/tags/light": tagged, "dev/@/tags/annotated": w.id(g, "annotated"),
		"dev/@/tags/outer": w.id(g, "outer"), "dev/@/heads/@/x": w.id(g, "@/x")}
	if diff := cmp.Diff(want, w.pulled()); diff != "" {
		t.Error(diff)
	}
	if len(res.Skipped) != 2 || !strings.Contains(res.Skipped[0], `"refs/tags/blob"`) || !strings.Contains(res.Skipped[1], `"refs/tags/tagged-tree"`) {
		t.Errorf("skipped %q", res.Skipped)
	}
	if res := w.mustPull(); len(res.Refs) > 0 {
		t.Errorf("the second time: %+v", res.Refs)
	}
	w.git(g, "checkout", "-q", "main")
	for ref := range strings.SplitSeq(w.git(g, "for-each-ref", "--format=%(refname)"), "\n") {
		if ref != "refs/heads/main" {
			w.git(g, "update-ref", "-d", ref)
		}
	}
	w.git(w.host, "merge", "-q", "--ff-only", "refs/banger/dev/main")
	w.git(g, "reset", "-q", "--hard", first)
	res = w.mustPull()
	want["dev/main"], want["dev/@/kept/"+main] = first, main
	if diff := cmp.Diff(want, w.pulled()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Pulled{{Guest: "refs/heads/main", Host: "refs/banger/dev/main", Old: main, New: first, Rewritten: true}}, res.Refs); diff != "" {
		t.Error(diff)
	}
}

// In a partial clone something may be missing, but only what the host's remote has.
func TestPartialIsNoExcuse(t *testing.T) {
	w := emptyWorld(t)
	w.firstCommit()
	w.git(w.host, "config", "uploadpack.allowFilter", "true")
	must(t, os.Rename(w.host, w.host+"-up"))
	for _, to := range []string{w.host, w.guest} {
		w.git("", "clone", "-q", "--filter=blob:none", "file://"+w.host+"-up", to)
	}
	must(t, os.Rename(w.host+"-up", w.host+"-away"))
	good := w.commit(w.guest, "good")
	bad := w.commitTree(w.object("tree", tree(t, "100644 a 1111111111111111111111111111111111111111")))
	w.git(w.guest, "update-ref", "refs/heads/bad", bad)
	req := w.request()
	req.Pack = w.packLoose
	res, err := w.pullReq(req)
	must(t, err)
	if diff := cmp.Diff(map[string]string{"dev/main": good}, w.pulled()); diff != "" {
		t.Error(diff)
	}
	if len(res.Skipped) != 1 || !strings.Contains(res.Skipped[0], strings.Repeat("1", 40)) {
		t.Errorf("skipped %q", res.Skipped)
	}
}

// Names that cannot be beside each other: the later takes the place, the earlier is kept.
func TestNamesInTheWay(t *testing.T) {
	w := newWorld(t)
	a := w.commit(w.guest, "a")
	w.git(w.guest, "branch", "-M", "topic")
	w.mustPull()
	w.git(w.guest, "branch", "-M", "topic/x")
	b := w.commit(w.guest, "b")
	w.git(w.guest, "branch", "topic/y", a)
	res := w.mustPull()
	if diff := cmp.Diff(map[string]string{"dev/topic/x": b, "dev/topic/y": a, "dev/@/kept/" + a: a}, w.pulled()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"refs/banger/dev/@/kept/" + a}, res.Kept); diff != "" {
		t.Error(diff)
	}
	w.git(w.guest, "checkout", "-q", "--detach")
	w.git(w.guest, "branch", "-D", "topic/x", "topic/y")
	c := w.commit(w.guest, "c")
	w.git(w.guest, "checkout", "-q", "-b", "topic")
	w.mustPull()
	if diff := cmp.Diff(map[string]string{"dev/topic": c, "dev/@/kept/" + a: a, "dev/@/kept/" + b: b}, w.pulled()); diff != "" {
		t.Error(diff)
	}
	// No repository has both, but a guest may say so.
	req := w.request()
	d := w.commit(w.guest, "d")
	req.Refs = []Ref{{"refs/heads/topic/z", d}, {"refs/heads/topic", c}, {"refs/heads/new", d}, {"refs/heads/new/er", c}, {"refs/heads/new", a}}
	res, err := w.pullReq(req)
	must(t, err)
	if diff := cmp.Diff(map[string]string{"dev/topic/z": d, "dev/new": d, "dev/@/kept/" + a: a, "dev/@/kept/" + b: b, "dev/@/kept/" + c: c}, w.pulled()); diff != "" {
		t.Error(diff)
	}
	if len(res.Skipped) != 2 {
		t.Errorf("skipped %q", res.Skipped)
	}
}

// Refs that cannot be pulled are said, and the others are pulled.
func TestRefsThatAreSkipped(t *testing.T) {
	w := newWorld(t)
	id := w.commit(w.guest, "new")
	req := w.request()
	for _, name := range badNames {
		req.Refs = append(req.Refs, Ref{name, id})
	}
	bad := []string{"", "x", strings.Repeat("0", 40), strings.Repeat("1", 64), "-" + id[1:], "--all", "^" + id, id + "\n", id + "^{tree}", strings.ToUpper(id), id[:39]}
	for i, b := range bad {
		req.Refs = append(req.Refs, Ref{fmt.Sprint("refs/heads/bad", i), b})
	}
	req.Have = append(req.Have, "--all", "x\ny", strings.Repeat("f", 40))
	req.Shallow = []string{"--all", "x y"}
	res, err := w.pullReq(req)
	must(t, err)
	if len(res.Skipped) != len(badNames)+len(bad) {
		t.Errorf("%d lines: %q", len(res.Skipped), res.Skipped)
	}
	for _, l := range res.Skipped {
		if len(l) > 2000 || strings.ContainsAny(l, "\n\x1b\x00\x7f") {
			t.Errorf("%q", l)
		}
	}
	if diff := cmp.Diff(map[string]string{"dev/main": id}, w.pulled()); diff != "" {
		t.Error(diff)
	}
}

// What the guest has only without its history is said, and the rest is pulled.
func TestCutOffInTheGuest(t *testing.T) {
	w := newWorld(t)
	up := filepath.Join(w.dir, "up")
	w.git("", "init", "-q", "-b", "main", up)
	for i := range 3 {
		w.commit(up, fmt.Sprint("up ", i))
	}
	good := w.commit(w.guest, "good")
	w.git(w.guest, "fetch", "-q", "--depth=1", "file://"+up, "main:refs/remotes/up/main")
	w.git(w.guest, "checkout", "-q", "-b", "onto", "refs/remotes/up/main")
	w.commit(w.guest, "on top")
	res := w.mustPull()
	if diff := cmp.Diff(map[string]string{"dev/main": good}, w.pulled()); diff != "" {
		t.Error(diff)
	}
	if len(res.Skipped) != 2 || !strings.Contains(res.Skipped[0], "not whole") {
		t.Errorf("skipped %q", res.Skipped)
	}
	missing, err := Missing(t.Context(), w.cfg, w.host, w.refs())
	if err != nil || len(missing) != 2 {
		t.Errorf("missing %v, %v", missing, err)
	}
	w.git(w.guest, "fetch", "-q", "--unshallow", "file://"+up)
	if res := w.mustPull(); len(res.Skipped) > 0 {
		t.Errorf("skipped %q", res.Skipped)
	}
}

// Commits that the host has without their history count as missing.
func TestPrunedOnTheHost(t *testing.T) {
	w := newWorld(t)
	w.commit(w.guest, "a")
	b := w.commit(w.guest, "b")
	w.mustPull()
	w.git(w.host, "update-ref", "-d", "refs/banger/dev/main")
	w.git(w.host, "repack", "-adkq")
	w.git(w.host, "prune-packed")
	packs, err := filepath.Glob(filepath.Join(w.host, ".git/objects/pack/*.pack"))
	must(t, err)
	for _, p := range packs {
		must(t, os.Rename(p, p+".x"))
		f, err := os.Open(p + ".x")
		must(t, err)
		must(t, os.Remove(strings.TrimSuffix(p, ".pack")+".idx"))
		if _, err := w.try(w.host, f, "unpack-objects", "-q"); err != nil {
			t.Fatal(err)
		}
		must(t, f.Close())
	}
	parent := w.id(w.guest, b+"~")
	_ = os.Remove(filepath.Join(w.host, ".git/objects", parent[:2], parent[2:]))
	if _, err := w.try(w.host, nil, "cat-file", "-e", b); err != nil {
		t.Skip("git has pruned it")
	}
	w.have = append(w.have, b)
	if missing, err := Missing(t.Context(), w.cfg, w.host, w.refs()); err != nil || !slices.Contains(missing, Ref{"refs/heads/main", b}) {
		t.Errorf("missing %v, %v", missing, err)
	}
	w.mustPull()
	if got := w.pulled()["dev/main"]; got != b {
		t.Errorf("refs/banger/dev/main is %s, want %s", got, b)
	}
}

// Errors about the host's repository say what to do.
func TestHostErrors(t *testing.T) {
	tests := map[string]struct {
		setup      func(w *world, req *Request)
		kind       api.ErrorKind
		says, hint string
	}{
		"no repository":      {func(w *world, req *Request) { req.Repo = filepath.Join(w.dir, "home") }, api.KindInvalid, "not a git repository", "git"},
		"below the top":      {func(w *world, req *Request) { req.Repo += "/sub"; must(w, os.Mkdir(req.Repo, 0o755)) }, api.KindInvalid, "not the top", "git"},
		"no VM's name":       {func(_ *world, req *Request) { req.VM = "../x" }, api.KindInvalid, `"../x"`, ""},
		"too many refs":      {func(_ *world, req *Request) { req.Refs = make([]Ref, maxRefs+1) }, api.KindInvalid, "more than 100000 refs", "delete"},
		"a ref of that name": {func(w *world, req *Request) { w.git(w.host, "update-ref", "refs/banger/dev", "HEAD") }, api.KindConflict, `"refs/banger/dev"`, "git -C"},
		"a broken config":    {func(w *world, req *Request) { w.write(w.host, ".git/config", "[core\n") }, api.KindInvalid, "bad config", "fsck"},
		"a stale lock": {func(w *world, req *Request) {
			w.write(w.host, ".git/refs/banger/dev/main.lock", "")
		}, api.KindConflict, "main.lock", "*.lock"},
		"too many new refs": {func(w *world, req *Request) {
			id := w.id(w.guest, "main")
			for i := range maxChanges + 1 {
				req.Refs = append(req.Refs, Ref{fmt.Sprint("refs/heads/n", i), id})
			}
		}, api.KindInvalid, "more than 10000 refs", "delete"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.commit(w.guest, "new")
			req := w.request()
			tt.setup(w, &req)
			_, err := Pull(t.Context(), w.cfg, req)
			e, ok := errors.AsType[*api.Error](err)
			if !ok || e.Kind != tt.kind || !strings.Contains(e.Message, tt.says) || !strings.Contains(e.Hint, tt.hint) {
				t.Errorf("err = %#v", err)
			}
			if left, _ := os.ReadDir(w.cfg.TempDir); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			if name == "a ref of that name" { // the hint is right
				cmd := strings.Replace(e.Hint[strings.Index(e.Hint, "git -C"):], "NAME", "saved", 1)
				for c := range strings.SplitSeq(cmd, " && ") {
					w.git("", strings.Fields(c)[1:]...)
				}
				w.mustPull()
			}
		})
	}
}
