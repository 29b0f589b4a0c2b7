package workspace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"git.thaloco.com/thaloco/banger/api"

	"golang.org/x/sys/unix"
)

// entry is one entry of the tar stream.
type entry struct {
	// name is relative to the destination, without a slash at its end; "" is the destination itself.
	name string
	// host is the file to read; "" where content is what the guest gets.
	host    string
	content []byte
	// mode is type and permissions: a directory, a regular file or a symbolic link.
	mode  fs.FileMode
	mtime time.Time
	size  int64
	// stat is what the host's file looked like when it was listed.
	stat HostStat
	// made is set for what lies in a .git.
	made bool
}

// maxDepth is how deep repositories may lie in each other.
const maxDepth = 16

// lister makes the entries of a Source.
type lister struct {
	git    git
	source *Source
	opts   Options
	tree   string // where the files are: the source, or a tree that was checked out for it
	repos  int
	dirs   map[string]bool // directories that have an entry (true) or that are none on the host (false)
}

func (l *lister) host(name string) string { return filepath.Join(l.tree, name) }

// add adds what the host has at name now, and the directories above it. It reports whether it is there.
func (l *lister) add(name string) (bool, error) {
	if !l.parents(name) {
		return false, nil
	}
	st, err := os.Lstat(l.host(name))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	if err != nil {
		return false, unreadable(l.host(name), err)
	}
	switch st.Mode().Type() {
	case 0, fs.ModeSymlink:
		l.addInfo(name, st)
	case fs.ModeDir:
		return l.dir(name), nil
	default:
		l.source.skipped.add("%s: it is %s", printable(name), kindOf(st.Mode()))
	}
	return true, nil
}

func (l *lister) addInfo(name string, st fs.FileInfo) {
	e := entry{name: name, host: l.host(name), mode: st.Mode().Type() | st.Mode().Perm(), mtime: st.ModTime(), stat: hostStat(st)}
	if st.Mode().IsRegular() {
		e.size = st.Size()
		l.source.bytes += e.size
	}
	l.source.entries = append(l.source.entries, e)
}

func kindOf(m fs.FileMode) string {
	switch {
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case m&fs.ModeDevice != 0:
		return "a device"
	}
	return "not a file"
}

// parents adds the directories above name. It reports false where one of them is not a directory: what git knows below
// it is not there then, even where a symbolic link leads somewhere.
func (l *lister) parents(name string) bool {
	dir := filepath.Dir(name)
	if name == "" {
		return true
	}
	if dir == "." {
		dir = ""
	}
	return l.dir(dir)
}

func (l *lister) dir(name string) bool {
	if l.dirs == nil {
		l.dirs = map[string]bool{}
	}
	if is, ok := l.dirs[name]; ok {
		return is
	}
	is := false
	if l.parents(name) {
		st, err := os.Lstat(l.host(name))
		if is = err == nil && st.IsDir(); is {
			l.addInfo(name, st)
		}
	}
	l.dirs[name] = is
	return is
}

