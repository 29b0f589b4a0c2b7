package workspace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
)

// Apply makes the changes in the host's directory. A file that the host has left alone since the base becomes what the guest has; of one that both
// have changed the changes are joined where they are lines apart. Where they are not, or the guest's side could do harm on a host, it is a
// KindConflict that lists the paths, and nothing was done. Neither index, HEAD nor stash is touched, no filter and no hook runs. base learns what
// both sides have in common now. An Apply that was killed is finished by another one.
func (w *Work) Apply(ctx context.Context) ([]api.WorkspaceChange, error) {
	a := application{w: w, base: w.base, seen: map[string]HostStat{}}
	var err error
	if a.root, err = os.OpenRoot(w.base.Root); err != nil {
		return nil, unreadable(w.base.Root, err)
	}
	defer a.root.Close()
	if err := a.plan(ctx); err != nil {
		return nil, err
	}
	return a.run()
}

// application is one run of Apply.
type application struct {
	w         *Work
	base      *Manifest
	root      *os.Root
	steps     []step
	same      []Change // what both sides have made the same
	conflicts []string
	unsafe    []string

	seen map[string]HostStat // of what the host had
	dir  string              // for what is prepared, in root
	undo []func() error
	// stuck: not all could be undone.
	stuck bool
}

// step is one file to write or to remove.
type step struct {
	Change
	before  GuestFile // what the host had when it was decided
	seen    HostStat
	content string // a file with what to write; empty to remove
	joined  bool   // it has the changes of both sides
}

// plan decides about every change, without one.
func (a *application) plan(ctx context.Context) error {
	var merge []step
	for _, c := range a.w.Changes {
		if why := a.danger(c); why != "" {
			a.unsafe = append(a.unsafe, printable(c.Path)+": "+why)
			continue
		}
		now, err := a.now(c.Path)
		if err != nil {
			return err
		}
		switch {
		case c.Kind == api.ChangeRemoved && now.Missing, c.Kind != api.ChangeRemoved && now.is(fileOf(c.After)):
			a.same = append(a.same, c)
		case c.Kind == api.ChangeAdded && now.Missing, c.Kind != api.ChangeAdded && now.is(c.Before):
			a.steps = append(a.steps, step{Change: c, before: now, seen: a.seen[c.Path], content: a.w.files[c.Path]})
		case c.Kind == api.ChangeModified && now.Mode.IsRegular() && !now.Missing && c.Before.Mode.IsRegular() && c.After.Mode.IsRegular():
			merge = append(merge, step{Change: c, before: now, seen: a.seen[c.Path]})
		default:
			a.conflicts = append(a.conflicts, printable(c.Path))
		}
	}
	if err := a.join(ctx, merge); err != nil {
		return err
	}
	switch {
	case len(a.unsafe) > 0:
		return api.Errorf(api.KindConflict, "apply to %q: nothing was changed, because of what could do harm on this host:\n  %s", a.base.Root, list(a.unsafe)).
			WithHint("undo that in the VM, or look at it with banger vm workspace diff")
	case len(a.conflicts) > 0:
		return api.Errorf(api.KindConflict, "apply to %q: nothing was changed, because these were changed here and in the VM:\n  %s", a.base.Root, list(a.conflicts)).
			WithHint("commit in the VM and merge what banger vm workspace pull brings, or take --patch and git apply --3way")
	}
	return nil
}

// list is at most maxSkipped lines of a message.
func list(lines []string) string {
	slices.Sort(lines)
	if n := len(lines) - maxSkipped; n > 0 {
		lines = append(slices.Clip(lines[:maxSkipped]), fmt.Sprintf("and %d more", n))
	}
	return strings.Join(lines, "\n  ")
}

func fileOf(g GuestFile) File { return File{Mode: g.Mode, Size: g.Size, MTime: g.MTime, ID: g.ID} }

