package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"git.thaloco.com/thaloco/banger/api"
)

// user is the one whom the test's registries know.
var user = authn.AuthConfig{Username: "ann", Password: "s3cret"}

// keychain has credentials by registry.
type keychain map[string]authn.AuthConfig

func (k keychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if a, ok := k[r.RegistryStr()]; ok {
		return authn.FromConfig(a), nil
	}
	return authn.Anonymous, nil
}

// basicDoor lets in the user by name and password.
func basicDoor(w http.ResponseWriter, req *http.Request) {
	if name, pw, _ := req.BasicAuth(); name != user.Username || pw != user.Password {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
	}
}

// bearer is a door for which a token is needed, and where it is to be had. A token lasts until the next is given.
type bearer struct {
	tokens atomic.Int64
	host   string
	rights string // the scope that was asked for last
}

func (b *bearer) door(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path == "/token" {
		if name, pw, _ := req.BasicAuth(); name != user.Username || pw != user.Password {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		b.rights = req.URL.Query().Get("scope")
		_ = json.NewEncoder(w).Encode(map[string]string{"token": fmt.Sprintf("token-%d", b.tokens.Add(1))})
		return
	}
	if req.Header.Get("Authorization") != fmt.Sprintf("Bearer token-%d", b.tokens.Load()) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, b.host))
		w.WriteHeader(http.StatusUnauthorized)
	}
}

func TestTokens(t *testing.T) {
	r := newRegistry(t)
	l := layer(t, file("a", random(1, 1<<18)))
	ref := r.pushLayers("some/i:1", l)
	b := &bearer{host: r.host}
	r.setDoor(b.door)
	c := newClient(t, func(cfg *Config) { cfg.Keychain = keychain{r.host: user} })
	img := resolve(t, c, ref)
	if b.rights != "repository:some/i:pull" {
		t.Errorf("asked for the right to %q", b.rights)
	}
	// The token runs out in the middle of the layer.
	r.set(answers(func(w http.ResponseWriter, req *http.Request, blob []byte) {
		b.tokens.Add(1)
		cutHalf(w, req, blob)
	}, nil))
	flat(t, c, img)
	if _, served := r.counts(l); served != int64(len(l)) {
		t.Errorf("%d of %d bytes served", served, len(l))
	}
	// Without a challenge, which some say nothing of, it is logged in anew.
	asked, _ := r.counts(l)
	r.set(func(w http.ResponseWriter, _ *http.Request, _ []byte, nth int) bool {
		if nth == asked+1 {
			w.WriteHeader(http.StatusUnauthorized)
		}
		return nth == asked+1
	})
	c = newClient(t, func(cfg *Config) { cfg.Keychain = keychain{r.host: user} })
	flat(t, c, resolve(t, c, ref))
}

func TestDockerCredentials(t *testing.T) {
	r := newRegistry(t)
	l := layer(t, file("a", ""))
	ref := r.pushLayers("i:1", l)
	r.setDoor(basicDoor)
	helper := filepath.Join(t.TempDir(), "docker-credential-test")
	script := fmt.Sprintf("#!/bin/sh\nread host\ncase $1:$host in get:%s) printf '{\"ServerURL\":\"%%s\",\"Username\":\"ann\",\"Secret\":\"s3cret\"}' \"$host\";; *) echo credentials not found in native keychain; exit 1;; esac\n", r.host)
	if err := os.WriteFile(helper, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", filepath.Dir(helper)+":"+os.Getenv("PATH"))
	t.Setenv("HOME", t.TempDir())
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	t.Setenv("REGISTRY_AUTH_FILE", "")
	for name, c := range map[string]struct {
		config string
		ok     bool
		want   string
	}{
		"in the file":    {fmt.Sprintf(`{"auths":{%q:{"auth":"YW5uOnMzY3JldA=="}}}`, r.host), true, ""},
		"of a helper":    {fmt.Sprintf(`{"credHelpers":{%q:"test"}}`, r.host), true, ""},
		"of the store":   {`{"credsStore":"test"}`, true, ""},
		"wrong":          {fmt.Sprintf(`{"auths":{%q:{"auth":"YW5uOndyb25n"}}}`, r.host), false, "does not give"},
		"of another":     {`{"auths":{"example.org":{"auth":"YW5uOnMzY3JldA=="}}}`, false, "does not give"},
		"none":           {"", false, "does not give"},
		"no JSON":        {"{", false, "find docker's credentials"},
		"no such helper": {`{"credsStore":"not-there"}`, false, "find docker's credentials"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("DOCKER_CONFIG", dir)
			if c.config != "" {
				if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(c.config), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			client := newClient(t, func(cfg *Config) { cfg.Keychain = nil })
			img, err := client.Resolve(t.Context(), ref, "")
			if c.ok {
				if err != nil {
					t.Fatal(err)
				}
				flat(t, client, img)
				return
			}
			var e *api.Error
			if !errors.As(err, &e) || e.Kind != api.KindUnavailable || !strings.Contains(e.Message, c.want) || !strings.Contains(e.Hint, "docker login "+r.host) {
				t.Errorf("error %#v", err)
			}
		})
	}
}

// index is one of images by platform, "OS/ARCH[/VARIANT]", of which each has a file with that name in it.
func manyPlatforms(t *testing.T, index v1.ImageIndex, platforms ...string) v1.ImageIndex {
	t.Helper()
	for _, s := range platforms {
		p, err := v1.ParsePlatform(s)
		if err != nil {
			t.Fatal(err)
		}
		img := image(t, *p, types.OCILayer, layer(t, file("platform", s)))
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: p}})
	}
	return index
}

