package client

import (
	"context"
	"net/http"

	"git.thaloco.com/thaloco/banger/api"
)

// Daemon returns the daemon's own description, whatever version it speaks.
func (c *Client) Daemon(ctx context.Context) (api.DaemonStatus, error) {
	return callAny[api.DaemonStatus](ctx, c, http.MethodGet, "/daemon", nil)
}

// StopDaemon asks the daemon to end, whatever version it speaks. VMs go on.
func (c *Client) StopDaemon(ctx context.Context) error {
	_, err := callAny[none](ctx, c, http.MethodPost, "/daemon/stop", nil)
	return err
}

// ConfigInForce returns the configuration the daemon runs with.
func (c *Client) ConfigInForce(ctx context.Context) (api.ConfigView, error) {
	return call[api.ConfigView](ctx, c, http.MethodGet, "/config", nil)
}
