package workspace

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostfile"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// racy is how young a file may be for its times to tell whether it has changed.
const racy = 20 * time.Millisecond

// UpdateRequest is one Update.
type UpdateRequest struct {
	// Base is what host and guest had in common last.
	Base *Manifest
	// Pending is what Begin was given by an Update that did not end; nil for none. What the guest has of it is no change of the guest's.
	Pending *Manifest
	// Force lets the host's side win.
	Force bool
	// Begin is called before the first change, with what the guest is about to get.
	Begin  func(pending *Manifest) error
	Report progress.Reporter
}

// Update brings into the guest what the host has changed since the base, and leaves alone what the guest has changed. Where both
// have changed the same it is a KindConflict that lists what, and nothing was done; with force the host's side wins, and commits of the guest
// that lose their branch are kept as refs/banger/overwritten/…. The Manifest is the new base. After an error in the middle another Update
// with the same base, and what Begin was given as Pending, finishes what is left.
func Update(ctx context.Context, cfg Config, g Guest, req UpdateRequest) (api.Workspace, *Manifest, error) {
	src, err := Prepare(ctx, cfg, req.Base.Root, Options{Depth: req.Base.Depth, Base: req.Base})
	if err != nil {
		return api.Workspace{}, nil, err
	}
	defer func() { _ = src.Close() }()
	u := update{cfg: cfg, guest: g, src: src, base: req.Base, pending: req.Pending, force: req.Force, rep: req.Report, gone: map[string]bool{}}
	if err := u.plan(ctx); err != nil {
		return api.Workspace{}, nil, err
	}
	if len(u.send)+len(u.remove)+len(u.repos) > 0 {
		if err := req.Begin(u.about()); err != nil {
			return api.Workspace{}, nil, err
		}
	}
	ws, err := u.apply(ctx)
	if err != nil {
		return api.Workspace{}, nil, err
	}
	return ws, u.next, nil
}

// about is what the guest is about to get: files that have changed, and the repositories.
func (u *update) about() *Manifest {
	m := *u.next
	m.Files = map[string]File{}
	for _, e := range u.changed {
		m.Files[e.name] = File{Mode: e.mode, Size: e.size, ID: u.ids[e.name]}
	}
	if u.pending != nil { // what an earlier one may have brought
		for name, f := range u.pending.Files {
			if _, newer := m.Files[name]; !newer {
				m.Files[name] = f
			}
		}
	}
	return &m
}

// brought tells whether the guest has what an Update that did not end has brought.
func (u *update) brought(name string, now GuestFile) bool {
	if u.pending == nil {
		return false
	}
	f, ok := u.pending.Files[name]
	return ok && now.is(f)
}

// update is one run of Update.
type update struct {
	cfg     Config
	guest   Guest
	src     *Source
	base    *Manifest
	pending *Manifest
	force   bool
	rep     progress.Reporter
	next    *Manifest

	// What the host has changed.
	changed []entry // files and links; ids has what is in them
	ids     map[string]string
	dirs    []entry
	removed []string // files and links
	oldDirs []string
	made    []entry // the .git of repositories that are new

	// What is to be done.
	send      []entry
	remove    []string
	gone      map[string]bool // what is removed
	repos     []*repoUpdate
	conflicts []string
	blocked   bool // by something that force does not overcome
	notes     []string
}

// plan finds out what there is to do, without a change.
func (u *update) plan(ctx context.Context) error {
	u.next = u.src.manifest()
	for prefix, state := range u.base.Repos {
		if u.next.Repos[prefix] == nil { // the host has it no more; the guest may have commits in it
			u.next.Repos[prefix] = state
		}
	}
	u.next.GuestPath, u.next.Branch, u.next.From, u.next.Depth = u.base.GuestPath, u.base.Branch, u.base.From, u.base.Depth
	if err := u.compare(ctx); err != nil {
		return err
	}
	if err := u.judge(ctx); err != nil {
		return err
	}
	for _, prefix := range slices.Sorted(maps.Keys(u.src.repos)) {
		if err := u.planRepo(ctx, prefix); err != nil {
			return err
		}
	}
	if len(u.conflicts) > 0 && (u.blocked || !u.force) {
		return u.conflict()
	}
	return nil
}

// conflict is the error for what both sides have changed.
func (u *update) conflict() error {
	slices.Sort(u.conflicts)
	e := api.Errorf(api.KindConflict, "copy %q: changed here and in the VM since the last copy:\n  %s", u.base.Root, list(slices.Compact(u.conflicts)))
	if u.blocked {
		return e.WithHint("make room for them in the VM; nothing was changed")
	}
	return e.WithHint("nothing was changed; --force lets this side win, banger vm workspace diff shows the VM's")
}

