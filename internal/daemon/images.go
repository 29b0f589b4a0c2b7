package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

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
