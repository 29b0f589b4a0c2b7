package apiserver

import (
	"context"
	"io"
	"net"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// VMs is package vm as the API needs it.
type VMs interface {
	List(ctx context.Context) ([]api.VM, error)
	VM(ctx context.Context, name string) (api.VM, error)
	Stats(ctx context.Context, name string) (api.VMStats, error)
	Ports(ctx context.Context, name string) ([]api.GuestPort, error)
	CheckCreate(ctx context.Context, req api.CreateVM) error
	Create(ctx context.Context, req api.CreateVM, rep progress.Reporter) (api.VM, error)
	Start(ctx context.Context, name string, want api.Mark, rep progress.Reporter) (api.VM, error)
	Stop(ctx context.Context, name string, timeout time.Duration, rep progress.Reporter) (api.VM, error)
	Restart(ctx context.Context, name string, timeout time.Duration, want api.Mark, rep progress.Reporter) (api.VM, error)
	Kill(ctx context.Context, name string) (api.VM, error)
	Delete(ctx context.Context, name string, req api.DeleteVM) error
	Release(ctx context.Context, name string, req api.Release) error
	CheckWorkspace(ctx context.Context, req api.PrepareWorkspace) error
	PrepareWorkspace(ctx context.Context, name string, req api.PrepareWorkspace, rep progress.Reporter) (api.Workspace, error)
	Workspaces(ctx context.Context, name string) ([]api.WorkspaceCopy, error)
	WorkspaceStatus(ctx context.Context, name string, which api.AskWorkspace, rep progress.Reporter) (api.WorkspaceStatus, error)
	PullWorkspace(ctx context.Context, name string, req api.PullWorkspace, rep progress.Reporter) (api.Pull, error)
	Unpulled(ctx context.Context, name string) ([]api.Unpulled, error)
	DialExec(ctx context.Context, name string) (net.Conn, error)
	DialSSH(ctx context.Context, name string) (net.Conn, error)
	SSHTarget(ctx context.Context, name string) (api.SSHTarget, error)
	ExecOwnerGone(ctx context.Context, name, execID string) error
	Logs(ctx context.Context, name, source string, follow bool, w io.Writer) error
	PutFiles(ctx context.Context, name string, req api.PutFiles, r io.Reader) (api.FilesResult, error)
	Files(ctx context.Context, name string, req api.GetFiles, w io.Writer) (api.FilesResult, error)
	Forwards(ctx context.Context, name string) ([]api.ForwardStatus, error)
	AddForward(ctx context.Context, name string, f api.Forward) (api.ForwardStatus, error)
	RemoveForward(ctx context.Context, name string, which api.RemoveForward) (api.Forward, error)
	Sessions(ctx context.Context, name string) ([]api.Session, error)
	Session(ctx context.Context, name, session string) (api.Session, error)
	StartSession(ctx context.Context, name string, req api.StartSession) (api.Session, error)
	WaitSession(ctx context.Context, name, session string) (api.Session, error)
	StopSession(ctx context.Context, name, session string, req api.StopSession, rep progress.Reporter) (api.Session, error)
	DeleteSession(ctx context.Context, name, session string, force bool) error
	SessionLogs(ctx context.Context, name, session string, req api.SessionLogs, w io.Writer) error
	Events(ctx context.Context, fn func(api.Event) error) error
}

// Images is the daemon's view of images: store and catalog as one.
type Images interface {
	Catalog(ctx context.Context) ([]api.Image, error)
	List(ctx context.Context) ([]api.Image, error)
	Image(ctx context.Context, name string) (api.Image, error)
	CheckPull(ctx context.Context, req api.PullImage) error
	Pull(ctx context.Context, req api.PullImage, rep progress.Reporter) (api.Image, error)
	CheckRegister(ctx context.Context, req api.RegisterImage) error
	Register(ctx context.Context, req api.RegisterImage, rep progress.Reporter) (api.Image, error)
	CheckPromote(ctx context.Context, req api.PromoteImage) error
	Promote(ctx context.Context, req api.PromoteImage, rep progress.Reporter) (api.Image, error)
	CheckExport(ctx context.Context, name string, req api.ExportImage) error
	Export(ctx context.Context, name string, req api.ExportImage, rep progress.Reporter) (api.Image, error)
	CheckImport(ctx context.Context, req api.ImportImage) error
	Import(ctx context.Context, req api.ImportImage, rep progress.Reporter) (api.Image, error)
	Tag(ctx context.Context, name string, req api.TagImage) (api.Image, error)
	Prune(ctx context.Context, req api.Prune) (api.Pruned, error)
	Files(ctx context.Context, name string, fn func(api.ImageFile) error) error
	Delete(ctx context.Context, name string) error
}

// Kernels is the same for kernels.
type Kernels interface {
	List(ctx context.Context) ([]api.Kernel, error)
	Kernel(ctx context.Context, name string) (api.Kernel, error)
	CheckPull(ctx context.Context, req api.PullKernel) error
	Pull(ctx context.Context, req api.PullKernel, rep progress.Reporter) (api.Kernel, error)
	CheckRegister(ctx context.Context, req api.RegisterKernel) error
	Register(ctx context.Context, req api.RegisterKernel, rep progress.Reporter) (api.Kernel, error)
	Delete(ctx context.Context, name string) error
}

// Operations is package operation.
type Operations interface {
	Start(ctx context.Context, kind, target string, run func(context.Context, progress.Reporter) (any, error)) (api.Operation, error)
	Get(ctx context.Context, id string) (api.Operation, error)
	List(ctx context.Context) ([]api.Operation, error)
	Cancel(ctx context.Context, id string) error
	Watch(ctx context.Context, id string, fn func(api.Operation) error) error
}

// Daemon is the daemon itself.
type Daemon interface {
	Status(ctx context.Context) (api.DaemonStatus, error)
	Config() api.ConfigView
	// Stop starts a clean shutdown and returns.
	Stop()
}
