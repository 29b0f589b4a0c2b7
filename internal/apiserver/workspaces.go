package apiserver

import (
	"context"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

func (s *Server) checkWorkspace(ctx context.Context, in *struct{ Body api.PrepareWorkspace }) (*none, error) {
	return nil, s.cfg.VMs.CheckWorkspace(ctx, in.Body)
}

func (s *Server) prepareWorkspace(ctx context.Context, in *struct {
	ByName
	Body api.PrepareWorkspace
}) (*reply[api.Operation], error) {
	return s.vmOperation(ctx, "vm.workspace", in.Name, func(ctx context.Context, rep progress.Reporter) (any, error) {
		return s.cfg.VMs.PrepareWorkspace(ctx, in.Name, in.Body, rep)
	})
}

func (s *Server) listWorkspaces(ctx context.Context, in *ByName) (*reply[[]api.WorkspaceCopy], error) {
	return answer(s.cfg.VMs.Workspaces(ctx, in.Name))
}

func (s *Server) workspaceStatus(ctx context.Context, in *struct {
	ByName
	Body api.AskWorkspace
}) (*reply[api.Operation], error) {
	return s.vmOperation(ctx, "vm.workspace-status", in.Name, func(ctx context.Context, rep progress.Reporter) (any, error) {
		return s.cfg.VMs.WorkspaceStatus(ctx, in.Name, in.Body, rep)
	})
}

func (s *Server) pullWorkspace(ctx context.Context, in *struct {
	ByName
	Body api.PullWorkspace
}) (*reply[api.Operation], error) {
	return s.vmOperation(ctx, "vm.workspace-pull", in.Name, func(ctx context.Context, rep progress.Reporter) (any, error) {
		return s.cfg.VMs.PullWorkspace(ctx, in.Name, in.Body, rep)
	})
}

func (s *Server) unpulled(ctx context.Context, in *ByName) (*reply[[]api.Unpulled], error) {
	return answer(s.cfg.VMs.Unpulled(ctx, in.Name))
}
