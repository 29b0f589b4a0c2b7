package oci

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/suggest"
)

const (
	// resolveWithin is how long a registry may take to say what an image is.
	resolveWithin = 2 * time.Minute
	// tagsWithin is how long it may take to list tags, for a hint.
	tagsWithin = 5 * time.Second
	maxLayers  = 512
	maxConfig  = 4 << 20 // bytes
)

// defaultTransport is that of a client that may wait for a proxy of a registry's to fetch a layer.
func defaultTransport() http.RoundTripper {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 20 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   20 * time.Second,
		ResponseHeaderTimeout: time.Minute,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       time.Minute,
	}
}

// login is a transport that has said to a registry who it is, and says it again when it is asked.
func (c *Client) login(ctx context.Context, r reference, over http.RoundTripper) (http.RoundTripper, error) {
	auth, err := c.cfg.Keychain.Resolve(r.Context())
	if err != nil {
		return nil, api.Errorf(api.KindUnavailable, "find docker's credentials for %s: %w", r.registry(), err).
			WithHint("look at ~/.docker/config.json, and at the credential helper it names; or log in again: docker login %s", r.registry())
	}
	return transport.NewWithContext(ctx, r.Context().Registry, auth, over, []string{r.Scope(transport.PullScope)})
}

// Resolve asks a registry what an image is, for a platform: "" for linux/amd64. Errors are *api.Error: KindInvalid for a reference or platform
// that is none, KindNotFound for an image, tag or platform that is not there, with those that are in the hint, and KindUnavailable where the
// registry does not answer, or not to this user.
func (c *Client) Resolve(ctx context.Context, ref, platform string) (*Image, error) {
	r, err := parse(ref)
	if err != nil {
		return nil, err
	}
	want := v1.Platform{OS: "linux", Architecture: "amd64"}
	if platform != "" {
		p, err := v1.ParsePlatform(platform)
		if err != nil || p.OS == "" || p.Architecture == "" {
			return nil, api.Errorf(api.KindInvalid, "%q is no platform", platform).WithHint("as in linux/amd64, or linux/arm/v7")
		}
		want = *p
	}
	ctx, cancel := context.WithTimeout(ctx, resolveWithin)
	defer cancel()
	rt, err := c.login(ctx, r, patient{c.cfg.Transport, c.pace})
	if err != nil {
		return nil, c.explain(ctx, r, err)
	}
	options := []remote.Option{remote.WithContext(ctx), remote.WithTransport(rt)}
	desc, err := remote.Get(r.Reference, options...)
	if err != nil {
		return nil, c.explain(ctx, r, err, options...)
	}
	img, err := choose(r, desc, want)
	if err != nil {
		return nil, c.explain(ctx, r, err)
	}
	out, err := describe(r, img, want)
	if err != nil {
		return nil, c.explain(ctx, r, err)
	}
	out.rt = rt
	out.Reference = r.String()
	if _, pinned := r.Reference.(name.Digest); !pinned {
		out.Reference += "@" + desc.Digest.String()
	}
	return out, nil
}

