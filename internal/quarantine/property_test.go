package quarantine

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// cyclesPerRepository is how many cycles one pair of repositories goes through.
const cyclesPerRepository = 50

// life is what happens to a guest's and a host's repository.
type life struct {
	*world
	rnd   *rand.Rand
	n     int
	trace []string
	// ever are the commits that a ref of the guest reached at a pull.
	ever map[string]bool
	// dropped are commits of the host's own that its user has done away with.
	dropped map[string]bool
}

func (l *life) pick(s ...string) string { return s[l.rnd.IntN(len(s))] }

// do runs a git that may fail: what people try.
func (l *life) do(dir string, args ...string) {
	_, err := l.try(dir, nil, args...)
	l.trace = append(l.trace, fmt.Sprintf("%s: git %q: %v", dir[len(l.dir)+1:], args, err))
}

// branch is a name of a branch; some cannot be beside others.
func (l *life) branch() string {
	return l.pick("main", "topic", "topic/a", "topic/a/b", "fix", "fix/x", "@/tags/t", "@", "HEAD", "-x", "wip")
}

// plumb makes commits, merges, branches and tags with one process.
func (l *life) plumb(dir string) {
	var in strings.Builder
	for range 1 + l.rnd.IntN(4) {
		l.n++
		ref := "refs/heads/" + l.branch()
		switch l.rnd.IntN(8) {
		case 0: // a reset
			fmt.Fprintf(&in, "reset %s\nfrom %s\n\n", ref, l.known(dir))
		case 1:
			fmt.Fprintf(&in, "tag t%d\nfrom %s\ntagger T <t@example.org> 1700000000 +0000\ndata 3\ntag\n", l.rnd.IntN(4), l.known(dir))
		case 2: // a history of its own
			fmt.Fprintf(&in, "reset refs/heads/orphan\ncommit refs/heads/orphan\n%s", l.change())
		default:
			change := l.change()
			fmt.Fprintf(&in, "commit %s\n%sfrom %s\n", ref, change[:strings.Index(change, "M 100644")], l.known(dir))
			for range l.rnd.IntN(3) / 2 {
				fmt.Fprintf(&in, "merge %s\n", l.known(dir))
			}
			in.WriteString(change[strings.Index(change, "M 100644"):])
		}
	}
	out, err := l.try(dir, strings.NewReader(in.String()), "fast-import", "--quiet", "--force")
	l.trace = append(l.trace, fmt.Sprintf("%s: fast-import %q: %v %s", dir[len(l.dir)+1:], in.String(), err, out))
}

func (l *life) change() string {
	content := fmt.Sprintf("%d %d\n", l.n, l.rnd.IntN(1000))
	return fmt.Sprintf("committer C <c@example.org> %d +0000\ndata 2\nm\nM 100644 inline f%d\ndata %d\n%s\n",
		1700000000+l.rnd.IntN(1_000_000), l.rnd.IntN(5), len(content), content)
}

// known is a commit that a repository has.
func (l *life) known(dir string) string {
	var ids []string
	for line := range strings.SplitSeq(l.git(dir, "for-each-ref", "--format=%(objectname) %(objecttype)"), "\n") {
		if id, ok := strings.CutSuffix(line, " commit"); ok {
			ids = append(ids, id)
		}
	}
	id := l.pick(ids...)
	if l.rnd.IntN(2) == 0 {
		if up, err := l.try(dir, nil, "rev-parse", "-q", "--verify", id+"~"+strconv.Itoa(1+l.rnd.IntN(2))); err == nil {
			return strings.TrimSpace(up)
		}
	}
	return id
}

// inGuest does one thing in the guest.
func (l *life) inGuest() {
	g, b := l.guest, l.branch()
	l.n++
	edit := func() { l.write(g, fmt.Sprintf("f%d", l.rnd.IntN(5)), fmt.Sprint(l.n, "\n")) }
	switch l.rnd.IntN(22) {
	case 0, 1:
		edit()
		l.do(g, "add", "-A")
		l.do(g, "commit", "-qm", "commit")
	case 2:
		edit()
		l.do(g, "commit", "-qa", "--amend", "-m", "amended")
	case 3:
		l.do(g, "reset", "-q", "--hard", "HEAD~"+l.pick("1", "2"))
	case 4:
		l.do(g, "rebase", "-q", "-X", "theirs", "refs/heads/"+b)
		l.do(g, "rebase", "--abort")
	case 5:
		l.do(g, "merge", "-q", "--no-edit", "-X", "ours", "--allow-unrelated-histories", "refs/heads/"+b)
		l.do(g, "merge", "--abort")
	case 6:
		l.do(g, "checkout", "-q", "-f", "-B", b)
	case 7:
		l.do(g, "checkout", "-q", "-f", "--detach", l.known(g))
	case 8, 9:
		l.do(g, "update-ref", "-d", "refs/heads/"+b)
	case 10:
		l.do(g, "branch", "-M", b, l.branch())
	case 11:
		edit()
		l.do(g, "add", "-A")
		l.do(g, "stash", "-q")
	case 12:
		l.do(g, "stash", l.pick("pop", "drop"), "-q")
	case 13:
		l.do(g, "tag", "-f", l.pick("t0", "light"), l.known(g))
	case 14:
		l.do(g, "tag", "-d", l.pick("t0", "t1", "t2", "light"))
	case 15:
		l.do(g, "update-ref", l.pick("refs/notes/commits", "refs/remotes/origin/x", "refs/pull/1/head"), l.known(g))
	case 16:
		l.do(g, "reflog", "expire", "--expire=now", "--all")
		l.do(g, "gc", "-q", "--prune=now")
	case 17:
		l.do(g, "fetch", "-q", "origin") // the guest gets what the host has now
	default:
		l.plumb(g)
	}
}

