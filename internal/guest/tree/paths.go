package tree

import (
	"bytes"
	"fmt"
	"io"

	"git.thaloco.com/thaloco/banger/api"
)

// maxShown is how much of a bad path an error shows, in bytes.
const maxShown = 200

// Paths are the paths of a request as they travel, each with a NUL at its end. They are valid.
type Paths []byte

// EncodePaths makes a request of paths; the error is a *api.Error of KindInvalid.
func EncodePaths(paths []string) (Paths, error) {
	if len(paths) > MaxPaths {
		return nil, tooManyPaths()
	}
	n := 0
	for _, p := range paths {
		n += len(p) + 1
	}
	if n > MaxRequest {
		return nil, tooManyPaths()
	}
	b := make([]byte, 0, n)
	for _, p := range paths {
		b = append(b, p...)
		if path := b[len(b)-len(p):]; !valid(path) {
			return nil, badPath(path)
		}
		b = append(b, 0)
	}
	return b, nil
}

// ReadPaths reads what EncodePaths made; the error is that of r or a *api.Error of KindInvalid.
func ReadPaths(r io.Reader) (Paths, error) {
	var b bytes.Buffer
	if _, err := b.ReadFrom(io.LimitReader(r, MaxRequest+1)); err != nil {
		return nil, fmt.Errorf("read paths: %w", err)
	}
	if b.Len() > MaxRequest {
		return nil, tooManyPaths()
	}
	n := 0
	for rest := b.Bytes(); len(rest) > 0; n++ {
		end := bytes.IndexByte(rest, 0)
		switch {
		case end < 0:
			return nil, api.Errorf(api.KindInvalid, "the list of paths was cut")
		case !valid(rest[:end]):
			return nil, badPath(rest[:end])
		case n >= MaxPaths:
			return nil, tooManyPaths()
		}
		rest = rest[end+1:]
	}
	return b.Bytes(), nil
}

func tooManyPaths() error {
	return api.Errorf(api.KindInvalid, "more than %d paths or %d bytes of them", MaxPaths, MaxRequest)
}

func badPath(path []byte) error {
	return api.Errorf(api.KindInvalid, "path %q is not a clean relative one of 1 to %d bytes", path[:min(len(path), maxShown)], MaxPath)
}

// next splits off the first path. It keeps its NUL, as all that is given to the kernel.
func (p Paths) next() (path []byte, rest Paths) {
	end := bytes.IndexByte(p, 0) + 1
	return p[:end], p[end:]
}

// take splits off the first n paths, or as many as there are.
func (p Paths) take(n int) (some, rest Paths) {
	end := 0
	for ; n > 0 && end < len(p); n-- {
		end += bytes.IndexByte(p[end:], 0) + 1
	}
	return p[:end], p[end:]
}

// valid tells whether a path is relative, clean, and no longer than MaxPath: no part of it is empty, "." or "..".
func valid(path []byte) bool {
	if len(path) > MaxPath {
		return false
	}
	start := 0
	for i := 0; ; i++ {
		if i < len(path) && path[i] == 0 {
			return false
		}
		if i < len(path) && path[i] != '/' {
			continue
		}
		switch part := path[start:i]; {
		case len(part) == 0, len(part) == 1 && part[0] == '.', len(part) == 2 && part[0] == '.' && part[1] == '.':
			return false
		}
		if i == len(path) {
			return true
		}
		start = i + 1
	}
}
