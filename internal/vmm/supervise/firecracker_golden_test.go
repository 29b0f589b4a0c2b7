package supervise

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/network/nettest"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker/fakefc"
)

// TestFirecrackerRequests compares all that is asked of Firecracker with testdata/firecracker/NAME.requests, which UPDATE=1 writes. Where
// BANGER_FIRECRACKER_SPEC names Firecracker's API document, each request is one that it allows.
func TestFirecrackerRequests(t *testing.T) {
	poweroff := func(t *testing.T, r *run) error {
		r.order("poweroff")
		r.awaitEnd(t)
		return nil
	}
	for name, g := range map[string]golden{
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
			return errors.Join(os.Mkdir(filepath.Join(r.dir, snapDir), 0o700), r.Pause(r.ctx), r.Snapshot(r.ctx, snapDir), r.Resume(r.ctx))
		}},
		"restore": {do: snapshotToRestore, again: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g.compare(t, name)
		})
	}
}

// TestFirecrackerBridgeRequests is TestFirecrackerRequests of VMs whose eth0 is a TAP of the host.
func TestFirecrackerBridgeRequests(t *testing.T) {
	nettest.Run(t, func(t *testing.T, _ *nettest.Internet) {
		if err := netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "bngr0-t0"}, Mode: netlink.TUNTAP_MODE_TAP}); err != nil {
			t.Fatal(err)
		}
		bridge := func(s *vmm.Spec) {
			s.TAP = "bngr0-t0"
			s.Identity.Network = &wire.Network{Device: wire.DeviceVirtio, MAC: "52:54:ac:10:00:02", Address: "172.16.0.2/24", Gateway: "172.16.0.1", MTU: 1500}
		}
		golden{change: bridge, do: func(t *testing.T, r *run) error { return nil }}.compare(t, "bridge")
		golden{change: bridge, do: snapshotToRestore, again: true}.compare(t, "bridge-restore")
	})
}

// snapshotToRestore takes a snapshot, ends the VM, forgets what was asked until here, and has the next start restore it.
func snapshotToRestore(_ *testing.T, r *run) error {
	r.spec.Restore = snapDir
	return errors.Join(os.Mkdir(filepath.Join(r.dir, snapDir), 0o700), r.Pause(r.ctx), r.Snapshot(r.ctx, snapDir), r.Kill(r.ctx),
		os.Remove(filepath.Join(r.dir, fakefc.RequestsFile)))
}

// golden is the life of a VM whose requests are compared.
type golden struct {
	change func(*vmm.Spec)
	do     func(*testing.T, *run) error
	again  bool // starts it once more afterwards
}

func (g golden) compare(t *testing.T, name string) {
	t.Helper()
	dir, spec := newFCVM(t, fakefc.Knobs{Spec: os.Getenv(fakefc.EnvSpec)})
	modules := filepath.Join(filepath.Dir(spec.Kernel), "modules.ext4")
	if err := os.WriteFile(modules, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	spec.Drives = append(spec.Drives, vmm.Drive{ID: wire.DriveModules, Path: modules, ReadOnly: true})
	spec.CPUs, spec.MemoryMiB = 2, 256
	if g.change != nil {
		g.change(&spec)
	}
	r := launchFC(t, dir, spec)
	r.awaitFull(t)
	if err := g.do(t, r); err != nil {
		t.Fatal(err)
	}
	if g.again {
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
	file := filepath.Join("testdata", "firecracker", name+".requests")
	if os.Getenv("UPDATE") != "" {
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(got), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("the requests are others (UPDATE=1 writes them, -want +got):\n%s", diff)
	}
	nothingLeft(t, dir) // a request that Firecracker's document forbids leaves a file
}
