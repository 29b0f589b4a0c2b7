// Package filesync packs what a user wants in the home of every new VM: files and directories of the host, as the tar stream that
// the guest unpacks.
package filesync

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostfile"
)

// Entry is one file or directory.
type Entry struct {
	// Host is absolute. A link there is followed.
	Host string
	// Guest is absolute and where it goes in the guest.
	Guest string
	// Mode is that of a file; what is in a directory keeps its own.
	Mode fs.FileMode
}

// maxEntries is how many files, links and directories one entry may be.
const maxEntries = 100_000

// Pack writes entries as one tar stream, whose names are relative to the guest's root and whose files belong to root. What is not there, and what
// in a directory is neither file, directory nor a link that stays in it, is left out: warnings say so, a line each. Any other
// failure is an error. Neither has anything of what is in a file.
func Pack(ctx context.Context, w io.Writer, entries []Entry) (warnings []string, err error) {
	p := &packer{ctx: ctx, tar: tar.NewWriter(w)}
	for i, e := range entries {
		if err := p.entry(e); err != nil {
			return p.warnings, fmt.Errorf("file_sync[%d]: copy %q: %w", i, e.Host, err)
		}
	}
	return p.warnings, p.tar.Close()
}

type packer struct {
	ctx      context.Context
	tar      *tar.Writer
	entries  int
	warnings []string
}

func (p *packer) warn(format string, args ...any) {
	p.warnings = append(p.warnings, fmt.Sprintf(format, args...))
}

// entry packs one entry.
func (p *packer) entry(e Entry) error {
	p.entries = 0
	f, err := os.OpenFile(e.Host, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe is not waited for
	switch {
	case errors.Is(err, fs.ErrNotExist):
		p.warn("file_sync: %s is not on this host: not copied", e.Host)
		return nil
	case err != nil:
		return bare(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return bare(err)
	}
	name := strings.TrimPrefix(path.Clean(e.Guest), "/")
	switch {
	case st.Mode().IsRegular():
		return p.file(f, name, e.Mode)
	case !st.IsDir():
		return errors.New("it is neither a file nor a directory")
	}
	root, err := os.OpenRoot(e.Host)
	if err != nil {
		return bare(err)
	}
	defer root.Close()
	return p.dir(root, e, ".", name)
}

// dir packs a directory of root, and what is in it.
func (p *packer) dir(root *os.Root, e Entry, at, name string) error {
	if err := p.next(); err != nil {
		return err
	}
	st, err := root.Stat(at)
	if err != nil {
		return bare(err)
	}
	if err := p.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: int64(st.Mode().Perm()), ModTime: st.ModTime(), Format: tar.FormatPAX}); err != nil {
		return err
	}
	children, err := fs.ReadDir(root.FS(), at) // sorted by name
	if err != nil {
		return bare(err)
	}
	for _, c := range children {
		if err := p.child(root, e, path.Join(at, c.Name()), path.Join(name, c.Name())); err != nil {
			return err
		}
	}
	return nil
}

// child packs what is in a directory.
func (p *packer) child(root *os.Root, e Entry, at, name string) error {
	st, err := root.Lstat(at)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it went away
	}
	if err != nil {
		return bare(err)
	}
	shown := filepath.Join(e.Host, at)
	switch {
	case st.IsDir():
		return p.dir(root, e, at, name)
	case st.Mode().IsRegular():
		f, err := root.OpenFile(at, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("%q: %w", at, bare(err))
		}
		defer f.Close()
		if err := p.file(f, name, st.Mode().Perm()); err != nil {
			return fmt.Errorf("%q: %w", at, err)
		}
		return nil
	case st.Mode().Type() == fs.ModeSymlink:
		target, err := root.Readlink(at)
		if err != nil {
			return fmt.Errorf("%q: %w", at, bare(err))
		}
		if !inside(path.Dir(at), target) {
			p.warn("file_sync: %s leads out of %s: not copied", shown, e.Host)
			return nil
		}
		return errors.Join(p.next(), p.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: st.ModTime(), Format: tar.FormatPAX}))
	}
	p.warn("file_sync: %s is neither file, directory nor link: not copied", shown)
	return nil
}

// inside tells whether a link in a directory stays in the tree that the directory is in.
func inside(dir, target string) bool {
	return !path.IsAbs(target) && filepath.IsLocal(path.Join(dir, target))
}

// file packs an open file as long as it is now.
func (p *packer) file(f *os.File, name string, mode fs.FileMode) error {
	if err := p.next(); err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return bare(err)
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(mode.Perm()), Size: st.Size(), ModTime: st.ModTime(), Format: tar.FormatPAX}
	if err := p.tar.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(p.tar, io.LimitReader(hostfile.Reader(p.ctx, f), st.Size()))
	switch {
	case err != nil:
		return bare(err)
	case n < st.Size():
		return errors.New("it changed while it was copied")
	}
	return nil
}

// next counts one more file, and ends with the context.
func (p *packer) next() error {
	if p.ctx.Err() != nil {
		return context.Cause(p.ctx)
	}
	if p.entries++; p.entries > maxEntries {
		return api.Errorf(api.KindInvalid, "more than %d files", maxEntries)
	}
	return nil
}

// bare is an error without the path that is in it, which is said already.
func bare(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
