package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/process"
	"git.thaloco.com/thaloco/banger/internal/hostproc"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// fakeMakers is package vm with at most one VM, whose commands run on this host.
type fakeMakers struct {
	guest *process.Manager
	// fail is why a VM that was made does not come up; made has it there all the same, as its logs are.
	fail error
	made *api.CreateVM
}

func (f *fakeMakers) String() string { return fmt.Sprintf("%+v", f.made) }

func (f *fakeMakers) Create(_ context.Context, req api.CreateVM, _ progress.Reporter) (api.VM, error) {
	f.made = &req
	return api.VM{ID: "id-of-" + req.Name, Name: req.Name, Accel: "kvm"}, f.fail
}

func (f *fakeMakers) Delete(ctx context.Context, nameOrID string, req api.DeleteVM) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case !f.has(nameOrID):
		return api.Errorf(api.KindNotFound, "no vm %q", nameOrID)
	case !req.Force:
		return api.Errorf(api.KindConflict, "it runs")
	}
	f.made = nil
	return nil
}

func (f *fakeMakers) has(nameOrID string) bool {
	return f.made != nil && (nameOrID == f.made.Name || nameOrID == "id-of-"+f.made.Name)
}

func (f *fakeMakers) DialExec(context.Context, string) (net.Conn, error) {
	return f.guest.Connect(), nil
}

func (f *fakeMakers) PutFiles(_ context.Context, nameOrID string, req api.PutFiles, r io.Reader) (api.FilesResult, error) {
	if !f.has(nameOrID) || req.Path != "/" || !req.Stream || !req.Archive {
		return api.FilesResult{}, fmt.Errorf("vm %q: unexpected %+v", nameOrID, req)
	}
	_, err := io.Copy(io.Discard, r)
	return api.FilesResult{}, err
}

func (f *fakeMakers) Root(_ context.Context, nameOrID string, clean bool, w io.Writer) (api.FilesResult, error) {
	if !f.has(nameOrID) || clean {
		return api.FilesResult{}, fmt.Errorf("vm %q: clean is %v", nameOrID, clean)
	}
	_, err := io.WriteString(w, "the root")
	return api.FilesResult{}, err
}

func newMakers(t *testing.T) *fakeMakers {
	t.Helper()
	f := &fakeMakers{guest: process.NewManager(process.Config{Defaults: func() process.Defaults { return process.Defaults{WorkDir: "/"} }})}
	t.Cleanup(func() { _ = f.guest.Close() })
	return f
}

// TestBuildVM: a VM to build in is this process's, and does what package image wants of it.
func TestBuildVM(t *testing.T) {
	f := newMakers(t)
	ctx := t.Context()
	vm, err := (&buildVMs{vms: f, memory: 1900<<20 + 5}).StartBuild(ctx, "debian:12", progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	me, err := hostproc.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if r := f.made; !strings.HasPrefix(r.Name, "banger-build-") || r.Image != "debian:12" || r.Memory != "1900MiB" || !r.Start || !r.RemoveOnExit || !r.NoFileSync || *r.Owner != api.Owner(me) {
		t.Errorf("asked for %+v", r)
	}
	if vm.Emulated() {
		t.Error("emulated, with KVM")
	}
	if err := vm.Put(ctx, strings.NewReader("a tar")); err != nil {
		t.Error(err)
	}
	var root bytes.Buffer
	if _, err := vm.Root(ctx, &root); err != nil || root.String() != "the root" {
		t.Errorf("%q, %v", root.String(), err)
	}
	for range 2 { // it may be gone already
		if err := vm.Remove(ctx); err != nil || f.made != nil {
			t.Errorf("left is %v, %v", f, err)
		}
	}
}

// TestBuildVMRun runs scripts to their ends, of their own and of their output.
func TestBuildVMRun(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("scripts run as root")
	}
	f := newMakers(t)
	vm := &buildVM{vms: f, id: "x"}
	var out bytes.Buffer
	status, err := vm.Run(t.Context(), `echo "$GREETING from $(pwd)"; echo no >&2; cat; exit 7`, []string{"GREETING=hello"}, &out)
	if status != 7 || err != nil || !strings.Contains(out.String(), "hello from /\n") || !strings.Contains(out.String(), "no\n") {
		t.Errorf("status %d, %v, %q", status, err, out.String())
	}
	full := errors.New("full")
	if _, err := vm.Run(t.Context(), "while :; do echo more; done", nil, writerFunc(func([]byte) (int, error) { return 0, full })); !errors.Is(err, full) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = vm.Run(ctx, "echo up; exec sleep 1000", nil, writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil }))
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestBuildVMDoesNotComeUp: a VM that did not come up is removed with its logs, also where the caller has given up.
func TestBuildVMDoesNotComeUp(t *testing.T) {
	broken := errors.New("no agent")
	for _, cancelled := range []bool{false, true} {
		f := newMakers(t)
		f.fail = broken
		ctx, cancel := context.WithCancel(t.Context())
		if cancelled {
			cancel()
		}
		if _, err := (&buildVMs{vms: f, memory: buildMemory}).StartBuild(ctx, "debian:12", progress.Discard); !errors.Is(err, broken) || f.made != nil {
			t.Errorf("left is %v, %v", f, err)
		}
		cancel()
	}
}
