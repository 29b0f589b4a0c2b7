package image

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/ext4"
	"git.thaloco.com/thaloco/banger/internal/hostfile"
	"git.thaloco.com/thaloco/banger/internal/image/bundle"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// Export writes an image as a bundle to path, which appears whole or not at all. Where a file is there already and replace is not set it is
// api.KindConflict.
func (s *Store) Export(ctx context.Context, img api.Image, path string, replace bool, rep progress.Reporter) error {
	if err := s.export(ctx, img, path, replace, rep); err != nil {
		return s.explainAs(ctx, fmt.Sprintf("export image %q", img.Name), filepath.Dir(path), err)
	}
	return nil
}

func (s *Store) export(ctx context.Context, img api.Image, path string, replace bool, rep progress.Reporter) (err error) {
	files, err := s.Files(ctx, img.Digest)
	if err != nil {
		return err
	}
	if err := CheckExport(path, replace); err != nil {
		return err
	}
	in, err := os.Open(files.Rootfs)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := newOutput(filepath.Dir(path))
	if err != nil {
		return api.Errorf(api.KindInvalid, "%w", err)
	}
	defer func() { err = errors.Join(err, out.discard()) }()
	rep.Step("write " + filepath.Base(path))
	m := bundle.Manifest{Name: img.Name, Description: img.Description, Arch: img.Arch, Kernel: img.Kernel, Source: img.Source, Env: img.Env,
		WorkDir: img.WorkDir, User: img.User, Entrypoint: img.Entry, Cmd: img.Cmd, Rootfs: bundle.Rootfs{SHA256: strings.TrimPrefix(img.Digest, "sha256:")}}
	if img.CreatedAt != nil {
		m.CreatedAt = *img.CreatedAt
	}
	if err := bundle.Write(ctx, out, m, in, rep); err != nil {
		return err
	}
	return publish(out, path, replace)
}

// outFile is a file that has no name before it is complete, so that nothing is left of it even where the daemon is killed. Where the file
// system cannot do that, it has one of its own.
type outFile struct {
	*os.File
	temp string // its name, which it is to lose; empty for none
}

func newOutput(dir string) (*outFile, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return &outFile{File: os.NewFile(uintptr(fd), filepath.Join(dir, "(unnamed)"))}, nil
	}
	f, err := os.CreateTemp(dir, exportPrefix+"*")
	if err != nil {
		return nil, err
	}
	return &outFile{File: f, temp: f.Name()}, nil
}

// exportPrefix begins the name of a bundle that has to have one before it is complete.
const exportPrefix = ".banger-export-"

// discard removes what has not been published.
func (o *outFile) discard() error {
	_ = o.Close() // closed already where all went well
	if o.temp == "" {
		return nil
	}
	return os.Remove(o.temp)
}

// link gives the file another name; it replaces nothing.
func (o *outFile) link(path string) error {
	if o.temp != "" {
		return os.Link(o.temp, path)
	}
	err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", o.Fd()), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW) // open(2), O_TMPFILE
	if err != nil {
		return &os.LinkError{Op: "link", Old: o.Name(), New: path, Err: err}
	}
	return nil
}

// publish gives a file that is complete its name.
func publish(out *outFile, path string, replace bool) error {
	if err := errors.Join(out.Chmod(0o644), out.Sync()); err != nil {
		return err
	}
	err := out.link(path)
	switch {
	case err == nil:
		return hostfile.SyncDir(filepath.Dir(path))
	case errors.Is(err, fs.ErrExist) && !replace:
		return exists(path)
	case out.temp == "" && !errors.Is(err, fs.ErrExist):
		return err
	}
	if out.temp == "" { // a rename replaces, a link does not
		temp := filepath.Join(filepath.Dir(path), exportPrefix+strings.ToLower(rand.Text()))
		if err := out.link(temp); err != nil {
			return err
		}
		out.temp = temp
	}
	if err := CheckExport(path, replace); err != nil { // a file system without links
		return err
	}
	if err := os.Rename(out.temp, path); err != nil {
		return err
	}
	out.temp = ""
	return errors.Join(out.Close(), hostfile.SyncDir(filepath.Dir(path)))
}

// CheckExport says whether a bundle can be written to a path.
func CheckExport(path string, replace bool) error {
	switch st, err := os.Lstat(path); {
	case err == nil && st.IsDir():
		return api.Errorf(api.KindInvalid, "%q is a directory", path).WithHint("name the file in it: -o %s", filepath.Join(path, "image.tar.zst"))
	case err == nil && replace && !st.Mode().IsRegular():
		return api.Errorf(api.KindInvalid, "%q is no regular file", path)
	case err == nil && !replace:
		return exists(path)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return api.Errorf(api.KindInvalid, "%w", err)
	}
	if st, err := os.Stat(filepath.Dir(path)); err != nil || !st.IsDir() {
		return api.Errorf(api.KindInvalid, "%q: there is no such directory", filepath.Dir(path))
	}
	return nil
}

func exists(path string) error {
	return api.Errorf(api.KindConflict, "%q is there already", path).WithHint("name another file, or replace it: --force")
}

// Import makes the image of a bundle local under a name, or under its own where name is empty. check says whether it may have that name, as soon as it is
// known and once more at the end. Errors are those of Register.
func (s *Store) Import(ctx context.Context, path, name string, check func(name string) error, rep progress.Reporter) (api.Image, error) {
	img, err := s.importBundle(ctx, path, name, check, rep)
	if err != nil {
		return api.Image{}, s.explainAs(ctx, fmt.Sprintf("import %q", path), s.cfg.Dir, err)
	}
	return img, nil
}

func (s *Store) importBundle(ctx context.Context, path, name string, check func(string) error, rep progress.Reporter) (api.Image, error) {
	f, err := openRegular(path)
	if err != nil {
		return api.Image{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return api.Image{}, err
	}
	// What it says of itself first: who may not have the name need not wait for the rest.
	m, err := bundle.ReadManifest(ctx, f)
	if err != nil {
		return api.Image{}, err
	}
	if err := check(cmp.Or(name, m.Name)); err != nil {
		return api.Image{}, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return api.Image{}, err
	}
	rep.Step("unpack " + filepath.Base(path))
	return s.buildAs(ctx, rep, func(ctx context.Context, _, out string) (api.Image, error) {
		m, err := bundle.Extract(ctx, progress.Reader(hostfile.Reader(ctx, f), rep, st.Size()), filepath.Dir(out), progress.Discard)
		if err != nil {
			return api.Image{}, err
		}
		img := bundled(m)
		img.Name = cmp.Or(name, img.Name)
		if err := check(img.Name); err != nil {
			return api.Image{}, err
		}
		if err := ext4.Check(out); err != nil {
			return api.Image{}, api.Errorf(api.KindInvalid, "the file system in it: %w", err)
		}
		return img, os.Chmod(out, 0o444)
	})
}

// bundled is the image that a manifest describes.
func bundled(m bundle.Manifest) api.Image {
	return api.Image{Name: m.Name, Description: m.Description, Source: m.Source, Arch: m.Arch, Kernel: m.Kernel, Env: m.Env, WorkDir: m.WorkDir, User: m.User,
		Entry: m.Entrypoint, Cmd: m.Cmd}
}
