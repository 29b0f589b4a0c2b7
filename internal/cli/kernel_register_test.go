package cli

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
)

// TestKernelRegisterPaths: paths are those of where the user is, whatever directory the daemon is in.
func TestKernelRegisterPaths(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	dir := t.TempDir()
	t.Chdir(dir)
	if code := a.run("kernel", "register", "--name", "mine", "--vmlinux", "./vmlinux", "--modules", "lib/../modules/"); code != 0 {
		t.Fatalf("status %d, %s", code, a.err.String())
	}
	want := api.RegisterKernel{Name: "mine", Vmlinux: filepath.Join(dir, "vmlinux"), Modules: filepath.Join(dir, "modules")}
	if diff := cmp.Diff(want, d.registered); diff != "" {
		t.Error(diff)
	}
	for _, args := range []string{"", "--name mine", "--vmlinux x", "--name mine --vmlinux x more"} {
		if code := a.run(strings.Fields("kernel register " + args)...); code != 2 {
			t.Errorf("%q: status %d, %s", args, code, a.err.String())
		}
	}
}

// TestKernelOfVM: --kernel-ref is --kernel, and both commands that make VMs have it.
func TestKernelOfVM(t *testing.T) {
	for _, args := range []string{"vm create --name web --kernel mine", "vm run --name web --kernel-ref mine -- true"} {
		a := newTestApp(t)
		d := startFake(t, a.env)
		if code := a.run(strings.Fields(args)...); code != 0 {
			t.Fatalf("%s: status %d, %s", args, code, a.err.String())
		}
		vm, err := d.find("web")
		if err != nil || vm.Kernel != "mine" {
			t.Errorf("%s: %+v, %v", args, vm, err)
		}
	}
}
