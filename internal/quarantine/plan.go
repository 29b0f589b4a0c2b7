package quarantine

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
)

// view is what is known of both repositories at one time.
type view struct {
	vm     string
	format format
	git    git

	hostRefs  []Ref
	guestRefs []Ref
	have      []string
	// unfit are lines about refs of the guest that are not among guestRefs.
	unfit []string
	// commits are the commits that ids of either side are, or that are the ends of tags; an id that is missing here is not
	// there, or is no commit.
	commits map[string]string

	graph *graph
	// held are the ids of the host's refs.
	held map[string]bool
	// covered are the commits of the graph that refs below refs/banger/ reach.
	covered marks
	// unsure says that the graph has only what those reach.
	unsure bool
}

// checkRefs returns the refs of a request that may be pulled, first those that come first, and lines about the others.
func checkRefs(req Request, f format, anyName bool) (refs []Ref, lines []string) {
	seen := map[string]bool{}
	for _, r := range req.Refs {
		why := ""
		if !anyName {
			why = checkName(r.Name)
		}
		switch {
		case why != "":
		case !f.valid(r.ID):
			why = fmt.Sprintf("%.80q is not the id of an object in this repository's format, %s", r.ID, f)
		case seen[r.Name] && !anyName:
			why = "the guest names it twice"
		default:
			seen[r.Name] = true
			refs = append(refs, r)
			continue
		}
		lines = append(lines, fmt.Sprintf("%.200q: %s", r.Name, why))
	}
	slices.SortStableFunc(refs, func(a, b Ref) int {
		return cmp.Or(cmp.Compare(rank(a.Name), rank(b.Name)), cmp.Compare(a.Name, b.Name))
	})
	return refs, lines
}

