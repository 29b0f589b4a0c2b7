package workspace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

// maxGuestList bounds what git in the guest may list, in bytes.
const maxGuestList = 64 << 20

// softFiles are files of a git directory that the guest's git writes on its own: where both sides have changed one, the guest keeps its own.
var softFiles = []string{"config", "ORIG_HEAD", "AUTO_MERGE", "MERGE_MSG", "SQUASH_MSG"}

// overwritten begins the names of refs that keep commits of the guest which a forced update took from their branch.
const overwritten = "refs/banger/overwritten/"

// repoUpdate is what is to be done with one repository of the guest.
type repoUpdate struct {
	u      *update
	prefix string
	r      *repo
	base   *RepoState
	next   *RepoState
	guest  guestRepo

	files   []entry
	remove  []string
	deletes []string // lines for update-ref --stdin, which go first: a name may take the place of one below or above it
	updates []string
	links   [][2]string // symbolic refs and what they name; "" deletes one
}

// guestRepo is a repository of the guest as its git says.
type guestRepo struct {
	checkout Checkout
	refs     map[string]string
}

// planRepo finds out what is to be done with the repository at prefix.
func (u *update) planRepo(ctx context.Context, prefix string) error {
	base := u.base.Repos[prefix]
	if base == nil {
		return nil // it is new, and sent whole
	}
	r := u.src.repos[prefix]
	own := prefix == "" && u.base.Branch != ""
	if own {
		r.track(ctx, u.base.Branch, u.base.From)
	}
	ru := &repoUpdate{u: u, prefix: prefix, r: r, base: base, next: r.state(u.src.format)}
	ru.next.Shallow = base.Shallow
	u.next.Repos[prefix] = ru.next
	if own {
		ru.keepOwn()
	}
	if ru.unchanged() {
		return nil
	}
	if err := ru.readGuest(ctx); err != nil {
		return err
	}
	ru.planRefs()
	if err := ru.keepStash(ctx); err != nil {
		return err
	}
	if err := ru.planHead(ctx, own); err != nil {
		return err
	}
	if err := ru.planPack(ctx); err != nil {
		return err
	}
	u.repos = append(u.repos, ru)
	return nil
}

// keepOwn leaves to the guest what is its own because a branch was made for it.
func (ru *repoUpdate) keepOwn() {
	name := "refs/heads/" + ru.u.base.Branch
	if _, have := ru.next.Refs[name]; !have {
		ru.next.Refs[name] = ru.base.Refs[name]
		if ru.base.Refs[name] == "" {
			delete(ru.next.Refs, name)
		}
	}
	ru.next.Given = ru.base.Given
	if ru.u.base.From == "" {
		return
	}
	ru.next.Host.Index = ru.base.Host.Index
	for name := range ru.next.Files {
		if isStateFile(name) {
			delete(ru.next.Files, name)
		}
	}
}

func isStateFile(name string) bool {
	top, _, _ := strings.Cut(name, "/")
	return slices.Contains(stateFiles, top)
}

// unchanged tells whether the host's repository is as it was.
func (ru *repoUpdate) unchanged() bool {
	return ru.next.Host == ru.base.Host && maps.Equal(ru.next.Refs, ru.base.Refs) && maps.Equal(ru.next.Files, ru.base.Files)
}

// readGuest asks the guest's git for refs and HEAD.
func (ru *repoUpdate) readGuest(ctx context.Context) error {
	var err error
	ru.guest, err = readGuestRepo(ctx, ru.u.guest, ru.prefix)
	return err
}

// readGuestRepo asks the git of a guest for the refs and HEAD of a repository.
func readGuestRepo(ctx context.Context, g Guest, prefix string) (guestRepo, error) {
	out := &bounded{limit: maxGuestList}
	err := g.Git(ctx, prefix, nil, out, "for-each-ref", "--format=%(HEAD)%(objectname) %(refname) %(symref)")
	if err != nil {
		return guestRepo{}, err
	}
	gr := guestRepo{refs: map[string]string{}}
	for _, l := range split(out.Bytes(), "\n") {
		if l == "" {
			continue
		}
		current := l[0] == '*'
		id, rest, _ := strings.Cut(l[1:], " ")
		name, target, _ := strings.Cut(rest, " ")
		if !isID(id) || !strings.HasPrefix(name, "refs/") {
			return gr, api.Errorf(api.KindGuest, "the guest's git lists the ref %.80q", l)
		}
		if gr.refs[name] = id; target != "" {
			gr.refs[name] = symbolic + target
		}
		if current {
			gr.checkout = Checkout{Head: symbolic + name + "\n", Commit: id}
		}
	}
	if gr.checkout.Head != "" {
		return gr, nil
	}
	return gr, gr.detached(ctx, g, prefix)
}