// compare finds what the host has changed since the base.
func (u *update) compare(ctx context.Context) error {
	u.ids = map[string]string{}
	if u.base.From != "" { // the files are the branch's own
		u.next.Files = u.base.Files
		return nil
	}
	sure := u.base.CopiedAt.Add(-racy).UnixNano()
	listed := make(map[string]bool, len(u.src.entries))
	for _, e := range u.src.entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if e.made {
			u.made = append(u.made, e)
			continue
		}
		listed[e.name] = true
		if err := u.compareEntry(e, sure); err != nil {
			return err
		}
	}
	for name, f := range u.base.Files {
		if listed[name] || name == "" {
			continue
		}
		st, err := os.Lstat(filepath.Join(u.base.Root, name))
		there := err == nil && st.IsDir() == f.Mode.IsDir()
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return unreadable(filepath.Join(u.base.Root, name), err)
		}
		switch {
		case there: // git ignores it now: it is nobody's business any more
		case f.Mode.IsDir():
			u.oldDirs = append(u.oldDirs, name)
		default:
			u.removed = append(u.removed, name)
		}
	}
	slices.Sort(u.removed)
	return nil
}

// compareEntry tells whether one file of the host has changed. A file whose change is younger than sure is read.
func (u *update) compareEntry(e entry, sure int64) error {
	f, had := u.base.Files[e.name]
	same := had && f.Mode == e.mode
	switch {
	case e.mode.IsDir():
		if !same {
			u.dirs = append(u.dirs, e)
		}
		if had && !f.Mode.IsDir() {
			u.removed = append(u.removed, e.name)
		}
		u.next.Files[e.name] = File{Mode: e.mode, MTime: e.mtime.Unix(), Host: e.stat}
		return nil
	case same && f.Host == e.stat && e.stat.CTime < sure:
		u.next.Files[e.name] = f
		return nil
	}
	id, err := hashFile(u.src.format, e)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		if had { // gone since it was listed: the next time
			u.next.Files[e.name] = f
		}
		return nil
	}
	if err != nil {
		return unreadable(e.host, err)
	}
	if same && id == f.ID {
		f.Host = e.stat
		u.next.Files[e.name] = f
		return nil
	}
	u.ids[e.name] = id
	u.changed = append(u.changed, e)
	return nil
}

