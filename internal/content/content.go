// Package content keeps immutable directories by their content: each is named
// sha256-HEX by its digest, and holds a record, a JSON file, of what is in it.
//
// A directory is built beside the others under a name that begins with
// TmpPrefix, and renamed when it is complete; it is made to vanish by the opposite. So whatever is named by a digest
// is whole, until something else damages it; what a crash leaves is Sweep's.
//
// content.go finds and removes directories, record.go reads and writes records,
// file.go tells whether the files are as recorded. What the digest covers, and what a record says, is the user's.
package content

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

// TmpPrefix begins the names of directories that are not complete.
const TmpPrefix = ".tmp-"

const (
	digestPrefix = "sha256:"
	namePrefix   = "sha256-"
)

// Store is a directory of directories named by digest.
type Store struct {
	// Dir need not exist before something is put there.
	Dir string
	// Noun is what errors call a directory, such as "image"; its plural is with an s.
	Noun string
	// Log is told what Sweep removes.
	Log *slog.Logger
}

// Path returns the directory of a digest, "sha256:HEX", whether it is there or not. Any other text is api.KindInvalid.
func (s Store) Path(digest string) (string, error) {
	hexa, ok := strings.CutPrefix(digest, digestPrefix)
	if b, err := hex.DecodeString(hexa); !ok || err != nil || len(b) != 32 || strings.ToLower(hexa) != hexa {
		return "", api.Errorf(api.KindInvalid, "find %s %q: not a digest", s.Noun, digest).
			WithHint("a digest is sha256: and 64 hexadecimal digits")
	}
	return filepath.Join(s.Dir, namePrefix+hexa), nil
}

// List returns what read makes of each directory in the store, in the order of their digests; those it fails on, such as damaged ones, are left out.
func List[T any](s Store, read func(dir string) (T, error)) ([]T, error) {
	entries, err := s.entries(namePrefix)
	if err != nil {
		return nil, fmt.Errorf("list %ss: %w", s.Noun, err)
	}
	var out []T
	for _, e := range entries {
		if v, err := read(filepath.Join(s.Dir, e.Name())); err == nil {
			out = append(out, v)
		}
	}
	return out, nil
}

// Remove deletes the directory of a digest; one that is not there is fine.
func (s Store) Remove(digest string) error {
	dir, err := s.Path(digest)
	if err != nil {
		return err
	}
	if err := s.Discard(dir); err != nil {
		return fmt.Errorf("remove %s %q: %w", s.Noun, digest, err)
	}
	return nil
}

// Discard makes a directory of the store vanish at once, then deletes it; one that is not there is fine.
func (s Store) Discard(dir string) error {
	tmp, err := os.MkdirTemp(s.Dir, TmpPrefix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.Rename(dir, filepath.Join(tmp, "old")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.RemoveAll(tmp)
}

// Sweep deletes, with remove, the incomplete directories that were last changed before the given time, such as the start
// of the process. It goes on past those that it cannot delete.
func (s Store) Sweep(before time.Time, remove func(dir string) error) error {
	entries, err := s.entries(TmpPrefix)
	if err != nil {
		return fmt.Errorf("sweep %ss: %w", s.Noun, err)
	}
	var errs []error
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && info.ModTime().Before(before) {
			dir := filepath.Join(s.Dir, e.Name())
			s.Log.Info("removing what is left of a broken build", "path", dir)
			err = remove(dir)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep %ss: %w", s.Noun, err))
		}
	}
	return errors.Join(errs...)
}

// entries returns what is in the store by names that begin with prefix, sorted.
func (s Store) entries(prefix string) ([]os.DirEntry, error) {
	entries, err := os.ReadDir(s.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []os.DirEntry
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			out = append(out, e)
		}
	}
	return out, nil
}