// danger says why a change must not be made on a host; empty where it may.
func (a *application) danger(c Change) string {
	for part := range strings.SplitSeq(c.Path, "/") {
		if looksLikeGitDir(part) {
			return "it is in a git directory"
		}
	}
	for dir := path.Dir(c.Path); dir != "."; dir = path.Dir(dir) {
		if st, err := a.root.Lstat(dir); err == nil && st.Mode().Type() == fs.ModeSymlink {
			return fmt.Sprintf("%s is a link here", printable(dir))
		}
	}
	if c.Kind == api.ChangeRemoved || c.After.Mode.Type() != fs.ModeSymlink {
		return ""
	}
	target, err := os.ReadFile(a.w.files[c.Path])
	if err != nil {
		return err.Error()
	}
	to := path.Join(path.Dir(c.Path), string(target))
	switch {
	case path.IsAbs(string(target)), to == "..", strings.HasPrefix(to, "../"):
		return fmt.Sprintf("a link that leads out of the directory, to %.200q", target)
	case bytes.IndexByte(target, 0) >= 0 || len(target) == 0:
		return "a link to no name"
	}
	for part := range strings.SplitSeq(to, "/") {
		if looksLikeGitDir(part) {
			return "a link into a git directory"
		}
	}
	return ""
}

// now is what the host has at name.
func (a *application) now(name string) (GuestFile, error) {
	st, err := a.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return GuestFile{Path: name, Missing: true}, nil
	}
	if err != nil {
		return GuestFile{}, unreadable(filepath.Join(a.base.Root, name), err)
	}
	a.seen[name] = hostStat(st)
	g := GuestFile{Path: name, Mode: st.Mode().Type() | st.Mode().Perm(), Size: st.Size(), MTime: st.ModTime().Unix()}
	switch st.Mode().Type() {
	case 0, fs.ModeSymlink:
		full := filepath.Join(a.base.Root, name)
		if g.ID, err = hashFile(a.base.Format, entry{host: full, mode: g.Mode}); err != nil {
			return GuestFile{}, unreadable(full, err)
		}
	case fs.ModeDir:
	default:
		g.Other = true
	}
	return g, nil
}

// join joins the changes of both sides to files, line by line.
func (a *application) join(ctx context.Context, changes []step) error {
	if len(changes) == 0 {
		return nil
	}
	var paths []string
	for _, c := range changes {
		paths = append(paths, c.Path)
	}
	bases, err := a.w.baseContents(ctx, paths)
	if err != nil {
		return err
	}
	n, err := neutralGit(ctx, a.w.cfg, filepath.Join(a.w.temp, "join.git"), formatSHA1)
	if err != nil {
		return fmt.Errorf("join changes: %w", err)
	}
	for i, c := range changes {
		base, ok := bases[c.Path]
		out := filepath.Join(a.w.temp, fmt.Sprintf("joined-%d", i))
		if ok {
			ok, err = n.mergeFile(ctx, filepath.Join(a.base.Root, c.Path), base, a.w.files[c.Path], out)
		}
		if err != nil {
			return err
		}
		if !ok {
			a.conflicts = append(a.conflicts, printable(c.Path))
			continue
		}
		c.content, c.joined = out, true
		a.steps = append(a.steps, c)
	}
	return nil
}

// mergeFile writes to out what here and there have both made of base; false where they have changed the same lines.
func (n neutral) mergeFile(ctx context.Context, here, base, there, out string) (bool, error) {
	f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return false, err
	}
	err = n.run(ctx, "", nil, f, "merge-file", "-p", "-q", here, base, there)
	cerr := f.Close()
	if code, _ := status(err); code > 0 { // that many conflicts, or a file that is not text
		return false, cerr
	}
	return err == nil, errors.Join(err, cerr)
}

// applyDir begins the name of the directory in which files are prepared.
const applyDir = ".banger-apply-"

