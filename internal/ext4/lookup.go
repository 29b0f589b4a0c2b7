package ext4

import (
	"errors"
	"io/fs"
	"strings"
	"syscall"
)

// maxLinks is how many symbolic links a path may lead through (path_resolution(7)).
const maxLinks = 40

// maxPath is the longest path that is looked up, in bytes (PATH_MAX).
const maxPath = 4096

// errFound ends the reading of a directory.
var errFound = errors.New("found")

// lookup finds the file at path. ".." does not leave the root, and is not read
// from directories: it is where the path came from.
func (c *call) lookup(path string, follow bool) (*inode, error) {
	switch {
	case path == "":
		return nil, fs.ErrNotExist
	case len(path) > maxPath:
		return nil, syscall.ENAMETOOLONG
	}
	root, err := c.inode(rootInode)
	if err != nil {
		return nil, err
	}
	// trail holds the root and the directories below it down to where the path has come.
	trail, links := []*inode{root}, 0
	rest := strings.Split(path, "/")
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		here := trail[len(trail)-1]
		switch {
		case !here.isType(typeDir):
			return nil, syscall.ENOTDIR
		case name == "", name == ".":
			continue
		case name == "..":
			trail = trail[:max(1, len(trail)-1)]
			continue
		}
		next, err := c.child(here, name)
		if err != nil {
			return nil, err
		}
		if len(trail) > maxDepth {
			return nil, errTooDeep
		}
		if !next.isType(typeLink) || len(rest) == 0 && !follow {
			trail = append(trail, next)
			continue
		}
		if links++; links > maxLinks {
			return nil, syscall.ELOOP
		}
		if next.Encrypted {
			return nil, errEncrypted
		}
		if strings.HasPrefix(next.Target, "/") {
			trail = trail[:1]
		}
		rest = append(strings.Split(next.Target, "/"), rest...)
	}
	return trail[len(trail)-1], nil
}

// child finds the file of a name in a directory.
func (c *call) child(dir *inode, name string) (*inode, error) {
	var found uint32
	err := c.dir(dir, func(num uint32, n []byte) error {
		if string(n) != name {
			return nil
		}
		found = num
		return errFound
	})
	switch {
	case errors.Is(err, errFound):
		return c.inode(found)
	case err != nil:
		return nil, err
	}
	return nil, fs.ErrNotExist
}
