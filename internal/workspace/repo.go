package workspace

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
)

// repo is the state of one repository, as its .git in the guest is to have it.
type repo struct {
	git  git
	root string // of the work tree
	temp string // a directory of its own

	now    Checkout          // what the guest is to have checked out
	host   Checkout          // what the host has
	refs   map[string]string // object ids, or "ref: " and a name
	listed []string          // the entries of the index, as listIndex has them
	files  map[string][]byte
	index  string            // the copy of the index; "" where there is none
	packs  map[string]string // files for objects/pack
	// promisors are empty files beside the packs.
	promisors []string
	// tips are the objects whose history travels.
	tips    []string
	shallow []string // commits whose parents stay behind, because of a depth
	partial bool
	skipped *skipped
	label   string // of the repository in Skipped
}

// stateFiles are the files and directories of a git directory that say what is going on: a merge, a rebase, a bisection.
var stateFiles = []string{
	"MERGE_HEAD", "MERGE_MSG", "MERGE_MODE", "SQUASH_MSG", "CHERRY_PICK_HEAD", "REVERT_HEAD", "REBASE_HEAD", "ORIG_HEAD",
	"AUTO_MERGE", "BISECT_LOG", "BISECT_START", "BISECT_TERMS", "BISECT_NAMES", "BISECT_EXPECTED_REV", "BISECT_ANCESTORS_OK",
	"BISECT_FIRST_PARENT", "sequencer", "rebase-merge", "rebase-apply",
}

// infoFiles are files that change what git shows of the same commits and files.
var infoFiles = []string{"shallow", "info/exclude", "info/attributes", "info/sparse-checkout", "info/grafts"}

// maxStateFile bounds a file of either list, in bytes.
const maxStateFile = 4 << 20

// readRepo reads the state of the repository whose work tree is root, all but its objects.
func readRepo(ctx context.Context, r *repo, want checkout) (*repo, error) {
	r.refs, r.files, r.packs = map[string]string{}, map[string][]byte{}, map[string]string{}
	if err := r.readRefs(ctx); err != nil {
		return nil, err
	}
	if err := r.readHead(ctx); err != nil {
		return nil, err
	}
	if err := r.readConfig(ctx); err != nil {
		return nil, err
	}
	if err := r.readState(ctx); err != nil {
		return nil, err
	}
	r.host = r.now
	if err := want.apply(ctx, r); err != nil {
		return nil, err
	}
	if want.tree == "" {
		if err := r.copyIndex(ctx); err != nil {
			return nil, err
		}
	}
	return r, r.limitHistory(ctx, want.depth)
}

func (r *repo) out(ctx context.Context, args ...string) ([]byte, error) {
	return r.git.output(ctx, r.root, nil, nil, args...)
}

// readRefs reads all refs: the symbolic ones as files of their own, the rest as packed-refs.
func (r *repo) readRefs(ctx context.Context) error {
	out, err := r.out(ctx, "for-each-ref", "--format=%(objectname) %(refname) %(symref)")
	if err != nil {
		_, said := status(err)
		return r.git.broken(r.root, "the refs", said)
	}
	var refs [][2]string
	var ids []string
	for _, l := range split(out, "\n") {
		id, rest, _ := strings.Cut(l, " ")
		name, target, _ := strings.Cut(rest, " ")
		if strings.HasPrefix(name, PulledRefs) {
			continue // what came out of VMs
		}
		if target != "" {
			r.refs[name] = symbolic + target
			continue
		}
		refs, ids = append(refs, [2]string{id, name}), append(ids, id)
	}
	present, err := r.present(ctx, ids)
	if err != nil {
		return err
	}
	for _, ref := range refs {
		if !present[ref[0]] {
			r.skipped.add("%s%s: its object %s is missing", r.label, ref[1], ref[0])
			continue
		}
		r.tips = append(r.tips, ref[0])
		r.refs[ref[1]] = ref[0]
	}
	return nil
}

// PulledRefs begins the names of the refs that have come out of VMs; they do not go into one.
const PulledRefs = "refs/banger/"

// symbolic begins the value of a ref that names another.
const symbolic = "ref: "

// refFiles writes the refs as files of a git directory: the symbolic ones each its own, the rest as packed-refs.
func (r *repo) refFiles() map[string][]byte {
	files := map[string][]byte{}
	var b strings.Builder
	b.WriteString("# pack-refs with: sorted \n")
	for _, name := range slices.Sorted(maps.Keys(r.refs)) {
		if strings.HasPrefix(r.refs[name], symbolic) {
			files[name] = []byte(r.refs[name] + "\n")
			continue
		}
		fmt.Fprintf(&b, "%s %s\n", r.refs[name], name)
	}
	files["packed-refs"] = []byte(b.String())
	return files
}

// state is what a manifest keeps of the repository.
func (r *repo) state(format string) *RepoState {
	s := &RepoState{Given: r.now, Host: r.host, Refs: maps.Clone(r.refs), Files: map[string]string{}, Shallow: r.shallow}
	for name, content := range r.files {
		s.Files[name] = idOf(format, content)
	}
	return s
}

