package daemon

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/image"
	"git.thaloco.com/thaloco/banger/internal/kernel"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/store"
)

// interrupter collects the notes of a piece of work and cancels it at the first.
type interrupter struct {
	progress.Reporter
	cancel context.CancelFunc
	notes  []string
}

func (r *interrupter) Note(text string) {
	r.notes = append(r.notes, text)
	r.cancel()
}

// TestEnsureSaysWhatTakesLong: who starts a VM is told that its image is made first, and nothing of an
// image that nobody knows.
func TestEnsureSaysWhatTakesLong(t *testing.T) {
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "banger.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	files, err := image.New(image.Config{Dir: t.TempDir(), CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	i := images{files: files, db: db, def: "debian-bookworm"}
	for name, want := range map[string][]string{
		"":     {`image "debian-bookworm" is not on this host yet: it is made now, once, which takes a minute or two`},
		"nope": nil,
	} {
		ctx, cancel := context.WithCancel(t.Context())
		rep := &interrupter{Reporter: progress.Discard, cancel: cancel}
		if _, err := i.ensure(ctx, name, rep); err == nil || !slices.Equal(rep.notes, want) {
			t.Errorf("image %q: notes %q, %v", name, rep.notes, err)
		}
		cancel()
	}
}

// TestPullOfNoName: no name is the default image's in a pull, as it is in the check before it.
func TestPullOfNoName(t *testing.T) {
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "banger.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.PutImage(t.Context(), api.Image{Name: "debian-bookworm", Digest: "sha256:1"}); err != nil {
		t.Fatal(err)
	}
	i := images{db: db, def: "debian-bookworm"}
	if img, err := i.Pull(t.Context(), api.PullImage{}, progress.Discard); err != nil || img.Name != i.def {
		t.Errorf("%+v, %v", img, err)
	}
}

// TestEnsureDoesNotPullOverABrokenDatabase: only what is not there is made.
func TestEnsureDoesNotPullOverABrokenDatabase(t *testing.T) {
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "banger.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	i, k := images{db: db, def: "debian-bookworm"}, kernels{db: db} // without files: a pull would panic
	if _, err := i.ensure(t.Context(), "", progress.Discard); err == nil {
		t.Error("an image without a database")
	}
	if _, err := k.ensure(t.Context(), "", progress.Discard); err == nil {
		t.Error("a kernel without a database")
	}
}

// TestPullWhoseFilesWereDeletedMeanwhile: what is recorded has files, whatever was deleted between its pull and its record.
func TestPullWhoseFilesWereDeletedMeanwhile(t *testing.T) {
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "banger.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	digest := "sha256:" + strings.Repeat("1", 64)
	imgs, err := image.New(image.Config{Dir: t.TempDir(), CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	krns, err := kernel.New(kernel.Config{Dir: t.TempDir(), CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	i, k := images{files: imgs, db: db}, kernels{files: krns, db: db}
	errs := map[string]error{
		"image":  i.record(t.Context(), api.Image{Name: "b", Digest: digest}),
		"kernel": k.record(t.Context(), api.Kernel{Name: "b", Digest: digest}),
	}
	for noun, err := range errs {
		if api.KindOf(err) != api.KindConflict || api.AsError(err).Hint != "banger "+noun+" pull b" {
			t.Errorf("%s: %v, hint %q", noun, err, api.AsError(err).Hint)
		}
	}
	if _, err := db.Image(t.Context(), "b"); api.KindOf(err) != api.KindNotFound {
		t.Errorf("the image is recorded: %v", err)
	}
	if _, err := db.Kernel(t.Context(), "b"); api.KindOf(err) != api.KindNotFound {
		t.Errorf("the kernel is recorded: %v", err)
	}
}