// detached reads a HEAD that names no branch with a commit.
func (gr *guestRepo) detached(ctx context.Context, g Guest, prefix string) error {
	out := &bounded{limit: 4 << 10}
	if err := g.Git(ctx, prefix, nil, out, "rev-parse", "-q", "--verify", "HEAD^{commit}"); err == nil {
		id := line(out.Bytes())
		if !isID(id) {
			return api.Errorf(api.KindGuest, "the guest's git says that HEAD is %.80q", id)
		}
		gr.checkout = Checkout{Head: id + "\n", Commit: id}
		return nil
	} else if api.KindOf(err) != api.KindNotFound {
		return err
	}
	out = &bounded{limit: 4 << 10}
	if err := g.Git(ctx, prefix, nil, out, "symbolic-ref", "-q", "HEAD"); err != nil {
		return err
	}
	gr.checkout = Checkout{Head: symbolic + line(out.Bytes()) + "\n"}
	return nil
}

// bounded is a buffer that takes no more than limit bytes.
type bounded struct {
	bytes.Buffer
	limit int
}

// errTooMuch says that a guest has written more than it may.
var errTooMuch = errors.New("the guest's git says too much")

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > b.limit {
		return 0, errTooMuch
	}
	return b.Buffer.Write(p)
}

// planRefs compares the refs of base, host and guest.
func (ru *repoUpdate) planRefs() {
	names := maps.Clone(ru.next.Refs)
	maps.Copy(names, ru.base.Refs)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		before, host, guest := ru.base.Refs[name], ru.next.Refs[name], ru.guest.refs[name]
		switch {
		case host == before || guest == host:
		case guest == "" && ru.clashes(name):
			ru.conflict(name)
			ru.u.blocked = true
		case guest != before && !ru.accepted(name, guest) && !ru.u.force:
			ru.conflict(name)
		case ru.guest.checkout.Head == symbolic+name+"\n" && !ru.follows():
			ru.u.notes = append(ru.u.notes, fmt.Sprintf("%s%s: it is checked out in the VM and stays as it is there", ru.r.label, name))
			ru.next.Refs[name] = before
			if before == "" {
				delete(ru.next.Refs, name)
			}
		default:
			ru.setRef(name, host, guest)
		}
	}
}

// keepStash keeps what the guest has stashed where its stash gives way: the older entries are in its reflog only.
func (ru *repoUpdate) keepStash(ctx context.Context) error {
	const stash = "refs/stash"
	guest := ru.guest.refs[stash]
	if guest == "" || ru.next.Refs[stash] == guest || ru.next.Refs[stash] == ru.base.Refs[stash] {
		return nil
	}
	_, refs, err := guestRefs(ctx, ru.u.guest, ru.prefix)
	for _, r := range refs {
		if strings.HasPrefix(r.Name, "stash@") {
			ru.keepCommit(r.ID)
		}
	}
	return err
}

// conflict notes something of the repository that both sides have changed.
func (ru *repoUpdate) conflict(what string) {
	ru.u.conflicts = append(ru.u.conflicts, ru.r.label+what)
}

// pending is what an update that did not end was about to bring; nil for none.
func (ru *repoUpdate) pending() *RepoState {
	if ru.u.pending == nil {
		return nil
	}
	return ru.u.pending.Repos[ru.prefix]
}

// accepted tells whether the guest's ref is what an update that did not end has made it.
func (ru *repoUpdate) accepted(name, guest string) bool {
	p := ru.pending()
	return p != nil && p.Refs[name] == guest
}

// hostMoved and guestMoved tell who has another commit or branch checked out than at the last copy.
func (ru *repoUpdate) hostMoved() bool {
	return ru.next.Host.Head != ru.base.Host.Head || ru.next.Host.Commit != ru.base.Host.Commit
}

func (ru *repoUpdate) guestMoved() bool {
	g := ru.guest.checkout
	if p := ru.pending(); p != nil && (g.Head == ru.base.Given.Head || g.Head == p.Given.Head) &&
		(g.Commit == ru.base.Given.Commit || g.Commit == p.Given.Commit || g.Commit == p.Refs[strings.TrimSpace(strings.TrimPrefix(g.Head, symbolic))]) {
		return false // it is where an update that did not end has brought it
	}
	return g.Head != ru.base.Given.Head || g.Commit != ru.base.Given.Commit
}

// follows tells whether the guest's work tree goes where the host's went.
func (ru *repoUpdate) follows() bool {
	return ru.base.Given.Head == ru.base.Host.Head && ru.hostMoved() && (ru.u.force || !ru.guestMoved())
}

