package daemon

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/image"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/store"
)

// newImages returns images over an empty store, and the directory of files to make some of.
func newImages(t *testing.T) (*images, string) {
	t.Helper()
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "banger.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	files, err := image.New(image.Config{Dir: t.TempDir(), CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return &images{files: files, db: db, def: "debian-bookworm"}, t.TempDir()
}

func rootfsTar(t *testing.T, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	err := tw.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: int64(len(content))})
	_, werr := io.WriteString(tw, content)
	if err := errors.Join(err, werr, tw.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// register makes an image of a tar that holds one file.
func register(t *testing.T, i *images, dir, name, content string) api.Image {
	t.Helper()
	path := filepath.Join(dir, name+".tar")
	if err := os.WriteFile(path, rootfsTar(t, content), 0o600); err != nil {
		t.Fatal(err)
	}
	req := api.RegisterImage{Name: name, Rootfs: path}
	if err := i.CheckRegister(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	img, err := i.Register(t.Context(), req, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// localNames are the names of the local images.
func localNames(t *testing.T, i *images) []string {
	t.Helper()
	all, err := i.db.Images(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return names(all, func(i api.Image) string { return i.Name })
}

// use makes a VM of an image.
func use(t *testing.T, i *images, name string, img api.Image) {
	t.Helper()
	if err := i.db.PutKernel(t.Context(), api.Kernel{Name: "k", Digest: "sha256:k"}); err != nil {
		t.Fatal(err)
	}
	err := i.db.InsertVM(t.Context(), store.VM{ID: strings.Repeat("a", 31) + name[:1], Name: name, State: api.StateStopped, Image: img.Name, ImageDigest: img.Digest,
		Kernel: "k", KernelDigest: "sha256:k", CreatedAt: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
}

// TestRequestsForImages: what cannot be done is said before any work is done for it.
func TestRequestsForImages(t *testing.T) {
	i, dir := newImages(t)
	register(t, i, dir, "mine", "one")
	i.kernel = func(_ context.Context, name string) error {
		if name != "known" {
			return api.Errorf(api.KindNotFound, "kernel %q is not known", name)
		}
		return nil
	}
	ctx := t.Context()
	for what, c := range map[string]struct {
		err  error
		kind api.ErrorKind
		text string // in the error or its hint
	}{
		"no such name":            {i.CheckPull(ctx, api.PullImage{Name: "debian-bookwrm"}), api.KindNotFound, "debian-bookworm"},
		"a name of a registry's":  {i.CheckPull(ctx, api.PullImage{Name: "alpine"}), api.KindNotFound, "banger image pull docker.io/library/alpine"},
		"a file":                  {i.CheckPull(ctx, api.PullImage{Name: "./rootfs.ext4"}), api.KindInvalid, "banger image register"},
		"no reference":            {i.CheckPull(ctx, api.PullImage{Name: "A/b"}), api.KindInvalid, "no reference"},
		"a name for the catalog":  {i.CheckPull(ctx, api.PullImage{Name: "debian-bookworm", As: "x"}), api.KindInvalid, "banger image tag debian-bookworm"},
		"a recipe of a registry":  {i.CheckPull(ctx, api.PullImage{Name: "alpine:3", Build: true}), api.KindInvalid, "--build"},
		"a platform":              {i.CheckPull(ctx, api.PullImage{Name: "alpine:3", Platform: "linux/arm64"}), api.KindInvalid, "linux/arm64"},
		"a kernel":                {i.CheckPull(ctx, api.PullImage{Name: "alpine:3", Kernel: "nope"}), api.KindNotFound, "nope"},
		"a bad name":              {i.CheckPull(ctx, api.PullImage{Name: "alpine:3", As: "A"}), api.KindInvalid, `"A"`},
		"the catalog's name":      {i.CheckPull(ctx, api.PullImage{Name: "alpine:3", As: "debian-bookworm"}), api.KindConflict, "catalog"},
		"all is well":             {i.CheckPull(ctx, api.PullImage{Name: "alpine:3", As: "mine", Kernel: "known", Platform: "linux/amd64"}), "", ""},
		"register again":          {i.CheckRegister(ctx, api.RegisterImage{Name: "mine", Rootfs: "/x"}), api.KindConflict, "banger image delete mine"},
		"register relative":       {i.CheckRegister(ctx, api.RegisterImage{Name: "x", Rootfs: "x"}), api.KindInvalid, "absolute"},
		"register kernel":         {i.CheckRegister(ctx, api.RegisterImage{Name: "x", Rootfs: "/x", Kernel: "nope"}), api.KindNotFound, "nope"},
		"export nothing":          {i.CheckExport(ctx, "nope", api.ExportImage{Path: "/x"}), api.KindNotFound, "nope"},
		"export what is not here": {i.CheckExport(ctx, "debian-bookworm", api.ExportImage{Path: "/x"}), api.KindNotFound, "banger image pull debian-bookworm"},
		"export over a file":      {i.CheckExport(ctx, "mine", api.ExportImage{Path: filepath.Join(dir, "mine.tar")}), api.KindConflict, "--force"},
		"import relative":         {i.CheckImport(ctx, api.ImportImage{Path: "x"}), api.KindInvalid, "absolute"},
		"import again":            {i.CheckImport(ctx, api.ImportImage{Path: "/x", Name: "mine"}), api.KindConflict, "mine"},
		"prune":                   {second(i.Prune(ctx, api.Prune{OlderThanSeconds: -1})), api.KindInvalid, "-1"},
		"delete nothing":          {i.Delete(ctx, "min"), api.KindNotFound, "mine"},
		"delete what is not here": {i.Delete(ctx, "debian-bookworm"), api.KindNotFound, "not on this host"},
	} {
		if c.kind == "" {
			if c.err != nil {
				t.Errorf("%s: %v", what, c.err)
			}
			continue
		}
		if c.err == nil || api.KindOf(c.err) != c.kind || !strings.Contains(c.err.Error()+" "+api.AsError(c.err).Hint, c.text) {
			t.Errorf("%s: %v (%s), hint %q", what, c.err, api.KindOf(c.err), api.AsError(c.err).Hint)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestTagDeletePrune: names come and go, and the files with the last of them, unless a VM is made of them.
func TestTagDeletePrune(t *testing.T) {
	i, dir := newImages(t)
	one, two, three := register(t, i, dir, "one", "1"), register(t, i, dir, "two", "2"), register(t, i, dir, "three", "3")
	use(t, i, "web", two)
	if img, err := i.Tag(t.Context(), "one", api.TagImage{As: "uno"}); err != nil || img.Digest != one.Digest || img.Name != "uno" {
		t.Errorf("%+v, %v", img, err)
	}
	if _, err := i.Tag(t.Context(), "one", api.TagImage{As: "uno"}); err != nil {
		t.Errorf("the same again: %v", err)
	}
	if _, err := i.Tag(t.Context(), "one", api.TagImage{As: "two"}); api.KindOf(err) != api.KindConflict {
		t.Errorf("a name that is taken: %v", err)
	}
	all, err := i.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range all {
		if shared := img.Digest == one.Digest && img.Local; (img.SharedBytes > 0) != shared || shared && img.SharedBytes != img.DiskBytes {
			t.Errorf("%s: %d of %d bytes are shared", img.Name, img.SharedBytes, img.DiskBytes)
		}
	}
	if err := i.Delete(t.Context(), "two"); api.KindOf(err) != api.KindConflict || !strings.Contains(err.Error(), `"web"`) {
		t.Errorf("delete what a VM is made of: %v", err)
	}
	if err := i.Delete(t.Context(), "one"); err != nil {
		t.Error(err)
	}
	if err := i.Files(t.Context(), "uno", func(api.ImageFile) error { return nil }); err != nil {
		t.Errorf("the other name: %v", err)
	}
	young, err := i.Prune(t.Context(), api.Prune{OlderThanSeconds: 3600})
	if err != nil || len(young.Images) != 0 || young.Bytes != 0 {
		t.Errorf("what is young: %+v, %v", young, err)
	}
	want := []string{"three", "uno"}
	for _, dry := range []bool{true, false} {
		got, err := i.Prune(t.Context(), api.Prune{DryRun: dry})
		if diff := cmp.Diff(want, names(got.Images, func(i api.Image) string { return i.Name })); diff != "" || err != nil || got.Busy ||
			got.Bytes != one.DiskBytes+three.DiskBytes {
			t.Errorf("dry %v: %+v, %v", dry, got, err)
		}
		if left := localNames(t, i); len(left) == 3 != dry {
			t.Errorf("dry %v: %q is left", dry, left)
		}
	}
	if _, err := i.files.Files(t.Context(), one.Digest); api.KindOf(err) != api.KindNotFound {
		t.Errorf("the files: %v", err)
	}
	if _, err := i.files.Files(t.Context(), two.Digest); err != nil {
		t.Errorf("the files of what a VM is made of: %v", err)
	}
	i.cache.RLock()
	defer i.cache.RUnlock()
	if got, err := i.Prune(t.Context(), api.Prune{}); err != nil || !got.Busy {
		t.Errorf("while a pull runs: %+v, %v", got, err)
	}
}

// TestDefaultByReference: a default image that is configured by its full reference is the default by its own name, which prune keeps.
func TestDefaultByReference(t *testing.T) {
	i, dir := newImages(t)
	i.def = recordedName("docker.io/library/alpine:3.20")
	img := register(t, i, dir, "base", "1")
	img.Name = "alpine:3.20"
	if err := i.db.PutImage(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	if got, err := i.Prune(t.Context(), api.Prune{}); err != nil || len(got.Images) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := i.Image(t.Context(), "alpine:3.20"); err != nil || !got.Default {
		t.Errorf("%+v, %v", got, err)
	}
	for _, same := range []string{"debian-bookworm", "./no-image"} {
		if got := recordedName(same); got != same {
			t.Errorf("%s: %s", same, got)
		}
	}
}

// TestSameFilesOfTwoNames: one file system has one configuration.
func TestSameFilesOfTwoNames(t *testing.T) {
	i, dir := newImages(t)
	first := register(t, i, dir, "first", "same")
	again, err := i.Register(t.Context(), api.RegisterImage{Name: "again", Rootfs: filepath.Join(dir, "first.tar")}, progress.Discard)
	if err != nil || again.Digest != first.Digest {
		t.Errorf("%+v, %v", again, err)
	}
	err = i.record(t.Context(), api.Image{Name: "other", Digest: first.Digest, Kernel: "another"})
	if api.KindOf(err) != api.KindConflict || !strings.Contains(api.AsError(err).Hint, "banger image tag") {
		t.Errorf("another configuration: %v", err)
	}
	if _, err := i.Register(t.Context(), api.RegisterImage{Name: "again", Rootfs: filepath.Join(dir, "first.tar")}, progress.Discard); api.KindOf(err) != api.KindConflict {
		t.Errorf("two at once of one name: %v", err)
	}
}

// fakeGuest is a VM whose root is a tar.
type fakeGuest struct {
	vm    api.VM
	root  []byte
	err   error // after the tar
	clean bool
}

func (g *fakeGuest) VM(_ context.Context, name string) (api.VM, error) {
	if name != g.vm.Name && name != g.vm.ID {
		return api.VM{}, api.Errorf(api.KindNotFound, "no vm %q", name)
	}
	return g.vm, nil
}

func (g *fakeGuest) Root(_ context.Context, _ string, clean bool, w io.Writer) (api.FilesResult, error) {
	g.clean = clean
	if _, err := w.Write(g.root); err != nil {
		return api.FilesResult{}, err
	}
	return api.FilesResult{Skipped: []string{`"x": it went away`}}, g.err
}

// TestPromote: an image of a VM has the VM's files and its image's configuration; nothing is left of one that fails.
func TestPromote(t *testing.T) {
	i, dir := newImages(t)
	base := register(t, i, dir, "base", "1")
	base.Env, base.User, base.Kernel = []string{"A=b"}, "me", "k"
	if err := i.db.PutImage(t.Context(), base); err != nil {
		t.Fatal(err)
	}
	g := &fakeGuest{vm: api.VM{ID: "id", Name: "box", State: api.StateRunning, Image: "base", ImageDigest: base.Digest}, root: rootfsTar(t, "changed")}
	i.vms = g
	req := api.PromoteImage{VM: "box", Name: "tools", Clean: true}
	for name, change := range map[string]func(r *api.PromoteImage){
		"no such VM": func(r *api.PromoteImage) { r.VM = "nope" }, "a name that is taken": func(r *api.PromoteImage) { r.Name = "base" },
		"no name": func(r *api.PromoteImage) { r.Name = "" },
	} {
		bad := req
		change(&bad)
		if err := i.CheckPromote(t.Context(), bad); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	g.vm.State = api.StateStopped
	if err := i.CheckPromote(t.Context(), req); api.KindOf(err) != api.KindConflict || !strings.Contains(api.AsError(err).Hint, "banger vm start box") {
		t.Errorf("a VM that is stopped: %v", err)
	}
	g.vm.State = api.StateRunning
	if err := i.CheckPromote(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	rep := &interrupter{Reporter: progress.Discard, cancel: func() {}}
	img, err := i.Promote(t.Context(), req, rep)
	if err != nil || !g.clean || img.Name != "tools" || img.User != "me" || img.Kernel != "k" || len(img.Env) != 1 || len(rep.notes) != 1 {
		t.Errorf("%+v, %v, %q", img, err, rep.notes)
	}
	g.err, req.Name = errors.New("the guest broke off"), "broken"
	if img, err := i.Promote(t.Context(), req, progress.Discard); !errors.Is(err, g.err) {
		t.Errorf("%+v, %v", img, err)
	}
	g.err, g.root = nil, g.root[:700]
	if img, err := i.Promote(t.Context(), req, progress.Discard); err == nil {
		t.Errorf("half a root: %+v", img)
	}
	if diff := cmp.Diff([]string{"base", "tools"}, localNames(t, i)); diff != "" {
		t.Error(diff)
	}
}

// TestPruneWhatWasLost: the files of a pull whose daemon was killed before it recorded them go, and only those.
func TestPruneWhatWasLost(t *testing.T) {
	i, dir := newImages(t)
	path := filepath.Join(dir, "lost.tar")
	if err := os.WriteFile(path, rootfsTar(t, "old"), 0o600); err != nil {
		t.Fatal(err)
	}
	lost, err := i.files.Register(t.Context(), api.Image{Name: "tool"}, path, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	kept := register(t, i, dir, "tool", "new")
	use(t, i, "box", kept)
	if err := i.adopt(t.Context()); err != nil {
		t.Fatal(err)
	}
	prune := func(dryRun bool) api.Pruned {
		t.Helper()
		out, err := i.Prune(t.Context(), api.Prune{DryRun: dryRun})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if out := prune(false); out.Bytes != 0 { // it may be a pull that is about to be recorded
		t.Errorf("removed %+v", out)
	}
	i.started = time.Now().Add(time.Minute)
	if out := prune(true); out.Bytes != lost.DiskBytes {
		t.Errorf("would remove %+v", out)
	}
	if out := prune(false); out.Bytes != lost.DiskBytes || len(out.Images) != 0 {
		t.Errorf("removed %+v", out)
	}
	if _, err := i.files.Files(t.Context(), lost.Digest); api.KindOf(err) != api.KindNotFound {
		t.Errorf("what was lost: %v", err)
	}
	if _, err := i.files.Files(t.Context(), kept.Digest); err != nil {
		t.Errorf("what is in use: %v", err)
	}
}
