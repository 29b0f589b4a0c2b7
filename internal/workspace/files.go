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
}

// maxDepth is how deep repositories may lie in each other.
const maxDepth = 16

// lister makes the entries of a Source.
type lister struct {
	git    git
	source *Source
	repos  int
	dirs   map[string]bool // directories that have an entry (true) or that are none on the host (false)
}

func (l *lister) host(name string) string { return filepath.Join(l.source.Root, name) }

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
	e := entry{name: name, host: l.host(name), mode: st.Mode().Type() | st.Mode().Perm(), mtime: st.ModTime()}
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
// files as they are on disk, its untracked files that are not ignored, and the repositories in it.
func (l *lister) workTree(ctx context.Context, prefix string, depth int) error {
	if depth > maxDepth {
		return api.Errorf(api.KindInvalid, "copy %q: more than %d repositories in each other", l.host(prefix), maxDepth)
	}
	l.dir(prefix)
	r, err := l.repo(ctx, prefix)
	if err != nil {
		return err
	}
	staged, err := r.indexed(ctx, nil, "ls-files", "-z", "--stage")
	if err != nil {
		return fmt.Errorf("list the files of %q: %w", r.root, err)
	}
	others, err := r.indexed(ctx, nil, "ls-files", "-z", "--others", "--exclude-standard")
	if err != nil {
		return fmt.Errorf("list the files of %q: %w", r.root, err)
	}
	last := ""
	var nested []string
	for _, e := range split(staged, "\x00") {
		meta, name, _ := strings.Cut(e, "\t")
		if name == last { // another stage of the same
			continue
		}
		last = name
		full := filepath.Join(prefix, name)
		if !strings.HasPrefix(meta, "160000 ") && l.isDir(full) {
			continue // a directory where git knows a file: what is in it is untracked, and listed as that
		}
		there, err := l.add(full)
		if err != nil {
			return err
		}
		if there && strings.HasPrefix(meta, "160000 ") && l.isRepo(full) {
			nested = append(nested, full)
		}
	}
	for _, name := range split(others, "\x00") {
		full := filepath.Join(prefix, name)
		if strings.HasSuffix(name, "/") { // a repository in this one that it does not know
			nested = append(nested, full)
			continue
		}
		if _, err := l.add(full); err != nil {
			return err
		}
	}
	for _, dir := range nested {
		if err := l.workTree(ctx, dir, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (l *lister) isDir(name string) bool {
	st, err := os.Lstat(l.host(name))
	return err == nil && st.IsDir()
}

func (l *lister) isRepo(name string) bool {
	_, err := os.Lstat(filepath.Join(l.host(name), ".git"))
	return err == nil
}

// repo adds the .git of the work tree at prefix.
func (l *lister) repo(ctx context.Context, prefix string) (*repo, error) {
	l.repos++
	temp := filepath.Join(l.source.temp, fmt.Sprint(l.repos))
	if err := os.Mkdir(temp, 0o700); err != nil {
		return nil, err
	}
	label := ""
	if prefix != "" {
		label = printable(prefix) + ": "
	}
	r, err := readRepo(ctx, l.git, l.host(prefix), temp, label, &l.source.skipped)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	base := filepath.Join(prefix, ".git")
	made := map[string]bool{}
	var mkdir func(name string)
	mkdir = func(name string) {
		if made[name] {
			return
		}
		if name != base {
			mkdir(filepath.Dir(name))
		}
		made[name] = true
		l.source.entries = append(l.source.entries, entry{name: name, mode: fs.ModeDir | 0o755, mtime: now})
	}
	for _, d := range []string{"", "info", "objects", "objects/info", "objects/pack", "refs", "refs/heads", "refs/tags"} {
		mkdir(filepath.Join(base, d))
	}
	r.files["HEAD"] = []byte(r.head)
	for _, name := range slices.Sorted(maps.Keys(r.files)) {
		full := filepath.Join(base, name)
		mkdir(filepath.Dir(full))
		l.source.entries = append(l.source.entries, entry{name: full, content: r.files[name], mode: 0o644, mtime: now, size: int64(len(r.files[name]))})
		l.source.bytes += int64(len(r.files[name]))
	}
	disk := map[string]string{}
	for name, file := range r.packs {
		disk[filepath.Join(base, "objects/pack", name)] = file
	}
	if r.index != "" {
		disk[filepath.Join(base, "index")] = r.index
	}
	for _, name := range slices.Sorted(maps.Keys(disk)) {
		st, err := os.Stat(disk[name])
		if err != nil {
			return nil, err
		}
		mode := fs.FileMode(0o444)
		if name == filepath.Join(base, "index") {
			mode = 0o644
		}
		l.source.entries = append(l.source.entries, entry{name: name, host: disk[name], mode: mode, mtime: now, size: st.Size()})
		l.source.bytes += st.Size()
	}
	return r, nil
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
		if d.Name() != ".git" || name == "" || !l.ownWorkTree(ctx, filepath.Dir(path)) {
			_, err := l.add(name)
			return err
		}
		prefix := filepath.Dir(name)
		if prefix == "." {
			prefix = ""
		}
		if _, err := l.repo(ctx, prefix); err != nil {
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
