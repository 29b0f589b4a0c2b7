package supervise

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/fakeqemu"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker/fakefc"
	"git.thaloco.com/thaloco/banger/internal/vmm/vmmtest"
)

// TestMain makes the test binary the supervisor and the VMM as well.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case Command:
			os.Exit(Main(os.Args[2:]))
		case "-name":
			os.Exit(fakeqemu.Main(os.Args[1:]))
		case "--id", "--version", "--snapshot-version":
			if badAPI() {
				os.Exit(1)
			}
			os.Exit(fakefc.Main(os.Args[1:]))
		}
	}
	// They wait more than they work; -parallel says otherwise.
	if err := flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// testLog is a logger into the test's log.
func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

func newEngine(t *testing.T, args ...string) *Engine {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &Engine{Binary: self, Log: testLog(t), Args: args}
}

// newFCVM makes the directory and the spec of a VM on fakefc.
func newFCVM(t *testing.T, knobs fakefc.Knobs) (dir string, spec vmm.Spec) {
	t.Helper()
	dir, spec = newVM(t, fakeqemu.Knobs{})
	knobs.Spec = os.Getenv(fakefc.EnvSpec) // the VMM does not see the environment
	if err := knobs.Write(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if said, err := os.ReadFile(filepath.Join(dir, fakefc.ViolationFile)); err == nil {
			t.Errorf("Firecracker was asked for what its document does not have: %s", said)
		}
	})
	spec.Engine, spec.Accel, spec.Unconfined = vmm.EngineFirecracker, vmm.AccelKVM, true
	return dir, spec
}

// newVM makes the directory and the spec of a VM on fakeqemu.
func newVM(t *testing.T, knobs fakeqemu.Knobs) (dir string, spec vmm.Spec) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "a directory, with=signs and a name so long that no unix socket in it could be bound by its full path")
	files := t.TempDir()
	file := func(path string, size int64) string {
		t.Helper()
		f, err := os.Create(path)
		if err == nil {
			err = f.Truncate(size)
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file(filepath.Join(dir, "data.ext4"), 1<<20)
	if err := knobs.Write(dir); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return dir, vmm.Spec{
		Version: vmm.SpecVersion, VM: "0123456789abcdef", Name: "dev", Engine: "qemu", Binary: self, Accel: "tcg",
		CPUs: 1, MemoryMiB: 128, Kernel: file(filepath.Join(files, "vmlinux"), 10),
		Drives: []vmm.Drive{
			{ID: wire.DriveBase, Path: file(filepath.Join(files, "ba,se=1.ext4"), 1<<20), ReadOnly: true},
			{ID: wire.DriveData, Path: "data.ext4"},
		},
		Identity: wire.Identity{VM: "0123456789abcdef", Hostname: "dev"},
	}
}

// within is a context for one test.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// fixture is a VM on fakeqemu for the suite.
func fixture(t *testing.T) vmmtest.Fixture {
	dir, spec := newVM(t, fakeqemu.Knobs{})
	return vmmtest.Fixture{
		Engine: newEngine(t, "--ending-grace", "1s"), Again: newEngine(t, "--ending-grace", "1s"), Dir: dir, Spec: spec,
	}
}

func TestConformance(t *testing.T) { vmmtest.Run(t, fixture) }

// TestLinkTAP runs the suite's part about the network on guests that carry their frames themselves.
func TestLinkTAP(t *testing.T) {
	vmmtest.RunLink(t, func(t *testing.T) vmmtest.Fixture {
		fix := fixture(t)
		fix.NetDevice = wire.DeviceTAP
		return fix
	})
}

// TestFirecrackerConformance runs the suite on the driver of Firecracker over a fake one.
func TestFirecrackerConformance(t *testing.T) {
	vmmtest.Run(t, func(t *testing.T) vmmtest.Fixture {
		dir, spec := newFCVM(t, fakefc.Knobs{})
		return vmmtest.Fixture{
			Engine: newEngine(t, "--ending-grace", "1s"), Again: newEngine(t, "--ending-grace", "1s"), Dir: dir, Spec: spec,
			NetDevice: wire.DeviceTAP,
		}
	})
}