// present are the ids of those refs whose commit is there.
func (v *view) present(refs []Ref) []string {
	var ids []string
	for _, r := range refs {
		if _, ok := v.commits[r.ID]; ok {
			ids = append(ids, r.ID)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func (v *view) load(ctx context.Context) error {
	return v.loadFrom(ctx, slices.Concat(v.present(v.guestRefs), slices.DeleteFunc(slices.Clone(v.have), func(id string) bool {
		return v.commits[id] == ""
	})))
}

func (v *view) loadWithoutHave(ctx context.Context) error {
	v.have = nil
	return v.loadFrom(ctx, v.present(v.guestRefs))
}

func (v *view) loadPulled(ctx context.Context) error {
	v.unsure = true
	return v.loadFrom(ctx, nil)
}

// loadFrom reads the graph of what tips and refs/banger/ reach, and the host's own refs do not.
func (v *view) loadFrom(ctx context.Context, tips []string) error {
	var own, pulled []Ref
	v.held = map[string]bool{}
	for _, r := range v.hostRefs {
		v.held[r.ID] = true
		if strings.HasPrefix(r.Name, prefix) {
			pulled = append(pulled, r)
		} else {
			own = append(own, r)
		}
	}
	g := newGraph()
	if err := g.load(ctx, v.git, append(v.present(pulled), tips...), v.present(own)); err != nil {
		return err
	}
	covered := make(marks, len(g.listed))
	for _, id := range v.present(pulled) {
		if _, err := g.mark(ctx, covered, g.find(v.commits[id])); err != nil {
			return err
		}
	}
	v.graph, v.covered = g, covered
	return nil
}

// own tells whether the host's own refs reach a commit of either side.
func (v *view) own(commit string) bool { return v.graph.find(commit) < 0 }

// reached tells whether any ref of the host does, as far as it is known.
func (v *view) reached(commit string) bool {
	if i := v.graph.find(commit); i >= 0 {
		return v.covered[i]
	}
	return !v.unsure || v.held[commit]
}

// change is a ref to be made, moved or removed: Old is empty where there is to be none before, New where none after.
type change struct{ Ref, Old, New string }

// plan is what a pull has to do. The removals, and the refs that keep what is removed, come first and as one transaction,
// the changes after them as another one: git does not make a/b in the transaction that removes a.
type plan struct {
	removals []change
	changes  []change
	// unreached are the guest's ids among them that no ref of the host has reached so far.
	unreached []string
	result    Result
}

// news are the ids that the plan gives to refs.
func (p *plan) news() []string {
	var ids []string
	for _, c := range p.changes {
		ids = append(ids, c.New)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// planner makes a plan.
type planner struct {
	*view
	plan
	skipped map[string]string
	// there are the refs below refs/banger/<vm>/ as they are, and will be after the removals.
	there map[string]string
	// taken are those that get something of the guest's in this plan.
	taken map[string]bool
	// below leads from a name above refs of taken to one of these, thereBelow tells of names above refs of there.
	below      map[string]string
	thereBelow map[string]bool
	// before is covered as it was before the plan.
	before, scratch marks
	keep            []string
}

// plan decides what becomes of the guest's refs. skipped are reasons not to take an id.
func (v *view) plan(ctx context.Context, skipped map[string]string) (plan, error) {
	p := &planner{view: v, skipped: skipped, there: map[string]string{}, taken: map[string]bool{},
		below: map[string]string{}, thereBelow: map[string]bool{},
		before: slices.Clone(v.covered), scratch: make(marks, len(v.covered))}
	p.result.Skipped = slices.Clone(v.unfit)
	for _, r := range v.hostRefs {
		if strings.HasPrefix(r.Name, prefix+v.vm+"/") {
			p.there[r.Name] = r.ID
			for parent := range parents(r.Name) {
				p.thereBelow[parent] = true
			}
		}
	}
	for _, r := range v.guestRefs {
		if err := p.take(ctx, r); err != nil {
			return plan{}, err
		}
		if n := len(p.changes) + len(p.removals); n > maxChanges {
			return plan{}, api.Errorf(api.KindInvalid, "pull %q: more than %d refs would be made or moved at once", v.vm, maxChanges).
				WithHint("delete the branches and tags that nobody needs, in the guest")
		}
	}
	news := p.news()
	for _, id := range p.keep {
		if _, found := slices.BinarySearch(news, id); !found {
			p.kept(&p.changes, id)
		}
	}
	return p.plan, nil
}

// take plans for one ref.
func (p *planner) take(ctx context.Context, r Ref) error {
	commit, ok := p.commits[r.ID]
	if !ok && p.held[r.ID] { // a tag of a tree, such as Linux has
		p.result.UpToDate++
		return nil
	}
	if !ok {
		why := cmp.Or(p.skipped[r.ID], "it is not a commit, or the guest did not send it")
		p.result.Skipped = append(p.result.Skipped, fmt.Sprintf("%q at %s: %s", r.Name, r.ID, why))
		return nil
	}
	name := hostName(p.vm, r)
	old := p.there[name]
	if old == r.ID || !p.needed(r, commit, old) {
		p.result.UpToDate++
		return nil
	}
	if i := p.graph.find(commit); i >= 0 && !p.before[i] {
		p.unreached = append(p.unreached, r.ID)
	}
	if by := p.blocked(name); by != "" {
		p.kept(&p.changes, r.ID)
		p.result.Skipped = append(p.result.Skipped,
			fmt.Sprintf("%q: %q is in its way; its commit is at %s", r.Name, by, keptName(p.vm, r.ID)))
		return p.cover(ctx, r, commit)
	}
	p.clear(name)
	pulled := Pulled{Guest: r.Name, Host: name, Old: old, New: r.ID}
	copy(p.scratch, p.before)
	var err error
	if pulled.Commits, err = p.graph.mark(ctx, p.scratch, p.graph.find(commit)); err != nil {
		return err
	}
	if was, ok := p.commits[old]; ok {
		forward, err := p.ancestor(ctx, was, commit)
		if err != nil {
			return err
		}
		if pulled.Rewritten = !forward || was != old; pulled.Rewritten { // a tag is lost even where its commit is not
			p.keep = append(p.keep, old)
		}
	}
	p.taken[name] = true
	for parent := range parents(name) {
		p.below[parent] = name
	}
	p.changes = append(p.changes, change{name, old, r.ID})
	p.result.Refs = append(p.result.Refs, pulled)
	return p.cover(ctx, r, commit)
}

// needed tells whether a ref is to be pulled. A branch is shown where it is not in what the host has of its own, and as
// long as it was once; anything else only where it would be lost.
func (p *planner) needed(r Ref, commit, old string) bool {
	if isHead(r.Name) {
		return old != "" || !p.own(commit)
	}
	return !p.reached(commit) || r.ID != commit && !p.held[r.ID]
}

func (p *planner) cover(ctx context.Context, r Ref, commit string) error {
	p.held[r.ID] = true
	_, err := p.graph.mark(ctx, p.covered, p.graph.find(commit))
	return err
}

// blocked returns the ref of this plan that a ref of that name cannot be beside; none in most cases.
func (p *planner) blocked(name string) string {
	if p.taken[name] {
		return name
	}
	for parent := range parents(name) {
		if p.taken[parent] {
			return parent
		}
	}
	return p.below[name]
}

// clear removes the refs that name cannot be beside.
func (p *planner) clear(name string) {
	var gone []string
	for parent := range parents(name) {
		if p.there[parent] != "" {
			gone = append(gone, parent)
		}
	}
	if p.thereBelow[name] {
		for other := range p.there {
			if strings.HasPrefix(other, name+"/") {
				gone = append(gone, other)
			}
		}
	}
	slices.Sort(gone)
	for _, ref := range gone {
		id := p.there[ref]
		if _, ok := p.commits[id]; ok {
			p.kept(&p.removals, id)
		}
		p.removals = append(p.removals, change{Ref: ref, Old: id})
		delete(p.there, ref)
	}
}

// kept adds the ref that keeps id, where there is none.
func (p *planner) kept(to *[]change, id string) {
	name := keptName(p.vm, id)
	if p.there[name] == id {
		return
	}
	*to = append(*to, change{Ref: name, Old: p.there[name], New: id})
	p.there[name] = id
	p.result.Kept = append(p.result.Kept, name)
}

// ancestor tells whether from old one comes to new by going forward.
func (p *planner) ancestor(ctx context.Context, old, new string) (bool, error) {
	i, j := p.graph.find(old), p.graph.find(new)
	if i < 0 { // in the host's own history, which is not in the graph
		return p.git.ancestor(ctx, old, new)
	}
	clear(p.scratch)
	if _, err := p.graph.mark(ctx, p.scratch, j); err != nil {
		return false, err
	}
	return p.scratch[i], nil
}

// parents are the names above a ref's, nearest first, down to that of refs/banger/<vm>.
func parents(name string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for {
			i := strings.LastIndexByte(name, '/')
			if i < len(prefix) {
				return
			}
			if name = name[:i]; !yield(name) {
				return
			}
		}
	}
}
