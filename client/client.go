// Package client talks to banger's daemon over its unix socket. Everything the
// daemon can do has one method here, which is one expression over call; the
// wire types are those of package api, and the daemon's errors come back as
// *api.Error.
//
// The files divide it by noun, as in package api: vms.go, images.go,
// operations.go, daemon.go; transport.go holds how a request travels, stream.go
// what is not one request and one answer.
package client

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"

	"git.thaloco.com/thaloco/banger/internal/buildinfo"
	"git.thaloco.com/thaloco/banger/internal/paths"
)

// ErrNoDaemon says that nothing answers at the daemon's socket.
var ErrNoDaemon = errors.New("the daemon is not reachable")

// Config says where the daemon is. Socket is required.
type Config struct {
	// Socket is the path of the daemon's socket.
	Socket string
	// Lock is the file in which a running daemon writes the path of its socket; it
	// is read where nothing answers at Socket. Empty for none.
	Lock string
	// Start is called when nothing answers at either; after it returned nil the
	// connection is tried once more. Calls are made one at a time. Nil: do nothing.
	Start func(ctx context.Context) error
}

// FromEnv returns where the daemon of this environment is, by the XDG variables and HOME.
func FromEnv(getenv func(string) string) (Config, error) {
	p, err := paths.FromEnv(getenv)
	if err != nil {
		return Config{}, err
	}
	return Config{Socket: p.Socket(), Lock: p.Lock()}, nil
}

// Client is a client of one daemon. It may be used by several goroutines at once.
type Client struct {
	cfg   Config
	http  *http.Client
	build string

	startMu sync.Mutex // one Start at a time
}

// New returns a client of the daemon at cfg.Socket. It connects when it is first used.
func New(cfg Config) *Client {
	c := &Client{cfg: cfg, build: buildinfo.Version}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
		DisableCompression: true,
	}}
	return c
}

// Passive returns a client of the same daemon that never starts it.
func (c *Client) Passive() *Client {
	cfg := c.cfg
	cfg.Start = nil
	return New(cfg)
}

// Close closes the connections that are idle.
func (c *Client) Close() { c.http.CloseIdleConnections() }
