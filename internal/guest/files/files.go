// Package files moves trees of files as tar streams: Pack writes one, Unpack
// reads one into a directory and never writes outside of it, whatever names and links
// the stream or the directory hold. The agent unpacks what the host sends; the host unpacks what comes
// out of a guest with the same code and with limits.
package files

import (
	"fmt"
	"path"
	"strings"
)

// Options restrict what Unpack takes. The zero value takes everything but devices, sockets, pipes, and setuid bits.
type Options struct {
	// Own gives all files to the calling user instead of the owners the stream names.
	Own bool
	// Special keeps setuid, setgid and sticky bits.
	Special bool
	// MaxBytes bounds the sum of all file sizes, MaxEntries the number of entries; 0 for no bound.
	MaxBytes   int64
	MaxEntries int
}

// Result is what Pack or Unpack did.
type Result struct {
	Entries int
	// Bytes is the sum of the sizes of regular files.
	Bytes int64
	// Skipped names what was left out and why, the first 20 lines.
	Skipped []string
}

// maxSkipped bounds Result.Skipped.
const maxSkipped = 20

func (r *Result) skip(name, why string) {
	if len(r.Skipped) < maxSkipped {
		r.Skipped = append(r.Skipped, fmt.Sprintf("%q: %s", name, why))
	}
}

// local makes the name of an entry relative, as tar does; the error is that it leads elsewhere.
func local(name string) (string, error) {
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
