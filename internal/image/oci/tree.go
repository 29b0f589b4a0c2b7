package oci

import (
	"archive/tar"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// maxLinks is how many symbolic links are followed on the way to a path (Linux: MAXSYMLINKS).
const maxLinks = 40

// inode is a file of the merged tree, by whatever names.
type inode struct {
	layer, n int32   // whose entry it is
	typ      byte    // as an item's
	meta     *meta   // nil for a regular file
	first    *node   // filled in by collect, as is more
	more     []*node // the other names
}

// node is a name of the merged tree.
type node struct {
	name     string // the last part of its path; "" for the root
	parent   *node  // nil for the root
	inode    *inode
	children map[string]*node // nil for what is no directory
}

func (n *node) isDir() bool { return n.children != nil }

// path is the whole path of a node, without a leading slash.
func (n *node) path() string {
	size := 0
	for at := n; at.parent != nil; at = at.parent {
		size += len(at.name) + 1
	}
	if size == 0 {
		return ""
	}
	b := make([]byte, size-1)
	end := len(b)
	for at := n; at.parent != nil; at = at.parent {
		end -= copy(b[end-len(at.name):end], at.name)
		if end > 0 {
			end--
			b[end] = '/'
		}
	}
	return string(b)
}

// tree is what layers make, one on the other.
type tree struct {
	root *node
	cost *budget
}

func newTree(cost *budget) *tree {
	return &tree{cost: cost, root: &node{inode: &inode{layer: -1, typ: tar.TypeDir, meta: implicit}, children: map[string]*node{}}}
}

// put gives an inode a name, in place of what has it.
func (t *tree) put(parent *node, base string, i *inode) (*node, error) {
	n := &node{name: base, parent: parent, inode: i}
	cost := int64(nodeCost)
	if i.typ == tar.TypeDir {
		n.children = map[string]*node{}
		cost += dirCost
	}
	parent.children[base] = n
	return n, t.cost.take(1, cost)
}

// apply puts a layer on the tree. Whiteouts hide what layers below have, and never what their own has, wherever in it they stand.
func (t *tree) apply(layer int, items []item) error {
	var own map[string]bool
	for k := range items {
		it := &items[k]
		if !strings.HasPrefix(it.base, whiteoutPrefix) {
			continue
		}
		if own == nil {
			own = directories(items)
		}
		t.whiteout(own, it.dir, it.base)
	}
	for k := range items {
		it := &items[k]
		if strings.HasPrefix(it.base, whiteoutPrefix) {
			continue
		}
		if err := t.add(int32(layer), it); err != nil {
			return fmt.Errorf("%q: %w", it.path(), err)
		}
	}
	// AUFS keeps there what has several names.
	maps.DeleteFunc(t.root.children, func(base string, _ *node) bool { return strings.HasPrefix(base, reservedPrefix) })
	return nil
}

// directories are the paths of a layer's directories.
func directories(items []item) map[string]bool {
	out := map[string]bool{}
	for k := range items {
		if items[k].typ == tar.TypeDir {
			out[items[k].path()] = true
		}
	}
	return out
}

// whiteout hides what is below in one name, or in a whole directory. own are the directories of the layer that says so: one of them that is no
// directory below (a symbolic link to one, say) is a new one, and nothing of the old is in it.
func (t *tree) whiteout(own map[string]bool, dir, base string) {
	at, parts := t.root, split(dir)
	for k, part := range parts {
		next := at.children[part]
		if next == nil || !next.isDir() {
			if own[strings.Join(parts[:k+1], "/")] {
				return
			}
			break
		}
		at = next
	}
	if at = t.find(dir); at == nil {
		return
	}
	switch {
	case base == opaqueMarker:
		clear(at.children)
	case strings.HasPrefix(base, reservedPrefix):
	default:
		delete(at.children, strings.TrimPrefix(base, whiteoutPrefix))
	}
}

// add puts one entry there.
func (t *tree) add(layer int32, it *item) error {
	switch it.typ {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
	default:
		return fmt.Errorf("an entry of type %q", it.typ)
	}
	i := &inode{layer: layer, n: it.n, typ: it.typ, meta: it.meta}
	if it.base == "" {
		if it.typ != tar.TypeDir {
			return errors.New("the root is no directory")
		}
		t.root.inode = i
		return nil
	}
	parent, err := t.dir(it.dir)
	if err != nil {
		return err
	}
	switch old := parent.children[it.base]; {
	case it.typ == tar.TypeDir && old != nil && old.isDir():
		old.inode = i
		return nil
	case it.typ == tar.TypeLink:
		if i, err = t.target(it.meta.link); err != nil {
			return err
		}
	}
	_, err = t.put(parent, it.base, i)
	return err
}

// target is what a hard link leads to. Its last part is not followed: a symbolic link may have several names, too.
func (t *tree) target(link string) (*inode, error) {
	to, err := clean(link)
	if err != nil {
		return nil, fmt.Errorf("a hard link to %w", err)
	}
	dir, base := path.Split(to)
	if at := t.find(strings.TrimSuffix(dir, "/")); at != nil {
		if n := at.children[base]; n != nil && !n.isDir() {
			return n.inode, nil
		}
	}
	return nil, fmt.Errorf("a hard link to %q, which is not there", link)
}

// dir is the directory of a path, made where it is not there, and in place of what is no directory. Symbolic links on the way are followed
// within the tree, as an unpacker does that is confined to it.
func (t *tree) dir(name string) (*node, error) {
	var failed error
	made := t.resolve(name, func(parent *node, base string, depth int) *node {
		if depth >= maxDepth {
			failed = fmt.Errorf("deeper than %d directories", maxDepth)
			return nil
		}
		var d *node
		d, failed = t.put(parent, base, &inode{layer: -1, typ: tar.TypeDir, meta: implicit})
		if failed != nil {
			return nil
		}
		return d
	})
	switch {
	case failed != nil:
		return nil, failed
	case made == nil:
		return nil, fmt.Errorf("more than %d symbolic links on the way", maxLinks)
	}
	return made, nil
}

// find is the directory at a path, nil for none. The last part is followed, too, where it is a link.
func (t *tree) find(name string) *node {
	return t.resolve(name, func(*node, string, int) *node { return nil })
}

// resolve follows a path from the root. absent is asked for what is not there, or no directory; its nil ends the search.
func (t *tree) resolve(name string, absent func(parent *node, base string, depth int) *node) *node {
	if at := t.plain(name); at != nil {
		return at
	}
	at, depth, links := t.root, 0, maxLinks
	parts := split(name)
	for len(parts) > 0 {
		part := parts[0]
		parts = parts[1:]
		if part == ".." {
			if at.parent != nil {
				at, depth = at.parent, depth-1
			}
			continue
		}
		next := at.children[part]
		switch {
		case next != nil && next.isDir():
		case next != nil && next.inode.typ == tar.TypeSymlink:
			link := next.inode.meta.link
			if links--; links < 0 || len(parts) > maxName {
				return nil
			}
			if strings.HasPrefix(link, "/") {
				at, depth = t.root, 0
			}
			parts = slices.Concat(split(link), parts)
			continue
		default:
			if next = absent(at, part, depth); next == nil {
				return nil
			}
		}
		at, depth = next, depth+1
	}
	return at
}

// plain is the directory at a path where all on the way to it are directories, too, as nearly always.
func (t *tree) plain(name string) *node {
	at := t.root
	for name != "" {
		var part string
		part, name, _ = strings.Cut(name, "/")
		if part == "" || part == "." {
			continue
		}
		if at = at.children[part]; at == nil || !at.isDir() {
			return nil
		}
	}
	return at
}

// split are the parts of a path that say anything.
func split(name string) []string {
	return slices.DeleteFunc(strings.Split(name, "/"), func(s string) bool { return s == "" || s == "." })
}

// collect gives each inode its names, and returns those of directories, with parents before what is in them, of regular files, by layer and in the
// order of its entries, and of all others.
func (t *tree) collect(layers int) (dirs, others []*inode, files [][]*inode) {
	files = make([][]*inode, layers)
	var visit func(n *node)
	visit = func(n *node) {
		i := n.inode
		if i.first != nil {
			i.more = append(i.more, n)
			return
		}
		i.first = n
		switch {
		case n.isDir():
			dirs = append(dirs, i)
		case i.typ == tar.TypeReg:
			files[i.layer] = append(files[i.layer], i)
		default:
			others = append(others, i)
		}
		for _, base := range slices.Sorted(maps.Keys(n.children)) {
			visit(n.children[base])
		}
	}
	visit(t.root)
	for _, of := range files {
		slices.SortFunc(of, func(a, b *inode) int { return int(a.n) - int(b.n) })
	}
	return dirs, others, files
}