// present tells which objects the repository has.
func (r *repo) present(ctx context.Context, ids []string) (map[string]bool, error) {
	have := map[string]bool{}
	if len(ids) == 0 {
		return have, nil
	}
	in := strings.NewReader(strings.Join(ids, "\n") + "\n")
	out, err := r.git.output(ctx, r.root, in, nil, "cat-file", "--batch-check=%(objectname)")
	if err != nil {
		return nil, fmt.Errorf("read the objects of %q: %w", r.root, err)
	}
	for _, l := range split(out, "\n") {
		if !strings.HasSuffix(l, " missing") {
			have[l] = true
		}
	}
	return have, nil
}

// readHead reads HEAD: a branch, one that has no commit yet, or a commit.
func (r *repo) readHead(ctx context.Context) error {
	commit, commitErr := r.out(ctx, "rev-parse", "--verify", "HEAD^{commit}")
	if commitErr == nil {
		r.now.Commit = line(commit)
		r.tips = append(r.tips, r.now.Commit)
	}
	out, err := r.out(ctx, "symbolic-ref", "--quiet", "HEAD")
	if err != nil {
		if code, said := status(err); code != 1 {
			return r.git.broken(r.root, "HEAD", cmp.Or(r.headSays(ctx), said))
		}
		if commitErr != nil {
			_, said := status(commitErr)
			return r.git.broken(r.root, "HEAD", said)
		}
		r.now.Head = line(commit) + "\n"
		return nil
	}
	branch := line(out)
	r.now.Head = "ref: " + branch + "\n"
	if commitErr == nil {
		return nil
	}
	// No commit: a branch that is yet to be born, or a broken one.
	if r.refs[branch] != "" {
		return r.git.broken(r.root, "HEAD", branch+" is not a commit")
	}
	if says := r.headSays(ctx); says != "" {
		return r.git.broken(r.root, "HEAD", says)
	}
	if slices.ContainsFunc(r.skipped.lines, func(l string) bool { return strings.HasPrefix(l, r.label+branch+":") }) {
		return r.git.broken(r.root, "HEAD", "the commit of "+branch+" is missing")
	}
	return nil
}

// headSays tells what is written in the branch that HEAD names, where it has a file; "" where it has not.
func (r *repo) headSays(ctx context.Context) string {
	head, err := r.gitPath(ctx, "HEAD")
	if err != nil {
		return ""
	}
	content, err := os.ReadFile(head)
	branch, ok := strings.CutPrefix(strings.TrimSpace(string(content)), "ref: ")
	if err != nil || !ok {
		return ""
	}
	file, err := r.gitPath(ctx, branch)
	if err != nil {
		return ""
	}
	if content, err = os.ReadFile(file); err != nil {
		return ""
	}
	return fmt.Sprintf("%s is %.60q, which is not a commit of this repository", branch, strings.TrimSpace(string(content)))
}

// gitPath is the absolute path of a file of the git directory, wherever a linked worktree has it.
func (r *repo) gitPath(ctx context.Context, name string) (string, error) {
	paths, err := r.gitPaths(ctx, name)
	if err != nil {
		return "", err
	}
	return paths[0], nil
}

func (r *repo) gitPaths(ctx context.Context, names ...string) ([]string, error) {
	args := []string{"rev-parse"}
	for _, n := range names {
		args = append(args, "--git-path", n)
	}
	out, err := r.out(ctx, args...)
	if err != nil {
		return nil, fmt.Errorf("find the git directory of %q: %w", r.root, err)
	}
	paths := split(out, "\n")
	if len(paths) != len(names) {
		return nil, api.Errorf(api.KindInvalid, "copy %q: its git directory has a line break in its path", r.root)
	}
	for i, p := range paths {
		if !filepath.IsAbs(p) {
			paths[i] = filepath.Join(r.root, p)
		}
	}
	return paths, nil
}

var objectID = regexp.MustCompile(`\b(?:[0-9a-f]{64}|[0-9a-f]{40})\b`)

// isID tells whether s is an object id.
func isID(s string) bool {
	return (len(s) == 40 || len(s) == 64) && strings.Trim(s, "0123456789abcdef") == ""
}

// readState takes over what is going on in the work tree, and the objects it speaks of.
func (r *repo) readState(ctx context.Context) error {
	names := append(slices.Clone(stateFiles), infoFiles...)
	paths, err := r.gitPaths(ctx, names...)
	if err != nil {
		return err
	}
	var ids []string
	for i, name := range names {
		err := filepath.WalkDir(paths[i], func(p string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return unreadable(p, err)
			}
			if !d.Type().IsRegular() {
				return nil
			}
			content, err := readBounded(p)
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(paths[i], p)
			if err != nil {
				return err
			}
			r.files[filepath.Join(name, rel)] = content
			if slices.Contains(stateFiles, name) {
				ids = append(ids, objectID.FindAllString(string(content), -1)...)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	slices.Sort(ids)
	present, err := r.present(ctx, slices.Compact(ids))
	if err != nil {
		return err
	}
	for id := range present {
		r.tips = append(r.tips, id)
	}
	return nil
}

func readBounded(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err == nil && st.Size() > maxStateFile {
		return nil, api.Errorf(api.KindInvalid, "read %q: it has %d bytes, more than git writes there", path, st.Size())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, unreadable(path, err)
	}
	return b, nil
}
