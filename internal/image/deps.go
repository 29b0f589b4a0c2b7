package image

import (
	"context"
	"io"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// BuildVMs makes VMs to build images in.
type BuildVMs interface {
	// StartBuild makes a VM of the image of a reference, which is pulled where it is not here, and waits until it can be used. When it
	// fails nothing of the VM is left. A VM goes with this process, if nobody has removed it before.
	StartBuild(ctx context.Context, base string, rep progress.Reporter) (BuildVM, error)
}

// BuildVM is a VM that runs, with the network of VMs. What it says and sends is its guest's, which nobody need have made with good intent.
type BuildVM interface {
	// Emulated tells whether its CPU is, so that everything takes ten to twenty times longer.
	Emulated() bool
	// Put unpacks a tar stream in the root directory, with the owners and modes it names.
	Put(ctx context.Context, r io.Reader) error
	// Run has sh run a script as root and returns its exit status; what it writes to stdout and stderr goes to output, and an error of
	// that ends it.
	Run(ctx context.Context, script string, env []string, output io.Writer) (status int, err error)
	// Root writes the root file system, homes included, to w as a tar stream, which is whole where the error is nil.
	Root(ctx context.Context, w io.Writer) (api.FilesResult, error)
	// Remove deletes the VM with all it has; one that is gone is fine.
	Remove(ctx context.Context) error
}

// BuildIn gives the store a way to build the images it has no programs for on this host. It comes before the first pull.
func (s *Store) BuildIn(vms BuildVMs) { s.vms = vms }
