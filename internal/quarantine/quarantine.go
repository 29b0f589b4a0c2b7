// Package quarantine brings commits out of a guest, which is hostile, into the user's repository.
//
// The guest sends names, ids and one pack. The pack goes into a bare repository of its own, whose git knows no
// configuration, no hooks, no protocol and no environment of the user's (bare.go); it borrows the objects of the host's
// repository. There the pack is indexed strictly, within limits of size, memory and time, and what the tips reach is
// walked. Then what is missing on the host, and no other object, is packed again, from objects that have been checked, and
// indexed by the host's git, and one transaction moves the refs (host.go). Which ref goes where is decided without git, on
// the graph of the commits that are not the host's own (plan.go, graph.go, refname.go).
//
// It is not `git fetch`, because a fetch that forces does not compare the value it replaces (two pulls at once would lose
// one), runs hooks and maintenance, and obeys what the user has set for fetches.
package quarantine

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// Ref is a ref of the guest, as it says: a full name, "HEAD" where HEAD is detached, or "stash@{1}" and on for what the
// reflog of the stash has below refs/stash. What else holds commits there, such as the HEAD of a linked worktree, may be
// given a name below refs/ that says so.
type Ref struct{ Name, ID string }

// Config is what every pull of a host has in common.
type Config struct {
	Run hostexec.Runner
	// Environ is the user's; GIT_* is left out of it.
	Environ []string
	// TempDir is where quarantines are made and removed again; empty for the system's.
	TempDir string
	// MaxBytes bounds the pack, and the content of each blob in it; 0 for 1 GiB.
	MaxBytes int64
	// Timeout bounds a pull; 0 for an hour.
	Timeout time.Duration
	// Stall is how long the guest may send nothing; 0 for five minutes.
	Stall time.Duration
}

// Request is one pull.
type Request struct {
	// Repo is the top of the host's work tree.
	Repo string
	// VM is the VM's name, a DNS label.
	VM string
	// Refs are all the guest has.
	Refs []Ref
	// Shallow are the commits the guest's .git/shallow names: their parents are missing there.
	Shallow []string
	// Have are commits the guest is known to have got from this host; those the host has no more are left out.
	Have []string
	// Pack streams a pack with all that is reachable from want and not from have; it may be thin. The guest may lack some of
	// have, which Pack has to leave out. It returns soon after ctx has ended or a write has failed. It is called at most
	// once, and not at all where the guest has nothing new.
	Pack func(ctx context.Context, want, have []string, w io.Writer) error
	// Report may be nil.
	Report progress.Reporter
}

// Pulled is a ref of the host that a pull made or moved.
type Pulled struct {
	// Guest is the name in the guest.
	Guest string
	// Host is the name on the host, below refs/banger/.
	Host string
	// Old is the id it had; empty where it is new.
	Old string
	New string
	// Commits is how many commits it reaches that no ref of the host did before.
	Commits int
	// Rewritten says that Old is not an ancestor of New. Old has a ref of its own.
	Rewritten bool
}

// Result tells what a pull did. Strings that come from the guest are not escaped in it, other than in Skipped.
type Result struct {
	Refs []Pulled
	// UpToDate counts the refs of the guest that needed nothing.
	UpToDate int
	// Kept are refs made for commits that a ref of the host was moved or removed from.
	Kept []string
	// Skipped are lines for the user, one for each ref that was not pulled.
	Skipped []string
}

const (
	// prefix is where all pulled refs are.
	prefix = "refs/banger/"
	// tempPrefix begins the names of quarantines.
	tempPrefix = "banger-quarantine-"
	// maxRefs bounds the refs a guest may have.
	maxRefs = 100_000
	// maxChanges bounds the refs of one pull: each is a file on the host.
	maxChanges = 10_000
	// attempts is how often a pull plans anew because somebody else moved refs or objects.
	attempts = 8
)

