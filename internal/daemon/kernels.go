package daemon

import (
	"cmp"
	"context"
	"errors"
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

// Kernel returns one kernel of List.
func (k *kernels) Kernel(ctx context.Context, name string) (api.Kernel, error) {
	all, err := k.List(ctx)
	if err != nil {
		return api.Kernel{}, err
	}
	for _, krn := range all {
		if krn.Name == name {
			return krn, nil
		}
	}
	return api.Kernel{}, unknown("kernel", name, names(all, func(k api.Kernel) string { return k.Name }))
}

// CheckPull reports whether there is such a kernel in the catalog; an empty name is the default.
func (k *kernels) CheckPull(ctx context.Context, req api.PullKernel) error {
	name := cmp.Or(req.Name, defaultKernel)
	_, err := k.Kernel(ctx, name)
	if err != nil || slices.ContainsFunc(k.files.Catalog(), func(c api.Kernel) bool { return c.Name == name }) {
		return err
	}
	return api.Errorf(api.KindConflict, "pull kernel %q: it was registered on this host, and is nowhere else", name).
		WithHint("for another of that name delete it, and then register that: banger kernel delete %s", name)
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

// CheckRegister reports what is wrong with a request before any work is done for it.
func (k *kernels) CheckRegister(ctx context.Context, req api.RegisterKernel) error {
	if err := kernel.CheckRegister(kernel.RegisterOptions(req)); err != nil {
		return err
	}
	return k.checkFree(ctx, req.Name)
}

// checkFree reports whether a kernel can get a name: nothing has it, or something damaged.
func (k *kernels) checkFree(ctx context.Context, name string) error {
	krn, err := k.db.Kernel(ctx, name)
	if api.KindOf(err) == api.KindNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := k.files.Files(ctx, krn.Digest); err != nil {
		return nil // for who does what its error says
	}
	return api.Errorf(api.KindConflict, "register kernel %q: there is one of that name already", name).
		WithHint("choose another --name, or remove it first: banger kernel delete %s", name)
}

// Register makes a kernel of files of the host, and records it.
func (k *kernels) Register(ctx context.Context, req api.RegisterKernel, rep progress.Reporter) (api.Kernel, error) {
	unlock, err := k.pulls.lock(ctx, req.Name, rep)
	if err != nil {
		return api.Kernel{}, err
	}
	defer unlock()
	if err := k.CheckRegister(ctx, req); err != nil {
		return api.Kernel{}, err
	}
	krn, err := k.files.Register(ctx, kernel.RegisterOptions(req), rep)
	if err != nil {
		return api.Kernel{}, err
	}
	if err := k.record(ctx, krn); api.KindOf(err) == api.KindConflict {
		return api.Kernel{}, api.Errorf(api.KindConflict, "register kernel %q: the same content was deleted meanwhile", req.Name).
			WithHint("register it again")
	} else if err != nil {
		return api.Kernel{}, k.drop(ctx, krn.Digest, err)
	}
	return krn, k.collect(context.WithoutCancel(ctx))
}

// drop removes files that could not be recorded because of cause, where no record holds them.
func (k *kernels) drop(ctx context.Context, digest string, cause error) error {
	k.holding.Lock()
	defer k.holding.Unlock()
	if _, err := k.db.KernelByDigest(context.WithoutCancel(ctx), digest); api.KindOf(err) != api.KindNotFound {
		return cause
	}
	return errors.Join(cause, k.files.Remove(digest))
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
		if _, err := k.Kernel(ctx, name); err != nil {
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
		err = fmt.Errorf("kernel %q: %w", krn.Name, err)
		if k := api.KindOf(err); k == api.KindUnavailable || k == api.KindNotFound { // its files cannot say where they came from, if they are gone
			err = api.AsError(err).WithHint("%s", kernel.MendHint(krn))
		}
		return vm.Kernel{}, err
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
		if err := k.db.ForgetKernel(ctx, d); api.KindOf(err) == api.KindConflict {
			continue // it is in use again
		} else if err != nil {
			return err
		}
		if err := k.files.Remove(d); err != nil {
			return err
		}
	}
	return nil
}
