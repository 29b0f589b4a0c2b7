package vm

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/filesync"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// said keeps what a piece of work says.
type said struct {
	progress.Reporter
	lines []string
}

func (n *said) Note(text string) { n.lines = append(n.lines, text) }

// TestFirstBoot: a guest is given what was on the host when its VM was made, once, and what is staged for it is nobody else's to read.
func TestFirstBoot(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(token, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	var logged bytes.Buffer
	w.svc.cfg.Log = slog.New(slog.NewTextHandler(&logged, nil))
	w.svc.cfg.FileSync = []filesync.Entry{{Host: token, Guest: "/root/.token", Mode: 0o600}, {Host: filepath.Join(dir, "missing"), Guest: "/root/x", Mode: 0o600}}
	n := &said{Reporter: progress.Discard}
	vm, err := w.svc.Create(t.Context(), api.CreateVM{Name: "later"}, n)
	if err != nil {
		t.Fatal(err)
	}
	want := "file_sync: " + filepath.Join(dir, "missing") + " is not on this host: not copied"
	if !slices.Equal(n.lines, []string{want}) || strings.Count(logged.String(), "is not on this host") != 1 || strings.Contains(logged.String(), "one") {
		t.Errorf("said %q, logged %s", n.lines, logged.String())
	}
	staged := filepath.Join(w.paths.VM(vm.ID), paths.VMFirstBoot)
	if st, err := os.Stat(staged); err != nil || st.Mode() != 0o600 {
		t.Errorf("staged: %v, %v", st, err)
	}
	write("two")
	for range 2 { // the second time there is nothing to give
		if _, err := w.svc.Start(t.Context(), "later", "", progress.Discard); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"/:root/.token 600 one"}, w.engine.taken); diff != "" {
			t.Error(diff)
		}
		if _, err := os.Stat(staged); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("staged still: %v", err)
		}
		if _, err := w.svc.Kill(t.Context(), "later"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.svc.Create(t.Context(), api.CreateVM{Name: "next", Start: true}, progress.Discard); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/:root/.token 600 one", "/:root/.token 600 two"}, w.engine.taken); diff != "" {
		t.Error(diff)
	}
}

// TestNoFileSync: a VM that becomes an image gets nothing of the user's.
func TestNoFileSync(t *testing.T) {
	w := newWorld(t)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.svc.cfg.FileSync = []filesync.Entry{{Host: token, Guest: "/root/.token", Mode: 0o600}}
	if _, err := w.svc.Create(t.Context(), api.CreateVM{Name: "build", Start: true, NoFileSync: true}, progress.Discard); err != nil {
		t.Fatal(err)
	}
	if len(w.engine.taken) != 0 {
		t.Errorf("the guest was given %q", w.engine.taken)
	}
}

// TestFirstBootFails: a VM whose files cannot be packed, or are not taken by its guest, is not made.
func TestFirstBootFails(t *testing.T) {
	w := newWorld(t)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.svc.cfg.FileSync = []filesync.Entry{{Host: "/dev/null", Guest: "/root/x", Mode: 0o600}}
	if _, err := w.svc.Create(t.Context(), api.CreateVM{Name: "a", Start: true}, progress.Discard); err == nil || !strings.Contains(err.Error(), "file_sync[0]") {
		t.Errorf("what is no file: %v", err)
	}
	w.svc.cfg.FileSync[0].Host = token
	w.engine.takeErr = api.Errorf(api.KindUnavailable, "the guest's disk is full")
	if _, err := w.svc.Create(t.Context(), api.CreateVM{Name: "a", Start: true}, progress.Discard); !strings.Contains(err.Error(), "file_sync") || !strings.Contains(err.Error(), "disk is full") ||
		strings.Contains(err.Error(), "secret") {
		t.Errorf("a guest that takes nothing: %v", err)
	}
	if vms, err := w.svc.List(t.Context()); err != nil || len(vms) != 0 {
		t.Errorf("left are %v, %v", vms, err)
	}
	if entries, err := os.ReadDir(w.paths.VMs()); err != nil || len(entries) != 0 {
		t.Errorf("left are %v, %v", entries, err)
	}
}

// TestFirstBootAfterACrash: what a daemon had not come to, the next does.
func TestFirstBootAfterACrash(t *testing.T) {
	w := newWorld(t)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	vm, err := w.svc.Create(t.Context(), api.CreateVM{Name: "a", Start: true}, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := w.db.VM(t.Context(), vm.ID)
	if err != nil {
		t.Fatal(err)
	}
	w.svc.cfg.FileSync = []filesync.Entry{{Host: token, Guest: "/root/.token", Mode: 0o600}}
	if err := w.svc.stage(t.Context(), rec, progress.Discard); err != nil {
		t.Fatal(err)
	}
	w.svc.Close()
	w.svc = w.service()
	if err := w.svc.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.svc.Start(t.Context(), "a", "", progress.Discard); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/:root/.token 600 one"}, w.engine.taken); diff != "" {
		t.Error(diff)
	}
}