// workTree adds the work tree at prefix (relative to the source; "" for the source itself): its .git, its tracked
// files as they are on disk, its untracked files that are not ignored, and the repositories in it. Where at is not empty
// it is the tree of that commit instead.
func (l *lister) workTree(ctx context.Context, prefix, at string, depth int) error {
	if depth > maxDepth {
		return api.Errorf(api.KindInvalid, "copy %q: more than %d repositories in each other", l.host(prefix), maxDepth)
	}
	l.dir(prefix)
	r, err := l.repo(ctx, prefix, at)
	if err != nil {
		return err
	}
	nested, err := l.tracked(prefix, r.listed)
	if err != nil {
		return err
	}
	if err := l.noteFilters(ctx, r); err != nil {
		return err
	}
	if l.tree == l.source.Root {
		others, err := l.untracked(ctx, r, prefix)
		if err != nil {
			return err
		}
		nested = append(nested, others...)
	}
	for _, sub := range nested {
		if err := l.nested(ctx, sub, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// subtree is a repository in another one.
type subtree struct{ dir, commit string }

// tracked adds what is in the index and on the disk, and returns the repositories among it. A staged entry is
// a letter, mode, id, stage and name as ls-files -v --stage has them.
func (l *lister) tracked(prefix string, staged []string) (nested []subtree, err error) {
	last := ""
	for _, e := range staged {
		meta, name, _ := strings.Cut(e, "\t")
		if name == last { // another stage of the same
			continue
		}
		last = name
		full := filepath.Join(prefix, name)
		fields := strings.Fields(meta)
		link := len(fields) > 2 && fields[1] == "160000"
		if !link && l.isDir(full) {
			continue // a directory where git knows a file: what is in it is untracked, and listed as that
		}
		there, err := l.add(full)
		if err != nil {
			return nil, err
		}
		if there && link {
			nested = append(nested, subtree{full, fields[2]})
		}
	}
	return nested, nil
}

// untracked adds what git does not know and does not ignore, and returns the repositories among it.
func (l *lister) untracked(ctx context.Context, r *repo, prefix string) (nested []subtree, err error) {
	others, err := r.indexed(ctx, nil, "ls-files", "-z", "--others", "--exclude-standard")
	if err != nil {
		return nil, fmt.Errorf("list the files of %q: %w", r.root, err)
	}
	for _, name := range split(others, "\x00") {
		full := filepath.Join(prefix, name)
		if strings.HasSuffix(name, "/") { // a repository in this one that it does not know
			nested = append(nested, subtree{dir: full})
			continue
		}
		if _, err := l.add(full); err != nil {
			return nil, err
		}
	}
	return nested, nil
}

// nested adds a repository in another one, where there is one.
func (l *lister) nested(ctx context.Context, sub subtree, depth int) error {
	host := filepath.Join(l.source.Root, sub.dir)
	if _, err := os.Lstat(filepath.Join(host, ".git")); err != nil {
		return nil
	}
	if l.tree == l.source.Root {
		return l.workTree(ctx, sub.dir, "", depth)
	}
	if _, err := l.git.output(ctx, host, nil, nil, "cat-file", "-e", sub.commit+"^{commit}"); err != nil {
		l.source.skipped.add("%s: its repository on this host does not have the commit %.12s", printable(sub.dir), sub.commit)
		return nil
	}
	return l.workTree(ctx, sub.dir, sub.commit, depth)
}

func (l *lister) isDir(name string) bool {
	st, err := os.Lstat(l.host(name))
	return err == nil && st.IsDir()
}

// repo reads the repository whose work tree is at prefix and adds its .git, unless the guest was given one before.
func (l *lister) repo(ctx context.Context, prefix, at string) (*repo, error) {
	l.repos++
	temp := filepath.Join(l.source.temp, fmt.Sprint(l.repos))
	if err := os.Mkdir(temp, 0o700); err != nil {
		return nil, err
	}
	r := &repo{git: l.git, root: filepath.Join(l.source.Root, prefix), temp: temp, skipped: &l.source.skipped}
	if prefix != "" {
		r.label = printable(prefix) + ": "
	}
	want := checkout{at: at, depth: l.opts.Depth}
	if l.opts.Base != nil && l.opts.Base.Repos[prefix] != nil { // what the guest was not given stays what it is
		want.depth, r.shallow = 0, l.opts.Base.Repos[prefix].Shallow
	}
	if prefix == "" {
		want.branch, want.from = l.opts.Branch, l.opts.From
	}
	if l.tree != l.source.Root {
		want.tree = l.host(prefix)
	}
	r, err := readRepo(ctx, r, want)
	if err != nil {
		return nil, err
	}
	if err := r.listIndex(ctx); err != nil {
		return nil, err
	}
	l.source.repos[prefix] = r
	if l.opts.Base != nil && l.opts.Base.Repos[prefix] != nil {
		return r, nil
	}
	if err := r.pack(ctx); err != nil {
		return nil, err
	}
	return r, l.gitDir(prefix, r)
}

// gitDir adds the .git of a repository.
func (l *lister) gitDir(prefix string, r *repo) error {
	base := filepath.Join(prefix, ".git")
	b := gitDir{base: base, now: time.Now(), made: map[string]bool{}}
	for _, d := range []string{"", "info", "objects", "objects/info", "objects/pack", "refs", "refs/heads", "refs/tags"} {
		b.mkdir(filepath.Join(base, d))
	}
	files := r.refFiles()
	maps.Copy(files, r.files)
	files["HEAD"] = []byte(r.now.Head)
	for name, value := range r.refs {
		if l.opts.Over { // a file of its own wins over packed-refs
			files[name] = []byte(value + "\n")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		b.file(name, files[name])
	}
	err := b.packs(r)
	if err == nil && r.index != "" {
		err = b.disk("index", r.index, 0o644)
	}
	l.source.entries, l.source.bytes = append(l.source.entries, b.entries...), l.source.bytes+b.bytes
	return err
}

// gitDir collects the entries of a .git directory.
type gitDir struct {
	base    string // of the directory, relative to the source
	now     time.Time
	made    map[string]bool
	entries []entry
	bytes   int64
}

func (b *gitDir) mkdir(name string) {
	if b.made[name] {
		return
	}
	if name != b.base {
		b.mkdir(filepath.Dir(name))
	}
	b.made[name] = true
	b.entries = append(b.entries, entry{name: name, mode: fs.ModeDir | 0o755, mtime: b.now, made: true})
}

// file adds a file of the directory.
func (b *gitDir) file(name string, content []byte) {
	full := filepath.Join(b.base, name)
	b.mkdir(filepath.Dir(full))
	b.entries = append(b.entries, entry{name: full, content: content, mode: 0o644, mtime: b.now, size: int64(len(content)), made: true})
	b.bytes += int64(len(content))
}

// disk adds a file that is on the disk.
func (b *gitDir) disk(name, file string, mode fs.FileMode) error {
	st, err := os.Stat(file)
	if err != nil {
		return err
	}
	full := filepath.Join(b.base, name)
	b.mkdir(filepath.Dir(full))
	b.entries = append(b.entries, entry{name: full, host: file, mode: mode, mtime: b.now, size: st.Size(), made: true})
	b.bytes += st.Size()
	return nil
}

// packs adds the packs of r, each index after its pack.
func (b *gitDir) packs(r *repo) error {
	for _, name := range r.promisors {
		b.file(name, nil)
	}
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(r.packs))) {
		if err := b.disk(filepath.Join("objects/pack", name), r.packs[name], 0o444); err != nil {
			return err
		}
	}
	return nil
}

// directory adds everything below a plain directory. A repository in it gets a .git that is made, like everywhere.
func (l *lister) directory(ctx context.Context) error {
	root := l.source.Root
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		name := strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
		if errors.Is(err, fs.ErrNotExist) && name != "" {
			return nil
		}
		if err != nil {
			return unreadable(path, err)
		}
		if strings.HasPrefix(d.Name(), applyDir) && d.IsDir() {
			return filepath.SkipDir // what an application that was killed has left
		}
		if d.Name() != ".git" || name == "" || !l.ownWorkTree(ctx, filepath.Dir(path)) {
			_, err := l.add(name)
			return err
		}
		prefix := filepath.Dir(name)
		if prefix == "." {
			prefix = ""
		}
		if _, err := l.repo(ctx, prefix, ""); err != nil {
			if ctx.Err() != nil {
				return err
			}
			l.source.skipped.add("%s: %v", printable(name), err)
		}
		if d.IsDir() {
			return filepath.SkipDir
		}
		return nil
	})
}

// ownWorkTree tells whether dir is the top of a work tree.
func (l *lister) ownWorkTree(ctx context.Context, dir string) bool {
	root, err := l.git.findRoot(ctx, dir)
	return err != nil || root == dir // an error is met again, and told, by repo
}

// check makes sure that every file can be read, before anything is sent.
func (l *lister) check(ctx context.Context) error {
	for _, e := range l.source.entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if e.host == "" || !e.mode.IsRegular() {
			continue
		}
		if err := unix.Faccessat(unix.AT_FDCWD, e.host, unix.R_OK, unix.AT_EACCESS); err != nil && !errors.Is(err, unix.ENOENT) {
			return unreadable(e.host, err)
		}
	}
	return nil
}