// hashFile is the id of a file or link of the host.
func hashFile(format string, e entry) (string, error) {
	if e.mode.Type() == fs.ModeSymlink {
		target, err := os.Readlink(e.host)
		return idOf(format, []byte(target)), err
	}
	f, err := os.OpenFile(e.host, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	sum := newHash(format, st.Size())
	if _, err := io.Copy(sum, io.LimitReader(f, st.Size())); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// judge asks the guest for its side of all that has changed, and sorts it into what is to be done and what is in conflict.
func (u *update) judge(ctx context.Context) error {
	seen, err := u.ask(ctx)
	if err != nil {
		return err
	}
	for _, name := range u.removed {
		now := seen[name]
		switch {
		case now.Missing:
		case now.is(u.base.Files[name]) || u.brought(name, now) || u.force && !now.Mode.IsDir():
			u.remove = append(u.remove, name)
			u.gone[name] = true
		default:
			u.conflicts = append(u.conflicts, printable(name)+" (removed here)")
			u.blocked = u.blocked || now.Mode.IsDir()
		}
	}
	for _, e := range u.changed {
		if err := u.judgeEntry(ctx, e, seen); err != nil {
			return err
		}
	}
	for _, e := range u.dirs {
		if now := seen[e.name]; e.name == "" || now.Missing || now.Mode.IsDir() || u.gone[e.name] {
			u.send = append(u.send, e)
		} else {
			u.conflicts, u.blocked = append(u.conflicts, printable(e.name)), true
		}
	}
	slices.SortFunc(u.send, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	slices.Sort(u.oldDirs)
	slices.Reverse(u.oldDirs)
	u.remove = append(u.remove, u.oldDirs...)
	u.judgeMade(seen)
	return nil
}

// ask asks the guest what is at all paths that matter.
func (u *update) ask(ctx context.Context) (map[string]GuestFile, error) {
	want := map[string]bool{}
	for _, name := range u.removed {
		want[name] = true
	}
	for _, e := range slices.Concat(u.changed, u.dirs) {
		for name := e.name; name != "." && name != ""; name = path.Dir(name) {
			want[name] = true
		}
	}
	for _, e := range u.made {
		if path.Base(e.name) == ".git" {
			want[e.name] = true
		}
	}
	seen := make(map[string]GuestFile, len(want))
	if len(want) == 0 {
		return seen, nil
	}
	err := u.guest.Hash(ctx, u.src.format, slices.Sorted(maps.Keys(want)), func(f GuestFile) error {
		seen[f.Path] = f
		return nil
	})
	return seen, err
}

// judgeEntry decides about a file that the host has made or changed.
func (u *update) judgeEntry(ctx context.Context, e entry, seen map[string]GuestFile) error {
	before, had := u.base.Files[e.name]
	after := File{Mode: e.mode, Size: e.size, MTime: e.mtime.Unix(), ID: u.ids[e.name], Host: e.stat}
	for dir := path.Dir(e.name); dir != "."; dir = path.Dir(dir) {
		if above := seen[dir]; !above.Missing && !above.Mode.IsDir() && !u.gone[dir] {
			u.conflicts, u.blocked = append(u.conflicts, printable(dir)), true
			return nil
		}
	}
	now := seen[e.name]
	switch {
	case now.is(after) && (now.Mode == after.Mode || !now.is(before)):
		after.MTime = now.MTime
		u.next.Files[e.name] = after
	case now.Mode.IsDir() && !now.Missing:
		free, err := u.becomesEmpty(ctx, e.name)
		if err != nil {
			return err
		}
		if !free {
			u.conflicts, u.blocked = append(u.conflicts, printable(e.name)), true
			return nil
		}
		u.send = append(u.send, e)
	case now.Missing && !had, had && now.is(before), u.brought(e.name, now), u.force && !now.Other:
		u.send = append(u.send, e)
	case now.Missing:
		u.conflicts = append(u.conflicts, printable(e.name)+" (removed in the VM)")
	default:
		u.conflicts = append(u.conflicts, printable(e.name))
		u.blocked = u.blocked || now.Other
	}
	return nil
}

// becomesEmpty tells whether nothing is left in a directory of the guest once what is to be removed is.
func (u *update) becomesEmpty(ctx context.Context, dir string) (bool, error) {
	free := true
	err := u.guest.List(ctx, false, func(f GuestFile) error {
		if strings.HasPrefix(f.Path, dir+"/") && !f.Mode.IsDir() && !u.gone[f.Path] {
			free = false
		}
		return nil
	})
	return free, err
}

// judgeMade decides about repositories that are new on the host.
func (u *update) judgeMade(seen map[string]GuestFile) {
	for _, e := range u.made {
		now, asked := seen[e.name]
		prefix := path.Dir(e.name)
		if prefix == "." {
			prefix = ""
		}
		ours := u.pending != nil && u.pending.Repos[prefix] != nil
		if asked && !now.Missing && !ours {
			u.conflicts, u.blocked = append(u.conflicts, printable(e.name)), true
		}
	}
	u.send = append(u.send, u.made...)
}

// apply does what was planned.
func (u *update) apply(ctx context.Context) (api.Workspace, error) {
	ws := api.Workspace{Path: u.base.Root, GuestPath: u.base.GuestPath, Git: u.base.Git, Branch: u.base.Branch, Updated: true}
	u.rep.Step("copy " + printable(u.src.Name))
	for _, r := range u.repos {
		if err := r.refs(ctx); err != nil {
			return ws, err
		}
		u.send = append(u.send, r.files...)
		u.remove = append(u.remove, r.remove...)
	}
	if len(u.remove) > 0 {
		if err := u.guest.Remove(ctx, u.remove); err != nil {
			return ws, err
		}
		ws.Removed = len(u.gone)
	}
	skip := &u.src.skipped
	if len(u.send) > 0 {
		t, err := u.put(ctx, u.send)
		if err != nil {
			return ws, err
		}
		ws.Files, ws.Bytes, skip = t.files, t.done, &t.skipped
	}
	for _, line := range u.notes {
		skip.add("%s", line)
	}
	ws.Skipped = skip.all()
	return ws, nil
}

// put sends entries.
func (u *update) put(ctx context.Context, entries []entry) (*streamer, error) {
	var total int64
	for _, e := range entries {
		if e.mode.IsRegular() {
			total += e.size
		}
	}
	pr, pw := io.Pipe()
	t := u.src.streamer(ctx, pw, u.rep, u.next)
	done := make(chan error, 1)
	go func() {
		err := t.all(entries, total)
		_ = pw.CloseWithError(err)
		done <- err
	}()
	err := u.guest.Put(ctx, hostfile.Reader(ctx, pr))
	_ = pr.CloseWithError(io.ErrClosedPipe) // a guest that stopped reading must not hold the sender
	if sent := <-done; sent != nil && (err == nil || api.KindOf(sent) != api.KindInternal) {
		return t, sent
	}
	return t, err
}
