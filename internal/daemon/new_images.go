package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/image"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// CheckRegister reports what is wrong with a request before any work is done for it.
func (i *images) CheckRegister(ctx context.Context, req api.RegisterImage) error {
	if !filepath.IsAbs(req.Rootfs) {
		return api.Errorf(api.KindInvalid, "path %q is not absolute", req.Rootfs)
	}
	if err := i.checkNew(ctx, req.Name, true); err != nil {
		return err
	}
	return i.checkKernel(ctx, req.Kernel)
}

// Register makes an image of a file of the host.
func (i *images) Register(ctx context.Context, req api.RegisterImage, rep progress.Reporter) (api.Image, error) {
	return i.add(ctx, req.Name, rep, func() (api.Image, error) {
		img := api.Image{Name: req.Name, Arch: "amd64", Kernel: req.Kernel, Description: "registered from " + filepath.Base(req.Rootfs)}
		return i.files.Register(ctx, img, req.Rootfs, rep)
	})
}

// CheckPromote reports what is wrong with a request before any work is done for it.
func (i *images) CheckPromote(ctx context.Context, req api.PromoteImage) error {
	v, err := i.vms.VM(ctx, req.VM)
	if err != nil {
		return err
	}
	if v.State != api.StateRunning {
		return api.Errorf(api.KindConflict, "vm %q is %s: its root is read while it runs", v.Name, v.State).WithHint("banger vm start %s", v.Name)
	}
	return i.checkNew(ctx, req.Name, true)
}

// Promote makes an image of what the root of a running VM holds.
func (i *images) Promote(ctx context.Context, req api.PromoteImage, rep progress.Reporter) (api.Image, error) {
	v, err := i.vms.VM(ctx, req.VM)
	if err != nil {
		return api.Image{}, err
	}
	was, err := i.db.ImageByDigest(ctx, v.ImageDigest)
	if err != nil {
		return api.Image{}, err
	}
	return i.add(ctx, req.Name, rep, func() (api.Image, error) {
		img := api.Image{Name: req.Name, Arch: was.Arch, Kernel: cmp.Or(v.Kernel, was.Kernel), Env: was.Env, WorkDir: was.WorkDir, User: was.User,
			Entry: was.Entry, Cmd: was.Cmd, Source: fmt.Sprintf("vm %q of image %s", v.Name, v.ImageDigest), Description: "promoted from vm " + v.Name}
		rep.Step("read the root of " + v.Name)
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		r, w := io.Pipe()
		var res api.FilesResult
		read := make(chan error, 1)
		go func() {
			var err error
			res, err = i.vms.Root(ctx, v.ID, req.Clean, w)
			w.CloseWithError(err)
			read <- err
		}()
		img, err := i.files.AddTar(ctx, img, r, rep)
		r.CloseWithError(io.ErrClosedPipe) // who is still sending must not wait
		if rerr := <-read; err == nil && rerr != nil {
			err = rerr
		}
		if err == nil && len(res.Skipped) > 0 {
			rep.Note("not in the image: " + strings.Join(res.Skipped[:min(len(res.Skipped), 5)], "; "))
		}
		return img, err
	})
}

// add makes an image that has a name nobody else has, and records it.
func (i *images) add(ctx context.Context, name string, rep progress.Reporter, build func() (api.Image, error)) (api.Image, error) {
	unlock, err := i.pulls.lock(ctx, name, rep)
	if err != nil {
		return api.Image{}, err
	}
	defer unlock()
	if err := i.checkNew(ctx, name, true); err != nil { // by another who was first
		return api.Image{}, err
	}
	img, err := build()
	if err != nil {
		return api.Image{}, err
	}
	return i.keepNew(ctx, img)
}

// Tag gives an image another name as well.
func (i *images) Tag(ctx context.Context, name string, req api.TagImage) (api.Image, error) {
	img, err := i.local(ctx, name)
	if err != nil {
		return api.Image{}, err
	}
	if have, err := i.db.Image(ctx, req.As); err == nil && have.Digest == img.Digest {
		return have, nil
	}
	if err := i.checkNew(ctx, req.As, true); err != nil {
		return api.Image{}, err
	}
	img.Name = req.As
	return i.keep(ctx, img)
}

// CheckExport reports what is wrong with a request before any work is done for it.
func (i *images) CheckExport(ctx context.Context, name string, req api.ExportImage) error {
	if !filepath.IsAbs(req.Path) {
		return api.Errorf(api.KindInvalid, "path %q is not absolute", req.Path)
	}
	if _, err := i.local(ctx, name); err != nil {
		return err
	}
	return image.CheckExport(req.Path, req.Replace)
}

// Export writes an image to a bundle.
func (i *images) Export(ctx context.Context, name string, req api.ExportImage, rep progress.Reporter) (api.Image, error) {
	img, err := i.local(ctx, name)
	if err != nil {
		return api.Image{}, err
	}
	return img, i.files.Export(ctx, img, req.Path, req.Replace, rep)
}

// CheckImport reports what is wrong with a request before any work is done for it.
func (i *images) CheckImport(ctx context.Context, req api.ImportImage) error {
	if !filepath.IsAbs(req.Path) {
		return api.Errorf(api.KindInvalid, "path %q is not absolute", req.Path)
	}
	if req.Name == "" {
		return nil
	}
	return i.checkNew(ctx, req.Name, true)
}

// Import makes the image of a bundle local. One that was exported under a name of the catalog may have it, where nobody has it here.
func (i *images) Import(ctx context.Context, req api.ImportImage, rep progress.Reporter) (api.Image, error) {
	unlock, err := i.pulls.lock(ctx, cmp.Or(req.Name, req.Path), rep)
	if err != nil {
		return api.Image{}, err
	}
	defer unlock()
	img, err := i.files.Import(ctx, req.Path, req.Name, func(name string) error { return i.checkImported(ctx, name, req.Name != "") }, rep)
	if err != nil {
		return api.Image{}, err
	}
	return i.keepNew(ctx, img)
}

// checkImported says whether the image of a bundle may have a name.
func (i *images) checkImported(ctx context.Context, name string, asked bool) error {
	if asked {
		return i.checkNew(ctx, name, true)
	}
	if _, _, err := image.Canonical(name); err != nil || !image.Referenced(name) && image.CheckName(name) != nil {
		return api.Errorf(api.KindInvalid, "the bundle's own name %q is none for an image", name).WithHint("give it another one: --name NAME")
	}
	if _, err := i.db.Image(ctx, name); err == nil {
		return api.Errorf(api.KindConflict, "image %q is there already", name).WithHint("give it another name: --name NAME")
	}
	return nil
}

// keepNew is keep, and removes what could not be recorded.
func (i *images) keepNew(ctx context.Context, img api.Image) (api.Image, error) {
	kept, err := i.keep(ctx, img)
	if err != nil {
		i.holding.Lock()
		defer i.holding.Unlock()
		_, derr := i.db.ImageByDigest(ctx, img.Digest)
		if api.KindOf(derr) == api.KindNotFound {
			err = errors.Join(err, i.files.Remove(img.Digest))
		}
	}
	return kept, err
}
