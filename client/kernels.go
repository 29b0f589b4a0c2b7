package client

import (
	"context"
	"net/http"
	"net/url"

	"git.thaloco.com/thaloco/banger/api"
)

// Kernels returns the kernels of the store and of the catalog.
func (c *Client) Kernels(ctx context.Context) ([]api.Kernel, error) {
	return call[[]api.Kernel](ctx, c, http.MethodGet, "/kernels", nil)
}

// Kernel returns one kernel.
func (c *Client) Kernel(ctx context.Context, name string) (api.Kernel, error) {
	return call[api.Kernel](ctx, c, http.MethodGet, "/kernels/"+url.PathEscape(name), nil)
}

// PullKernel makes a kernel local, or looks for a newer one of its name. Result: api.Kernel.
func (c *Client) PullKernel(ctx context.Context, req api.PullKernel) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, "/kernels/pull", req)
}

// RegisterKernel makes a kernel of files of the daemon's host. Result: api.Kernel.
func (c *Client) RegisterKernel(ctx context.Context, req api.RegisterKernel) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, "/kernels/register", req)
}

// DeleteKernel deletes a kernel that no VM is pinned to.
func (c *Client) DeleteKernel(ctx context.Context, name string) error {
	_, err := call[none](ctx, c, http.MethodDelete, "/kernels/"+url.PathEscape(name), nil)
	return err
}
