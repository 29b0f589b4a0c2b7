package vm

import (
	"context"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// Workspaces are the copies of directories of the host that a VM has, in the order of their paths in the VM.
func (s *Service) Workspaces(_ context.Context, _ string) ([]api.WorkspaceCopy, error) {
	return nil, api.Errorf(api.KindInternal, "not yet")
}

// WorkspaceStatus compares a copy with what it is a copy of.
func (s *Service) WorkspaceStatus(_ context.Context, _ string, _ api.AskWorkspace, _ progress.Reporter) (api.WorkspaceStatus, error) {
	return api.WorkspaceStatus{}, api.Errorf(api.KindInternal, "not yet")
}

// PullWorkspace brings work out of a VM.
func (s *Service) PullWorkspace(_ context.Context, _ string, _ api.PullWorkspace, _ progress.Reporter) (api.Pull, error) {
	return api.Pull{}, api.Errorf(api.KindInternal, "not yet")
}

// Unpulled is the work that would be lost with a VM.
func (s *Service) Unpulled(_ context.Context, _ string) ([]api.Unpulled, error) {
	return nil, api.Errorf(api.KindInternal, "not yet")
}
