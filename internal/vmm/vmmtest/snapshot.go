package vmmtest

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/disk/sparse"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// copyDrives copies the writable drives of the VM from one directory in its own to another.
func (v *vm) copyDrives(t *testing.T, from, to string) {
	t.Helper()
	for _, d := range v.fix.Spec.Drives {
		if d.ReadOnly || filepath.IsAbs(d.Path) {
			continue
		}
		if err := copySparse(filepath.Join(v.fix.Dir, from, d.Path), filepath.Join(v.fix.Dir, to, d.Path)); err != nil {
			t.Fatal(err)
		}
	}
}

func copySparse(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := out.Truncate(info.Size()); err != nil {
		return err
	}
	data, err := os.Open(from) // Runs moves the offset of in
	if err != nil {
		return err
	}
	defer data.Close()
	for run, err := range sparse.Runs(in, info.Size()) {
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, run.Offset), io.NewSectionReader(data, run.Offset, run.Len)); err != nil {
			return err
		}
	}
	return nil
}

// testSnapshot saves a VM, ends it, and goes on with it. Engines that cannot say so.
func testSnapshot(t *testing.T, v *vm) {
	if v.fix.NoSnapshots {
		t.Skip("this stand-in takes no snapshots")
	}
	v.awaitReady(t)
	s, ok := v.Machine.(vmm.Snapshotter)
	if !ok {
		t.Skip("this engine has no snapshots")
	}
	if err := os.Mkdir(filepath.Join(v.fix.Dir, "fakesnap"), 0o700); err != nil {
		t.Fatal(err)
	}
	err := s.Snapshot(v.ctx, "fakesnap")
	if api.KindOf(err) == api.KindUnavailable {
		if err := s.SetBalloon(v.ctx, 1); api.KindOf(err) != api.KindUnavailable {
			t.Errorf("set the balloon: %v", err)
		}
		spec := v.fix.Spec
		spec.Restore = "fakesnap"
		if err := v.Kill(v.ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := v.fix.Engine.Start(v.ctx, v.fix.Dir, spec); api.KindOf(err) != api.KindUnavailable {
			t.Errorf("restore: %v", err)
		}
		return
	}
	if api.KindOf(err) != api.KindConflict {
		t.Errorf("snapshot of a VM that runs: %v", err)
	}
	if err := s.SetBalloon(v.ctx, 16); err != nil {
		t.Errorf("set the balloon: %v", err)
	}
	if err := s.SetBalloon(v.ctx, v.fix.Spec.MemoryMiB); api.KindOf(err) != api.KindInvalid {
		t.Errorf("set the balloon to all there is: %v", err)
	}
	if err := s.SetBalloon(v.ctx, 0); err != nil {
		t.Errorf("set the balloon back: %v", err)
	}
	if err := v.Pause(v.ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Snapshot(v.ctx, "nosuch"); err == nil {
		t.Error("a snapshot went to a directory that is not there")
	}
	if err := s.Snapshot(v.ctx, "fakesnap"); err != nil {
		t.Fatalf("snapshot: %v", err)
	}
	v.copyDrives(t, ".", "fakesnap") // they belong to it
	if err := v.Resume(v.ctx); err != nil {
		t.Fatalf("resume after a snapshot: %v", err)
	}
	v.await(t, "resume", func(st vmm.Status) bool { return st.Phase == vmm.PhaseRunning })
	if _, status, err := v.exec(v.ctx, v, "true"); err != nil || status != 0 {
		t.Errorf("exec after a snapshot: status %d, %v", status, err)
	}
	if err := v.Kill(v.ctx); err != nil {
		t.Fatal(err)
	}
	v.copyDrives(t, "fakesnap", ".")
	v.fix.Spec.Restore = "fakesnap"
	restored := start(t, v.fix)
	restored.awaitReady(t)
	if out, status, err := restored.exec(restored.ctx, restored, "echo", "back"); err != nil || status != 0 || out != "back\n" {
		t.Errorf("exec in a restored guest: %q, status %d, %v", out, status, err)
	}
	restored.order("reboot")
	restored.await(t, "a boot", func(st vmm.Status) bool { return st.Boots == 2 })
	restored.awaitReady(t)
}