func TestPlatforms(t *testing.T) {
	r := newRegistry(t)
	oci := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	docker := mutate.IndexMediaType(empty.Index, types.DockerManifestList)
	all := []string{"unknown/unknown", "linux/amd64/v3", "linux/amd64", "windows/amd64", "linux/arm64/v8", "linux/arm/v7", "linux/arm/v6"}
	refs := []string{r.push(manyPlatforms(t, oci, all...), "i:oci"), r.push(manyPlatforms(t, docker, all...), "i:docker")}
	single := r.push(image(t, v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}, types.DockerLayer, layer(t)), "i:single")
	c := newClient(t)
	for _, ref := range refs {
		for want, got := range map[string]string{
			"": "linux/amd64", "linux/amd64": "linux/amd64", "linux/amd64/v3": "linux/amd64/v3", "linux/arm64": "linux/arm64/v8", "linux/arm64/v8": "linux/arm64/v8", "linux/arm/v6": "linux/arm/v6",
		} {
			img, err := c.Resolve(t.Context(), ref, want)
			if err != nil {
				t.Errorf("%s for %q: %v", ref, want, err)
				continue
			}
			if diff := cmp.Diff(map[string]string{"/platform": f(got)}, flat(t, c, img)); diff != "" {
				t.Errorf("%s for %q: %s", ref, want, diff)
			}
		}
	}
	for _, c2 := range []struct{ ref, platform, kind, hint string }{
		{refs[0], "linux/riscv64", "not_found", "there are: linux/amd64, linux/amd64/v3, linux/arm/v6, linux/arm/v7, linux/arm64/v8, windows/amd64"},
		{single, "", "not_found", "there is: linux/arm64/v8"},
		{single, "amd64", "invalid", "as in linux/amd64"},
		{single, "linux/", "invalid", "as in linux/amd64"},
	} {
		_, err := c.Resolve(t.Context(), c2.ref, c2.platform)
		var e *api.Error
		if !errors.As(err, &e) || string(e.Kind) != c2.kind || !strings.Contains(e.Hint, c2.hint) {
			t.Errorf("%s for %q: error %#v", c2.ref, c2.platform, err)
		}
	}
}

// TestMediaTypes has layers of all types that there are for them, whatever they say they are.
func TestMediaTypes(t *testing.T) {
	r := newRegistry(t)
	c := newClient(t)
	plain := plainLayer(t, file("a", "1"))
	for n, l := range []struct {
		mt types.MediaType
		b  []byte
	}{
		{types.DockerLayer, zip(t, plain)}, {types.OCILayer, zip(t, plain)}, {types.OCILayerZStd, zstandard(t, plain)}, {types.OCIUncompressedLayer, plain}, {types.DockerUncompressedLayer, plain},
		{types.DockerForeignLayer, zip(t, plain)}, {types.OCIRestrictedLayer, zip(t, plain)}, {"application/vnd.docker.image.rootfs.diff.tar.zstd", zstandard(t, plain)}, {types.OCILayer, plain},
	} {
		ref := r.push(image(t, amd64, l.mt, l.b), fmt.Sprintf("i:%d", n))
		r.mu.Lock()
		r.blobs[digestOf(l.b).String()] = l.b
		r.mu.Unlock()
		if diff := cmp.Diff(map[string]string{"/a": f("1")}, flat(t, c, resolve(t, c, ref))); diff != "" {
			t.Errorf("%s: %s", l.mt, diff)
		}
	}
}

// raw is a manifest as it is.
type raw struct {
	body string
	mt   types.MediaType
}

func (r raw) RawManifest() ([]byte, error)        { return []byte(r.body), nil }
func (r raw) MediaType() (types.MediaType, error) { return r.mt, nil }

