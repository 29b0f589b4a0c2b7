package client

import (
	"context"
	"net"
	"net/http"

	"git.thaloco.com/thaloco/banger/api"
)

// SSHTarget returns what an ssh client must know to connect to a VM. One that does not run is an error.
func (c *Client) SSHTarget(ctx context.Context, name string) (api.SSHTarget, error) {
	return call[api.SSHTarget](ctx, c, http.MethodGet, vmPath(name, "/ssh-target"), nil)
}

// SSH opens a connection to the ssh server of a VM: what the server says first is still to be read. It is a *net.UnixConn,
// whose descriptor may be handed on to another process.
func (c *Client) SSH(ctx context.Context, name string) (net.Conn, error) {
	return c.upgrade(ctx, vmPath(name, "/ssh"), "banger-ssh")
}
