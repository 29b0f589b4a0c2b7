package store

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
)

// TestFullDisk fills a small file system: what is recorded can still be changed and deleted, thanks to the reserve.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=128m"); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	s := open(t, filepath.Join(dir, "banger.db"))
	must(t, s.PutImage(t.Context(), api.Image{Name: "debian", Digest: "sha256:i1", Arch: "amd64", CreatedAt: &t0}))
	must(t, s.PutKernel(t.Context(), api.Kernel{Name: "generic", Digest: "sha256:k1", Arch: "amd64", CreatedAt: &t0}))
	v := vm("a")
	must(t, s.InsertVM(t.Context(), v))
	fill := filepath.Join(dir, "fill")
	f, err := os.Create(fill)
	must(t, err)
	block := make([]byte, 64<<10)
	for err == nil {
		_, err = f.Write(block)
	}
	must(t, f.Close())
	for i := range 300 { // more than what the log of the database happened to have room for
		if _, err := s.UpdateVM(t.Context(), v.ID, func(v *VM) error { v.Reason = strings.Repeat("x", i); return nil }); err != nil {
			t.Fatalf("update %d: %v", i, err)
		}
	}
	must(t, s.DeleteVM(t.Context(), v.ID))
	must(t, os.Remove(fill))
	must(t, s.InsertVM(t.Context(), vm("b")))
	if info, err := os.Stat(filepath.Join(dir, "banger.db-reserve")); err != nil || info.Size() != reserveBytes {
		t.Errorf("the reserve is not taken again: %v, %v", info, err)
	}
}
