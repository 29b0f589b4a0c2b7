package client

import (
	"context"
	"net/http"

	"git.thaloco.com/thaloco/banger/api"
)

// CheckWorkspace finds what is wrong with a first copy of a directory before there is a VM for it.
func (c *Client) CheckWorkspace(ctx context.Context, req api.PrepareWorkspace) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, "/workspaces/check", req)
	return err
}

// PrepareWorkspace copies a directory of the host into a VM, or brings the copy there up to date. Result: api.Workspace.
func (c *Client) PrepareWorkspace(ctx context.Context, name string, req api.PrepareWorkspace) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, vmPath(name, "/workspace"), req)
}

// Workspaces returns the copies of directories of the host that a VM has, in the order of their paths in the VM.
func (c *Client) Workspaces(ctx context.Context, name string) ([]api.WorkspaceCopy, error) {
	return call[[]api.WorkspaceCopy](ctx, c, http.MethodGet, vmPath(name, "/workspaces"), nil)
}

// WorkspaceStatus compares a copy in a running VM with what it is a copy of. Result: api.WorkspaceStatus.
func (c *Client) WorkspaceStatus(ctx context.Context, name string, which api.AskWorkspace) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, vmPath(name, "/workspace/status"), which)
}

// PullWorkspace brings work out of a running VM. Result: api.Pull.
func (c *Client) PullWorkspace(ctx context.Context, name string, req api.PullWorkspace) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, vmPath(name, "/workspace/pull"), req)
}

// Unpulled returns the work that would be lost with a VM.
func (c *Client) Unpulled(ctx context.Context, name string) ([]api.Unpulled, error) {
	return call[[]api.Unpulled](ctx, c, http.MethodGet, vmPath(name, "/unpulled"), nil)
}