// run makes the changes: all files are written first, beside the work tree's, and put in place at the end; what fails then is undone.
func (a *application) run() (made []api.WorkspaceChange, err error) {
	if err := a.prepareDir(); err != nil {
		return nil, fmt.Errorf("apply to %q: %w", a.base.Root, err)
	}
	defer func() {
		if !a.stuck { // else what the files were is in there
			err = errors.Join(err, a.root.RemoveAll(a.dir))
		}
	}()
	for i, s := range a.steps {
		if err := a.stage(i, s); err != nil {
			return nil, a.failed(s, err)
		}
	}
	// What is removed goes first: a directory may take the place of a file.
	var order []int
	for _, removes := range []bool{true, false} {
		for i, s := range a.steps {
			if (s.content == "") == removes {
				order = append(order, i)
			}
		}
	}
	for _, i := range order {
		if err := a.place(i, a.steps[i]); err != nil {
			if back := a.takeBack(); back != nil {
				return nil, api.Errorf(api.KindInternal, "apply to %q: write %s: %w; and it could not all be undone: %w", a.base.Root, printable(a.steps[i].Path), err, back).
					WithHint("what the files held is in %s until the next application", filepath.Join(a.base.Root, a.dir))
			}
			return nil, a.failed(a.steps[i], err)
		}
	}
	return a.learn()
}

// takeBack undoes what was put in place.
func (a *application) takeBack() error {
	var err error
	for _, undo := range slices.Backward(a.undo) {
		err = errors.Join(err, undo())
	}
	a.stuck = err != nil
	return err
}

func (a *application) failed(s step, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return api.Errorf(api.KindUnavailable, "apply to %q: the disk is full; nothing was changed", a.base.Root)
	}
	return api.Errorf(api.KindInvalid, "apply to %q: write %s: %w; nothing was changed", a.base.Root, printable(s.Path), err)
}

// prepareDir makes a directory on the file system of the work tree, where git does not see it, and removes those that were left.
func (a *application) prepareDir() error {
	parent := "."
	if a.base.Git && sameDevice(a.root, ".git") {
		parent = ".git"
	}
	names, err := fs.Glob(a.root.FS(), path.Join(parent, applyDir+"*"))
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := a.root.RemoveAll(name); err != nil {
			return err
		}
	}
	a.dir = path.Join(parent, fmt.Sprintf("%s%d", applyDir, time.Now().UnixNano()))
	return a.root.Mkdir(a.dir, 0o700)
}

// sameDevice tells whether name is a directory on the file system of root.
func sameDevice(root *os.Root, name string) bool {
	top, err := root.Stat(".")
	if err != nil {
		return false
	}
	st, err := root.Lstat(name)
	if err != nil || !st.IsDir() {
		return false
	}
	x, okX := top.Sys().(*syscall.Stat_t)
	y, okY := st.Sys().(*syscall.Stat_t)
	return okX && okY && x.Dev == y.Dev
}

func (a *application) staged(i int) string { return path.Join(a.dir, fmt.Sprintf("new-%d", i)) }

// stage writes what a step puts in place.
func (a *application) stage(i int, s step) error {
	if s.content == "" {
		return nil
	}
	if s.After.Mode.Type() == fs.ModeSymlink {
		target, err := os.ReadFile(s.content)
		if err != nil {
			return err
		}
		return a.root.Symlink(string(target), a.staged(i))
	}
	in, err := os.Open(s.content)
	if err != nil {
		return err
	}
	defer in.Close()
	mode := fs.FileMode(0o666)
	if executable(s.After.Mode) {
		mode = 0o777
	}
	out, err := a.root.OpenFile(a.staged(i), os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode) // less the user's umask
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close(), a.keepMode(i, s))
}

// keepMode gives a file the permissions that the one it replaces has, but for being executable.
func (a *application) keepMode(i int, s step) error {
	st, err := a.root.Lstat(s.Path)
	if err != nil || !st.Mode().IsRegular() {
		return nil
	}
	perm := st.Mode().Perm()
	switch {
	case s.joined && executable(s.After.Mode) == executable(s.Before.Mode):
	case executable(s.After.Mode):
		perm |= (perm & 0o444) >> 2
	default:
		perm &^= 0o111
	}
	return a.root.Chmod(a.staged(i), perm)
}

// errMeanwhile says that the host's file is not what it was when it was decided what to do with it.
var errMeanwhile = errors.New("it was changed meanwhile")

