package qemu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

func spec() vmm.Spec {
	return vmm.Spec{
		Version: vmm.SpecVersion, VM: "0123456789abcdef", Name: "dev", Engine: "qemu", Binary: "/usr/bin/qemu-system-x86_64",
		Accel: "tcg", CPUs: 2, MemoryMiB: 2048, Kernel: "/data/kernels/sha256-1/vmlinux",
		Drives: []vmm.Drive{
			{ID: wire.DriveBase, Path: "/data/images/a,b=c/rootfs.ext4", ReadOnly: true},
			{ID: wire.DriveData, Path: "data.ext4"},
			{ID: wire.DriveModules, Path: "/data/kernels/sha256-1/modules.ext4", ReadOnly: true},
		},
	}
}

func TestArgs(t *testing.T) {
	unsafe, kvm, network := spec(), spec(), spec()
	unsafe.Unsafe, kvm.Accel = true, "kvm"
	network.Identity.Network = &wire.Network{MAC: "52:54:ac:10:00:02", Address: "172.16.0.2/24", MTU: wire.NetMTU}
	bridge := network
	bridge.Identity.Network = &wire.Network{MAC: "52:54:ac:10:00:02", Address: "172.16.0.2/24", MTU: 1500}
	bridge.TAP = "bngr0-t0"
	opt := Options{Initrd: "initrd", TSCKHz: 2596096, Sandbox: true}
	for name, args := range map[string][]string{
		"tcg":        Args(spec(), opt),
		"kvm":        Args(kvm, opt),
		"unsafe":     Args(unsafe, opt),
		"network":    Args(network, opt),
		"bridge":     Args(bridge, opt),
		"no_sandbox": Args(spec(), Options{Initrd: "initrd"}),
	} {
		golden := filepath.Join("testdata", name+".args")
		got := strings.Join(args, "\n") + "\n"
		if os.Getenv("UPDATE") != "" {
			if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s (-want +got; UPDATE=1 rewrites it):\n%s", name, diff)
		}
	}
}

func TestCommandLineTSC(t *testing.T) {
	kvm := spec()
	kvm.Accel = "kvm"
	for name, c := range map[string]struct {
		spec vmm.Spec
		khz  int
		want bool
	}{
		"emulated":            {spec(), 2000000, true},
		"emulated, not known": {spec(), 0, false},
		"kvm":                 {kvm, 2000000, false},
	} {
		if got := strings.Contains(CommandLine(c.spec, Options{TSCKHz: c.khz}), "tsc"); got != c.want {
			t.Errorf("%s: tsc in the command line: %v", name, got)
		}
	}
}

func TestMeasureTSC(t *testing.T) {
	khz, err := MeasureTSC(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if khz < minTSC || khz > maxTSC {
		t.Errorf("%d kHz", khz)
	}
}

func TestCPUInfo(t *testing.T) {
	for text, want := range map[string]int{
		"processor\t: 0\ncpu MHz\t\t: 2596.096\ncache\t: 1\n": 2596096,
		"cpu MHz : 0.000\ncpu MHz : 3000.5\n":                 3000500,
		"cpu MHz : nonsense\n":                                0,
		"":                                                    0,
	} {
		got, err := cpuinfoKHz(strings.NewReader(text))
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("cpuinfoKHz(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
}
