package workspace

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
)

// checkout is what the guest's repository is to have checked out where that is not what the host's has.
type checkout struct {
	branch, from string
	at           string // a commit, with a detached HEAD
	depth        int
	tree         string // gets the files of the commit; "" for the host's work tree
}

// apply makes r's state what c says, without a change in the host's repository.
func (c checkout) apply(ctx context.Context, r *repo) error {
	switch {
	case c.branch != "":
		if err := r.newBranch(ctx, c.branch, c.from); err != nil {
			return err
		}
	case c.at != "":
		r.now = Checkout{Head: c.at + "\n", Commit: c.at}
		r.tips = append(r.tips, c.at)
	}
	if c.tree == "" {
		return nil
	}
	for name := range r.files { // a merge or a rebase goes on in the host's work tree only
		top, _, _ := strings.Cut(name, "/")
		if slices.Contains(stateFiles, top) {
			delete(r.files, name)
		}
	}
	return r.checkOut(ctx, c.tree)
}

// newBranch makes a branch at from, or at HEAD where it is empty, and lets HEAD name it.
func (r *repo) newBranch(ctx context.Context, branch, from string) error {
	if _, err := r.out(ctx, "check-ref-format", "--branch", branch); err != nil {
		return api.Errorf(api.KindInvalid, "branch %q: git does not allow this name", branch).
			WithHint("git help check-ref-format has the rules; try-it and me/try-it are names")
	}
	name := "refs/heads/" + branch
	if err := r.isFree(name); err != nil {
		return err
	}
	r.now.Head = symbolic + name + "\n"
	if from != "" {
		out, err := r.out(ctx, "rev-parse", "--verify", "--quiet", "--end-of-options", from+"^{commit}")
		if err != nil {
			return api.Errorf(api.KindInvalid, "branch %q from %q: %q has no such commit", branch, from, r.root).
				WithHint("git -C %s branch --all lists the branches; git fetch gets those of a remote", r.root)
		}
		r.now.Commit = line(out)
		r.track(ctx, branch, from)
	}
	if r.now.Commit != "" {
		r.refs[name] = r.now.Commit
		r.tips = append(r.tips, r.now.Commit)
	}
	return nil
}

// isFree is an error where the repository has the ref, or one that excludes it.
func (r *repo) isFree(name string) error {
	for have := range r.refs {
		if have == name || strings.HasPrefix(have, name+"/") || strings.HasPrefix(name, have+"/") {
			short := strings.TrimPrefix(have, "refs/heads/")
			return api.Errorf(api.KindConflict, "branch %q: %q has the branch %q already", strings.TrimPrefix(name, "refs/heads/"), r.root, short).
				WithHint("give another name; or copy without --branch, and in the VM: git switch %s", short)
		}
	}
	return nil
}

// track lets the branch follow the remote's branch that it was made from, as git switch -c does.
func (r *repo) track(ctx context.Context, branch, from string) {
	out, err := r.out(ctx, "rev-parse", "--symbolic-full-name", "--end-of-options", from)
	if err != nil {
		return
	}
	lines := strings.Fields(strings.ReplaceAll(string(out), "--end-of-options", "")) // old versions repeat it
	if len(lines) != 1 {
		return
	}
	remote, of, ok := strings.Cut(strings.TrimPrefix(lines[0], "refs/remotes/"), "/")
	if !ok || !strings.HasPrefix(lines[0], "refs/remotes/") {
		return
	}
	b := bytes.NewBuffer(r.files["config"])
	text := &strings.Builder{}
	writeSetting(text, setting{key: "branch." + branch + ".remote", value: remote, hasValue: true})
	writeSetting(text, setting{key: "branch." + branch + ".merge", value: path.Join("refs/heads", of), hasValue: true})
	b.WriteString(text.String())
	r.files["config"] = b.Bytes()
}

// checkOut writes the files of the commit to dir, as the user's git does, and makes an index for them.
func (r *repo) checkOut(ctx context.Context, dir string) error {
	_, err := r.git.output(ctx, r.root, nil, []string{"GIT_INDEX_FILE=" + r.indexFile(), "GIT_WORK_TREE=" + dir},
		"-c", "core.sparseCheckout=false", "-c", "index.sparse=false", "-c", "index.skipHash=false", "-c", "core.hooksPath=/dev/null",
		"read-tree", "--reset", "-u", r.now.Commit)
	if err != nil {
		if code, said := status(err); code > 0 {
			return r.git.broken(r.root, "the files of "+r.now.Commit, said)
		}
		return fmt.Errorf("check out %s of %q: %w", r.now.Commit, r.root, err)
	}
	r.index = r.indexFile()
	return nil
}

// limitHistory makes the history of every tip depth commits long, 0 for all of it.
func (r *repo) limitHistory(ctx context.Context, depth int) error {
	if depth <= 0 {
		if len(r.shallow) > 0 {
			r.writeShallow()
		}
		return nil
	}
	out, err := r.git.output(ctx, r.root, strings.NewReader(strings.Join(r.tips, "\n")+"\n"), nil, "rev-list", "--parents", "--ignore-missing", "--stdin")
	if err != nil {
		_, said := status(err)
		return r.git.broken(r.root, "the history", said)
	}
	parents := map[string][]string{}
	for _, l := range split(out, "\n") {
		ids := strings.Fields(l)
		parents[ids[0]] = ids[1:]
	}
	peeled, err := r.commits(ctx, r.tips)
	if err != nil {
		return err
	}
	seen, level := map[string]bool{}, peeled
	for range depth {
		var next []string
		for _, id := range level {
			if !seen[id] {
				seen[id] = true
				next = append(next, parents[id]...)
			}
		}
		level = next
	}
	for id := range seen {
		if slices.ContainsFunc(parents[id], func(p string) bool { return !seen[p] }) {
			r.shallow = append(r.shallow, id)
		}
	}
	slices.Sort(r.shallow)
	r.writeShallow()
	return nil
}

// writeShallow adds the limits of the depth to those that the host's repository has itself.
func (r *repo) writeShallow() {
	all := append(strings.Fields(string(r.files["shallow"])), r.shallow...)
	slices.Sort(all)
	if all = slices.Compact(all); len(all) > 0 {
		r.files["shallow"] = []byte(strings.Join(all, "\n") + "\n")
	}
}

// commits are those that ids name, by tags or directly.
func (r *repo) commits(ctx context.Context, ids []string) ([]string, error) {
	var in strings.Builder
	for _, id := range ids {
		in.WriteString(id + "^{commit}\n")
	}
	out, err := r.git.output(ctx, r.root, strings.NewReader(in.String()), nil, "cat-file", "--batch-check=%(objectname)")
	if err != nil {
		return nil, fmt.Errorf("read the objects of %q: %w", r.root, err)
	}
	var commits []string
	for _, l := range split(out, "\n") {
		if isID(l) {
			commits = append(commits, l)
		}
	}
	return commits, nil
}
