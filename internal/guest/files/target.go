package files

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
)

// Target is where a copy goes, as cp and docker cp read it. A directory at Path takes the copy in under the
// source's name; what is no directory is replaced by a file or link; where nothing is the copy gets that name,
// and only the last part of it may be missing.
type Target struct {
	// Path may end with a slash: then it must be a directory, or the source one that becomes it.
	Path string
	// Name is the source's name; empty for the one in the stream.
	Name string
	// Contents: what is in the source, which must be a directory, is copied, not the directory itself.
	Contents bool
	// Into: Path must be a directory that is there.
	Into bool
	// Stream: the stream is unpacked into Path as it is, a directory that is there.
	Stream bool
}

// Receive reads a tar stream of one file, link or directory with what is in it, and puts it where t says.
// After an error what was copied before it remains, but no part of a file does.
func Receive(ctx context.Context, r io.Reader, t Target, opt Options) (Result, error) {
	s := newStream(r)
	first, err := s.next()
	if errors.Is(err, io.EOF) && !t.Stream {
		return Result{}, errors.New("nothing came")
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return Result{}, err
	}
	dir, from, to := t.Path, "", ""
	if t.Stream {
		t.Into = true
		_, err = t.directory()
	} else {
		dir, from, to, err = t.place(first, opt.Strict)
	}
	if err != nil {
		return Result{}, err
	}
	u, err := newUnpacker(ctx, dir, opt)
	if err != nil {
		return Result{}, err
	}
	defer u.close()
	u.from, u.to, u.shown = from, to, dir
	if first != nil {
		err = u.all(s, first)
	}
	return u.result, err
}

// place decides by the first entry: the directory to unpack in, and that from becomes to in it.
func (t Target) place(first *tar.Header, strict bool) (dir, from, to string, err error) {
	from, err = local(first.Name, strict)
	if err != nil {
		return "", "", "", err
	}
	if from == "." || strings.Contains(from, "/") {
		return "", "", "", errWholeStream
	}
	name := t.Name
	if name == "" {
		name = from
	}
	isDir := first.Typeflag == tar.TypeDir
	if t.Contents && !isDir {
		return "", "", "", api.Errorf(api.KindInvalid, "%q is not a directory", name)
	}
	there, err := t.directory()
	switch {
	case err != nil:
		return "", "", "", err
	case there && t.Contents:
		return t.Path, from, ".", nil
	case there:
		return t.Path, from, name, nil
	}
	return t.asName(isDir, name, from)
}

// directory tells whether the target is a directory that is there, and refuses what cannot become anything.
func (t Target) directory() (bool, error) {
	st, err := os.Stat(t.Path)
	switch {
	case err == nil && st.IsDir():
		return true, nil
	case err == nil && t.Into, errors.Is(err, unix.ENOTDIR):
		return false, notADirectory(t.Path)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return false, reason(t.Path, err)
	case err != nil && t.Into:
		return false, noDirectory(t.Path)
	}
	return false, nil
}

// asName is place where the copy gets the target's own name.
func (t Target) asName(isDir bool, name, from string) (dir, _, to string, err error) {
	clean := filepath.Clean(t.Path)
	dir, to = filepath.Dir(clean), filepath.Base(clean)
	st, err := os.Lstat(clean)
	switch {
	case err == nil && isDir:
		return "", "", "", api.Errorf(api.KindInvalid, "copy directory %q to %q: there is a file of that name", name, t.Path)
	case err == nil && special(clean, st):
		return "", "", "", api.Errorf(api.KindInvalid, "copy to %q: it is neither file nor directory", t.Path)
	case err == nil:
		return dir, from, to, nil
	case !isDir && strings.HasSuffix(t.Path, "/"):
		return "", "", "", noDirectory(t.Path)
	}
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		if err == nil {
			return "", "", "", notADirectory(dir)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return "", "", "", noDirectory(dir)
		}
		return "", "", "", reason(dir, err)
	}
	return dir, from, to, nil
}

// special reports whether a path is no file, or a link that leads to none: whoever names /dev/stdout does not want the link replaced.
// A link that leads nowhere is a link. st is what Lstat says of the path.
func special(p string, st fs.FileInfo) bool {
	if st.Mode().Type() == fs.ModeSymlink {
		to, err := os.Stat(p)
		return err == nil && !to.Mode().IsRegular()
	}
	return !st.Mode().IsRegular()
}

func noDirectory(p string) error {
	return api.Errorf(api.KindNotFound, "no directory %q", path.Clean(p)).WithHint("make it first")
}

func notADirectory(p string) error {
	return api.Errorf(api.KindInvalid, "%q is not a directory", path.Clean(p))
}

// reason is why a path cannot be used.
func reason(p string, err error) error {
	return &EntryError{Op: "copy to", Path: p, Err: bare(err)}
}
