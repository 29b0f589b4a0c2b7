// Package workspace reads a directory of the host and writes it as one tar
// stream for a guest: a git work tree with its history and state, so that git in
// the guest sees what git on the host sees, or a plain directory as it is.
//
// What of a repository never travels: hooks, reflogs, alternates, includes,
// credentials in URLs, objects that nothing refers to, and every setting that is not on the list
// of gitconfig.go. The guest gets a .git directory that is made, not copied.
//
// workspace.go prepares a Source; git.go runs the host's git; repo.go reads the
// state of one repository, gitconfig.go its settings, pack.go its objects and
// index; files.go lists a work tree or directory; stream.go writes the tar stream.
//
// The host's git runs on the host's own repository with the user's own
// configuration, and never changes it: no lock is taken, the index is copied first, no network is used.
package workspace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostexec"

	"golang.org/x/sys/unix"
)

// Config is what Prepare needs.
type Config struct {
	Run hostexec.Runner
	// Environ is the environment of git, KEY=VALUE; its GIT_ variables are left out.
	Environ []string
	// Home is the user's home directory, which is refused as a plain directory; may be empty.
	Home string
	// TempDir gets the packed history while a Source is open, up to the size of the repository; empty for the system's.
	TempDir string
}

// Source is a directory, read and ready to be streamed. Close it.
type Source struct {
	Place

	opts    Options
	format  string // of content ids
	temp    string
	read    time.Time // when reading began
	entries []entry
	bytes   int64            // of the regular files in entries
	repos   map[string]*repo // by directory, "" for Root
	skipped skipped
	notes   []string
}

// Options say what of a directory goes into the guest. The zero value is all, as it is.
type Options struct {
	// Branch is a branch to make for the guest, which must not be there yet; the host's repository does not get it.
	Branch string
	// From is the commit, by any name of git's, that Branch begins at. The guest then gets the files of
	// that commit and not those of the work tree. Empty for HEAD with the work tree as it is.
	From string
	// Depth limits the history of each ref to that many commits; 0 for all.
	Depth int
	// Base is what the guest was given before; nil for a first copy.
	Base *Manifest
	// Over is a first copy over something that may be a repository: refs of it give way.
	Over bool
}

// maxSkipped is how many lines api.Workspace.Skipped has at most.
const maxSkipped = 20

// skipped collects what is left behind.
type skipped struct {
	lines []string
	more  int
}

func (s *skipped) add(format string, args ...any) {
	if len(s.lines) < maxSkipped-1 {
		s.lines = append(s.lines, fmt.Sprintf(format, args...))
	} else {
		s.more++
	}
}

func (s *skipped) all() []string {
	if s.more == 0 {
		return s.lines
	}
	return append(slices.Clip(s.lines), fmt.Sprintf("and %d more", s.more))
}

// Place is a directory of the host as it would be copied.
type Place struct {
	// Root is what is copied: absolute, without symbolic links; the top of the work tree where Git.
	Root string
	// Name is the base name of Root: the guest gets it as /root/Name.
	Name string
	// Git tells whether Root is a git work tree.
	Git bool
	// Subdir is the directory that was asked for, relative to Root; "." where it is Root.
	Subdir string
}

// Find tells what is copied for path: the whole work tree where it is in one. A path that cannot be a workspace is a KindInvalid that
// says what to do.
func Find(ctx context.Context, cfg Config, path string) (Place, error) {
	dir, err := resolve(path)
	if err != nil {
		return Place{}, err
	}
	p := Place{Root: dir, Subdir: "."}
	root, err := newGit(cfg).findRoot(ctx, dir)
	if err != nil {
		return Place{}, err
	}
	if root != "" {
		if p.Subdir, err = filepath.Rel(root, dir); err != nil {
			return Place{}, fmt.Errorf("copy %q: %w", path, err)
		}
		p.Root, p.Git = root, true
	} else if cfg.Home != "" && sameFile(dir, cfg.Home) {
		return Place{}, api.Errorf(api.KindInvalid, "copy %q: it is your home directory, with all that is in it", path).
			WithHint("give a directory below it; single files of it go along with [[file_sync]] in config.toml")
	}
	if p.Root == "/" {
		return Place{}, api.Errorf(api.KindInvalid, "copy %q: it is the root of the host's file system", path).
			WithHint("give a directory below it")
	}
	p.Name = filepath.Base(p.Root)
	return p, nil
}

// Check finds what is wrong with a first copy of path before anything is made: what Find finds, and a branch that cannot be.
func Check(ctx context.Context, cfg Config, path string, opts Options) error {
	p, err := Find(ctx, cfg, path)
	if err != nil {
		return err
	}
	if !p.Git && (opts.Branch != "" || opts.Depth != 0) {
		return notGit(p.Root)
	}
	if opts.From != "" && opts.Branch == "" {
		return api.Errorf(api.KindInvalid, "copy %q from %q: --from says where the branch of --branch begins", path, opts.From).
			WithHint("give both: --branch NAME --from %s", opts.From)
	}
	if opts.Branch == "" {
		return nil
	}
	r := &repo{git: newGit(cfg), root: p.Root, refs: map[string]string{}, files: map[string][]byte{}, skipped: &skipped{}}
	if err := r.readRefs(ctx); err != nil {
		return err
	}
	return r.newBranch(ctx, opts.Branch, opts.From)
}

