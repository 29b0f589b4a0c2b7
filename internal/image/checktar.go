package image

import (
	"archive/tar"
	"fmt"
	"path"
	"strings"
)

// Limits of a tar that becomes an image: what is beyond them is made to fill memory.
const (
	maxTarEntries = 4 << 20
	maxTarName    = 4095 // Linux: PATH_MAX without its end
)

// badTar is what is wrong with a tar.
type badTar struct{ err error }

// Error implements error.
func (b *badTar) Error() string { return b.err.Error() }

// Unwrap returns what is wrong.
func (b *badTar) Unwrap() error { return b.err }

// tarCheck looks at the entries of a tar, one after the other: nothing in it may be meant to leave the directory it is unpacked in. No name is
// absolute or has "..", no hard link leads out, and nothing is below a symbolic link.
type tarCheck struct {
	links   map[string]bool // the symbolic links there were
	entries int
}

// entry looks at the next entry; its error is a *badTar.
func (t *tarCheck) entry(h *tar.Header) error {
	if t.entries++; t.entries > maxTarEntries {
		return &badTar{fmt.Errorf("more than %d files", maxTarEntries)}
	}
	if err := t.check(h); err != nil {
		return &badTar{err}
	}
	return nil
}

func (t *tarCheck) check(h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := within(h.Name)
	if err != nil {
		return err
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if t.links[dir] {
			return fmt.Errorf("%q is below %q, which is a symbolic link", h.Name, dir)
		}
	}
	if h.Typeflag == tar.TypeLink {
		if _, err := within(h.Linkname); err != nil {
			return fmt.Errorf("%q is a hard link: %w", h.Name, err)
		}
	}
	if h.Typeflag == tar.TypeSymlink {
		t.links[name] = true
	} else {
		delete(t.links, name)
	}
	return nil
}

// within is a name of a tar as a clean relative path.
func within(name string) (string, error) {
	switch {
	case len(name) > maxTarName:
		return "", fmt.Errorf("a name of %d bytes", len(name))
	case strings.HasPrefix(name, "/"):
		return "", fmt.Errorf("%q is an absolute path", name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", fmt.Errorf("%q leads out of the directory", name)
		}
	}
	return path.Clean(name), nil
}
