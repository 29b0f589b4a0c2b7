package supervise

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker/fakefc"
)

// TestFirecrackerRequests compares all that is asked of Firecracker with testdata/firecracker/NAME.requests, which UPDATE=1 writes. Where
// BANGER_FIRECRACKER_SPEC names Firecracker's API document, each request is one that it allows.
func TestFirecrackerRequests(t *testing.T) {
	mkdir := func(t *testing.T, r *run) {
		if err := os.MkdirAll(filepath.Join(r.dir, snapDir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	poweroff := func(t *testing.T, r *run) error {
		r.order("poweroff")
		r.awaitEnd(t)
		return nil
	}
	for name, c := range map[string]struct {
		change func(*vmm.Spec)
		do     func(*testing.T, *run) error
		again  bool // starts it once more afterwards
	}{
		"create": {do: func(t *testing.T, r *run) error { return nil }},
		"run":    {change: func(s *vmm.Spec) { s.Unsafe = true }, do: poweroff},
		"stop":   {do: poweroff},
		"start":  {do: poweroff, again: true},
		"restart": {do: func(t *testing.T, r *run) error {
			r.order("reboot")
			r.await(t, func(st vmm.Status) bool { return st.Boots == 2 })
			r.awaitFull(t)
			return poweroff(t, r)
		}},
		"delete": {do: func(t *testing.T, r *run) error { return r.Kill(r.ctx) }},
		"pause":  {do: func(t *testing.T, r *run) error { return errors.Join(r.Pause(r.ctx), r.Resume(r.ctx)) }},
		"resize": {do: func(t *testing.T, r *run) error { return r.ResizeDrive(r.ctx, wire.DriveData) }},
		"balloon": {do: func(t *testing.T, r *run) error {
			return errors.Join(r.SetBalloon(r.ctx, 64), r.SetBalloon(r.ctx, 0))
		}},
		"snapshot": {do: func(t *testing.T, r *run) error {
			mkdir(t, r)
			return errors.Join(r.Pause(r.ctx), r.Snapshot(r.ctx, snapDir), r.Resume(r.ctx))
		}},
		"restore": {do: func(t *testing.T, r *run) error {
			mkdir(t, r)
			r.spec.Restore = snapDir
			return errors.Join(r.Pause(r.ctx), r.Snapshot(r.ctx, snapDir), r.Kill(r.ctx), os.Remove(filepath.Join(r.dir, fakefc.RequestsFile)))
		}, again: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, spec := newFCVM(t, fakefc.Knobs{Spec: os.Getenv(fakefc.EnvSpec)})
			modules := filepath.Join(filepath.Dir(spec.Kernel), "modules.ext4")
			if err := os.WriteFile(modules, make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			spec.Drives = append(spec.Drives, vmm.Drive{ID: wire.DriveModules, Path: modules, ReadOnly: true})
			spec.CPUs, spec.MemoryMiB = 2, 256
			if c.change != nil {
				c.change(&spec)
			}
			r := launchFC(t, dir, spec)
			r.awaitFull(t)
			if err := c.do(t, r); err != nil {
				t.Fatal(err)
			}
			if c.again {
				again := launchFC(t, dir, r.spec)
				again.awaitFull(t)
				if err := again.Kill(r.ctx); err != nil {
					t.Fatal(err)
				}
			}
			if err := r.Kill(r.ctx); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(filepath.Join(dir, fakefc.RequestsFile))
			if err != nil {
				t.Fatal(err)
			}
			got := strings.ReplaceAll(string(b), filepath.Dir(spec.Kernel), "STORE")
			golden := filepath.Join("testdata", "firecracker", name+".requests")
			if os.Getenv("UPDATE") != "" {
				if err := errors.Join(os.MkdirAll(filepath.Dir(golden), 0o755), os.WriteFile(golden, []byte(got), 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("the requests are others (UPDATE=1 writes them, -want +got):\n%s", diff)
			}
			nothingLeft(t, dir) // a request that Firecracker's document forbids leaves a file
		})
	}
}
