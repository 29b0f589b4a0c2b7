// Package files moves trees of files as tar streams: Pack writes one, Unpack reads one into a directory,
// Receive puts one where cp would. Neither ever writes outside of its directory, whatever names and links
// the stream or the directory hold. The agent unpacks what the host sends; the host unpacks what comes
// out of a guest with the same code, strictly and with limits (package hostfiles).
//
// target.go decides where a copy goes, stream.go reads tar and tells a whole stream from a cut one, unpack.go makes entries,
// write.go the files among them, dirs.go the directories they are in, pack.go is the way back.
package files

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// Options restrict what is unpacked. The zero value takes everything but devices, sockets, pipes, and setuid bits.
type Options struct {
	// Own gives all files to Owner instead of the owners the stream names.
	Own bool
	// Owner is who gets the files where Own is set and the caller may give them away; nil for the calling user.
	Owner *Owner
	// Special keeps setuid, setgid and sticky bits.
	Special bool
	// Merge has the rules of cp: a directory that is there stays as it is and takes what comes, a directory
	// never takes the place of a file nor a file that of a directory, and what is replaced is
	// replaced whole or not at all.
	Merge bool
	// Strict is for streams nobody vouches for: nothing is written through a link, wherever it leads and whoever made
	// it; hard links lead to files of this stream only; names are relative and of bounded length; a directory
	// comes before what is in it; no entry stands for more bytes than the stream holds (sparse files).
	Strict bool
	// MaxBytes bounds the bytes written, holes left out, MaxEntries the number of entries; 0 for no bound.
	MaxBytes   int64
	MaxEntries int
	// Progress is called with the number of bytes that were written since the last call, or skipped as a hole; may be nil.
	Progress func(n int64)
}

// Owner is a user and a group.
type Owner struct{ UID, GID int }

// Result is what Pack or Unpack did.
type Result struct {
	Entries int
	// Bytes is the sum of the sizes of regular files.
	Bytes int64
	// Skipped names what was left out and why, the first 20 lines.
	Skipped []string
}

// Bounds of a Result, and of a strict stream.
const (
	maxSkipped     = 20
	maxSkippedName = 200      // bytes
	maxName        = 4096     // bytes of an entry's name
	maxDirNames    = 64 << 20 // bytes of the names of all directories
)

func (r *Result) skip(name, why string) {
	if len(r.Skipped) >= maxSkipped {
		return
	}
	if len(name) > maxSkippedName {
		name = "…" + name[len(name)-maxSkippedName:]
	}
	r.Skipped = append(r.Skipped, fmt.Sprintf("%q: %s", name, why))
}

// EntryError is a failure with one file, link or directory.
type EntryError struct {
	Op   string // "copy" or "unpack"
	Path string
	Err  error
}

// Error implements error.
func (e *EntryError) Error() string { return fmt.Sprintf("%s %q: %v", e.Op, e.Path, e.Err) }

// Unwrap returns the cause.
func (e *EntryError) Unwrap() error { return e.Err }

// local makes the name of an entry relative, as tar does; the error is that it leads elsewhere.
func local(name string, strict bool) (string, error) {
	if strict && (strings.HasPrefix(name, "/") || len(name) > maxName) {
		return "", fmt.Errorf("unpack %q: the name is absolute or too long", name[:min(len(name), maxSkippedName)])
	}
	clean := path.Clean("/" + strings.TrimSuffix(name, "/"))[1:]
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", fmt.Errorf("unpack %q: the name leads out of the directory", name)
		}
	}
	if strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("unpack %q: the name contains a NUL", name)
	}
	if clean == "" {
		return ".", nil
	}
	return clean, nil
}

// ErrTooBig says that a stream holds more than Options.MaxBytes.
var ErrTooBig = errors.New("the stream is too big")

// errWholeStream says that a stream is no copy of one thing.
var errWholeStream = errors.New("the stream holds something else than what was asked for")
