package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"git.thaloco.com/thaloco/banger/api"
)

// Sessions returns the sessions of a VM, the oldest first, also those that have ended.
func (c *Client) Sessions(ctx context.Context, vm string) ([]api.Session, error) {
	return call[[]api.Session](ctx, c, http.MethodGet, vmPath(vm, "/sessions"), nil)
}

// Session returns a session of a VM.
func (c *Client) Session(ctx context.Context, vm, name string) (api.Session, error) {
	return call[api.Session](ctx, c, http.MethodGet, sessionPath(vm, name, ""), nil)
}

// StartSession starts a session in a running VM. Where its command cannot be started the session has failed, with a status, and is not there.
// Exec leads to it, as to any command.
func (c *Client) StartSession(ctx context.Context, vm string, req api.StartSession) (api.Session, error) {
	return call[api.Session](ctx, c, http.MethodPost, vmPath(vm, "/sessions"), req)
}

// WaitSession returns a session when it has ended, or after half a minute as it is then.
func (c *Client) WaitSession(ctx context.Context, vm, name string) (api.Session, error) {
	return call[api.Session](ctx, c, http.MethodGet, sessionPath(vm, name, "/wait"), nil)
}

// StopSession ends a session by a signal, and kills it where that does not. Result: api.Session.
func (c *Client) StopSession(ctx context.Context, vm, name string, req api.StopSession) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, sessionPath(vm, name, "/stop"), req)
}

// DeleteSession removes an ended session with its log; force kills one that runs.
func (c *Client) DeleteSession(ctx context.Context, vm, name string, force bool) error {
	_, err := call[none](ctx, c, http.MethodDelete, sessionPath(vm, name, "?force="+strconv.FormatBool(force)), nil)
	return err
}

// SessionLogs returns what a session printed as text. With Follow it goes on until the session ends or ctx does. The caller closes it.
func (c *Client) SessionLogs(ctx context.Context, vm, name string, req api.SessionLogs) (io.ReadCloser, error) {
	return c.stream(ctx, sessionPath(vm, name, "/logs?"+req.Values().Encode()))
}

func sessionPath(vm, name, rest string) string {
	return vmPath(vm, "/sessions/"+url.PathEscape(name)+rest)
}