// place puts one step in place, and notes how it is undone. A file that has been changed since the plan is left alone.
func (a *application) place(i int, s step) error {
	old := path.Join(a.dir, fmt.Sprintf("old-%d", i))
	kept := a.root.Link(s.Path, old)
	if kept != nil && !errors.Is(kept, fs.ErrNotExist) && !errors.Is(kept, unix.ENOTDIR) {
		return kept
	}
	if err := a.still(s, old, kept == nil); err != nil {
		return err
	}
	back := func() error {
		if kept != nil {
			return a.root.Remove(s.Path)
		}
		return a.root.Rename(old, s.Path)
	}
	if s.content == "" {
		if err := a.root.Remove(s.Path); err != nil {
			return err
		}
		a.undo = append(a.undo, func() error {
			return errors.Join(a.root.MkdirAll(path.Dir(s.Path), 0o755), back())
		})
		a.removeEmpty(path.Dir(s.Path))
		return nil
	}
	if err := a.root.MkdirAll(path.Dir(s.Path), 0o777); err != nil {
		return err
	}
	put := a.root.Rename
	if kept != nil {
		put = a.root.Link // fails where there is something now
	}
	if err := put(a.staged(i), s.Path); err != nil {
		return err
	}
	a.undo = append(a.undo, back)
	return nil
}

// still is an error where the file, of which old is another name where it is there, is not what the plan saw.
func (a *application) still(s step, old string, there bool) error {
	if there != (!s.before.Missing && !s.before.Mode.IsDir()) {
		return errMeanwhile
	}
	if !there {
		return nil
	}
	st, err := a.root.Lstat(old)
	if err != nil {
		return err
	}
	if st.Size() != s.before.Size || st.ModTime().UnixNano() != s.seen.MTime || st.Mode().Type()|st.Mode().Perm() != s.before.Mode {
		return errMeanwhile
	}
	return nil
}

// removeEmpty removes directories that have become empty, as git does.
func (a *application) removeEmpty(dir string) {
	for ; dir != "."; dir = path.Dir(dir) {
		if st, err := a.root.Lstat(dir); err != nil || !st.IsDir() || a.root.Remove(dir) != nil {
			return
		}
	}
}

// learn notes in the base what both sides have now.
func (a *application) learn() (made []api.WorkspaceChange, err error) {
	for _, s := range a.steps {
		made = append(made, api.WorkspaceChange{Path: strings.ToValidUTF8(s.Path, "\uFFFD"), Kind: s.Kind, Here: s.joined})
		a.keep(s.Change, s.joined)
	}
	for _, c := range a.same {
		a.keep(c, false)
	}
	slices.SortFunc(made, func(x, y api.WorkspaceChange) int { return strings.Compare(x.Path, y.Path) })
	return made, nil
}

// keep is common; that a content could not be kept is a line: the changes are made.
func (a *application) keep(c Change, joined bool) {
	if err := a.common(c, joined); err != nil {
		a.w.Skipped = append(a.w.Skipped, fmt.Sprintf("%s: what it was is not kept: %v", printable(c.Path), err))
	}
}

// common notes that both sides have what the guest has. Where the host has more than that, the changes of both sides, its file is one that was
// changed here since.
func (a *application) common(c Change, joined bool) error {
	if c.Kind == api.ChangeRemoved {
		delete(a.base.Files, c.Path)
		return nil
	}
	f := fileOf(c.After)
	if st, err := a.root.Lstat(c.Path); err == nil && !joined {
		f.Host = hostStat(st)
	}
	a.base.Files[c.Path] = f
	if a.w.store == "" || f.Size > maxSavedFile {
		return nil
	}
	to := filepath.Join(a.w.store, f.ID)
	if _, err := os.Lstat(to); err == nil {
		return nil
	}
	if err := os.MkdirAll(a.w.store, 0o700); err != nil {
		return err
	}
	in, err := os.Open(a.w.files[c.Path])
	if err != nil {
		return err
	}
	defer in.Close()
	tmp := to + ".tmp"
	_ = os.Remove(tmp)
	if err := writeFile(tmp, in); err != nil {
		return err
	}
	return os.Rename(tmp, to)
}