// keepCommit gives a commit of the guest a ref of its own, before anything else is done.
func (ru *repoUpdate) keepCommit(id string) {
	if line := "update " + overwritten + id + " " + id; !slices.Contains(ru.deletes, line) {
		ru.deletes = append(ru.deletes, line)
	}
}

// clashes tells whether the guest has a ref of its own whose name excludes name.
func (ru *repoUpdate) clashes(name string) bool {
	for have := range ru.guest.refs {
		_, host := ru.next.Refs[have]
		_, before := ru.base.Refs[have]
		if !host && !before && (strings.HasPrefix(have, name+"/") || strings.HasPrefix(name, have+"/")) {
			return true
		}
	}
	return false
}

// setRef lets the guest's ref have the host's value; what it had is kept where the guest has moved it.
func (ru *repoUpdate) setRef(name, host, guest string) {
	if target, ok := strings.CutPrefix(host, symbolic); ok {
		ru.links = append(ru.links, [2]string{name, target})
		return
	}
	if strings.HasPrefix(guest, symbolic) {
		ru.links = append(ru.links, [2]string{name, ""})
		guest = ""
	}
	if guest != "" && guest != ru.base.Refs[name] && !ru.accepted(name, guest) {
		ru.keepCommit(guest)
	}
	zero := strings.Repeat("0", len(idOf(ru.u.src.format, nil)))
	switch {
	case host == "" && guest == "":
	case host == "":
		ru.deletes = append(ru.deletes, "delete "+name+" "+guest)
	case guest == "":
		ru.updates = append(ru.updates, "update "+name+" "+host+" "+zero)
	default:
		ru.updates = append(ru.updates, "update "+name+" "+host+" "+guest)
	}
}

// planHead compares HEAD, the index and the other files of the git directory. own: the guest has a branch of its own.
func (ru *repoUpdate) planHead(ctx context.Context, own bool) error {
	g := ru.guest.checkout
	same := g.Head == ru.next.Host.Head && g.Commit == ru.next.Host.Commit
	switch {
	case own:
	case !ru.hostMoved() || same:
	case ru.guestMoved() && !ru.u.force:
		ru.conflict("HEAD")
	case ru.next.Host.Head != g.Head:
		if ru.guestMoved() && g.Commit != "" {
			ru.keepCommit(g.Commit) // perhaps nothing else names it
		}
		ru.put("HEAD", []byte(ru.r.now.Head))
	}
	if err := ru.planIndex(ctx, own); err != nil {
		return err
	}
	return ru.planFiles(ctx, own || ru.guestMoved() && !same && !ru.u.force)
}

// planIndex sends the index where the guest has, or gets, the commit that it belongs to.
func (ru *repoUpdate) planIndex(ctx context.Context, own bool) error {
	if own && ru.u.base.From != "" || ru.next.Host.Index == ru.base.Host.Index && ru.next.Host.Commit == ru.base.Host.Commit {
		return nil
	}
	commit := ru.guest.checkout.Commit
	if ru.follows() {
		commit = ru.next.Host.Commit
	}
	if commit != ru.next.Host.Commit {
		ru.u.notes = append(ru.u.notes, ru.r.label+"the index: what is staged here belongs to another commit than the VM has")
		return nil
	}
	sum := newIndexSum()
	err := ru.u.guest.Git(ctx, ru.prefix, nil, sum, listIndex...)
	if err == nil && sum.empty {
		err = ru.u.guest.Git(ctx, ru.prefix, nil, sum, listPromised...)
	}
	if err != nil {
		return err
	}
	now := sum.String()
	ru.next.Given.Index = ru.next.Host.Index
	switch {
	case now == ru.next.Host.Index:
		return nil
	case now != ru.base.Given.Index && (ru.pending() == nil || now != ru.pending().Given.Index) && !ru.u.force:
		ru.conflict("the index (what is staged)")
		return nil
	}
	var busy bool
	err = ru.u.guest.Hash(ctx, ru.u.src.format, []string{ru.name("index.lock")}, func(f GuestFile) error {
		busy = !f.Missing
		return nil
	})
	if busy && err == nil {
		err = api.Errorf(api.KindConflict, "copy %q: git is at work in the VM: it has a lock on the index", ru.r.root).
			WithHint("try again; a lock that a killed git has left is removed with: rm .git/index.lock")
	}
	if err != nil || ru.r.index == "" {
		return err
	}
	d := gitDir{base: ru.name(""), now: time.Now(), made: map[string]bool{ru.name(""): true}}
	err = d.disk("index", ru.r.index, 0o644)
	ru.files = append(ru.files, d.entries...)
	return err
}

// name is the path of a file of the git directory in the copy.
func (ru *repoUpdate) name(file string) string { return filepath.Join(ru.prefix, ".git", file) }

