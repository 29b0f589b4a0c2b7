package fake

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"git.thaloco.com/thaloco/banger/internal/guest/guestapi"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/vmmtest"
)

func fixture(t *testing.T) vmmtest.Fixture {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"vmm", "vmlinux", "data.ext4"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	host := NewHost()
	t.Cleanup(host.Close)
	return vmmtest.Fixture{
		Engine: &Engine{Host: host}, Again: &Engine{Host: host}, Dir: dir,
		Spec: vmm.Spec{
			Version: vmm.SpecVersion, VM: "1", Name: "dev", Binary: filepath.Join(dir, "vmm"), CPUs: 1, MemoryMiB: 128,
			Kernel: filepath.Join(dir, "vmlinux"), Drives: []vmm.Drive{{ID: wire.DriveData, Path: "data.ext4"}},
		},
	}
}

func TestConformance(t *testing.T) { vmmtest.Run(t, fixture) }

func TestFailAt(t *testing.T) {
	boom := errors.New("boom")
	fix := fixture(t)
	host := fix.Engine.(*Engine).Host
	host.FailAt(1, boom)
	if _, err := fix.Engine.Start(t.Context(), fix.Dir, fix.Spec); !errors.Is(err, boom) {
		t.Errorf("the first step: %v", err)
	}
	m, err := fix.Engine.Start(t.Context(), fix.Dir, fix.Spec)
	if err != nil {
		t.Fatalf("the second step: %v", err)
	}
	if want := filepath.Base(fix.Dir) + " running"; host.String() != want {
		t.Errorf("the host is %q, want %q", host, want)
	}
	if !host.Lose(fix.Dir) || m.Status().End.Cause != vmm.EndLost || host.String() != "" {
		t.Errorf("a lost machine is %+v, the host %q", m.Status(), host)
	}
}

func TestSilentGuest(t *testing.T) {
	fix := fixture(t)
	fix.Engine.(*Engine).Silent = true
	m, err := fix.Engine.Start(t.Context(), fix.Dir, fix.Spec)
	if err != nil {
		t.Fatal(err)
	}
	if st := m.Status(); st.Mark != "" || st.Phase != vmm.PhaseRunning {
		t.Errorf("the status is %+v", st)
	}
	if _, err := m.Dial(t.Context(), wire.PortExec); !errors.Is(err, vmm.ErrRefused) {
		t.Errorf("dial: %v", err)
	}
}

func TestAPI(t *testing.T) {
	fix := fixture(t)
	m, err := fix.Engine.Start(t.Context(), fix.Dir, fix.Spec)
	if err != nil {
		t.Fatal(err)
	}
	c := &guestapi.Client{Dial: m.Dial}
	if h, err := c.Health(t.Context()); err != nil || h.Init != "none" {
		t.Errorf("health: %+v, %v", h, err)
	}
	if err := c.Shutdown(t.Context(), "poweroff"); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	st := m.Status()
	for st.Phase != vmm.PhaseEnded {
		if st, err = m.Next(t.Context(), st.Seq); err != nil {
			t.Fatal(err)
		}
	}
	if st.End.Cause != vmm.EndPoweroff {
		t.Errorf("the end is %+v", st.End)
	}
}
