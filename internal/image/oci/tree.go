package oci

import (
	"archive/tar"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// maxLinks is how many symbolic links are followed on the way to a path (Linux: MAXSYMLINKS).
const maxLinks = 40

// item is an entry of a layer without its content.
type item struct {
	n    int // of the layer's entries
	name string
	h    *tar.Header
}

// inode is a file of the merged tree, by whatever names.
type inode struct {
	layer, n int         // whose entry it is
	h        *tar.Header // nil for a directory that no layer has
	names    []string    // filled in by collect
}

func (i *inode) isDir() bool { return i.h == nil || i.h.Typeflag == tar.TypeDir }

// node is a name of the merged tree.
type node struct {
	inode    *inode
	children map[string]*node // of a directory
	layer    int              // that put it there last
}

func newDir(h *tar.Header, layer, n int) *node {
	return &node{inode: &inode{layer: layer, n: n, h: h}, children: map[string]*node{}, layer: layer}
}

// tree is what layers make, one on the other.
type tree struct {
	root  *node
	count int
}

func newTree() *tree { return &tree{root: newDir(nil, -1, 0)} }

// apply puts a layer on the tree. Whiteouts hide what layers below have, and never what their own has, wherever in it they stand.
func (t *tree) apply(layer int, items []item) error {
	if t.count += len(items); t.count > maxEntries {
		return fmt.Errorf("the image has more than %d files", maxEntries)
	}
	for _, it := range items {
		if dir, base := path.Split(it.name); strings.HasPrefix(base, whiteoutPrefix) {
			t.whiteout(layer, strings.TrimSuffix(dir, "/"), base)
		}
	}
	for _, it := range items {
		if strings.HasPrefix(path.Base(it.name), whiteoutPrefix) {
			continue
		}
		if err := t.add(layer, it); err != nil {
			return fmt.Errorf("%q: %w", it.name, err)
		}
	}
	return nil
}

// whiteout hides what is below in one name, or in a whole directory.
func (t *tree) whiteout(layer int, dir, base string) {
	at := t.find(dir, nil)
	if at == nil || !at.inode.isDir() {
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
func (t *tree) add(layer int, it item) error {
	switch it.h.Typeflag {
	case tar.TypeReg, tar.TypeRegA, tar.TypeGNUSparse, tar.TypeCont, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo: //nolint:staticcheck // TypeRegA is what old tars have
	default:
		return fmt.Errorf("an entry of type %q", it.h.Typeflag)
	}
	if it.name == "" {
		if it.h.Typeflag != tar.TypeDir {
			return fmt.Errorf("the root is no directory")
		}
		t.root.inode = &inode{layer: layer, n: it.n, h: it.h}
		return nil
	}
	dir, base := path.Split(it.name)
	parent, err := t.dir(strings.TrimSuffix(dir, "/"), layer)
	if err != nil {
		return err
	}
	old := parent.children[base]
	switch it.h.Typeflag {
	case tar.TypeDir:
		if old != nil && old.inode.isDir() {
			old.inode, old.layer = &inode{layer: layer, n: it.n, h: it.h}, layer
			return nil
		}
		parent.children[base] = newDir(it.h, layer, it.n)
	case tar.TypeLink:
		to, err := clean(it.h.Linkname)
		if err != nil {
			return fmt.Errorf("a hard link to %w", err)
		}
		toDir, toBase := path.Split(to)
		var target *node
		if at := t.find(strings.TrimSuffix(toDir, "/"), nil); at != nil {
			target = at.children[toBase]
		}
		if target == nil || target.inode.isDir() {
			return fmt.Errorf("a hard link to %q, which is not there", it.h.Linkname)
		}
		parent.children[base] = &node{inode: target.inode, layer: layer}
	default:
		parent.children[base] = &node{inode: &inode{layer: layer, n: it.n, h: it.h}, layer: layer}
	}
	return nil
}

// dir is the directory of a path, made where it is not there, and in place of what is no directory. Symbolic links on the way are followed
// within the tree, as an unpacker does that is confined to it.
func (t *tree) dir(name string, layer int) (*node, error) {
	budget := maxLinks
	made := t.resolve(name, &budget, func(parent *node, base string) *node {
		d := newDir(nil, layer, 0)
		parent.children[base] = d
		return d
	})
	if made == nil {
		return nil, fmt.Errorf("more than %d symbolic links on the way", maxLinks)
	}
	return made, nil
}

// find is what is at a path, nil for nothing. The last part is followed, too, where it is a link.
func (t *tree) find(name string, _ *int) *node {
	budget := maxLinks
	return t.resolve(name, &budget, func(*node, string) *node { return nil })
}

// resolve follows a path from the root. absent is asked for what is not there, or no directory; its nil ends the search.
func (t *tree) resolve(name string, budget *int, absent func(parent *node, base string) *node) *node {
	at, way := t.root, []*node{}
	parts := split(name)
	for len(parts) > 0 {
		part := parts[0]
		parts = parts[1:]
		if part == ".." {
			if len(way) > 0 {
				at, way = way[len(way)-1], way[:len(way)-1]
			}
			continue
		}
		next := at.children[part]
		switch {
		case next != nil && next.children != nil:
		case next != nil && next.inode.h.Typeflag == tar.TypeSymlink:
			if *budget--; *budget < 0 || len(parts) > maxName {
				return nil
			}
			if strings.HasPrefix(next.inode.h.Linkname, "/") {
				at, way = t.root, nil
			}
			parts = slices.Concat(split(next.inode.h.Linkname), parts)
			continue
		default:
			if next = absent(at, part); next == nil {
				return nil
			}
		}
		way = append(way, at)
		at = next
	}
	return at
}

// split are the parts of a path that say anything.
func split(name string) []string {
	return slices.DeleteFunc(strings.Split(name, "/"), func(s string) bool { return s == "" || s == "." })
}

// collect gives each inode its names, and returns those of directories and of all others, in the order of their first names, and the
// regular files by layer and entry.
func (t *tree) collect() (dirs, others []*inode, files map[[2]int]*inode) {
	files = map[[2]int]*inode{}
	var visit func(name string, n *node)
	visit = func(name string, n *node) {
		if first := len(n.inode.names) == 0; first {
			switch {
			case n.inode.isDir():
				dirs = append(dirs, n.inode)
			case isFile(n.inode.h):
				files[[2]int{n.inode.layer, n.inode.n}] = n.inode
			default:
				others = append(others, n.inode)
			}
		}
		n.inode.names = append(n.inode.names, name)
		for _, base := range slices.Sorted(maps.Keys(n.children)) {
			visit(path.Join(name, base), n.children[base])
		}
	}
	visit("", t.root)
	return dirs, others, files
}

func isFile(h *tar.Header) bool {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeRegA, tar.TypeGNUSparse, tar.TypeCont: //nolint:staticcheck // as above
		return true
	}
	return false
}

// implicit is the header of a directory that no layer has: as one is made on the way.
func implicit() *tar.Header {
	return &tar.Header{Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(0, 0)}
}
