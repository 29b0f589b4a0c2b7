package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/content"
	"git.thaloco.com/thaloco/banger/internal/disk"
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
func (s *Store) Pull(ctx context.Context, name string, _ PullOptions, rep progress.Reporter) (api.Image, error) {
	e, warnings, err := s.find(ctx, name)
	if err != nil {
		return api.Image{}, err
	}
	for _, w := range warnings {
		rep.Note(w.Error())
	}
	select {
	case s.pull <- struct{}{}:
		defer func() { <-s.pull }()
	case <-ctx.Done():
		return api.Image{}, s.explain(ctx, name, context.Cause(ctx))
	}
	var errs []error
	for _, src := range e.Sources {
		img, err := s.pullSource(ctx, e, src, rep)
		if err == nil {
			return img, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return api.Image{}, s.explain(ctx, name, errors.Join(errs...))
}

// explain puts the image's name before err, and gives a full disk its kind and hint.
func (s *Store) explain(ctx context.Context, name string, err error) error {
	var known *api.Error
	switch {
	case ctx.Err() != nil:
		return api.Errorf(api.KindCancelled, "pull image %q: %w", name, context.Cause(ctx))
	case errors.As(err, &known):
		return fmt.Errorf("pull image %q: %w", name, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return api.Errorf(api.KindUnavailable, "pull image %q: %w", name, err).
			WithHint("make room on the file system of %s: an image takes about 1.2GiB", s.cfg.Dir)
	}
	return fmt.Errorf("pull image %q: %w", name, err)
}

// pullSource makes an image local from one of its sources.
func (s *Store) pullSource(ctx context.Context, e entry, src source, rep progress.Reporter) (img api.Image, err error) {
	if src.kind() != sourceRecipe {
		return api.Image{}, api.Errorf(api.KindUnavailable, "%s: this version of banger cannot fetch it", src)
	}
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
	b := &debian{store: s, src: src, host: newHost(os.DirFS("/"), s.cfg.Runner, os.Geteuid()), rep: rep}
	if err := b.build(ctx, dir, filepath.Join(built, fileRootfs)); err != nil {
		return api.Image{}, err
	}
	img = e.image()
	img.Source, img.Default = src.String(), false
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