// onHost does one thing on the host; nothing of it takes from refs/banger/.
func (l *life) onHost() {
	h := l.host
	l.n++
	switch l.rnd.IntN(8) {
	case 0:
		l.write(h, fmt.Sprintf("h%d", l.rnd.IntN(3)), fmt.Sprint(l.n, "\n"))
		l.do(h, "add", "-A")
		l.do(h, "commit", "-qm", "host")
	case 1:
		if refs := slices.Sorted(maps.Keys(l.pulled())); len(refs) > 0 {
			l.do(h, "merge", "-q", "--no-edit", "-X", "ours", "--allow-unrelated-histories", "refs/banger/"+l.pick(refs...))
			l.do(h, "merge", "--abort")
		}
	case 2:
		if refs := slices.Sorted(maps.Keys(l.pulled())); len(refs) > 0 {
			l.do(h, "branch", "-f", l.pick("pulled", "other"), "refs/banger/"+l.pick(refs...))
		}
	case 3:
		l.do(h, "branch", "-D", l.pick("pulled", "other"))
	case 4:
		was := l.id(h, "HEAD")
		l.do(h, "reset", "-q", "--hard", "HEAD~1")
		for _, id := range l.unreached([]string{was}) {
			l.dropped[id] = true
		}
	case 5:
		l.do(h, "reflog", "expire", "--expire=now", "--all")
		l.do(h, "gc", "-q", "--prune=now")
	case 6:
		l.do(h, "pack-refs", "--all", "--prune")
	case 7:
		l.do(h, "tag", "-f", "host", l.known(h))
	}
}

// own are the host's own refs.
func (l *life) own() string {
	refs := l.git(l.host, "for-each-ref", "--format=%(objectname) %(refname) %(symref)")
	return strings.Join(slices.DeleteFunc(strings.Split(refs, "\n"), func(s string) bool { return strings.Contains(s, " refs/banger/") }), "\n")
}

// cycle is some work and a pull.
func (l *life) cycle() {
	for range 1 + l.rnd.IntN(3) {
		l.inGuest()
	}
	if l.rnd.IntN(3) == 0 {
		l.onHost()
	}
	req, own := l.request(), l.own()
	res, err := Pull(l.Context(), l.cfg, req)
	l.trace = append(l.trace, fmt.Sprintf("pull: %+v %v", res, err))
	if err != nil {
		l.Fatal(err)
	}
	if len(res.Skipped) > 0 {
		l.Fatalf("skipped: %q", res.Skipped)
	}
	if now := l.own(); now != own {
		l.Fatalf("the host's own refs were\n%s\nand are\n%s", own, now)
	}
	var ids []string
	for _, r := range req.Refs {
		l.ever[r.ID] = true
		ids = append(ids, r.ID)
	}
	if lost := l.unreached(ids); len(lost) > 0 {
		l.Fatalf("not pulled: %v", lost)
	}
	if l.rnd.IntN(10) == 0 {
		if missing, err := Missing(l.Context(), l.cfg, l.host, req.Refs); err != nil || len(missing) > 0 {
			l.Fatalf("missing after a pull: %v, %v", missing, err)
		}
	}
}

// unreached are the commits of ids, and those before them, that no ref of the host reaches.
func (l *life) unreached(ids []string) []string {
	in := strings.Join(ids, "^{commit}\n") + "^{commit}\n"
	all := l.git(l.host, "for-each-ref", "--format=^%(objectname)")
	return strings.Fields(l.gitIn(l.host, in+all+"\n", "rev-list", "--stdin"))
}

// keptAll fails where the host has lost what it ever had from the guest.
func (l *life) keptAll() {
	for id := range l.dropped { // the host may have pruned it
		delete(l.ever, id)
	}
	lost := slices.DeleteFunc(l.unreached(slices.Sorted(maps.Keys(l.ever))), func(id string) bool { return l.dropped[id] })
	if len(lost) > 0 {
		l.Fatalf("lost: %v", lost)
	}
}

func number(t *testing.T, name, otherwise string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(cmp.Or(os.Getenv(name), otherwise), 10, 64)
	must(t, err)
	return n
}

// Every commit that a ref of the guest reached at a pull stays reachable on the host, whatever guest and host do, for COUNT
// cycles (60) of work and a pull, from SEED (1) on.
func TestPropertyPullLosesNothing(t *testing.T) {
	count, seed := number(t, "COUNT", "60"), number(t, "SEED", "1")
	for i := uint64(0); i*cyclesPerRepository < count; i++ {
		t.Run(fmt.Sprint(seed+i), func(t *testing.T) {
			l := &life{world: newWorld(t), rnd: rand.New(rand.NewPCG(seed+i, 9)), ever: map[string]bool{}, dropped: map[string]bool{}}
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("SEED=%d COUNT=%d, %s:\n%s", seed+i, cyclesPerRepository, l.dir, strings.Join(l.trace, "\n"))
				}
			})
			for range min(cyclesPerRepository, count-i*cyclesPerRepository) {
				l.cycle()
			}
			l.keptAll()
			l.do(l.host, "reflog", "expire", "--expire=now", "--all")
			l.git(l.host, "gc", "-q", "--prune=now")
			l.git(l.host, "fsck", "--full", "--strict", "--no-dangling")
			l.keptAll()
		})
	}
}
