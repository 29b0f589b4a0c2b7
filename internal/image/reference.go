package image

import (
	"cmp"
	"context"
	"io"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/image/oci"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// ReferenceOptions say how an image of a registry is made local.
type ReferenceOptions struct {
	// Name is what it is called here; empty for the reference itself.
	Name string
	// Kernel is the name of the kernel of its VMs; empty for the default one.
	Kernel string
	// Platform is "OS/ARCH[/VARIANT]"; empty for linux/amd64, the only one that VMs run.
	Platform string
	// Have are the images that are local: one that is the same already is not fetched again.
	Have []api.Image
}

// platform is what VMs run.
const platform = "linux/amd64"

// CheckPlatform says whether VMs can run what is made for a platform; api.KindInvalid where not.
func CheckPlatform(p string) error {
	if p == "" || p == platform {
		return nil
	}
	return api.Errorf(api.KindInvalid, "platform %q cannot be run: VMs are %s", p, platform).
		WithHint("leave out --platform")
}

// PullReference makes the image of a reference local, such as "docker.io/library/alpine:3.20", and returns it. Errors are those of Pull, and
// of the registry (oci.Client.Resolve).
func (s *Store) PullReference(ctx context.Context, ref string, o ReferenceOptions, rep progress.Reporter) (api.Image, error) {
	img, err := s.pullReference(ctx, ref, o, rep)
	if err != nil {
		return api.Image{}, s.explain(ctx, ref, err)
	}
	return img, nil
}

func (s *Store) pullReference(ctx context.Context, ref string, o ReferenceOptions, rep progress.Reporter) (api.Image, error) {
	if err := CheckPlatform(o.Platform); err != nil {
		return api.Image{}, err
	}
	name, _, err := Canonical(ref)
	if err != nil {
		return api.Image{}, err
	}
	rep.Step("ask for " + name)
	found, err := s.oci.Resolve(ctx, ref, cmp.Or(o.Platform, platform))
	if err != nil {
		return api.Image{}, err
	}
	img := api.Image{Name: cmp.Or(o.Name, name), Description: "pulled from " + oci.Registry(ref), Source: found.Reference, Arch: "amd64", Kernel: o.Kernel,
		Env: found.Env, WorkDir: found.WorkDir, User: found.User, Entry: found.Entrypoint, Cmd: found.Cmd}
	if have := s.same(ctx, img, o.Have); have != nil {
		rep.Note("it is here already, and the registry has no newer one")
		img.Digest, img.SizeBytes, img.DiskBytes, img.Local, img.CreatedAt = have.Digest, have.SizeBytes, have.DiskBytes, true, have.CreatedAt
		return img, nil
	}
	rep.Step("fetch " + name)
	if err := s.oci.Fetch(ctx, found, rep); err != nil {
		return api.Image{}, err
	}
	select { // what follows takes memory, and both CPUs
	case s.convert <- struct{}{}:
		defer func() { <-s.convert }()
	case <-ctx.Done():
		return api.Image{}, context.Cause(ctx)
	}
	rep.Step("unpack " + name)
	return s.build(ctx, img, rep, func(ctx context.Context, _, out string) error {
		return s.flatten(ctx, found, out, img, rep)
	})
}

// same finds an image that is local already, and undamaged.
func (s *Store) same(ctx context.Context, want api.Image, have []api.Image) *api.Image {
	i := slices.IndexFunc(have, func(h api.Image) bool { return h.Source == want.Source && h.Kernel == want.Kernel && h.Local })
	if i < 0 || s.check(ctx, have[i].Digest, false) != nil {
		return nil
	}
	return &have[i]
}

// flatten writes the base drive of an image whose layers are in the cache.
func (s *Store) flatten(ctx context.Context, found *oci.Image, out string, img api.Image, rep progress.Reporter) error {
	r, w := io.Pipe()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := s.oci.Flatten(ctx, found, w)
		w.CloseWithError(err)
		return err
	})
	g.Go(func() error {
		err := s.fromTar(ctx, r, out, img, rep)
		r.CloseWithError(cmp.Or(err, io.ErrClosedPipe)) // Flatten must not wait for a reader that is gone
		return err
	})
	return g.Wait()
}

// OCICache is where layers are kept.
func (s *Store) OCICache() string { return filepath.Join(s.cfg.CacheDir, "oci") }
