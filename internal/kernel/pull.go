package kernel

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"syscall"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/deb"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// Pull makes the newest kernel of a name local and returns it. Where the store has it already, and every byte of it is as it
// should be, nothing but the archive's package lists is fetched. When ctx ends, nothing half-made is left, but for
// what was downloaded, which the next pull goes on with.
func (s *Store) Pull(ctx context.Context, name string, rep progress.Reporter) (api.Kernel, error) {
	r, err := findRecipe(name)
	if err != nil {
		return api.Kernel{}, err
	}
	select {
	case s.pull <- struct{}{}:
		defer func() { <-s.pull }()
	case <-ctx.Done():
		return api.Kernel{}, s.explain(ctx, "pull", name, context.Cause(ctx))
	}
	k, err := s.pullRecipe(ctx, r, rep)
	if err != nil {
		return api.Kernel{}, s.explain(ctx, "pull", name, err)
	}
	return k, nil
}

// explain puts what was done with which kernel before err, and gives a full disk its kind and hint.
func (s *Store) explain(ctx context.Context, verb, name string, err error) error {
	err = fmt.Errorf("%s kernel %q: %w", verb, name, err)
	var known *api.Error
	switch {
	case errors.As(err, &known):
		return err
	case ctx.Err() != nil:
		return api.Errorf(api.KindCancelled, "%s kernel %q: %w", verb, name, context.Cause(ctx))
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		return api.Errorf(api.KindUnavailable, "%w", err).
			WithHint("make room on the file systems of %s (a kernel takes 100 MiB, and as much again while it is made) and %s", s.cfg.Dir, s.cfg.CacheDir)
	}
	return err
}

func (s *Store) pullRecipe(ctx context.Context, r recipe, rep progress.Reporter) (api.Kernel, error) {
	pkg, err := s.findPackage(ctx, r, rep)
	if err != nil {
		return api.Kernel{}, err
	}
	label := pkg.Name + " " + pkg.Version
	if k, ok := s.have(ctx, r.name, label, rep); ok {
		return k, nil
	}
	file, err := s.deb.Download(ctx, pkg, rep)
	if err != nil {
		return api.Kernel{}, err
	}
	k, err := s.build(ctx, file, api.Kernel{Name: r.name, Description: r.description, Arch: "x86_64", Package: label,
		Source: pkg.URL(), Local: true}, rep)
	debug.FreeOSMemory() // decompressing took 150 MiB, and the daemon may now be idle for days
	if err == nil {
		s.deb.Prune(file, func(name string) bool { return strings.HasPrefix(name, r.prefix) })
	}
	return k, err
}

// have returns the kernel made of a package if the store has it undamaged.
func (s *Store) have(ctx context.Context, name, label string, rep progress.Reporter) (api.Kernel, bool) {
	kernels, err := s.List()
	if err != nil {
		return api.Kernel{}, false
	}
	for _, k := range kernels {
		if k.Name != name || k.Package != label {
			continue
		}
		rep.Step("check kernel " + k.Release)
		err := s.Verify(ctx, k.Digest)
		if err == nil {
			return k, true
		}
		if ctx.Err() == nil {
			rep.Note(err.Error() + "; it is made again")
		}
	}
	return api.Kernel{}, false
}

// findPackage returns the newest package of r in the release and in its security archive.
func (s *Store) findPackage(ctx context.Context, r recipe, rep progress.Reporter) (deb.Package, error) {
	rep.Step("look for Debian's newest kernel")
	index, err := s.suite(ctx, s.cfg.Mirrors.Main, r.suite, rep)
	if err != nil {
		return deb.Package{}, err
	}
	security, err := s.security(ctx, r, rep)
	if err != nil {
		return deb.Package{}, err
	}
	index = append(index, security...)
	meta, ok := index.Newest(r.meta, deb.Relation{})
	if !ok {
		return deb.Package{}, s.incomplete("find package %q: it is not in %s", r.meta, r.suite)
	}
	depends, err := deb.ParseRelations(meta.Depends)
	if err != nil {
		return deb.Package{}, fmt.Errorf("read package %q: %w", r.meta, err)
	}
	for _, alternatives := range depends {
		for _, rel := range alternatives {
			if !strings.HasPrefix(rel.Name, "linux-image-") {
				continue
			}
			if !strings.HasPrefix(rel.Name, r.prefix) {
				return deb.Package{}, s.incomplete("find package: %s %s is of %q, not of %s", meta.Name, meta.Version, rel.Name, r.name)
			}
			if pkg, ok := index.Newest(rel.Name, rel); ok {
				return pkg, nil
			}
		}
	}
	return deb.Package{}, s.incomplete("find package: %s %s depends on %q, none of which is in %s", meta.Name, meta.Version, meta.Depends, r.suite)
}

// incomplete is the error of an archive that is signed but lacks what should be in it.
func (s *Store) incomplete(format string, args ...any) error {
	return api.Errorf(api.KindUnavailable, format, args...).
		WithHint("%s does not carry what Debian does: name another mirror as debian_mirror in the configuration", s.cfg.Mirrors.Main)
}

// security returns the packages of the security archive, from the first address that answers. Where none does, the release itself must
// do: a mirror in a closed network need not have it.
func (s *Store) security(ctx context.Context, r recipe, rep progress.Reporter) (deb.Index, error) {
	var errs []error
	for _, mirror := range s.cfg.Mirrors.Security {
		index, err := s.suite(ctx, mirror, r.suite+"-security", rep)
		switch {
		case err == nil:
			return index, nil
		case ctx.Err() != nil || !deb.IsUnreachable(err):
			return nil, err
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		s.cfg.Log.Warn("no security archive can be reached", "error", err.Error())
		rep.Note("Debian's security archive cannot be reached: the kernel may lack its newest fixes")
	}
	return nil, nil
}

func (s *Store) suite(ctx context.Context, mirror, codename string, rep progress.Reporter) (deb.Index, error) {
	rel, err := s.deb.Release(ctx, mirror, codename)
	if err != nil {
		return nil, err
	}
	return s.deb.Packages(ctx, rel, "main", arch, func(name string) bool {
		return strings.HasPrefix(name, "linux-image-")
	}, rep)
}