var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Pull brings the commits of the guest that the host's own refs do not reach to refs below refs/banger/<vm>/. A branch B
// goes to refs/banger/<vm>/B, and is kept in step from then on; anything else, where it reaches what nothing of the host
// does, to refs/banger/<vm>/@/: tags/T, stash, HEAD, and other/… for what is not one of these. Nothing that was pulled
// becomes unreachable: where a ref moves to something that is not a descendant, or has to make way for a name above or
// below its own, its old value gets refs/banger/<vm>/@/kept/<id>. Refs of branches that the guest has no more stay.
//
// Nothing else of the repository changes, and nothing that the guest or the user has configured runs. The error is an
// api.Error where the user is to read it. Where Pull fails, what it has moved so far stays.
func Pull(ctx context.Context, cfg Config, req Request) (Result, error) {
	p, err := newPull(ctx, cfg, req)
	if err != nil {
		return Result{}, err
	}
	defer p.close()
	ctx, cancel := context.WithTimeoutCause(ctx, p.cfg.Timeout, errSlow)
	defer cancel()
	result, err := p.pull(ctx)
	if err != nil {
		return Result{}, explain(req.VM, err, p.cfg)
	}
	return result, nil
}

func (p *pull) pull(ctx context.Context) (Result, error) {
	seen, err := p.first(ctx)
	if err != nil {
		return Result{}, err
	}
	if want := p.wants(seen); len(want) > 0 {
		if err := p.receive(ctx, want, p.haves(seen)); err != nil {
			return Result{}, err
		}
	}
	var moved error
	for range attempts {
		result, err := p.update(ctx)
		if moved = err; !errors.Is(err, errMoved) && !exited(err) { // where objects move, any git may fail
			return result, err
		}
	}
	if exited(moved) {
		return Result{}, moved
	}
	return Result{}, api.Errorf(api.KindConflict, "pull %q to %q: %w", p.req.VM, p.req.Repo, moved).
		WithHint("try again; if no git runs there, a crashed one may have left a lock: find %s -name '*.lock'", filepath.Join(p.req.Repo, ".git"))
}

// Missing returns the refs whose commits, or tags, no ref of the host's repository reaches: what would be lost with the VM.
func Missing(ctx context.Context, cfg Config, repo string, refs []Ref) ([]Ref, error) {
	p, err := newPull(ctx, cfg, Request{Repo: repo, VM: "missing", Refs: refs})
	if err != nil {
		return nil, err
	}
	p.anyName = true
	seen, err := p.first(ctx)
	if err != nil {
		return nil, err
	}
	want := map[string]bool{}
	for _, id := range p.wants(seen) {
		want[id] = true
	}
	return slices.DeleteFunc(slices.Clone(refs), func(r Ref) bool { return !want[r.ID] }), nil
}

// RemoveStale removes from a TempDir what a process that was killed has left there. No Pull may be using it. What it has
// left in a repository, the next Pull into that repository removes.
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

// pull is one pull on its way.
type pull struct {
	cfg  Config
	req  Request
	host *host
	// bare is nil where the guest had nothing new.
	bare    *bare
	anyName bool
	// wanted are the ids that the guest was asked for, and that have been checked.
	wanted map[string]bool
	// skipped tells why some of them are not taken.
	skipped map[string]string
}

func newPull(ctx context.Context, cfg Config, req Request) (*pull, error) {
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, 1<<30)
	cfg.Timeout = cmp.Or(cfg.Timeout, time.Hour)
	cfg.Stall = cmp.Or(cfg.Stall, 5*time.Minute)
	if req.Report == nil {
		req.Report = progress.Discard
	}
	if !label.MatchString(req.VM) {
		return nil, api.Errorf(api.KindInvalid, "pull %q: it is not the name of a VM", req.VM)
	}
	if len(req.Refs) > maxRefs || len(req.Shallow) > maxRefs {
		return nil, api.Errorf(api.KindInvalid, "pull %q: the guest's repository has more than %d refs", req.VM, maxRefs).
			WithHint("delete those nobody needs, in the guest")
	}
	h, err := openHost(ctx, cfg, req.Repo)
	if err != nil {
		return nil, err
	}
	return &pull{cfg: cfg, req: req, host: h, wanted: map[string]bool{}, skipped: map[string]string{}}, nil
}

func (p *pull) close() {
	if p.bare != nil {
		_ = os.RemoveAll(p.bare.dir)
		p.host.removeStaleKeeps()
	}
}

