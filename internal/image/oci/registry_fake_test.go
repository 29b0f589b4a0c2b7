package oci

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// fakeRegistry is a registry on loopback. It serves blobs by itself, so that a test can have it do so badly, and counts.
type fakeRegistry struct {
	t    testing.TB
	host string // and port

	mu     sync.Mutex // guards what follows
	blobs  map[string][]byte
	asked  map[string]int   // GETs of a blob, by digest
	served map[string]int64 // bytes of it
	log    []string         // "METHOD PATH" of all requests
	door   http.HandlerFunc // answers all but what it leaves, if not nil
	fault  func(w http.ResponseWriter, r *http.Request, blob []byte, nth int) (answered bool)
}

func newRegistry(t testing.TB) *fakeRegistry {
	r := &fakeRegistry{t: t, blobs: map[string][]byte{}, asked: map[string]int{}, served: map[string]int64{}}
	base := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { r.serve(base, w, req) }))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Start()
	t.Cleanup(srv.Close)
	r.host = strings.TrimPrefix(srv.URL, "http://")
	return r
}

func (r *fakeRegistry) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.log, "\n")
}

// left is an answer that nobody has begun.
type left struct {
	http.ResponseWriter
	begun bool
}

func (l *left) Header() http.Header         { return l.ResponseWriter.Header() }
func (l *left) Write(b []byte) (int, error) { l.begun = true; return l.ResponseWriter.Write(b) }
func (l *left) WriteHeader(s int)           { l.begun = true; l.ResponseWriter.WriteHeader(s) }

func (r *fakeRegistry) serve(base http.Handler, w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.log = append(r.log, req.Method+" "+req.URL.Path)
	door := r.door
	r.mu.Unlock()
	if door != nil {
		l := &left{ResponseWriter: w}
		if door(l, req); l.begun {
			return
		}
	}
	digest := path.Base(req.URL.Path)
	r.mu.Lock()
	blob, ok := r.blobs[digest]
	if ok && req.Method == http.MethodGet {
		r.asked[digest]++
	}
	nth, fault := r.asked[digest], r.fault
	r.mu.Unlock()
	if !ok || req.Method != http.MethodGet {
		base.ServeHTTP(w, req)
		return
	}
	counted := &counting{ResponseWriter: w, r: r, digest: digest}
	if fault == nil || !fault(counted, req, blob, nth) {
		serveBlob(counted, req, blob)
	}
}

// counting counts what is served of a blob.
type counting struct {
	http.ResponseWriter
	r      *fakeRegistry
	digest string
}

func (c *counting) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.r.mu.Lock()
	c.r.served[c.digest] += int64(n)
	c.r.mu.Unlock()
	return n, err
}

func (c *counting) Flush() { c.ResponseWriter.(http.Flusher).Flush() }

// from is where a request wants a blob to begin.
func from(req *http.Request) int {
	var start, end int
	if _, err := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-%d", &start, &end); err != nil {
		return 0
	}
	return start
}

// serveBlob serves one as it should be.
func serveBlob(w http.ResponseWriter, req *http.Request, blob []byte) {
	begin(w, req, blob)
	_, _ = w.Write(blob[from(req):])
}

// begin is the header of an answer.
func begin(w http.ResponseWriter, req *http.Request, blob []byte) {
	start := from(req)
	w.Header().Set("Content-Length", fmt.Sprint(len(blob)-start))
	if start > 0 {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(blob)-1, len(blob)))
		w.WriteHeader(http.StatusPartialContent)
	}
}

// cutAt serves a blob up to a byte, and hangs up.
func cutAt(w http.ResponseWriter, req *http.Request, blob []byte, at int) {
	begin(w, req, blob)
	_, _ = w.Write(blob[min(from(req), at):at])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

func (r *fakeRegistry) set(f func(w http.ResponseWriter, req *http.Request, blob []byte, nth int) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = f
}

func (r *fakeRegistry) setDoor(f http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.door = f
}

// counts are the GETs of a blob, and the bytes served of it.
func (r *fakeRegistry) counts(b []byte) (asked int, served int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := digestOf(b).String()
	return r.asked[d], r.served[d]
}

// image makes an image of layers, of type mt.
func image(t testing.TB, platform v1.Platform, mt types.MediaType, layers ...[]byte) v1.Image {
	t.Helper()
	img := empty.Image
	var err error
	for _, l := range layers {
		if img, err = mutate.Append(img, mutate.Addendum{Layer: static.NewLayer(l, mt)}); err != nil {
			t.Fatal(err)
		}
	}
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{OS: platform.OS, Architecture: platform.Architecture, Variant: platform.Variant,
		Config: v1.Config{Env: []string{"PATH=/bin"}, WorkingDir: "/srv", User: "1:2", Entrypoint: []string{"/init"}, Cmd: []string{"-x"}}})
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(string(mt), "application/vnd.oci") {
		img = mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), types.OCIConfigJSON)
	}
	return img
}

var amd64 = v1.Platform{OS: "linux", Architecture: "amd64"}

// push puts an image or index there, whatever the registry's faults, and returns its reference.
func (r *fakeRegistry) push(what remote.Taggable, repoTag string) string {
	r.t.Helper()
	ref, err := name.ParseReference(r.host + "/" + repoTag)
	if err != nil {
		r.t.Fatal(err)
	}
	switch what := what.(type) {
	case v1.Image:
		err = remote.Write(ref, what)
	case v1.ImageIndex:
		err = remote.WriteIndex(ref, what)
	default:
		err = remote.Put(ref, what)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return ref.Name()
}

// pushLayers is push of an image of layers.
func (r *fakeRegistry) pushLayers(repoTag string, layers ...[]byte) string {
	r.t.Helper()
	ref := r.push(image(r.t, amd64, types.DockerLayer, layers...), repoTag)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range layers {
		r.blobs[digestOf(l).String()] = l
	}
	return ref
}

// newClient is a Client that is in a hurry, with a cache of its own.
func newClient(t testing.TB, change ...func(*Config)) *Client {
	t.Helper()
	tr := defaultTransport().(*http.Transport)
	t.Cleanup(tr.CloseIdleConnections)
	cfg := Config{Cache: t.TempDir() + "/layers", Transport: tr, Keychain: authn.NewMultiKeychain()}
	for _, f := range change {
		f(&cfg)
	}
	c := New(cfg)
	c.pace = pace{first: time.Millisecond, longest: 20 * time.Millisecond, stall: time.Hour}
	return c
}
