package daemon

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/kernel"
	"git.thaloco.com/thaloco/banger/internal/kernel/kmod/kmodtest"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/store"
)

// newKernels returns kernels with an empty store, and a directory of the user's.
func newKernels(t *testing.T) (*kernels, string) {
	t.Helper()
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "banger.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	files, err := kernel.New(kernel.Config{Dir: filepath.Join(t.TempDir(), "kernels"), CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return &kernels{files: files, db: db}, t.TempDir()
}

// ownKernel writes a kernel with all built in as far as is known.
func ownKernel(t *testing.T, dir, release string) string {
	t.Helper()
	path := filepath.Join(dir, "vmlinux-"+release)
	if err := os.WriteFile(path, kmodtest.Vmlinux{Release: release}.ELF(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func stored(t *testing.T, k *kernels) []api.Kernel {
	t.Helper()
	all, err := k.files.List()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestRegisterKernel(t *testing.T) {
	k, dir := newKernels(t)
	req := api.RegisterKernel{Name: "mine", Vmlinux: ownKernel(t, dir, "6.12.0")}
	if err := k.CheckRegister(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	krn, err := k.Register(t.Context(), req, progress.Discard)
	if err != nil || krn.Release != "6.12.0" || krn.Source != req.Vmlinux {
		t.Fatalf("%+v, %v", krn, err)
	}
	if got, err := k.Kernel(t.Context(), "mine"); err != nil || got.Digest != krn.Digest || !got.Local || got.Source != req.Vmlinux {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := k.ensure(t.Context(), "mine", progress.Discard); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]struct {
		err  error
		kind api.ErrorKind
		want string
	}{
		"check of a name that is taken": {k.CheckRegister(t.Context(), req), api.KindConflict, "banger kernel delete mine"},
		"a name that is taken":          {second(k.Register(t.Context(), req, progress.Discard)), api.KindConflict, "banger kernel delete mine"},
		"a name of the catalog":         {k.CheckRegister(t.Context(), api.RegisterKernel{Name: defaultKernel, Vmlinux: req.Vmlinux}), api.KindConflict, "another --name"},
		"a pull of it":                  {k.CheckPull(t.Context(), api.PullKernel{Name: "mine"}), api.KindConflict, "banger kernel delete mine"},
		"a near name":                   {second(k.Kernel(t.Context(), "mines")), api.KindNotFound, "did you mean mine?"},
		"a VM of a near name":           {second(k.ensure(t.Context(), "mines", progress.Discard)), api.KindNotFound, "did you mean mine?"},
	} {
		if api.KindOf(c.err) != c.kind || !strings.Contains(api.AsError(c.err).Hint, c.want) {
			t.Errorf("%s: %v (hint %q), want %s and %q", name, c.err, api.AsError(c.err).Hint, c.kind, c.want)
		}
	}
	if err := k.CheckPull(t.Context(), api.PullKernel{}); err != nil {
		t.Errorf("a pull of the default: %v", err)
	}
	if err := k.Delete(t.Context(), "mine"); err != nil || len(stored(t, k)) > 0 {
		t.Errorf("left %v, %v", stored(t, k), err)
	}
}

// A damaged kernel says by which command it is registered again, and that is let do it.
func TestRegisterOverDamage(t *testing.T) {
	k, dir := newKernels(t)
	req := api.RegisterKernel{Name: "mine", Vmlinux: ownKernel(t, dir, "6.12.0")}
	krn, err := k.Register(t.Context(), req, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for what, damage := range map[string]func(vmlinux string) error{
		"a file":        os.Remove,
		"the record":    func(v string) error { return os.Remove(filepath.Join(filepath.Dir(v), "kernel.json")) },
		"the directory": func(v string) error { return os.RemoveAll(filepath.Dir(v)) },
	} {
		f, err := k.files.Files(t.Context(), krn.Digest)
		if err == nil {
			err = damage(f.Vmlinux)
		}
		if err != nil {
			t.Fatal(err)
		}
		_, err = k.ensure(t.Context(), "mine", progress.Discard)
		if hint := api.AsError(err).Hint; !strings.HasSuffix(hint, "banger kernel register --name mine --vmlinux "+req.Vmlinux) {
			t.Errorf("without %s: %v, hint %q", what, err, hint)
		}
		if again, err := k.Register(t.Context(), req, progress.Discard); err != nil || again.Digest != krn.Digest {
			t.Fatalf("without %s: %+v, %v", what, again, err)
		}
		if _, err := k.ensure(t.Context(), "mine", progress.Discard); err != nil {
			t.Errorf("without %s: %v", what, err)
		}
	}
}

// Two names of one content: each goes by itself, and the files with the last.
func TestRegisterTwice(t *testing.T) {
	k, dir := newKernels(t)
	path := ownKernel(t, dir, "6.12.0")
	for _, name := range []string{"a", "b"} {
		if _, err := k.Register(t.Context(), api.RegisterKernel{Name: name, Vmlinux: path}, progress.Discard); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := k.ensure(t.Context(), "b", progress.Discard); err != nil {
		t.Error(err)
	}
	if err := k.Delete(t.Context(), "b"); err != nil || len(stored(t, k)) > 0 {
		t.Errorf("left %v, %v", stored(t, k), err)
	}
}

// atStep does something when a step begins.
type atStep struct {
	progress.Reporter
	step string
	do   func()
}

func (c atStep) Step(name string) {
	if strings.HasPrefix(name, c.step) {
		c.do()
	}
}

// Whatever step it is cancelled at, a registration leaves neither files nor a record.
func TestRegisterLeavesNothing(t *testing.T) {
	for _, step := range []string{"copy vmlinux", "prepare the modules", "make the modules drive"} {
		k, dir := newKernels(t)
		req := api.RegisterKernel{Name: "mine", Vmlinux: ownKernel(t, dir, "6.12.0")}
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := k.Register(ctx, req, atStep{progress.Discard, step, cancel}); err == nil || ctx.Err() == nil {
			t.Errorf("%s: cancelled, and %v", step, err)
		}
		if all, err := k.db.Kernels(t.Context()); err != nil || len(all) > 0 || len(stored(t, k)) > 0 {
			t.Errorf("%s: left %v and %v, %v", step, all, stored(t, k), err)
		}
	}
}