func TestWhatCannotBePulled(t *testing.T) {
	r := newRegistry(t)
	fine := image(t, amd64, types.DockerLayer, layer(t, file("a", "")))
	for _, tag := range []string{"1.36.0", "1.36.1", "latest"} {
		r.push(fine, "busybox:"+tag)
	}
	chart, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), "application/vnd.cncf.helm.config.v1+json"),
		static.NewLayer([]byte("chart"), "application/vnd.cncf.helm.chart.content.v1.tar+gzip"))
	if err != nil {
		t.Fatal(err)
	}
	chartRef := r.push(chart, "chart:1")
	old := `{"schemaVersion":1,"name":"old","tag":"1","fsLayers":[],"history":[]}`
	oldRef := r.push(raw{old, types.DockerManifestSchema1Signed}, "old:1")
	encrypted := r.push(image(t, amd64, "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", []byte("x")), "secret:1")
	unknown := r.push(raw{`{"what":"ever"}`, "application/json"}, "unknown:1")
	sha512 := r.push(raw{strings.Replace(manifestOf(t, fine), `"layers":[{`, `"layers":[{"digest":"sha512:`+strings.Repeat("ab", 64)+`","size":1,"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip"},{`, 1), types.DockerManifestSchema2}, "busybox:sha512")
	var gone net.ListenConfig
	closed, err := gone.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	page := newRegistry(t)
	page.setDoor(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadGateway)
		_, _ = fmt.Fprint(w, "<html>", strings.Repeat("<p>sorry\n", 5000))
	})
	limited := newRegistry(t)
	limited.setDoor(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(http.StatusTooManyRequests)
	})
	for name, c := range map[string]struct {
		ref  string
		kind api.ErrorKind
		want string
		hint string
	}{
		"a tag, nearly":       {r.host + "/busybox:1.36.2", api.KindNotFound, "has no busybox:1.36.2", "did you mean 1.36.0 or 1.36.1?"},
		"a tag, far off":      {r.host + "/busybox:zzzzzzzzzz", api.KindNotFound, "has no busybox:zzzzzzzzzz", "its tags are: 1.36.0, 1.36.1, latest"},
		"a repository":        {r.host + "/nothing:1", api.KindNotFound, "has no nothing:1", "look at the name"},
		"a digest":            {r.host + "/busybox@sha256:" + strings.Repeat("0", 64), api.KindNotFound, "has no busybox@sha256:", "look at the name"},
		"no reference":        {"Not A Reference", api.KindInvalid, `"Not A Reference" is no reference`, "as in docker.io"},
		"a chart":             {chartRef, api.KindInvalid, "its configuration is of type application/vnd.cncf.helm", ""},
		"schema 1":            {oldRef, api.KindInvalid, "Docker's first format", "push it again"},
		"encrypted":           {encrypted, api.KindInvalid, "encrypted", ""},
		"an unknown manifest": {unknown, api.KindInvalid, "is no image, but of type application/json", ""},
		"another digest":      {sha512, api.KindInvalid, "only sha256 is known", ""},
		"no registry":         {closed.Addr().String() + "/a:1", api.KindUnavailable, "connection refused", "HTTPS_PROXY"},
		"a page":              {page.host + "/a:1", api.KindUnavailable, "<html><p>sorry <p>", "try again later"},
		"limited":             {limited.host + "/a:1", api.KindUnavailable, "429", "docker login " + limited.host},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newClient(t).Resolve(t.Context(), c.ref, "")
			var e *api.Error
			if !errors.As(err, &e) || e.Kind != c.kind || !strings.Contains(e.Message, c.want) || !strings.Contains(e.Hint, c.hint) || len(e.Message) > 500 {
				t.Errorf("error %#v", err)
			}
		})
	}
}

func manifestOf(t *testing.T, img v1.Image) string {
	t.Helper()
	b, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestResolveIsPatient has a registry that is not well for a while.
func TestResolveIsPatient(t *testing.T) {
	r := newRegistry(t)
	ref := r.pushLayers("i:1", layer(t, file("a", "")))
	var asked atomic.Int32
	r.setDoor(func(w http.ResponseWriter, _ *http.Request) {
		if n := asked.Add(1); n%3 != 0 {
			w.WriteHeader([]int{503, 429}[n%2])
		}
	})
	c := newClient(t)
	flat(t, c, resolve(t, c, ref))
	ctx, cancel := context.WithCancel(t.Context())
	r.setDoor(func(w http.ResponseWriter, _ *http.Request) {
		cancel()
		w.WriteHeader(500)
	})
	if _, err := c.Resolve(ctx, ref, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// TestOverTLS has a registry with a certificate that nobody knows.
func TestOverTLS(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	c := newClient(t)
	_, err := c.Resolve(t.Context(), strings.TrimPrefix(srv.URL, "https://")+"/a:1", "")
	var e *api.Error
	if !errors.As(err, &e) || e.Kind != api.KindUnavailable || !strings.Contains(e.Message, "certificate") {
		t.Errorf("error %#v", err)
	}
}
