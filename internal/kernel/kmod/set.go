package kmod

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Set is the modules of one kernel.
type Set struct {
	// modules are sorted as depmod sorts them: by their place in modules.order, then by path. The place is a
	// module's priority.
	modules []*node
	byName  map[string]*node
	// builtin are names; builtinAliases names by alias.
	builtin        map[string]bool
	builtinAliases []indexEntry
}

type node struct {
	Module
	place int
	deps  []*node
	rank  int // in topological order: users come before what they use
}

// Shipped are the files a kernel's package ships beside the modules; each may be empty.
type Shipped struct {
	// Order is modules.order, Builtin modules.builtin, BuiltinInfo modules.builtin.modinfo.
	Order, Builtin, BuiltinInfo []byte
}

// SetError says which module does not fit in with the others, and why.
type SetError struct{ Module, Reason string }

// Error implements error.
func (e *SetError) Error() string { return fmt.Sprintf("module %q: %s", e.Module, e.Reason) }

// NewSet works out the dependencies. It is a SetError if a module needs one that is neither there nor built in, or if some need
// each other in a circle.
func NewSet(modules []Module, shipped Shipped) (*Set, error) {
	s := &Set{byName: map[string]*node{}, builtin: map[string]bool{}}
	for line := range strings.Lines(string(shipped.Builtin)) {
		if line = strings.TrimSpace(line); line != "" {
			s.builtin[Name(line)] = true
		}
	}
	s.builtinAliases = builtinAliases(shipped.BuiltinInfo)
	for _, m := range modules {
		if s.byName[m.Name] != nil {
			return nil, &SetError{m.Name, fmt.Sprintf("comes twice, as %q and %q", s.byName[m.Name].Path, m.Path)}
		}
		n := &node{Module: m}
		s.byName[m.Name] = n
		s.modules = append(s.modules, n)
	}
	s.sort(shipped.Order)
	for _, n := range s.modules {
		for _, name := range n.Depends {
			switch dep := s.byName[name]; {
			case dep != nil:
				n.deps = append(n.deps, dep)
			case !s.builtin[name]:
				return nil, &SetError{n.Name, fmt.Sprintf("needs %q, which the kernel does not have", name)}
			}
		}
	}
	return s, s.rankAll()
}

// sort gives every module its place.
func (s *Set) sort(order []byte) {
	places := map[string]int{}
	for line := range strings.Lines(string(order)) {
		if line = strings.TrimSpace(line); line != "" && places[line] == 0 {
			places[line] = len(places) + 1
		}
	}
	place := func(n *node) int {
		base, _ := splitName(n.Path)
		if p := places[base]; p != 0 {
			return p
		}
		return len(places) + 1
	}
	slices.SortFunc(s.modules, func(a, b *node) int {
		return cmp.Or(cmp.Compare(place(a), place(b)), strings.Compare(a.Path, b.Path))
	})
	for i, n := range s.modules {
		n.place = i
	}
}

// rankAll ranks the modules so that each comes before those it needs: those that nobody needs first, then whatever
// only ranked ones need.
func (s *Set) rankAll() error {
	users := map[*node]int{}
	for _, n := range s.modules {
		for _, d := range n.deps {
			users[d]++
		}
	}
	var ready []*node
	for _, n := range s.modules {
		if users[n] == 0 {
			ready = append(ready, n)
		}
	}
	ranked := 0
	for ; len(ready) > 0; ranked++ {
		n := ready[len(ready)-1]
		ready = ready[:len(ready)-1]
		n.rank = ranked
		for _, d := range n.deps {
			if users[d]--; users[d] == 0 {
				ready = append(ready, d)
			}
		}
	}
	if ranked < len(s.modules) {
		for _, n := range s.modules {
			if users[n] > 0 {
				return &SetError{n.Name, "it and what it needs go round in a circle"}
			}
		}
	}
	return nil
}

// needs returns everything n needs, each before what it needs itself.
func (n *node) needs() []*node {
	var all []*node
	seen := map[*node]bool{n: true}
	var walk func(*node)
	walk = func(m *node) {
		for _, d := range m.deps {
			if !seen[d] {
				seen[d] = true
				all = append(all, d)
				walk(d)
			}
		}
	}
	walk(n)
	slices.SortFunc(all, func(a, b *node) int { return cmp.Compare(a.rank, b.rank) })
	return all
}

// Len is the number of modules.
func (s *Set) Len() int { return len(s.modules) }

// Has reports whether the kernel has something as a module, and whether it has it built in as far as Shipped told.
func (s *Set) Has(name string) (module, builtin bool) {
	name = underscores(name)
	return s.byName[name] != nil, s.builtin[name]
}

// LoadOrder returns the named modules and all they need, each after what it needs and once. Those built into the kernel are
// left out; a name the kernel does not have at all is an error.
func (s *Set) LoadOrder(names ...string) ([]Module, error) {
	var out []Module
	done := map[*node]bool{}
	for _, name := range names {
		n := s.byName[underscores(name)]
		if n == nil {
			if s.builtin[underscores(name)] {
				continue
			}
			return nil, fmt.Errorf("module %q: the kernel has no such module", name)
		}
		for _, m := range slices.Backward(append([]*node{n}, n.needs()...)) {
			if !done[m] {
				done[m] = true
				out = append(out, m.Module)
			}
		}
	}
	return out, nil
}
