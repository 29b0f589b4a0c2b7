package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/hostproc"
	"git.thaloco.com/thaloco/banger/internal/image"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/vmm/probe"
)

const (
	// buildMemory is what VMs have that images are built in, in bytes, where the host has it.
	buildMemory = 2 << 30
	// buildPrefix begins their names.
	buildPrefix = "banger-build-"
	// undoTimeout is how long the removal of one may take that did not come up.
	undoTimeout = time.Minute
)

// makers is package vm, as far as images are built in VMs.
type makers interface {
	Create(ctx context.Context, req api.CreateVM, rep progress.Reporter) (api.VM, error)
	Delete(ctx context.Context, nameOrID string, req api.DeleteVM) error
	DialExec(ctx context.Context, nameOrID string) (net.Conn, error)
	PutFiles(ctx context.Context, nameOrID string, req api.PutFiles, r io.Reader) (api.FilesResult, error)
	Root(ctx context.Context, name string, clean bool, w io.Writer) (api.FilesResult, error)
}

// buildVMs is image.BuildVMs.
type buildVMs struct {
	vms    makers
	memory int64 // of each, in bytes
}

// StartBuild implements image.BuildVMs. The VM belongs to this process as a --rm VM does to its vm run: where the daemon dies, the next one
// removes it, and its data need not survive a crash of the host.
func (b *buildVMs) StartBuild(ctx context.Context, base string, rep progress.Reporter) (image.BuildVM, error) {
	me, err := hostproc.Identify(os.Getpid())
	if err != nil {
		return nil, err
	}
	owner := api.Owner(me)
	name := buildPrefix + strings.ToLower(rand.Text()[:10])
	vm, err := b.vms.Create(ctx, api.CreateVM{Name: name, Image: base, Memory: fmt.Sprintf("%dMiB", b.memory>>20), Start: true,
		RemoveOnExit: true, Owner: &owner, NoFileSync: true}, rep) // its root becomes the image, homes included
	if err != nil {
		// One that did not come up is kept for its logs, which nobody would look for here.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return nil, errors.Join(err, deleted(b.vms.Delete(ctx, name, api.DeleteVM{Force: true})))
	}
	return &buildVM{vms: b.vms, id: vm.ID, accel: vm.Accel}, nil
}

// deleted forgives that a VM is gone already.
func deleted(err error) error {
	if api.KindOf(err) == api.KindNotFound {
		return nil
	}
	return err
}

// buildVM is image.BuildVM.
type buildVM struct {
	vms       makers
	id, accel string
}

// Emulated implements image.BuildVM.
func (b *buildVM) Emulated() bool { return b.accel != probe.KVM }

// Put implements image.BuildVM.
func (b *buildVM) Put(ctx context.Context, r io.Reader) error {
	_, err := b.vms.PutFiles(ctx, b.id, api.PutFiles{Path: "/", Stream: true, Archive: true}, r)
	return err
}

// Run implements image.BuildVM.
func (b *buildVM) Run(ctx context.Context, script string, env []string, output io.Writer) (int, error) {
	exit, err := exec.Run(ctx, exec.Options{
		Dial:   func(ctx context.Context) (net.Conn, error) { return b.vms.DialExec(ctx, b.id) },
		Start:  wire.ExecStart{Argv: []string{"sh", "-c", script, "sh"}, Env: env, Dir: "/", User: "root"},
		Stdout: output, Stderr: output,
	})
	if x, ok := errors.AsType[*wire.ExecError](err); ok {
		return 0, api.Errorf(api.KindGuest, "run a script: %w", x)
	}
	return exit.Status, err
}

// Root implements image.BuildVM.
func (b *buildVM) Root(ctx context.Context, w io.Writer) (api.FilesResult, error) {
	return b.vms.Root(ctx, b.id, false, w)
}

// Remove implements image.BuildVM.
func (b *buildVM) Remove(ctx context.Context) error {
	return deleted(b.vms.Delete(ctx, b.id, api.DeleteVM{Force: true}))
}
