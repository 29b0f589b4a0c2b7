package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// TestFullDisk: who hears that a disk is full hears which one, and not of a file that is gone.
func TestFullDisk(t *testing.T) {
	s := &Store{cfg: Config{Dir: "/data/images", CacheDir: "/cache"}}
	write := func(path string) error {
		return fmt.Errorf("make ext4: %w", &fs.PathError{Op: "write", Path: path, Err: syscall.ENOSPC})
	}
	for name, tc := range map[string]struct {
		dir  string
		err  error
		want string
	}{
		"images": {"/data/images", write("/data/images/.tmp-1/rootfs.ext4"), "/data/images:"},
		"cache":  {"/data/images", api.Errorf(api.KindInternal, "fetch: %w", write("/cache/oci/a.part")), "/cache:"},
		"export": {"/elsewhere", write("/elsewhere/(unnamed)"), "/elsewhere:"},
		"quota":  {"/data/images", syscall.EDQUOT, "/data/images:"},
		"copied": {"/data/images", api.Errorf(api.KindUnavailable, "copy: %w", syscall.ENOSPC).WithHint("delete VMs"), "/data/images:"},
	} {
		t.Run(name, func(t *testing.T) {
			err := api.AsError(s.explainAs(t.Context(), "pull image", tc.dir, tc.err))
			if err.Kind != api.KindUnavailable || strings.Contains(err.Error(), "/") || !strings.Contains(err.Hint, "file system of "+tc.want) {
				t.Errorf("%s: %v, hint %q", err.Kind, err, err.Hint)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.explainAs(ctx, "pull image", "/x", syscall.ENOSPC); api.KindOf(err) != api.KindCancelled {
		t.Errorf("cancelled: %v", err)
	}
}

// TestExportLeavesNothing: a bundle has no name before it is whole.
func TestExportLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.tar.zst")
	write := func(text string, replace bool) error {
		out, err := newOutput(dir)
		if err != nil {
			t.Fatal(err)
		}
		_, err = out.WriteString(text)
		if names, _ := filepath.Glob(filepath.Join(dir, exportPrefix+"*")); out.temp == "" && len(names) > 0 {
			t.Errorf("while it is written there are %q", names)
		}
		if err == nil {
			err = publish(out, path, replace)
		}
		return errors.Join(err, out.discard())
	}
	if err := write("one", false); err != nil {
		t.Fatal(err)
	}
	if err := write("two", false); api.KindOf(err) != api.KindConflict {
		t.Errorf("a second one: %v", err)
	}
	if err := write("three", true); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "three" {
		t.Errorf("the file holds %q, %v", got, err)
	}
	if names, _ := filepath.Glob(filepath.Join(dir, "*")); len(names) != 1 {
		t.Errorf("left are %q", names)
	}
	if names, _ := filepath.Glob(filepath.Join(dir, ".*")); len(names) != 0 {
		t.Errorf("left are %q", names)
	}
}

// stepper calls itself at each step.
type stepper func(step string)

func (s stepper) Step(step string) { s(step) }
func (stepper) Bytes(_, _ int64)   {}
func (stepper) Note(string)        {}

// TestRegisterWhatChanges: of a file that is written to while it is copied no image is made.
func TestRegisterWhatChanges(t *testing.T) {
	s := newStore(t)
	rootfs := filepath.Join(t.TempDir(), "rootfs.ext4")
	base, err := s.AddTar(t.Context(), api.Image{Name: "base"}, bytes.NewReader(tarOf(t, file{"f", "text"})), progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	files, err := s.Files(t.Context(), base.Digest)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(files.Rootfs)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func() error{
		"shorter": func() error { return os.Truncate(rootfs, 8192) },
		"touched": func() error { return os.Chtimes(rootfs, time.Time{}, time.Unix(1e9, 0)) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(rootfs, b, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := s.Register(t.Context(), api.Image{Name: "x"}, rootfs, stepper(func(string) { _ = change() }))
			if api.KindOf(err) != api.KindInvalid || !strings.Contains(err.Error(), "changed while it was copied") {
				t.Error(err)
			}
			if left, _ := filepath.Glob(filepath.Join(s.cfg.Dir, "*")); len(left) != 1 {
				t.Errorf("left are %q", left)
			}
		})
	}
}

// TestMend: each image that is damaged is made whole by the way it came.
func TestMend(t *testing.T) {
	const digest = "@sha256:0123456789012345678901234567890123456789012345678901234567890123"
	for want, img := range map[string]api.Image{
		"banger image pull alpine:3":                                             {Name: "alpine:3", Source: "docker.io/library/alpine:3" + digest},
		"banger image pull alpine:3 --name tools":                                {Name: "tools", Source: "docker.io/library/alpine:3" + digest},
		"banger image pull ghcr.io/a/b" + digest:                                 {Name: "ghcr.io/a/b" + digest, Source: "ghcr.io/a/b" + digest},
		"banger image delete own, and make it again of what it was made of":      {Name: "own", Source: "/srv/rootfs.ext4"},
		"banger image delete promoted, and make it again of what it was made of": {Name: "promoted", Source: `vm "box" of image sha256:00`},
		"banger image pull debian-bookworm --build":                              {Name: "debian-bookworm", Source: "debian bookworm"},
	} {
		if got := mend(img); got != want {
			t.Errorf("%s of %s: %s", img.Name, img.Source, got)
		}
	}
}