// Prepare reads the directory at path, with its history packed into a temporary file. Errors are those of Check; an unreadable file and a
// repository that is broken are a KindInvalid as well. What it cannot take along it lists in the Workspace that Stream returns.
func Prepare(ctx context.Context, cfg Config, path string, opts Options) (*Source, error) {
	p, err := Find(ctx, cfg, path)
	if err != nil {
		return nil, err
	}
	s := &Source{Place: p, opts: opts, format: formatSHA1, read: time.Now(), repos: map[string]*repo{}}
	if s.temp, err = makeTemp(cfg.TempDir); err != nil {
		return nil, fmt.Errorf("copy %q: %w", path, err)
	}
	err = s.list(ctx, newGit(cfg))
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// list reads what there is to copy.
func (s *Source) list(ctx context.Context, g git) error {
	l := lister{git: g, source: s, opts: s.opts, tree: s.Root}
	if !s.Git {
		if s.opts.Branch != "" || s.opts.Depth != 0 {
			return notGit(s.Root)
		}
		if err := l.directory(ctx); err != nil {
			return err
		}
		return l.check(ctx)
	}
	if out, err := g.output(ctx, s.Root, nil, nil, "rev-parse", "--show-object-format"); err == nil {
		s.format = line(out)
	}
	if b := s.opts.Base; b != nil && b.From != "" { // its files are the branch's own
		_, err := l.repo(ctx, "", "")
		return err
	}
	if s.opts.From != "" {
		l.tree = filepath.Join(s.temp, "tree")
		if err := os.Mkdir(l.tree, 0o755); err != nil {
			return err
		}
	}
	if err := l.workTree(ctx, "", "", 0); err != nil {
		return err
	}
	if s.opts.Base != nil { // what has changed will be read before anything is sent
		return nil
	}
	return l.check(ctx)
}

// notGit is the error for a branch or a depth of a plain directory.
func notGit(root string) error {
	return api.Errorf(api.KindInvalid, "copy %q: it is not a git work tree, which --branch, --from and --depth are for", root).
		WithHint("leave them out, or make it one: git -C %s init", root)
}

// Close removes temporary files. The Source is of no use after it.
func (s *Source) Close() error { return os.RemoveAll(s.temp) }

// tempPrefix begins the names of temporary directories.
const tempPrefix = "banger-workspace-"

func makeTemp(dir string) (string, error) {
	if dir != "" {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", err
		}
	}
	return os.MkdirTemp(dir, tempPrefix)
}

// RemoveStale removes from a TempDir what a process that was killed has left there. No Source of it may be open.
func RemoveStale(tempDir string) error {
	entries, err := os.ReadDir(tempDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(tempDir, e.Name())))
		}
	}
	return err
}

// resolve makes a path absolute and free of symbolic links, and checks that it is a directory.
func resolve(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("copy %q: %w", path, err)
	}
	real, err := filepath.EvalSymlinks(abs)
	if err == nil {
		var st os.FileInfo
		if st, err = os.Stat(real); err == nil && !st.IsDir() {
			return "", api.Errorf(api.KindInvalid, "copy %q: it is not a directory", path).
				WithHint("give the directory it is in: banger vm run %s", filepath.Dir(path))
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "", api.Errorf(api.KindInvalid, "copy %q: there is no such directory", path)
	}
	if err != nil {
		return "", unreadable(path, err)
	}
	return real, nil
}

// unreadable is the error for something of the host that cannot be read.
func unreadable(path string, err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return diskFull(path)
	}
	out := api.Errorf(api.KindInvalid, "read %q: %w", path, err)
	if errors.Is(err, fs.ErrPermission) {
		return out.WithHint("make it readable for you (chmod u+r), move it out of the directory, or have git ignore it")
	}
	return out
}

// diskFull is the error where the temporary directory has no room for the history or index of path.
func diskFull(path string) error {
	return api.Errorf(api.KindUnavailable, "pack the history of %q: the disk is full", path).
		WithHint("make room on the file system of banger's cache (~/.cache/banger); the history is packed there while it is copied")
}

func sameFile(a, b string) bool {
	sa, errA := os.Stat(a)
	sb, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(sa, sb)
}

// printable is a path for a line of text: quoted where it has to be.
func printable(path string) string {
	if q := fmt.Sprintf("%q", path); q != `"`+path+`"` || strings.ContainsAny(path, " \t") {
		return q
	}
	return path
}
