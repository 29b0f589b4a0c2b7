package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/image"
	"git.thaloco.com/thaloco/banger/internal/kernel"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/vm"
)

// defaultKernel is the kernel of images that name none.
const defaultKernel = "generic-6.12"

// images joins the store of images, which holds files, with the records, which hold names.
type images struct {
	files *image.Store
	db    *store.Store
	def   string // the default image's name
	pulls pulls
	// holding is held while files get a name, and while those without one are looked for and removed: content that a pull
	// has just stored, or found there already, is not taken away under its record.
	holding sync.Mutex
}

// List returns the local images and those of the catalog that are not local, by name.
func (i *images) List(ctx context.Context) ([]api.Image, error) {
	all, err := i.db.Images(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range i.files.Catalog() {
		if !slices.ContainsFunc(all, func(have api.Image) bool { return have.Name == c.Name }) {
			all = append(all, c)
		}
	}
	for n := range all {
		all[n].Default = all[n].Name == i.def
	}
	slices.SortFunc(all, func(a, b api.Image) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// Image returns one image of List.
func (i *images) Image(ctx context.Context, name string) (api.Image, error) {
	all, err := i.List(ctx)
	if err != nil {
		return api.Image{}, err
	}
	for _, img := range all {
		if img.Name == name {
			return img, nil
		}
	}
	return api.Image{}, unknown("image", name, names(all, func(i api.Image) string { return i.Name }))
}

func names[T any](all []T, name func(T) string) []string {
	out := make([]string, 0, len(all))
	for _, v := range all {
		out = append(out, name(v))
	}
	return out
}

// CheckPull reports whether there is such an image at all; an empty name is the default.
func (i *images) CheckPull(ctx context.Context, req api.PullImage) error {
	_, err := i.Image(ctx, cmp.Or(req.Name, i.def))
	return err
}

// Pull makes an image of the catalog local and records it.
func (i *images) Pull(ctx context.Context, req api.PullImage, rep progress.Reporter) (api.Image, error) {
	req.Name = cmp.Or(req.Name, i.def)
	unlock, err := i.pulls.lock(ctx, req.Name, rep)
	if err != nil {
		return api.Image{}, err
	}
	defer unlock()
	return i.pull(ctx, req, rep)
}

func (i *images) pull(ctx context.Context, req api.PullImage, rep progress.Reporter) (api.Image, error) {
	if have, err := i.db.Image(ctx, req.Name); err == nil && !req.Build {
		return have, nil
	}
	img, err := i.files.Pull(ctx, req.Name, image.PullOptions{Build: req.Build}, rep)
	if err != nil {
		return api.Image{}, err
	}
	if err := i.record(ctx, img); err != nil {
		return api.Image{}, err
	}
	return img, i.collect(context.WithoutCancel(ctx))
}

// record gives the files of a pull their name.
func (i *images) record(ctx context.Context, img api.Image) error {
	i.holding.Lock()
	defer i.holding.Unlock()
	if _, err := i.files.Files(ctx, img.Digest); err != nil {
		return takenAway("image", img.Name, err)
	}
	return i.db.PutImage(ctx, img)
}

// ensure returns the local image of that name (empty: the default), pulling it where it is not there.
func (i *images) ensure(ctx context.Context, name string, rep progress.Reporter) (vm.Image, error) {
	name = cmp.Or(name, i.def)
	img, err := i.db.Image(ctx, name)
	if err != nil {
		if api.KindOf(err) != api.KindNotFound {
			return vm.Image{}, err
		}
		if _, err := i.Image(ctx, name); err == nil {
			rep.Note(fmt.Sprintf("image %q is not on this host yet: it is made now, once, which takes a minute or two", name))
		}
		if img, err = i.Pull(ctx, api.PullImage{Name: name}, rep); err != nil {
			return vm.Image{}, err
		}
	}
	return i.open(ctx, img)
}

func (i *images) open(ctx context.Context, img api.Image) (vm.Image, error) {
	f, err := i.files.Files(ctx, img.Digest)
	if err != nil {
		return vm.Image{}, fmt.Errorf("image %q: %w", img.Name, err)
	}
	return vm.Image{Image: img, Rootfs: f.Rootfs}, nil
}

// Delete forgets an image nothing uses, and removes its files.
func (i *images) Delete(ctx context.Context, name string) error {
	if err := i.db.DeleteImage(ctx, name); err != nil {
		return err
	}
	return i.collect(context.WithoutCancel(ctx))
}

// collect removes the images that have neither a name nor a VM.
func (i *images) collect(ctx context.Context) error {
	i.holding.Lock()
	defer i.holding.Unlock()
	digests, err := i.db.UnusedImages(ctx)
	if err != nil {
		return err
	}
	for _, d := range digests {
		if err := i.db.ForgetImage(ctx, d); err != nil {
			return err
		}
		if err := i.files.Remove(d); err != nil {
			return err
		}
	}
	return nil
}

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

// takenAway is the error of a pull whose files were there, and are not any more: the last name of the same content was deleted meanwhile.
func takenAway(noun, name string, err error) error {
	if api.KindOf(err) != api.KindNotFound {
		return err
	}
	return api.Errorf(api.KindConflict, "pull %s %q: the same content was deleted meanwhile", noun, name).
		WithHint("banger %s pull %s", noun, name)
}

// pulls lets one pull of a name run at a time; the others wait and then find it done.
type pulls struct {
	mu    sync.Mutex // guards names
	names map[string]chan struct{}
}

func (p *pulls) lock(ctx context.Context, name string, rep progress.Reporter) (unlock func(), err error) {
	p.mu.Lock()
	if p.names == nil {
		p.names = map[string]chan struct{}{}
	}
	l, ok := p.names[name]
	if !ok {
		l = make(chan struct{}, 1)
		p.names[name] = l
	}
	p.mu.Unlock()
	select {
	case l <- struct{}{}:
		return func() { <-l }, nil
	default:
	}
	rep.Step("wait for another pull of " + name)
	select {
	case l <- struct{}{}:
		return func() { <-l }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
