package ext4

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// Bounds of a walk: files, directories one in the other, bytes of a path and
// bytes of all the names that are held at a time.
const (
	maxFiles    = 4 << 20
	maxDepth    = 1024
	maxWalkPath = 16 << 10
	maxHeld     = 256 << 20
	perName     = 48 // what a name takes beside its bytes
)

var (
	errTooMany = errors.New("too many files")
	errTooDeep = errors.New("directories are nested too deeply")
)

// Walk calls f with every file, parents before what is in them, in the order of
// names; path is absolute, "/" the first. A directory that is found twice is an
// error, and so is a name that is twice in a directory. f's error ends the walk,
// and so does the end of ctx.
func (r *Reader) Walk(ctx context.Context, f func(path string, i Info) error) error {
	w := walk{call: r.call(ctx, maxWalk), f: f, files: maxFiles, held: maxHeld, depth: maxDepth, seen: inodeSet{}}
	return w.run()
}

// WalkBelow is Walk for the directory at dir, which Stat finds, and what is in it.
func (r *Reader) WalkBelow(ctx context.Context, dir string, f func(path string, i Info) error) error {
	w := walk{call: r.call(ctx, maxWalk), f: f, files: maxFiles, held: maxHeld, depth: maxDepth, seen: inodeSet{}}
	i, err := w.lookup(dir, true)
	if err != nil {
		return &fs.PathError{Op: "walk", Path: dir, Err: err}
	}
	return w.file(dir, i)
}

func (w *walk) run() error {
	root, err := w.inode(rootInode)
	if err != nil {
		return err
	}
	if !root.isType(typeDir) {
		return errors.New("the root is not a directory")
	}
	return w.file("/", root)
}

type walk struct {
	*call
	f     func(string, Info) error
	files int      // that may still come
	held  int      // bytes of names that may still be held
	depth int      // of directories in directories that may be read
	seen  inodeSet // directories
}

type dirent struct {
	num  uint32
	name string
}

// file reports a file and, of a directory, what is in it.
func (w *walk) file(path string, i *inode) error {
	if w.files--; w.files < 0 {
		return errTooMany
	}
	if err := w.take(int64(len(path))); err != nil {
		return err
	}
	isDir := i.isType(typeDir)
	if isDir && !w.seen.add(i.Inode) {
		return fmt.Errorf("directory %q is in two places", path)
	}
	if err := w.f(path, i.Info); err != nil {
		return err
	}
	if !isDir || i.Encrypted {
		return nil
	}
	return w.children(path, i)
}

func (w *walk) children(path string, dir *inode) error {
	if w.depth--; w.depth < 0 {
		return errTooDeep
	}
	before := w.held
	list, err := w.list(dir)
	if err != nil {
		return fmt.Errorf("directory %q: %w", path, err)
	}
	path = strings.TrimSuffix(path, "/") + "/"
	for _, e := range list {
		if len(path)+len(e.name) > maxWalkPath {
			return errTooDeep
		}
		i, err := w.inode(e.num)
		if err != nil {
			return fmt.Errorf("%q: %w", path+e.name, err)
		}
		if err := w.file(path+e.name, i); err != nil {
			return err
		}
	}
	w.held = before
	w.depth++
	return nil
}

// list returns what is in a directory, in the order of names.
func (w *walk) list(dir *inode) ([]dirent, error) {
	var list []dirent
	err := w.dir(dir, func(num uint32, name []byte) error {
		if w.held -= len(name) + perName; w.held < 0 || len(list) >= w.files {
			return errTooMany
		}
		list = append(list, dirent{num, string(name)})
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
	for k, e := range list[min(1, len(list)):] {
		if e.name == list[k].name {
			return nil, fmt.Errorf("%q is twice in it", e.name)
		}
	}
	return list, nil
}

// inodeSet is a set of inode numbers: bits, by number/64.
type inodeSet map[uint32]uint64

// add reports whether num was not in the set.
func (s inodeSet) add(num uint32) bool {
	bit := uint64(1) << (num % 64)
	if s[num/64]&bit != 0 {
		return false
	}
	s[num/64] |= bit
	return true
}