// look reads the host's refs, and with git, which is the host's or that of the quarantine, which of the guest's commits
// there are.
func (p *pull) look(ctx context.Context, g git) (*view, error) {
	v := &view{vm: p.req.VM, format: p.host.format, git: g}
	var err error
	if v.hostRefs, err = p.host.refs(ctx); err != nil {
		return nil, err
	}
	v.guestRefs, v.unfit = checkRefs(p.req, p.host.format, p.anyName)
	var ids []string
	for _, r := range slices.Concat(v.hostRefs, v.guestRefs) {
		ids = append(ids, r.ID)
	}
	for _, id := range p.req.Have {
		if p.host.format.valid(id) {
			ids = append(ids, id)
			v.have = append(v.have, id)
		}
	}
	if v.commits, err = g.commits(ctx, ids); err != nil {
		if p.bare != nil { // the guest's objects are among them
			return nil, err
		}
		return nil, p.host.broken("the objects", err)
	}
	for id := range p.skipped {
		delete(v.commits, id)
	}
	return v, nil
}

// first is the view of the host before anything has come from the guest.
func (p *pull) first(ctx context.Context) (*view, error) {
	v, err := p.look(ctx, p.host.git)
	if err != nil {
		return nil, err
	}
	// The host may have commits without their ancestors, where git has pruned some of what nothing reaches.
	for _, load := range []func(context.Context) error{v.load, v.loadWithoutHave, v.loadPulled} {
		if err = load(ctx); err == nil || !exited(err) {
			return v, err
		}
	}
	return nil, p.host.broken("the history", err)
}

// wants are the ids the guest has to send: of what no ref of the host reaches.
func (p *pull) wants(v *view) []string {
	var want []string
	for _, r := range v.guestRefs {
		if v.held[r.ID] {
			continue
		}
		if commit, ok := v.commits[r.ID]; !ok || !v.reached(commit) || r.ID != commit {
			want = append(want, r.ID)
		}
	}
	slices.Sort(want)
	return slices.Compact(want)
}

// haves are commits that the guest probably has and that are whole on the host, because a ref reaches them.
func (p *pull) haves(v *view) []string {
	ids := slices.Clone(v.have)
	for _, r := range v.guestRefs {
		ids = append(ids, r.ID)
	}
	for _, r := range v.hostRefs {
		if strings.HasPrefix(r.Name, prefix+p.req.VM+"/") {
			ids = append(ids, r.ID)
		}
	}
	var have []string
	for _, id := range ids {
		if commit, ok := v.commits[id]; ok && v.reached(commit) {
			have = append(have, commit)
		}
	}
	slices.Sort(have)
	return slices.Compact(have)
}

// receive fills a quarantine.
func (p *pull) receive(ctx context.Context, want, have []string) error {
	var err error
	if p.bare, err = makeBare(p.cfg, p.host, p.req.Shallow); err != nil {
		return err
	}
	p.req.Report.Step("receive commits")
	if err := p.bare.receive(ctx, p.req, want, have); err != nil {
		return err
	}
	p.req.Report.Step("check commits")
	v, err := p.look(ctx, p.bare.git)
	if err != nil {
		return err
	}
	var tips []string
	for _, id := range want {
		p.wanted[id] = true
		if _, ok := v.commits[id]; ok {
			tips = append(tips, id)
		}
	}
	p.skipped, err = p.bare.check(ctx, tips, v.present(v.hostRefs))
	return err
}

// update plans and does what there is to do on the host.
func (p *pull) update(ctx context.Context) (Result, error) {
	g := p.host.git
	if p.bare != nil {
		g = p.bare.git
	}
	v, err := p.look(ctx, g)
	if err != nil {
		return Result{}, err
	}
	if err := v.loadWithoutHave(ctx); err != nil {
		return Result{}, err
	}
	plan, err := v.plan(ctx, p.skipped)
	if err != nil {
		return Result{}, err
	}
	if len(plan.changes) == 0 {
		return plan.result, nil
	}
	for _, id := range plan.unreached {
		if !p.wanted[id] { // a ref of the host reached it when the pull began
			return Result{}, api.Errorf(api.KindConflict, "pull %q: a ref of %q that had commits of the guest's is gone", p.req.VM, p.req.Repo).
				WithHint("try again")
		}
	}
	if p.bare != nil {
		p.req.Report.Step("store commits")
		if err := p.host.store(ctx, p.bare, plan.news(), v.present(v.hostRefs)); err != nil {
			return Result{}, err
		}
	}
	p.req.Report.Step("move refs")
	for _, changes := range [][]change{plan.removals, plan.changes} {
		if err := p.host.update(ctx, changes); err != nil {
			return Result{}, err
		}
	}
	return plan.result, nil
}
