package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/kernel"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/vm"
)

// defaultKernel is the kernel of images that name none.
const defaultKernel = "generic-6.12"

// kernels is the same for kernels.
type kernels struct {
	files *kernel.Store
	db    *store.Store
	pulls pulls

	holding sync.Mutex // as that of images
}

// List returns the local kernels and those of the catalog that are not local, by name.
func (k *kernels) List(ctx context.Context) ([]api.Kernel, error) {
	all, err := k.db.Kernels(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range k.files.Catalog() {
		if !slices.ContainsFunc(all, func(have api.Kernel) bool { return have.Name == c.Name }) {
			all = append(all, c)
		}
	}
	for n := range all {
		all[n].Default = all[n].Name == defaultKernel
	}
	slices.SortFunc(all, func(a, b api.Kernel) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// CheckPull reports whether there is such a kernel at all; an empty name is the default.
func (k *kernels) CheckPull(ctx context.Context, req api.PullKernel) error {
	all, err := k.List(ctx)
	if err != nil {
		return err
	}
	name := cmp.Or(req.Name, defaultKernel)
	if slices.ContainsFunc(all, func(have api.Kernel) bool { return have.Name == name }) {
		return nil
	}
	return unknown("kernel", name, names(all, func(k api.Kernel) string { return k.Name }))
}

// Pull fetches a kernel of the catalog, or the newer version there is of one that is local, and records it.
func (k *kernels) Pull(ctx context.Context, req api.PullKernel, rep progress.Reporter) (api.Kernel, error) {
	name := cmp.Or(req.Name, defaultKernel)
	unlock, err := k.pulls.lock(ctx, name, rep)
	if err != nil {
		return api.Kernel{}, err
	}
	defer unlock()
	return k.pull(ctx, name, rep)
}

func (k *kernels) pull(ctx context.Context, name string, rep progress.Reporter) (api.Kernel, error) {
	krn, err := k.files.Pull(ctx, name, rep)
	if err != nil {
		return api.Kernel{}, err
	}
	if err := k.record(ctx, krn); err != nil {
		return api.Kernel{}, err
	}
	return krn, k.collect(context.WithoutCancel(ctx))
}

// record gives the files of a pull their name.
func (k *kernels) record(ctx context.Context, krn api.Kernel) error {
	k.holding.Lock()
	defer k.holding.Unlock()
	if _, err := k.files.Files(ctx, krn.Digest); err != nil {
		return takenAway("kernel", krn.Name, err)
	}
	return k.db.PutKernel(ctx, krn)
}

func (k *kernels) ensure(ctx context.Context, name string, rep progress.Reporter) (vm.Kernel, error) {
	name = cmp.Or(name, defaultKernel)
	krn, err := k.db.Kernel(ctx, name)
	if err != nil {
		if api.KindOf(err) != api.KindNotFound {
			return vm.Kernel{}, err
		}
		unlock, err := k.pulls.lock(ctx, name, rep)
		if err != nil {
			return vm.Kernel{}, err
		}
		defer unlock()
		if krn, err = k.db.Kernel(ctx, name); err != nil { // not pulled by another meanwhile either
			if krn, err = k.pull(ctx, name, rep); err != nil {
				return vm.Kernel{}, err
			}
		}
	}
	return k.open(ctx, krn)
}

func (k *kernels) open(ctx context.Context, krn api.Kernel) (vm.Kernel, error) {
	f, err := k.files.Files(ctx, krn.Digest)
	if err != nil {
		return vm.Kernel{}, fmt.Errorf("kernel %q: %w", krn.Name, err)
	}
	return vm.Kernel{Kernel: krn, Vmlinux: f.Vmlinux, BootArchive: f.BootArchive, ModulesDrive: f.ModulesDrive}, nil
}

// Delete forgets a kernel nothing uses, and removes its files.
func (k *kernels) Delete(ctx context.Context, name string) error {
	if err := k.db.DeleteKernel(ctx, name); err != nil {
		return err
	}
	return k.collect(context.WithoutCancel(ctx))
}

func (k *kernels) collect(ctx context.Context) error {
	k.holding.Lock()
	defer k.holding.Unlock()
	digests, err := k.db.UnusedKernels(ctx)
	if err != nil {
		return err
	}
	for _, d := range digests {
		if err := k.db.ForgetKernel(ctx, d); err != nil {
			return err
		}
		if err := k.files.Remove(d); err != nil {
			return err
		}
	}
	return nil
}
