package client

import (
	"context"
	"net/http"

	"git.thaloco.com/thaloco/banger/api"
)

// Forwards returns the forwards of a VM and how they are, in the order they were added.
func (c *Client) Forwards(ctx context.Context, name string) ([]api.ForwardStatus, error) {
	return call[[]api.ForwardStatus](ctx, c, http.MethodGet, vmPath(name, "/forwards"), nil)
}

// AddForward gives a VM a forward, from now on where it runs, and returns it with its port, which is chosen where f has none.
func (c *Client) AddForward(ctx context.Context, name string, f api.Forward) (api.ForwardStatus, error) {
	return call[api.ForwardStatus](ctx, c, http.MethodPost, vmPath(name, "/forwards"), f)
}

// RemoveForward takes a forward from a VM, and returns which it was.
func (c *Client) RemoveForward(ctx context.Context, name string, which api.RemoveForward) (api.Forward, error) {
	return call[api.Forward](ctx, c, http.MethodDelete, vmPath(name, "/forwards"), which)
}