// put sends a file of the git directory.
func (ru *repoUpdate) put(name string, content []byte) {
	ru.files = append(ru.files, entry{name: ru.name(name), content: content, mode: 0o644, mtime: time.Now(), size: int64(len(content)), made: true})
}

// planFiles compares the other files of the git directory; without those that speak of what goes on in the work tree where the guest
// has its own.
func (ru *repoUpdate) planFiles(ctx context.Context, own bool) error {
	names := maps.Clone(ru.next.Files)
	maps.Copy(names, ru.base.Files)
	maps.DeleteFunc(names, func(name, _ string) bool {
		return ru.next.Files[name] == ru.base.Files[name] || own && isStateFile(name)
	})
	list := slices.Sorted(maps.Keys(names))
	if len(list) == 0 {
		return nil
	}
	paths := make([]string, len(list))
	for i, name := range list {
		paths[i] = ru.name(name)
	}
	i := 0
	return ru.u.guest.Hash(ctx, ru.u.src.format, paths, func(f GuestFile) error {
		name := list[i]
		i++
		before, host := ru.base.Files[name], ru.next.Files[name]
		switch {
		case f.ID == host:
		case f.ID == before || ru.pending() != nil && f.ID == ru.pending().Files[name] || ru.u.force && !slices.Contains(softFiles, name):
			if host == "" {
				ru.remove = append(ru.remove, ru.name(name))
			} else {
				ru.put(name, ru.r.files[name])
			}
		case slices.Contains(softFiles, name):
		default:
			ru.conflict(ru.name(name))
		}
		return nil
	})
}

// planPack packs the objects that the guest does not have.
func (ru *repoUpdate) planPack(ctx context.Context) error {
	ids := slices.Sorted(maps.Values(ru.guest.refs))
	ids = slices.Compact(append(ids, ru.guest.checkout.Commit))
	ids = slices.DeleteFunc(ids, func(id string) bool { return !isID(id) })
	present, err := ru.r.present(ctx, ids)
	if err != nil {
		return err
	}
	var have []string
	for _, id := range ids {
		if present[id] {
			have = append(have, id)
		}
	}
	if present[ru.guest.checkout.Commit] {
		have = append(have, ru.guest.checkout.Commit+"^{tree}")
	}
	ru.r.shallow = ru.base.Shallow
	return ru.r.pack(ctx, have...)
}

// refs sends the objects, then lets the guest's git set the refs, all or none.
func (ru *repoUpdate) refs(ctx context.Context) error {
	d := gitDir{base: ru.name(""), now: time.Now(), made: map[string]bool{}}
	if err := d.packs(ru.r); err != nil {
		return err
	}
	if len(d.entries) > 0 {
		if _, err := ru.u.put(ctx, d.entries); err != nil {
			return err
		}
	}
	for _, l := range ru.links {
		args := []string{"symbolic-ref", l[0], l[1]}
		if l[1] == "" {
			args = []string{"symbolic-ref", "--delete", l[0]}
		}
		if err := ru.u.guest.Git(ctx, ru.prefix, nil, &bounded{limit: 4 << 10}, args...); err != nil {
			return fmt.Errorf("set the refs of %q: %w", ru.r.root, err)
		}
	}
	for _, lines := range [][]string{ru.deletes, ru.updates} {
		if len(lines) == 0 {
			continue
		}
		in := strings.NewReader(strings.Join(lines, "\n") + "\n")
		if err := ru.u.guest.Git(ctx, ru.prefix, in, &bounded{limit: 4 << 10}, "update-ref", "--stdin"); err != nil {
			return fmt.Errorf("set the refs of %q: %w", ru.r.root, err)
		}
	}
	return nil
}

// KeepCommits gives refs of their own to the commits of a repository in the guest that the host's does not have, before a first copy of
// place goes over it. Where the guest has no repository there, or no git, there is nothing to keep.
func KeepCommits(ctx context.Context, cfg Config, g Guest, place Place) error {
	if !place.Git {
		return nil
	}
	_, refs, err := guestRefs(ctx, g, "")
	if gone(err) || api.KindOf(err) == api.KindUnavailable {
		return nil
	}
	if err != nil {
		return err
	}
	r := &repo{git: newGit(cfg), root: place.Root}
	var ids []string
	for _, ref := range refs {
		ids = append(ids, ref.ID)
	}
	have, err := r.present(ctx, ids)
	if err != nil {
		return err
	}
	var lines []string
	for _, id := range ids {
		if !have[id] {
			lines = append(lines, "update "+overwritten+id+" "+id)
		}
	}
	if slices.Sort(lines); len(lines) == 0 {
		return nil
	}
	in := strings.NewReader(strings.Join(slices.Compact(lines), "\n") + "\n")
	return g.Git(ctx, "", in, &bounded{limit: 4 << 10}, "update-ref", "--stdin")
}
