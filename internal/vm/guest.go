package vm

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/guestapi"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/workspace"
)

// guest is a client of the agent in a running VM.
func (s *Service) guest(l *live) *guestapi.Client {
	return &guestapi.Client{Dial: l.machine.Dial}
}

// alive finds a VM that runs.
func (s *Service) alive(ctx context.Context, nameOrID string) (*live, store.VM, error) {
	rec, err := s.cfg.Records.VM(ctx, nameOrID)
	if err != nil {
		return nil, rec, err
	}
	l := s.running(rec.ID)
	if l == nil && rec.State == api.StateDeleting {
		return nil, rec, api.Errorf(api.KindConflict, "vm %q is being deleted", rec.Name)
	}
	if l == nil {
		return nil, rec, api.Errorf(api.KindConflict, "vm %q is %s", rec.Name, rec.State).WithHint("start it: banger vm start %s", rec.Name)
	}
	return l, rec, nil
}

// reachable finds a VM whose agent answers.
func (s *Service) reachable(ctx context.Context, nameOrID string) (*live, store.VM, error) {
	l, rec, err := s.alive(ctx, nameOrID)
	if err != nil {
		return nil, rec, err
	}
	if !l.now().Mark.Reached(api.MarkAgent) {
		return nil, rec, api.Errorf(api.KindConflict, "vm %q is %s: its agent does not answer yet", rec.Name, rec.State).
			WithHint("wait for it: banger vm start --wait agent %s", rec.Name)
	}
	return l, rec, nil
}

// DialExec connects to the exec port of a VM's agent.
func (s *Service) DialExec(ctx context.Context, nameOrID string) (net.Conn, error) {
	l, rec, err := s.reachable(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	return dialGuest(ctx, l, rec, wire.PortExec)
}

// dialGuest connects to a port of a VM's agent.
func dialGuest(ctx context.Context, l *live, rec store.VM, port uint32) (net.Conn, error) {
	conn, err := l.machine.Dial(ctx, port)
	if err != nil {
		return nil, api.Errorf(api.KindGuest, "connect to the agent of vm %q: %w", rec.Name, err).
			WithHint("banger vm logs --source vmm %s may say why", rec.Name)
	}
	return conn, nil
}

// ExecOwnerGone tells the agent that the client of a process is gone for good: the process is hung up.
func (s *Service) ExecOwnerGone(ctx context.Context, nameOrID, execID string) error {
	l, _, err := s.reachable(ctx, nameOrID)
	if err != nil {
		return err
	}
	return s.guest(l).OwnerGone(ctx, execID)
}

// PrepareWorkspace copies a directory of the host into a running VM.
func (s *Service) PrepareWorkspace(ctx context.Context, nameOrID string, req api.PrepareWorkspace, rep progress.Reporter) (api.Workspace, error) {
	l, rec, err := s.reachable(ctx, nameOrID)
	if err != nil {
		return api.Workspace{}, err
	}
	if !filepath.IsAbs(req.Path) {
		return api.Workspace{}, api.Errorf(api.KindInvalid, "path %q is not absolute", req.Path)
	}
	if req.GuestPath != "" && (!path.IsAbs(req.GuestPath) || path.Clean(req.GuestPath) == "/") {
		return api.Workspace{}, api.Errorf(api.KindInvalid, "guest path %q is not possible", req.GuestPath).
			WithHint("use an absolute path below /, such as /root/repo")
	}
	rep.Step("read " + filepath.Base(req.Path))
	src, err := workspace.Prepare(ctx, workspace.Config{Environ: os.Environ(), Home: s.cfg.Host.Home, TempDir: s.cfg.Paths.Cache}, req.Path)
	if err != nil {
		return api.Workspace{}, err
	}
	defer func() { _ = src.Close() }()
	guestPath := req.GuestPath
	if guestPath == "" {
		guestPath = "/root/" + src.Name
	}
	ws, err := s.sendWorkspace(ctx, l, src, guestPath, rep)
	if err != nil {
		return api.Workspace{}, fmt.Errorf("copy %q to vm %q: %w", req.Path, rec.Name, err)
	}
	ws.GuestPath = guestPath
	return ws, nil
}

// sendWorkspace streams a workspace into the guest. Where both sides fail, the host's error is the cause.
func (s *Service) sendWorkspace(ctx context.Context, l *live, src *workspace.Source, guestPath string, rep progress.Reporter) (api.Workspace, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pr, pw := io.Pipe()
	type result struct {
		ws  api.Workspace
		err error
	}
	done := make(chan result, 1)
	go func() {
		ws, err := src.Stream(ctx, pw, rep)
		_ = pw.CloseWithError(err)
		done <- result{ws, err}
	}()
	putErr := s.guest(l).PutFiles(ctx, guestPath, pr)
	_ = pr.CloseWithError(io.ErrClosedPipe) // a guest that stopped reading must not hold the sender
	if putErr != nil {
		cancel()
	}
	res := <-done
	switch {
	case res.err != nil && putErr == nil:
		return res.ws, res.err
	case putErr != nil && res.err != nil && api.KindOf(res.err) != api.KindInternal:
		return res.ws, res.err
	case putErr != nil:
		return res.ws, api.Errorf(api.KindGuest, "the guest did not take the files: %w", putErr)
	}
	return res.ws, nil
}
