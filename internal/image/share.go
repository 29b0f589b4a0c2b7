package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

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
		return s.explainAs(ctx, fmt.Sprintf("export image %q", img.Name), err)
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
	out, err := os.CreateTemp(filepath.Dir(path), ".banger-export-*")
	if err != nil {
		return api.Errorf(api.KindInvalid, "%w", err)
	}
	defer func() {
		_ = out.Close() // closed already where all went well
		if err != nil {
			err = errors.Join(err, os.Remove(out.Name()))
		}
	}()
	rep.Step("write " + filepath.Base(path))
	m := bundle.Manifest{Name: img.Name, Description: img.Description, Arch: img.Arch, Kernel: img.Kernel, Source: img.Source, Env: img.Env,
		WorkDir: img.WorkDir, User: img.User, Entrypoint: img.Entry, Cmd: img.Cmd}
	if img.CreatedAt != nil {
		m.CreatedAt = *img.CreatedAt
	}
	if err := bundle.Write(ctx, out, m, in, rep); err != nil {
		return err
	}
	return publish(out, path, replace)
}

// publish gives a file that is complete its name.
func publish(out *os.File, path string, replace bool) error {
	if err := errors.Join(out.Chmod(0o644), out.Sync(), out.Close()); err != nil {
		return err
	}
	if replace {
		if err := os.Rename(out.Name(), path); err != nil {
			return err
		}
		return hostfile.SyncDir(filepath.Dir(path))
	}
	if err := os.Link(out.Name(), path); errors.Is(err, fs.ErrExist) { // as opposed to rename it replaces nothing
		return exists(path)
	} else if err != nil { // a file system without links
		if err := CheckExport(path, false); err != nil {
			return err
		}
		return os.Rename(out.Name(), path)
	}
	return errors.Join(os.Remove(out.Name()), hostfile.SyncDir(filepath.Dir(path)))
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

// Import makes the image of a bundle local under a name, or under its own where name is empty. check says whether it may have that name, once it is
// known. Errors are those of Register.
func (s *Store) Import(ctx context.Context, path, name string, check func(name string) error, rep progress.Reporter) (api.Image, error) {
	img, err := s.importBundle(ctx, path, name, check, rep)
	if err != nil {
		return api.Image{}, s.explainAs(ctx, fmt.Sprintf("import %q", path), err)
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
	rep.Step("unpack " + filepath.Base(path))
	return s.buildAs(ctx, rep, func(ctx context.Context, _, out string) (api.Image, error) {
		m, err := bundle.Extract(ctx, progress.Reader(hostfile.Reader(ctx, f), rep, st.Size()), filepath.Dir(out), progress.Discard)
		if err != nil {
			return api.Image{}, err
		}
		img := bundled(m)
		if name != "" {
			img.Name = name
		}
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
