package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/content"
	"git.thaloco.com/thaloco/banger/internal/disk"
	"git.thaloco.com/thaloco/banger/internal/ext4"
	"git.thaloco.com/thaloco/banger/internal/hostfile"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// PullOptions say how an image is made local.
type PullOptions struct {
	// Build builds it with its recipe also where a source serves it ready-made.
	Build bool
}

// Pull makes the image of a name local and returns it. It does not look
// whether an image of that name is local already: names are the daemon's. When ctx ends, nothing half-made is left.
//
// Errors: api.KindNotFound for an unknown name, with near ones in the hint;
// api.KindUnavailable where a program, a mirror or room is missing; api.KindCancelled.
func (s *Store) Pull(ctx context.Context, name string, o PullOptions, rep progress.Reporter) (api.Image, error) {
	e, warnings, err := s.find(ctx, name)
	if err != nil {
		return api.Image{}, err
	}
	for _, w := range warnings {
		rep.Note(w.Error())
	}
	var errs []error
	for _, src := range e.Sources {
		if o.Build && src.kind() != sourceRecipe {
			continue
		}
		img, err := s.pullSource(ctx, e, src, rep)
		if err == nil {
			return img, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) == 0 {
		return api.Image{}, api.Errorf(api.KindInvalid, "pull image %q: the catalog has no recipe to build it with", name).WithHint("leave out --build")
	}
	return api.Image{}, s.explain(ctx, name, errors.Join(errs...))
}

// explain says of which pull an error is.
func (s *Store) explain(ctx context.Context, name string, err error) error {
	return s.explainAs(ctx, fmt.Sprintf("pull image %q", name), s.cfg.Dir, err)
}

// explainAs puts before err what was to be done, and gives a full disk its kind and hint; it is that of dir, or of the cache.
func (s *Store) explainAs(ctx context.Context, what, dir string, err error) error {
	var known *api.Error
	switch {
	case ctx.Err() != nil:
		return api.Errorf(api.KindCancelled, "%s: %w", what, context.Cause(ctx))
	case errors.Is(err, syscall.ENOSPC):
		return s.full(what, dir, err, syscall.ENOSPC)
	case errors.Is(err, syscall.EDQUOT):
		return s.full(what, dir, err, syscall.EDQUOT)
	case errors.As(err, &known):
		return fmt.Errorf("%s: %w", what, err)
	}
	if bad, ok := errors.AsType[*badTar](err); ok {
		return api.Errorf(api.KindInvalid, "%s: %w", what, bad)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// full is the error for a disk that has no room. The path of the half-made file, which is gone when this is read, is not in it.
func (s *Store) full(what, dir string, err error, why syscall.Errno) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok && strings.HasPrefix(p.Path, s.cfg.CacheDir+string(filepath.Separator)) {
		dir = s.cfg.CacheDir // what is there is gone on with
	}
	return api.Errorf(api.KindUnavailable, "%s: %w", what, why).
		WithHint("make room on the file system of %s: an image takes a gigabyte or more; banger image prune removes what is not used", dir)
}

// pullSource makes an image local from one of its sources.
func (s *Store) pullSource(ctx context.Context, e entry, src source, rep progress.Reporter) (api.Image, error) {
	switch src.kind() {
	case sourceBundle:
		return s.buildAs(ctx, rep, func(ctx context.Context, _, out string) (api.Image, error) {
			m, err := s.fetchBundle(ctx, src.Bundle, src.SHA256, filepath.Dir(out), rep)
			if err != nil {
				return api.Image{}, err
			}
			if err := ext4.Check(out); err != nil {
				return api.Image{}, api.Errorf(api.KindInvalid, "the file system in %s: %w", src, err)
			}
			return e.over(bundled(m), src), nil
		})
	case sourceOCI:
		img, err := s.pullReference(ctx, src.OCI, ReferenceOptions{Name: e.Name, Kernel: e.Kernel}, rep)
		return e.over(img, src), err
	}
	select {
	case s.pull <- struct{}{}:
		defer func() { <-s.pull }()
	case <-ctx.Done():
		return api.Image{}, context.Cause(ctx)
	}
	b := &debian{store: s, src: src, host: newHost(os.DirFS("/"), s.cfg.Runner, os.Geteuid()), rep: rep}
	img := e.over(api.Image{}, src)
	if why := b.host.check(); b.inVM(why) {
		noteVM(why, rep)
		img.Source += ", in a VM of " + src.Base
		return s.build(ctx, img, rep, func(ctx context.Context, _, out string) error { return b.buildInVM(ctx, img, out) })
	}
	return s.build(ctx, img, rep, b.build)
}

// build is buildAs of an image that is known beforehand.
func (s *Store) build(ctx context.Context, img api.Image, rep progress.Reporter, drive func(ctx context.Context, dir, out string) error) (api.Image, error) {
	return s.buildAs(ctx, rep, func(ctx context.Context, dir, out string) (api.Image, error) { return img, drive(ctx, dir, out) })
}

// buildAs has an image made in a directory of its own, and puts it at its place: drive writes the base drive to out, says what image it is,
// and may use dir. Whatever happens, nothing half-made is left.
func (s *Store) buildAs(ctx context.Context, rep progress.Reporter, drive func(ctx context.Context, dir, out string) (api.Image, error)) (api.Image, error) {
	if err := os.MkdirAll(s.cfg.Dir, 0o755); err != nil {
		return api.Image{}, err
	}
	dir, err := os.MkdirTemp(s.cfg.Dir, tmpPrefix)
	if err != nil {
		return api.Image{}, err
	}
	defer func() {
		if rerr := s.removeBuild(dir); rerr != nil {
			s.cfg.Log.Warn("cannot remove what a build left", "path", dir, "error", rerr.Error())
		}
	}()
	built := filepath.Join(dir, "content")
	if err := os.Mkdir(built, 0o755); err != nil {
		return api.Image{}, err
	}
	img, err := drive(ctx, dir, filepath.Join(built, fileRootfs))
	if err != nil {
		return api.Image{}, err
	}
	return s.install(ctx, built, img, rep)
}

// install puts what is in built, a directory of the build, at its place by digest.
func (s *Store) install(ctx context.Context, built string, img api.Image, rep progress.Reporter) (api.Image, error) {
	rep.Step("verify the base drive")
	file, err := content.Hash(ctx, built, fileRootfs, rep)
	if err != nil {
		return api.Image{}, err
	}
	now := s.cfg.Now().UTC()
	img.Digest, img.Local, img.CreatedAt = "sha256:"+file.SHA256, true, &now
	if img.SizeBytes, img.DiskBytes, err = disk.Usage(filepath.Join(built, fileRootfs)); err != nil {
		return api.Image{}, err
	}
	dir, err := s.content.Path(img.Digest)
	if err != nil {
		return api.Image{}, err
	}
	if s.Verify(ctx, img.Digest) == nil {
		return img, nil // the same again: what is there may be in use
	}
	r := record{Version: recordVersion, Image: img, RootfsSize: file.Size, RootfsModTime: file.ModTime}
	if err := r.write(built); err != nil {
		return api.Image{}, err
	}
	if ctx.Err() != nil {
		return api.Image{}, context.Cause(ctx)
	}
	if err := s.content.Discard(dir); err != nil { // a damaged one
		return api.Image{}, err
	}
	if err := os.Rename(built, dir); err != nil {
		return api.Image{}, err
	}
	return img, hostfile.SyncDir(s.cfg.Dir)
}
