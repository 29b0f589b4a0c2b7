// Package oci makes local what registries serve by the OCI's distribution and image specifications, and by Docker's of before: it
// finds the image of a platform, keeps the layers in a cache, and merges them to one tree.
//
// reference.go has names, registry.go asks registries. blobs.go is the cache, download.go brings a layer into it, part.go is one that is not whole
// yet. layer.go reads a layer, ahead.go does so before it is asked, tree.go puts layers on each other within what budget.go allows, flatten.go writes
// the result as one tar stream.
package oci

import (
	"log/slog"
	"net/http"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Config is what a Client needs.
type Config struct {
	// Cache holds layers; it is made when it is needed.
	Cache string
	// Transport is nil for one that uses the environment's proxy.
	Transport http.RoundTripper
	// Keychain is nil for docker's credentials: its config.json, and the helpers that names.
	Keychain authn.Keychain
	// Log is nil for none.
	Log *slog.Logger
}

// Client pulls images. Its methods may be called from several goroutines.
type Client struct {
	cfg  Config
	pace pace

	mu      sync.Mutex // guards fetches
	fetches map[v1.Hash]*fetch
}

// New returns a Client.
func New(cfg Config) *Client {
	if cfg.Transport == nil {
		cfg.Transport = defaultTransport()
	}
	if cfg.Keychain == nil {
		cfg.Keychain = authn.DefaultKeychain
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Client{cfg: cfg, pace: defaultPace, fetches: map[v1.Hash]*fetch{}}
}

// Image is an image of a registry for one platform, as Resolve found it.
type Image struct {
	// Reference is what was asked for, in full, with the digest of what it is now: "docker.io/library/alpine:3.20@sha256:HEX".
	Reference string
	// Platform is "OS/ARCH[/VARIANT]".
	Platform string
	// Env, WorkDir, User, Entrypoint and Cmd are those of the image's configuration.
	Env             []string
	WorkDir, User   string
	Entrypoint, Cmd []string
	Layers          []Layer // the lowest first

	ref   reference
	rt    http.RoundTripper // logged in
	index *index
}

// Layer is a layer of an image, as it is served.
type Layer struct {
	Digest v1.Hash
	Size   int64 // in bytes
}

// Bytes is how much is fetched where nothing of it is there.
func (i *Image) Bytes() int64 {
	var n int64
	seen := map[v1.Hash]bool{}
	for _, l := range i.Layers {
		if !seen[l.Digest] {
			seen[l.Digest] = true
			n += l.Size
		}
	}
	return n
}
