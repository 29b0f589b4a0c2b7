package daemon

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/deb"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/image"
	"git.thaloco.com/thaloco/banger/internal/kernel"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/suggest"
	"git.thaloco.com/thaloco/banger/internal/vm"
	"git.thaloco.com/thaloco/banger/internal/vmm/probe"
	"git.thaloco.com/thaloco/banger/internal/vmm/supervise"
)

// supplies is vm.Supplies: it finds what a VM is made of and runs on.
type supplies struct {
	images  images
	kernels kernels
	agents  agents
	engine  *supervise.Engine
	engines *engines
	started time.Time
}

func newSupplies(d *Daemon) (*supplies, error) {
	mirrors := deb.ChooseMirrors(d.settings.DebianMirror, os.DirFS("/"))
	krn, err := kernel.New(kernel.Config{Dir: d.cfg.Paths.Kernels(), CacheDir: d.cfg.Paths.DebCache(), Mirrors: mirrors, Log: d.log})
	if err != nil {
		return nil, err
	}
	img, err := image.New(image.Config{Dir: d.cfg.Paths.Images(), CacheDir: d.cfg.Paths.Cache, Mirrors: mirrors,
		Catalogs: d.settings.ImageCatalog, Runner: hostexec.Runner{}, Log: d.log})
	if err != nil {
		return nil, err
	}
	s := &supplies{
		images:  images{files: img, db: d.db, def: recordedName(d.settings.DefaultImageName), started: d.started},
		kernels: kernels{files: krn, db: d.db},
		agents:  agents{paths: d.cfg.Paths, exe: d.cfg.Exe},
		engine:  &supervise.Engine{Binary: d.cfg.Exe, Log: d.log},
		engines: newEngines(d),
		started: d.started,
	}
	s.images.kernel = func(ctx context.Context, name string) error {
		return s.kernels.CheckPull(ctx, api.PullKernel{Name: name})
	}
	return s, nil
}

// EnsureImage implements vm.Supplies.
func (s *supplies) EnsureImage(ctx context.Context, name string, rep progress.Reporter) (vm.Image, error) {
	return s.images.ensure(ctx, name, rep)
}

// EnsureKernel implements vm.Supplies.
func (s *supplies) EnsureKernel(ctx context.Context, name string, rep progress.Reporter) (vm.Kernel, error) {
	return s.kernels.ensure(ctx, name, rep)
}

// CheckKernel implements vm.Supplies.
func (s *supplies) CheckKernel(ctx context.Context, name string) error {
	_, err := s.kernels.Kernel(ctx, name)
	return err
}

// ImageByDigest implements vm.Supplies.
func (s *supplies) ImageByDigest(ctx context.Context, digest string) (vm.Image, error) {
	img, err := s.images.db.ImageByDigest(ctx, digest)
	if err != nil {
		return vm.Image{}, err
	}
	return s.images.open(ctx, img)
}

// KernelByDigest implements vm.Supplies.
func (s *supplies) KernelByDigest(ctx context.Context, digest string) (vm.Kernel, error) {
	krn, err := s.kernels.db.KernelByDigest(ctx, digest)
	if err != nil {
		return vm.Kernel{}, err
	}
	return s.kernels.open(ctx, krn)
}

// RemoveUnused implements vm.Supplies.
func (s *supplies) RemoveUnused(ctx context.Context) error {
	return errors.Join(s.images.collect(ctx), s.kernels.collect(ctx))
}

// AgentArchive implements vm.Supplies.
func (s *supplies) AgentArchive(ctx context.Context) (string, error) { return s.agents.Archive(ctx) }

// Engine implements vm.Supplies.
func (s *supplies) Engine(ctx context.Context, rep progress.Reporter) (probe.Decision, error) {
	d, err := s.engines.choose(ctx, rep)
	if err != nil {
		return d, err
	}
	return d, s.engines.confine(&d)
}

// EngineFailed implements vm.Supplies.
func (s *supplies) EngineFailed(ctx context.Context, d probe.Decision, cause error) (probe.Decision, bool) {
	instead, ok := s.engines.prober.Failed(ctx, d, cause)
	return instead, ok && s.engines.confine(&instead) == nil
}

// sweep removes what broken builds left, takes in what has no record (the state directory was removed, the data
// was not), and removes what nothing names.
func (s *supplies) sweep(ctx context.Context) error {
	err := errors.Join(s.images.files.Sweep(s.started), s.kernels.files.Sweep(s.started))
	return errors.Join(err, s.images.adopt(ctx), s.kernels.adopt(ctx), s.images.collect(ctx), s.kernels.collect(ctx))
}

// adopt records the images whose files are there without a record.
func (i *images) adopt(ctx context.Context) error {
	found, err := i.files.List()
	if err != nil {
		return err
	}
	for _, img := range found {
		if _, err := i.db.ImageByDigest(ctx, img.Digest); api.KindOf(err) != api.KindNotFound {
			continue
		}
		if _, err := i.db.Image(ctx, img.Name); err == nil {
			continue // the name is another image's; nothing tells how this one was called
		}
		if err := i.db.PutImage(ctx, img); err != nil {
			return err
		}
	}
	return nil
}

// adopt does the same for kernels.
func (k *kernels) adopt(ctx context.Context) error {
	found, err := k.files.List()
	if err != nil {
		return err
	}
	for _, krn := range found {
		if _, err := k.db.KernelByDigest(ctx, krn.Digest); api.KindOf(err) != api.KindNotFound {
			continue
		}
		if _, err := k.db.Kernel(ctx, krn.Name); err == nil {
			continue
		}
		if err := k.db.PutKernel(ctx, krn); err != nil {
			return err
		}
	}
	return nil
}

// unknown is the error for an image or kernel that neither the store nor the catalog has.
func unknown(noun, name string, have []string) error {
	err := api.Errorf(api.KindNotFound, "%s %q is not known", noun, name)
	if near := suggest.Near(name, have); len(near) > 0 {
		return err.WithHint("did you mean %s? banger %s list shows them all", strings.Join(near, ", "), noun)
	}
	return err.WithHint("banger %s list shows what there is", noun)
}

// recordedName is the name by which an image is recorded that the configuration names; what is no name at all the first pull refuses.
func recordedName(configured string) string {
	if name, _, err := image.Canonical(configured); err == nil {
		return name
	}
	return configured
}
