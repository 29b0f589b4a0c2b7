package store

import (
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"

	"github.com/google/go-cmp/cmp"
)

func TestImages(t *testing.T) {
	s := withContent(t)
	ctx := t.Context()
	must(t, s.PutImage(ctx, api.Image{Name: "alpine", Digest: "sha256:i2", Arch: "amd64", SizeBytes: 5,
		Env: []string{"PATH=/bin"}, Kernel: "generic", CreatedAt: &t0, Default: true, VMs: []string{"stale"}}))
	must(t, s.InsertVM(ctx, vm("web")))
	must(t, s.InsertVM(ctx, vm("api")))
	got, err := s.Images(ctx)
	must(t, err)
	want := []api.Image{
		{Name: "alpine", Digest: "sha256:i2", Arch: "amd64", SizeBytes: 5, Env: []string{"PATH=/bin"}, Kernel: "generic", Local: true, CreatedAt: &t0},
		{Name: "debian", Digest: "sha256:i1", Arch: "amd64", Local: true, CreatedAt: &t0, VMs: []string{"api", "web"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Images: (-want +got)\n%s", diff)
	}
	one, err := s.Image(ctx, "debian")
	must(t, err)
	if diff := cmp.Diff(want[1], one); diff != "" {
		t.Errorf("Image: (-want +got)\n%s", diff)
	}
	_, err = s.Image(ctx, "debain")
	wantKind(t, err, api.KindNotFound, `no image "debain"`, "did you mean debian")
	wantKind(t, s.DeleteImage(ctx, "debain"), api.KindNotFound, "did you mean debian")
	_, err = s.ImageByDigest(ctx, "sha256:none")
	wantKind(t, err, api.KindNotFound)
	if err := s.PutImage(ctx, api.Image{Name: "x"}); err == nil {
		t.Error("an image without a digest was recorded")
	}
}

// The life of content: a name moves on, a VM stays pinned, the content goes when nobody needs it.
func TestContentLife(t *testing.T) {
	s := withContent(t)
	ctx := t.Context()
	must(t, s.InsertVM(ctx, vm("web")))
	wantKind(t, s.DeleteImage(ctx, "debian"), api.KindConflict, `delete image "debian": in use by vm "web"`, "banger vm delete --force web")
	wantKind(t, s.DeleteKernel(ctx, "generic"), api.KindConflict, `delete kernel "generic": in use by vm "web"`)
	wantKind(t, s.ForgetImage(ctx, "sha256:i1"), api.KindConflict)

	// A newer image of the name: the VM keeps the old content, which has no name then.
	must(t, s.PutImage(ctx, api.Image{Name: "debian", Digest: "sha256:i2", Arch: "amd64"}))
	wantUnused := func(want ...string) {
		t.Helper()
		got, err := s.UnusedImages(ctx)
		must(t, err)
		if diff := cmp.Diff(append([]string{}, want...), got); diff != "" {
			t.Errorf("UnusedImages: (-want +got)\n%s", diff)
		}
	}
	wantUnused()
	old, err := s.ImageByDigest(ctx, "sha256:i1")
	must(t, err)
	if diff := cmp.Diff(api.Image{Digest: "sha256:i1", Arch: "amd64", Local: true, CreatedAt: &t0, VMs: []string{"web"}}, old); diff != "" {
		t.Errorf("ImageByDigest: (-want +got)\n%s", diff)
	}
	wantKind(t, s.ForgetImage(ctx, "sha256:i1"), api.KindConflict)
	now, err := s.Image(ctx, "debian")
	if err != nil || now.Digest != "sha256:i2" || now.VMs != nil {
		t.Errorf("Image = %+v, %v", now, err)
	}

	must(t, s.DeleteVM(ctx, "id-web"))
	wantUnused("sha256:i1")
	must(t, s.ForgetImage(ctx, "sha256:i1"))
	must(t, s.ForgetImage(ctx, "sha256:i1"))
	wantUnused()
	wantKind(t, s.InsertVM(ctx, vm("late")), api.KindConflict)
	must(t, s.DeleteImage(ctx, "debian"))
	wantUnused("sha256:i2")

	must(t, s.DeleteKernel(ctx, "generic"))
	unused, err := s.UnusedKernels(ctx)
	must(t, err)
	if diff := cmp.Diff([]string{"sha256:k1"}, unused); diff != "" {
		t.Error(diff)
	}
	must(t, s.ForgetKernel(ctx, "sha256:k1"))
}

func TestSecondNameFreesTheFirst(t *testing.T) {
	s := withContent(t)
	ctx := t.Context()
	must(t, s.PutImage(ctx, api.Image{Name: "alias", Digest: "sha256:i1", Arch: "amd64"}))
	v := vm("a")
	must(t, s.InsertVM(ctx, v))
	v = vm("b")
	must(t, s.InsertVM(ctx, v))
	must(t, s.DeleteImage(ctx, "debian"))
	wantKind(t, s.DeleteImage(ctx, "alias"), api.KindConflict, `in use by vms "a", "b"`)
	got, err := s.ImageByDigest(ctx, "sha256:i1")
	if err != nil || got.Name != "alias" {
		t.Errorf("ImageByDigest = %+v, %v", got, err)
	}
}

func TestKernels(t *testing.T) {
	s := withContent(t)
	ctx := t.Context()
	at := t0.Add(time.Hour)
	k := api.Kernel{Name: "own", Digest: "sha256:k2", Release: "6.12.1", Package: "p 1", Arch: "amd64", SizeBytes: 3, CreatedAt: &at}
	must(t, s.PutKernel(ctx, k))
	k.Local = true
	got, err := s.Kernel(ctx, "own")
	must(t, err)
	if diff := cmp.Diff(k, got); diff != "" {
		t.Errorf("Kernel: (-want +got)\n%s", diff)
	}
	if got, err = s.KernelByDigest(ctx, "sha256:k2"); err != nil || !cmp.Equal(k, got) {
		t.Errorf("KernelByDigest = %+v, %v", got, err)
	}
	all, err := s.Kernels(ctx)
	if err != nil || len(all) != 2 || all[0].Name != "generic" {
		t.Errorf("Kernels = %+v, %v", all, err)
	}
}
