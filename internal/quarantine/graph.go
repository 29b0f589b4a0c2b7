package quarantine

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
)

// maxCommits bounds a graph: about 150 MB.
const maxCommits = 2_000_000

// oid is an object's id as bytes; those of SHA-1 leave the rest zero.
type oid [32]byte

// graph is a piece of the history: the commits that some tips reach and the host's own refs do not.
type graph struct {
	index   map[oid]int32
	parents [][]int32
	// listed tells the commits of the graph from their parents outside it.
	listed []bool
}

func newGraph() *graph { return &graph{index: map[oid]int32{}} }

// load reads the history from tips down to what own reaches.
func (g *graph) load(ctx context.Context, run git, tips, own []string) error {
	if len(tips) == 0 {
		return nil
	}
	var in strings.Builder
	for _, id := range tips {
		in.WriteString(id + "\n")
	}
	for _, id := range own {
		in.WriteString("^" + id + "\n")
	}
	return run.lines(ctx, strings.NewReader(in.String()), g.add, "rev-list", "--parents", "--stdin")
}

// add takes a line of `git rev-list --parents`: a commit and its parents.
func (g *graph) add(line []byte) error {
	var this int32 = -1
	for field := range bytes.SplitSeq(line, []byte(" ")) {
		i, err := g.number(field)
		if err != nil {
			return err
		}
		if this < 0 {
			this = i
			continue
		}
		g.parents[this] = append(g.parents[this], i)
	}
	g.listed[this] = true
	return nil
}

// number is a commit's place in the graph, made where it has none.
func (g *graph) number(id []byte) (int32, error) {
	var o oid
	if len(id) != 40 && len(id) != 64 {
		return 0, fmt.Errorf("git rev-list says %.80q, which is not an id", id)
	}
	if _, err := hex.Decode(o[:], id); err != nil {
		return 0, fmt.Errorf("git rev-list says %.80q, which is not an id", id)
	}
	i, ok := g.index[o]
	if ok {
		return i, nil
	}
	if len(g.index) == maxCommits {
		return 0, api.Errorf(api.KindInvalid, "there are more than %d commits that the host does not have", maxCommits).
			WithHint("fetch what the guest got from elsewhere to the host, from there")
	}
	i = int32(len(g.index))
	g.index[o] = i
	g.parents, g.listed = append(g.parents, nil), append(g.listed, false)
	return i, nil
}

// find is the place of a commit of the graph, -1 of one that is not in it.
func (g *graph) find(id string) int32 {
	var o oid
	if _, err := hex.Decode(o[:], []byte(id)); err != nil {
		return -1
	}
	if i, ok := g.index[o]; ok && g.listed[i] {
		return i
	}
	return -1
}

// marks is a set of commits of a graph.
type marks []bool

// mark adds from and those of its ancestors to seen that it does not reach only through what is there already, and
// returns how many that were.
func (g *graph) mark(ctx context.Context, seen marks, from int32) (int, error) {
	if from < 0 || seen[from] {
		return 0, nil
	}
	seen[from] = true
	n, todo := 0, []int32{from}
	for ; len(todo) > 0; n++ {
		if n&0xffff == 0xffff && ctx.Err() != nil {
			return n, context.Cause(ctx)
		}
		this := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, p := range g.parents[this] {
			if g.listed[p] && !seen[p] {
				seen[p] = true
				todo = append(todo, p)
			}
		}
	}
	return n, nil
}
