package store

import (
	"context"

	"git.thaloco.com/thaloco/banger/api"
)

func images() content[api.Image] {
	return content[api.Image]{
		noun: "image", table: "images", names: "image_names", vmColumn: "image_digest",
		fields: func(i *api.Image) fields {
			return fields{&i.Name, &i.Digest, &i.CreatedAt, &i.VMs, &i.Local, &i.Default}
		},
	}
}

// PutImage records that the content of i.Digest is in the store and lets i.Name point to it. What the name
// pointed to before stays, for the VMs pinned to it; UnusedImages tells when it is not needed any more.
func (s *Store) PutImage(ctx context.Context, i api.Image) error { return images().put(ctx, s, i) }

// Images returns every named image, sorted by name, with the names of the VMs pinned to it.
func (s *Store) Images(ctx context.Context) ([]api.Image, error) { return images().all(ctx, s) }

// Image returns the image of a name; KindNotFound, with near names in the hint, where there is none.
func (s *Store) Image(ctx context.Context, name string) (api.Image, error) {
	return images().byName(ctx, s, name)
}

// ImageByDigest returns the image of a digest; its Name is empty where no name points to it (any more).
func (s *Store) ImageByDigest(ctx context.Context, digest string) (api.Image, error) {
	return images().byDigest(ctx, s, digest)
}

// DeleteImage takes the name of an image away. Where it is the last name of content that VMs are pinned to,
// it is a KindConflict that names them. The content is then for UnusedImages and ForgetImage.
func (s *Store) DeleteImage(ctx context.Context, name string) error {
	return images().remove(ctx, s, name)
}

// UnusedImages returns the digests that no name points to and no VM is pinned to.
func (s *Store) UnusedImages(ctx context.Context) ([]string, error) { return images().unused(ctx, s) }

// ForgetImage removes the record of a digest, nil where there is none; KindConflict where a name or a VM holds it. Forget first,
// then remove the files: a VM that is being made can then no longer be pinned to them.
func (s *Store) ForgetImage(ctx context.Context, digest string) error {
	return images().forget(ctx, s, digest)
}
