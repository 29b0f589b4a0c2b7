// Package suggest finds the words a mistyped one was probably meant to be, for
// error messages and their hints.
package suggest

import (
	"cmp"
	"slices"
	"strings"
)

// Near returns at most three of candidates that are near word, nearest first: those a third of the longer
// word's letters away or less (one at least), and those that begin with word, but none much farther than the nearest. Case does
// not count.
func Near(word string, candidates []string) []string {
	type hit struct {
		word     string
		distance int
	}
	var hits []hit
	low := strings.ToLower(word)
	for _, c := range candidates {
		lc := strings.ToLower(c)
		d := distance(low, lc)
		prefix := len(low) >= 2 && strings.HasPrefix(lc, low)
		if prefix || d <= max(1, max(len(low), len(lc))/3) {
			hits = append(hits, hit{c, d})
		}
	}
	slices.SortStableFunc(hits, func(a, b hit) int {
		return cmp.Or(cmp.Compare(a.distance, b.distance), cmp.Compare(a.word, b.word))
	})
	var out []string
	for _, h := range hits {
		if !slices.Contains(out, h.word) && len(out) < 3 && h.distance <= hits[0].distance+1 {
			out = append(out, h.word)
		}
	}
	return out
}

// distance is the number of insertions, deletions, substitutions and swaps of neighbours that make b of a
// (optimal string alignment).
func distance(a, b string) int {
	ra, rb := []rune(a), []rune(b)
	before, last, now := make([]int, len(rb)+1), make([]int, len(rb)+1), make([]int, len(rb)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(ra); i++ {
		now[0] = i
		for j := 1; j <= len(rb); j++ {
			subst := last[j-1]
			if ra[i-1] != rb[j-1] {
				subst++
			}
			now[j] = min(last[j]+1, now[j-1]+1, subst)
			if i > 1 && j > 1 && ra[i-1] == rb[j-2] && ra[i-2] == rb[j-1] {
				now[j] = min(now[j], before[j-2]+1)
			}
		}
		before, last, now = last, now, before
	}
	return last[len(rb)]
}
