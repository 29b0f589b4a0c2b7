package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/image"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/vm"
)

// images joins the store of images, which holds files, with the records, which hold names.
type images struct {
	files *image.Store
	db    *store.Store
	def   string // the default image's name
	pulls pulls
	// kernel says whether there is a kernel of a name.
	kernel func(ctx context.Context, name string) error
	// vms are where images are promoted from; set before the first request.
	vms guests
	// holding is held while files get a name, and while those without one are looked for and removed: content that a pull
	// has just stored, or found there already, is not taken away under its record.
	holding sync.Mutex
	// started is when the daemon did: what has no record since before then no pull is about to record.
	started time.Time
	// cache is held for reading while something may be fetched, and for writing while that is removed.
	cache sync.RWMutex
}

// guests is package vm, as far as images are made of VMs.
type guests interface {
	VM(ctx context.Context, name string) (api.VM, error)
	Root(ctx context.Context, name string, clean bool, w io.Writer) (api.FilesResult, error)
}

// List returns the local images and those of the catalog that are not local, by name.
func (i *images) List(ctx context.Context) ([]api.Image, error) {
	all, err := i.db.Images(ctx)
	if err != nil {
		return nil, err
	}
	named := map[string]int{}
	for _, img := range all {
		named[img.Digest]++
	}
	for n := range all {
		if named[all[n].Digest] > 1 {
			all[n].SharedBytes = all[n].DiskBytes
		}
	}
	catalog, _ := i.files.Catalog(ctx) // what cannot be read is in the log, and said where it is missed
	for _, c := range catalog {
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

// Catalog returns the images that can be had by name, and says which of them are local.
func (i *images) Catalog(ctx context.Context) ([]api.Image, error) {
	out, _ := i.files.Catalog(ctx) // as in List
	for n, c := range out {
		if have, err := i.db.Image(ctx, c.Name); err == nil {
			out[n].Local, out[n].Digest, out[n].CreatedAt, out[n].VMs = true, have.Digest, have.CreatedAt, have.VMs
		}
		out[n].Default = c.Name == i.def
	}
	return out, nil
}

// Image returns one image of List.
func (i *images) Image(ctx context.Context, name string) (api.Image, error) {
	all, err := i.List(ctx)
	if err != nil {
		return api.Image{}, err
	}
	canonical, reference, err := image.Canonical(name)
	if err != nil {
		return api.Image{}, err
	}
	for _, img := range all {
		if img.Name == canonical {
			return img, nil
		}
	}
	if reference {
		return api.Image{}, api.Errorf(api.KindNotFound, "image %q is not on this host", canonical).WithHint("banger image pull %s", name)
	}
	e := unknown("image", name, names(all, func(i api.Image) string { return i.Name }))
	if known := api.AsError(e); image.CheckName(name) == nil {
		return api.Image{}, known.WithHint("%s; for one of Docker's registry: banger image pull docker.io/library/%s", known.Hint, name)
	}
	return api.Image{}, e
}

// local returns an image that is here, by a name as a user writes it.
func (i *images) local(ctx context.Context, name string) (api.Image, error) {
	canonical, _, err := image.Canonical(name)
	if err != nil {
		return api.Image{}, err
	}
	img, err := i.db.Image(ctx, canonical)
	if api.KindOf(err) != api.KindNotFound {
		return img, err
	}
	if c, cerr := i.Image(ctx, name); cerr == nil {
		return api.Image{}, api.Errorf(api.KindNotFound, "image %q is not on this host yet", c.Name).WithHint("banger image pull %s", c.Name)
	}
	all, err := i.db.Images(ctx)
	if err != nil {
		return api.Image{}, err
	}
	return api.Image{}, unknown("image", canonical, names(all, func(i api.Image) string { return i.Name }))
}

// CheckPull reports what is wrong with a request before any work is done for it, such as that there is no such image at all; an empty name
// is the default. Whether a registry has an image only it knows.
func (i *images) CheckPull(ctx context.Context, req api.PullImage) error {
	_, reference, err := image.Canonical(cmp.Or(req.Name, i.def))
	if err != nil {
		return err
	}
	if !reference {
		if req.As != "" || req.Kernel != "" || req.Platform != "" {
			return api.Errorf(api.KindInvalid, "%q is an image of the catalog, which has its name, its kernel and its platform", req.Name).
				WithHint("banger image pull %s; then for another name: banger image tag %s NAME", req.Name, req.Name)
		}
		_, err := i.Image(ctx, cmp.Or(req.Name, i.def))
		return err
	}
	if req.Build {
		return api.Errorf(api.KindInvalid, "%q comes from a registry: there is no recipe to build it with", req.Name).WithHint("leave out --build")
	}
	if req.As != "" {
		if err := i.checkNew(ctx, req.As, false); err != nil {
			return err
		}
	}
	return errors.Join(image.CheckPlatform(req.Platform), i.checkKernel(ctx, req.Kernel))
}

func (i *images) checkKernel(ctx context.Context, name string) error {
	if name == "" || i.kernel == nil {
		return nil
	}
	return i.kernel(ctx, name)
}

// checkNew says whether an image may be given a name: one that is well-formed and not the catalog's, and where it must be new, nobody's.
func (i *images) checkNew(ctx context.Context, name string, mustBeNew bool) error {
	if err := image.CheckName(name); err != nil {
		return err
	}
	catalog, _ := i.files.Catalog(ctx)
	if slices.ContainsFunc(catalog, func(c api.Image) bool { return c.Name == name }) {
		return api.Errorf(api.KindConflict, "image %q is one of the catalog", name).WithHint("choose another name")
	}
	if !mustBeNew {
		return nil
	}
	if _, err := i.db.Image(ctx, name); err == nil {
		return api.Errorf(api.KindConflict, "image %q is there already", name).
			WithHint("choose another name, or delete it first: banger image delete %s", name)
	}
	return nil
}

// Pull makes an image of the catalog or of a registry local and records it.
func (i *images) Pull(ctx context.Context, req api.PullImage, rep progress.Reporter) (api.Image, error) {
	canonical, reference, err := image.Canonical(cmp.Or(req.Name, i.def))
	if err != nil {
		return api.Image{}, err
	}
	unlock, err := i.pulls.lock(ctx, canonical, rep)
	if err != nil {
		return api.Image{}, err
	}
	defer unlock()
	i.cache.RLock()
	defer i.cache.RUnlock()
	if reference {
		return i.pullReference(ctx, req, canonical, rep)
	}
	req.Name = canonical
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
	return i.keep(ctx, img)
}

// pullReference asks the registry each time: a tag may have moved. The name moves with it.
func (i *images) pullReference(ctx context.Context, req api.PullImage, canonical string, rep progress.Reporter) (api.Image, error) {
	have, err := i.db.Images(ctx)
	if err != nil {
		return api.Image{}, err
	}
	name := cmp.Or(req.As, canonical)
	if n := slices.IndexFunc(have, func(h api.Image) bool { return h.Name == name }); n >= 0 && !image.SameRepository(have[n].Source, canonical) {
		return api.Image{}, api.Errorf(api.KindConflict, "image %q is there already, and is another one: %s", name, have[n].Source).
			WithHint("choose another --name, or delete it first: banger image delete %s", name)
	}
	img, err := i.files.PullReference(ctx, req.Name, image.ReferenceOptions{Name: req.As, Kernel: req.Kernel, Platform: req.Platform, Have: have}, rep)
	if err != nil {
		return api.Image{}, err
	}
	return i.keep(ctx, img)
}

// keep records an image whose files are there, and removes what has lost its name to it.
func (i *images) keep(ctx context.Context, img api.Image) (api.Image, error) {
	if err := i.record(ctx, img); err != nil {
		return api.Image{}, err
	}
	if err := i.collect(context.WithoutCancel(ctx)); err != nil {
		return api.Image{}, err
	}
	return i.db.Image(ctx, img.Name)
}

// record gives the files of a pull their name.
func (i *images) record(ctx context.Context, img api.Image) error {
	i.holding.Lock()
	defer i.holding.Unlock()
	if _, err := i.files.Files(ctx, img.Digest); err != nil {
		return takenAway("image", img.Name, err)
	}
	have, err := i.db.ImageByDigest(ctx, img.Digest)
	if err == nil && have.Name != "" && have.Name != img.Name && !sameConfiguration(have, img) {
		return api.Errorf(api.KindConflict, "image %q is the same as image %q, but for its configuration", img.Name, have.Name).
			WithHint("banger image tag %s NAME gives it another name", have.Name)
	}
	return i.db.PutImage(ctx, img)
}

// sameConfiguration tells whether VMs of two images with the same files would be the same.
func sameConfiguration(a, b api.Image) bool {
	return a.Kernel == b.Kernel && a.WorkDir == b.WorkDir && a.User == b.User && slices.Equal(a.Env, b.Env) && slices.Equal(a.Entry, b.Entry) && slices.Equal(a.Cmd, b.Cmd)
}

// ensure returns the local image of that name (empty: the default), pulling it where it is not there.
func (i *images) ensure(ctx context.Context, name string, rep progress.Reporter) (vm.Image, error) {
	name = cmp.Or(name, i.def)
	img, err := i.local(ctx, name)
	if err != nil {
		if api.KindOf(err) != api.KindNotFound {
			return vm.Image{}, err
		}
		if _, err := i.Image(ctx, name); err != nil && !image.Referenced(name) {
			return vm.Image{}, err
		} else if err == nil {
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

// Files calls f with every file of an image.
func (i *images) Files(ctx context.Context, name string, f func(api.ImageFile) error) error {
	img, err := i.local(ctx, name)
	if err != nil {
		return err
	}
	return i.files.Walk(ctx, img.Digest, f)
}

// Delete forgets an image nothing uses, and removes its files.
func (i *images) Delete(ctx context.Context, name string) error {
	img, err := i.local(ctx, name)
	if err != nil {
		return err
	}
	if err := i.db.DeleteImage(ctx, img.Name); err != nil {
		return err
	}
	return i.collect(context.WithoutCancel(ctx))
}

// Prune removes the names of images that no VM uses, but for the default one, with their files, and what was fetched for images.
func (i *images) Prune(ctx context.Context, req api.Prune) (api.Pruned, error) {
	if req.OlderThanSeconds < 0 {
		return api.Pruned{}, api.Errorf(api.KindInvalid, "older than %d seconds makes no sense", req.OlderThanSeconds)
	}
	before := time.Now().Add(-time.Duration(req.OlderThanSeconds) * time.Second)
	out := api.Pruned{Images: []api.Image{}}
	all, err := i.db.Images(ctx)
	if err != nil {
		return out, err
	}
	kept := map[string]bool{} // digests that stay, whatever becomes of some of their names
	for _, img := range all {
		if len(img.VMs) > 0 || img.Name == i.def || img.CreatedAt != nil && img.CreatedAt.After(before) {
			kept[img.Digest] = true
		}
	}
	counted := map[string]bool{}
	for _, img := range all {
		if kept[img.Digest] {
			continue
		}
		if !req.DryRun {
			err := i.db.DeleteImage(ctx, img.Name)
			if kind := api.KindOf(err); err != nil && (kind == api.KindConflict || kind == api.KindNotFound) {
				continue // a VM has been made of it meanwhile, or it is gone
			}
			if err != nil {
				return out, err
			}
		}
		if out.Images = append(out.Images, img); !counted[img.Digest] {
			out.Bytes += img.DiskBytes
			counted[img.Digest] = true
		}
	}
	lost, err := i.pruneLost(ctx, req.DryRun)
	if out.Bytes += lost; err != nil {
		return out, err
	}
	if out.Busy = !i.cache.TryLock(); !out.Busy {
		out.CacheBytes, err = i.files.PruneCache(before, req.DryRun)
		i.cache.Unlock()
		out.Bytes += out.CacheBytes
	}
	return out, errors.Join(err, i.collect(context.WithoutCancel(ctx)))
}

// pruneLost removes the files that a daemon which was killed stored and did not come to record, where their name has become another image's, and
// returns how many bytes that was, or with dryRun would be. Those whose name is free the next daemon adopts.
func (i *images) pruneLost(ctx context.Context, dryRun bool) (int64, error) {
	i.holding.Lock()
	defer i.holding.Unlock()
	stored, err := i.files.List()
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, img := range stored {
		if _, err := i.db.ImageByDigest(ctx, img.Digest); api.KindOf(err) != api.KindNotFound || img.CreatedAt == nil || !img.CreatedAt.Before(i.started) {
			continue
		}
		sum += img.DiskBytes
		if dryRun {
			continue
		}
		if err := i.files.Remove(img.Digest); err != nil {
			return sum, err
		}
	}
	return sum, nil
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
		if err := i.db.ForgetImage(ctx, d); api.KindOf(err) == api.KindConflict {
			continue // it is in use again
		} else if err != nil {
			return err
		}
		if err := i.files.Remove(d); err != nil {
			return err
		}
	}
	return nil
}
