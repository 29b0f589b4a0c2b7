package store

import (
	"context"

	"git.thaloco.com/thaloco/banger/api"
)

func kernels() content[api.Kernel] {
	return content[api.Kernel]{
		noun: "kernel", table: "kernels", names: "kernel_names", vmColumn: "kernel_digest",
		fields: func(k *api.Kernel) fields {
			return fields{&k.Name, &k.Digest, &k.CreatedAt, &k.VMs, &k.Local, &k.Default}
		},
	}
}

// PutKernel records that the content of k.Digest is in the store and lets k.Name point to it. What the name
// pointed to before stays, for the VMs pinned to it; UnusedKernels tells when it is not needed any more.
func (s *Store) PutKernel(ctx context.Context, k api.Kernel) error { return kernels().put(ctx, s, k) }

// Kernels returns every named kernel, sorted by name, with the names of the VMs pinned to it.
func (s *Store) Kernels(ctx context.Context) ([]api.Kernel, error) { return kernels().all(ctx, s) }

// Kernel returns the kernel of a name; KindNotFound, with near names in the hint, where there is none.
func (s *Store) Kernel(ctx context.Context, name string) (api.Kernel, error) {
	return kernels().byName(ctx, s, name)
}

// KernelByDigest returns the kernel of a digest; its Name is empty where no name points to it (any more).
func (s *Store) KernelByDigest(ctx context.Context, digest string) (api.Kernel, error) {
	return kernels().byDigest(ctx, s, digest)
}

// DeleteKernel takes the name of a kernel away. Where it is the last name of content that VMs are pinned to,
// it is a KindConflict that names them. The content is then for UnusedKernels and ForgetKernel.
func (s *Store) DeleteKernel(ctx context.Context, name string) error {
	return kernels().remove(ctx, s, name)
}

// UnusedKernels returns the digests that no name points to and no VM is pinned to.
func (s *Store) UnusedKernels(ctx context.Context) ([]string, error) { return kernels().unused(ctx, s) }

// ForgetKernel removes the record of a digest, nil where there is none; KindConflict where a name or a VM holds it. Forget first,
// then remove the files: a VM that is being made can then no longer be pinned to them.
func (s *Store) ForgetKernel(ctx context.Context, digest string) error {
	return kernels().forget(ctx, s, digest)
}
