package client

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"

	"git.thaloco.com/thaloco/banger/api"
)

// VMs returns all VMs, the oldest first.
func (c *Client) VMs(ctx context.Context) ([]api.VM, error) {
	return call[[]api.VM](ctx, c, http.MethodGet, "/vms", nil)
}

// VM returns one VM, by name or id.
func (c *Client) VM(ctx context.Context, name string) (api.VM, error) {
	return call[api.VM](ctx, c, http.MethodGet, vmPath(name, ""), nil)
}

// VMPorts returns what listens in a running VM, and how it is reached from the host.
func (c *Client) VMPorts(ctx context.Context, name string) ([]api.GuestPort, error) {
	return call[[]api.GuestPort](ctx, c, http.MethodGet, vmPath(name, "/ports"), nil)
}

// VMStats returns the counters of a running VM.
func (c *Client) VMStats(ctx context.Context, name string) (api.VMStats, error) {
	return call[api.VMStats](ctx, c, http.MethodGet, vmPath(name, "/stats"), nil)
}

// CreateVM makes a VM, and starts it where req says so. The operation's result is an api.VM, its
// target the VM's name.
func (c *Client) CreateVM(ctx context.Context, req api.CreateVM) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, "/vms", req)
}

// StartVM starts a VM and waits for req's mark; a VM that runs is waited for only. Result: api.VM.
func (c *Client) StartVM(ctx context.Context, name string, req api.StartVM) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, vmPath(name, "/start"), req)
}

// StopVM stops a VM. Result: api.VM.
func (c *Client) StopVM(ctx context.Context, name string, req api.StopVM) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, vmPath(name, "/stop"), req)
}

// RestartVM stops and starts a VM. Result: api.VM.
func (c *Client) RestartVM(ctx context.Context, name string, req api.StopVM) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, vmPath(name, "/restart"), req)
}

// KillVM ends a VM at once, as pulling the plug would. Result: api.VM.
func (c *Client) KillVM(ctx context.Context, name string) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, vmPath(name, "/kill"), nil)
}

// DeleteVM deletes a VM with its data.
func (c *Client) DeleteVM(ctx context.Context, name string, req api.DeleteVM) (api.Operation, error) {
	q := url.Values{"force": {strconv.FormatBool(req.Force)}, "discard": {strconv.FormatBool(req.Discard)}}
	return call[api.Operation](ctx, c, http.MethodDelete, vmPath(name, "?"+q.Encode()), nil)
}

// ReleaseVM says that req's owner is done with a VM that is removed on exit. The operation deletes
// it, unless req keeps it; its ID is empty where the daemon had nothing to do.
func (c *Client) ReleaseVM(ctx context.Context, name string, req api.Release) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, vmPath(name, "/release"), req)
}

// Exec opens a stream to the guest's exec port, one process or attachment per stream. The protocol
// on it is that of internal/guest/wire. Where owned is not empty it is the id of the process on the
// stream, and that process is hung up when this one has ended.
func (c *Client) Exec(ctx context.Context, name, owned string) (net.Conn, error) {
	path := vmPath(name, "/exec")
	if owned != "" {
		path += "?id=" + url.QueryEscape(owned)
	}
	return c.upgrade(ctx, path, "banger-exec")
}

// Logs returns a log of a VM as text: source is console, agent or vmm. With follow it goes on until
// the VM ends or ctx does. The caller closes it.
func (c *Client) Logs(ctx context.Context, name, source string, follow bool) (io.ReadCloser, error) {
	q := url.Values{"source": {source}, "follow": {strconv.FormatBool(follow)}}
	return c.stream(ctx, vmPath(name, "/logs?"+q.Encode()))
}

func vmPath(name, rest string) string { return "/vms/" + url.PathEscape(name) + rest }
