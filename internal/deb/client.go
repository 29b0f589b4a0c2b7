package deb

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
)

// Config is what a Client needs.
type Config struct {
	// CacheDir holds indexes, packages and the dates of releases; made when it is not there.
	CacheDir string
	// Keyring holds the keys of which one must have signed a release.
	Keyring openpgp.EntityList
	// HTTP is nil for NewHTTPClient().
	HTTP *http.Client
	// Idle is how long a connection may deliver nothing before it is given up; 0 for 30 s.
	Idle time.Duration
	// RetryDelay is how long is waited before a broken transfer is taken up again; 0 for 1 s.
	RetryDelay time.Duration
	// Now is nil for time.Now.
	Now func() time.Time
	// Log is nil for none.
	Log *slog.Logger
}

// Client fetches from archives. Its methods may be called from several goroutines; a file is
// fetched by one of them at a time. Two processes must not share a cache directory.
type Client struct {
	cfg Config

	mu sync.Mutex // guards locks
	// locks holds a channel of capacity 1 for every file being fetched.
	locks map[string]chan struct{}
}

// New returns a Client.
func New(cfg Config) *Client {
	if cfg.HTTP == nil {
		cfg.HTTP = NewHTTPClient()
	}
	if cfg.Idle == 0 {
		cfg.Idle = 30 * time.Second
	}
	if cfg.RetryDelay == 0 {
		cfg.RetryDelay = time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Client{cfg: cfg, locks: map[string]chan struct{}{}}
}

// NewHTTPClient returns an HTTP client that uses the proxy of the environment, and gives up on servers that do not connect
// or answer; it sets no limit to how long a download takes.
func NewHTTPClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		IdleConnTimeout:       30 * time.Second,
		MaxIdleConnsPerHost:   4,
		DisableCompression:    true, // sizes and ranges are of the file itself
		ForceAttemptHTTP2:     true,
	}}
}

// lock waits for the right to write the file at path; the function returned gives it back.
func (c *Client) lock(ctx context.Context, path string) (unlock func(), err error) {
	c.mu.Lock()
	ch, ok := c.locks[path]
	if !ok {
		ch = make(chan struct{}, 1)
		c.locks[path] = ch
	}
	c.mu.Unlock()
	select {
	case ch <- struct{}{}:
		return func() { <-ch }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