// choose finds the image of a platform.
func choose(r reference, desc *remote.Descriptor, want v1.Platform) (v1.Image, error) {
	switch {
	case desc.MediaType.IsImage():
		return desc.Image()
	case desc.MediaType.IsIndex():
	case desc.MediaType.IsSchema1():
		return nil, api.Errorf(api.KindInvalid, "%s is an image of Docker's first format, which nobody makes any more", r).
			WithHint("push it again with a docker of 2016 or newer")
	default:
		return nil, api.Errorf(api.KindInvalid, "%s is no image, but of type %s", r, desc.MediaType)
	}
	index, err := desc.ImageIndex()
	if err != nil {
		return nil, err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	var have []string
	var best *v1.Descriptor
	for k := range m.Manifests {
		d := &m.Manifests[k]
		p := d.Platform
		if p == nil || p.OS == "unknown" || !d.MediaType.IsImage() {
			continue // what attests something of the others
		}
		have = append(have, p.String())
		if suits(*p, want) && (best == nil || variant(*p) == variant(want) && variant(*best.Platform) != variant(want)) {
			best = d
		}
	}
	if best != nil {
		return index.Image(best.Digest)
	}
	slices.Sort(have)
	return nil, api.Errorf(api.KindNotFound, "%s has no image for %s", r, want).
		WithHint("there are: %s", cmp.Or(strings.Join(slices.Compact(have), ", "), "none"))
}

// suits tells whether what is made for one platform is what is wanted for another, whose variant may be open.
func suits(p, want v1.Platform) bool {
	return p.OS == want.OS && p.Architecture == want.Architecture && (want.Variant == "" || variant(p) == variant(want))
}

// variant is that of a platform, in the one of the ways to say it in which it is not said where it is the usual one.
func variant(p v1.Platform) string {
	if p.Architecture == "arm64" && p.Variant == "v8" || p.Architecture == "amd64" && p.Variant == "v1" {
		return ""
	}
	return p.Variant
}

// describe reads what an image says of itself.
func describe(r reference, img v1.Image, want v1.Platform) (*Image, error) {
	m, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	if len(m.Layers) > maxLayers {
		return nil, api.Errorf(api.KindInvalid, "%s has %d layers, more than %d", r, len(m.Layers), maxLayers)
	}
	if !m.Config.MediaType.IsConfig() {
		return nil, api.Errorf(api.KindInvalid, "%s is no image of a file system: its configuration is of type %s", r, m.Config.MediaType)
	}
	if m.Config.Size > maxConfig {
		return nil, api.Errorf(api.KindInvalid, "%s has a configuration of %d bytes", r, m.Config.Size)
	}
	f, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	if is := f.Platform(); is != nil && is.Architecture != "" && (is.OS != want.OS || is.Architecture != want.Architecture) {
		return nil, api.Errorf(api.KindNotFound, "%s has no image for %s", r, want).WithHint("there is: %s", is)
	}
	out := &Image{Platform: want.String(), Env: f.Config.Env, WorkDir: f.Config.WorkingDir, User: f.Config.User,
		Entrypoint: f.Config.Entrypoint, Cmd: f.Config.Cmd, ref: r, index: &index{known: map[v1.Hash]*listed{}}}
	for n, l := range m.Layers {
		if l.Size < 0 || !isLayer(l.MediaType) {
			return nil, api.Errorf(api.KindInvalid, "layer %d of %s is of type %s and %d bytes", n+1, r, l.MediaType, l.Size)
		}
		if l.Digest.Algorithm != "sha256" {
			return nil, api.Errorf(api.KindInvalid, "layer %s of %s: only sha256 is known", l.Digest, r)
		}
		out.Layers = append(out.Layers, Layer{Digest: l.Digest, Size: l.Size})
	}
	return out, nil
}

// isLayer tells whether a media type is one of a layer that can be read; those that only some registries may serve count.
func isLayer(t types.MediaType) bool {
	s := string(t)
	known := strings.HasPrefix(s, "application/vnd.oci.image.layer.") || strings.HasPrefix(s, "application/vnd.docker.image.rootfs.diff.tar")
	return t.IsLayer() || known && !strings.Contains(s, "encrypted")
}

// explain gives an error of a registry a kind and a hint.
func (c *Client) explain(ctx context.Context, r reference, err error, options ...remote.Option) error {
	var known *api.Error
	if errors.As(err, &known) {
		return err
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	e := api.Errorf(api.KindUnavailable, "ask %s for %s: %w", r.registry(), r, brief{err})
	var said *transport.Error
	if !errors.As(err, &said) {
		return e.WithHint("is %s reachable from this host? A proxy is taken from HTTPS_PROXY of the daemon's environment", r.registry())
	}
	switch said.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return api.Errorf(api.KindUnavailable, "%s does not give %s to this user, or has no such image", r.registry(), r).
			WithHint("log in, and try again: docker login %s (or podman login; banger uses docker's credentials and helpers)", r.registry())
	case http.StatusNotFound:
		nf := api.Errorf(api.KindNotFound, "%s has no %s", r.registry(), strings.TrimPrefix(r.String(), r.registry()+"/"))
		if hint := c.tags(ctx, r, options); hint != "" {
			return nf.WithHint("%s", hint)
		}
		return nf.WithHint("look at the name, and at the tag")
	case http.StatusTooManyRequests:
		return e.WithHint("it limits how often it is asked: wait, or log in: docker login %s", r.registry())
	}
	return e.WithHint("try again later")
}

// brief is an error whose text may be a whole page of a server's.
type brief struct{ error }

// Error implements error.
func (b brief) Error() string {
	const most = 300
	s := strings.Join(strings.Fields(b.error.Error()), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// Unwrap returns the error.
func (b brief) Unwrap() error { return b.error }

// tags says which tags there are, near the one that was asked for.
func (c *Client) tags(ctx context.Context, r reference, options []remote.Option) string {
	tag, ok := r.Reference.(name.Tag)
	if !ok || len(options) == 0 {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, tagsWithin)
	defer cancel()
	all, err := remote.List(tag.Repository, append(slices.Clone(options), remote.WithContext(ctx))...)
	if err != nil || len(all) == 0 {
		return ""
	}
	if near := suggest.Near(tag.TagStr(), all); len(near) > 0 {
		return "did you mean " + strings.Join(near, " or ") + "?"
	}
	slices.Sort(all)
	const most = 12
	if len(all) > most {
		return fmt.Sprintf("among its %d tags are: %s", len(all), strings.Join(all[len(all)-most:], ", "))
	}
	return "its tags are: " + strings.Join(all, ", ")
}
