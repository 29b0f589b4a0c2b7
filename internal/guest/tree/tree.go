// Package tree tells what is in a directory of a guest and what has become of files in it, packs some of them and removes some: what a
// host needs that keeps a manifest of a tree it copied. The agent does it (List, Hash, Pack, Remove); the host reads the answers
// (Reader), which it does not believe further than their form.
//
// Nothing below a root is reached through a link: directories are opened with openat2(2) as RESOLVE_NO_SYMLINKS has it, files with O_NOFOLLOW
// and O_NONBLOCK. The root itself is a path of the guest like any other, links in it are followed.
//
// paths.go holds the paths of a request, record.go and reader.go an answer on its way out and in, dirs.go opens what paths name, list.go and
// git.go list, hash.go, pack.go and remove.go do what they are called, workers.go lets several do it at once.
package tree

import (
	"bytes"
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/files"
)

// Bounds of a request and an answer.
const (
	MaxPath     = 4096      // bytes of a path
	MaxPaths    = 2_000_000 // that one request names
	MaxRequest  = 64 << 20  // bytes of them
	MaxEntries  = 4_000_000 // of a listing
	maxDepth    = 16        // of repositories in repositories
	buffer      = 256 << 10 // bytes, of streams and files
	maxFailure  = 16 << 10  // bytes of the record of a failure
	maxAnswer   = 2 << 30   // bytes of a listing
	maxSaid     = 4 << 10   // bytes of what git says that are kept
	shrinkTries = 3         // to read a file that becomes shorter
)

// Entry is a regular file, a symbolic link or a directory below a root.
type Entry struct {
	// Path is relative to the root, clean, and any bytes but NUL.
	Path string
	// Mode is the type and the permission bits.
	Mode fs.FileMode
	// Size is in bytes: of a link that of its target, of a directory 0.
	Size int64
	// MTime is in whole seconds since 1970.
	MTime int64
}

// State is what has become of a path. Where it is none of Missing, Dir and Special it is a regular file or a link.
type State struct {
	// Entry has the path asked for; the rest is zero where there is nothing, or something special.
	Entry
	// Missing: nothing is there, or what is above it is no directory.
	Missing bool
	// Dir: a directory is there.
	Dir bool
	// Special: a device, pipe or socket is there, or a file that never held as many bytes as it said it had, as those of /sys do.
	Special bool
	// ID is the id git gives a blob of these bytes, in hexadecimal: those of the file, or of the target of the link.
	ID string
}

// The kinds a record begins with.
const (
	kindFile    = 'f'
	kindLink    = 'l'
	kindDir     = 'd'
	kindSpecial = 's'
	kindMissing = '-'
	kindEnd     = '.'
	kindFailure = '!'
)

// kindOf is the kind of a mode as stat(2) has it.
func kindOf(mode uint32) byte {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return kindFile
	case unix.S_IFLNK:
		return kindLink
	case unix.S_IFDIR:
		return kindDir
	}
	return kindSpecial
}

// failure is an error with a path, as package files has them.
func failure(op, path string, err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		err = e.Err
	}
	return &files.EntryError{Op: op, Path: path, Err: err}
}

// absent tells whether err says that a path leads to nothing: it, or something above it, is not there or of another kind.
func absent(err error) bool {
	for _, no := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG} {
		if errors.Is(err, no) {
			return true
		}
	}
	return false
}

// hidden tells whether a path leads into a repository's own directory, in whatever case: a file system, or git on another machine, may not
// tell cases apart.
func hidden(path []byte) bool {
	for {
		part, rest, more := bytes.Cut(path, []byte{'/'})
		if isDotGit(part) {
			return true
		}
		if !more {
			return false
		}
		path = rest
	}
}

func isDotGit(name []byte) bool {
	return len(name) == 4 && name[0] == '.' && name[1]|0x20 == 'g' && name[2]|0x20 == 'i' && name[3]|0x20 == 't'
}
