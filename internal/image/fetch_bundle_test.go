package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/ext4"
	"git.thaloco.com/thaloco/banger/internal/image/bundle"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// bundleServer serves a bundle, badly where a test wants that.
type bundleServer struct {
	*httptest.Server
	data     []byte
	mu       sync.Mutex
	requests []string // the ranges asked for
	// answer, where it is not nil, comes first and tells whether it answered; n counts requests from 1.
	answer func(n int, w http.ResponseWriter, r *http.Request) bool
}

func (s *bundleServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.Header.Get("Range"))
	n := len(s.requests)
	s.mu.Unlock()
	if s.answer != nil && s.answer(n, w, r) {
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(s.data))
}

// cutter is a ResponseWriter that breaks the connection after so many bytes.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	n := min(len(p), c.left)
	_, _ = c.ResponseWriter.Write(p[:n])
	if c.left -= n; c.left == 0 {
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, nil
}

// newBundleServer serves a bundle of a drive, whose content it returns, and a store that is quick to try again.
func newBundleServer(t *testing.T) (*bundleServer, *Store, []byte) {
	t.Helper()
	content := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(content[:300_000])
	drive := filepath.Join(t.TempDir(), "drive")
	overwrite(t, drive, content)
	srv := &bundleServer{data: bundleOf(t, drive)}
	srv.Server = httptest.NewServer(srv)
	t.Cleanup(srv.Close)
	s, err := New(Config{Dir: filepath.Join(t.TempDir(), "images"), CacheDir: filepath.Join(t.TempDir(), "cache")})
	if err != nil {
		t.Fatal(err)
	}
	s.bundles.delay = time.Millisecond
	return srv, s, content
}

// fetch calls fetchBundle with a new directory and checks what that holds: the drive, or nothing.
func fetch(t *testing.T, s *Store, srv *bundleServer, want []byte, rep progress.Reporter) error {
	t.Helper()
	dir := t.TempDir()
	m, err := s.fetchBundle(t.Context(), srv.URL+"/x.tar.zst", digestOf(srv.data), dir, rep)
	if err != nil {
		assertOnly(t, dir)
		return err
	}
	assertOnly(t, dir, fileRootfs)
	if got, rerr := os.ReadFile(filepath.Join(dir, fileRootfs)); rerr != nil || !bytes.Equal(got, want) || m.Name != "x" {
		t.Errorf("%d bytes, %v, %+v", len(got), rerr, m)
	}
	assertOnly(t, s.bundles.dir)
	return nil
}

func TestFetchBundle(t *testing.T) {
	srv, s, content := newBundleServer(t)
	rep := &recorder{}
	if err := fetch(t, s, srv, content, rep); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"download the bundle", "unpack the bundle"}, rep.steps); diff != "" || rep.problem != "" {
		t.Error(diff, rep.problem)
	}
	if rep.most["download the bundle"] != int64(len(srv.data)) || rep.most["unpack the bundle"] != int64(len(content)) {
		t.Errorf("%v", rep.most)
	}
}

// TestFetchBundleInPieces has every connection end after a tenth of the bundle.
func TestFetchBundleInPieces(t *testing.T) {
	srv, s, content := newBundleServer(t)
	tenth := len(srv.data) / 10
	srv.answer = func(n int, w http.ResponseWriter, r *http.Request) bool {
		http.ServeContent(&cutter{w, tenth}, r, "", time.Time{}, bytes.NewReader(srv.data))
		return true
	}
	if err := fetch(t, s, srv, content, progress.Discard); err != nil {
		t.Fatal(err)
	}
	for i, got := range srv.requests[1:] {
		if want := fmt.Sprintf("bytes=%d-", (i+1)*tenth); got != want {
			t.Errorf("request %d: %q, want %q", i+1, got, want)
		}
	}
	if len(srv.requests) < 10 {
		t.Errorf("%d requests", len(srv.requests))
	}
}

// TestFetchBundleGoesOn has pulls that fail for good at every tenth, and another that finds what they left.
func TestFetchBundleGoesOn(t *testing.T) {
	for tenth := 1; tenth <= 9; tenth++ {
		srv, s, content := newBundleServer(t)
		cut := len(srv.data) * tenth / 10
		srv.answer = func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n > 1 {
				http.Error(w, "later", http.StatusServiceUnavailable)
				return true
			}
			http.ServeContent(&cutter{w, cut}, r, "", time.Time{}, bytes.NewReader(srv.data))
			return true
		}
		err := fetch(t, s, srv, content, progress.Discard)
		if api.KindOf(err) != api.KindUnavailable || !strings.Contains(err.Error(), "503") || !strings.Contains(api.AsError(err).Hint, "goes on where it stopped") {
			t.Errorf("%d0 %%: %v", tenth, err)
		}
		assertOnly(t, s.bundles.dir, digestOf(srv.data)+".part")
		srv.answer, srv.requests = nil, nil
		if err := fetch(t, s, srv, content, progress.Discard); err != nil {
			t.Errorf("%d0 %%: again: %v", tenth, err)
		}
		if diff := cmp.Diff([]string{fmt.Sprintf("bytes=%d-", cut)}, srv.requests); diff != "" {
			t.Errorf("%d0 %%: %s", tenth, diff)
		}
	}
}

func TestFetchBundleFails(t *testing.T) {
	status := func(code int) func(int, http.ResponseWriter, *http.Request) bool {
		return func(n int, w http.ResponseWriter, r *http.Request) bool {
			http.Error(w, "no", code)
			return true
		}
	}
	for name, c := range map[string]struct {
		answer   func(int, http.ResponseWriter, *http.Request) bool
		kind     api.ErrorKind
		text     string
		hint     string
		requests int
		left     bool
	}{
		"not there":     {status(404), api.KindUnavailable, "404 Not Found", "the catalog that names it may be old", 1, false},
		"not allowed":   {status(403), api.KindUnavailable, "403 Forbidden", "does not let everybody", 1, false},
		"teapot":        {status(418), api.KindUnavailable, "418", "", 1, false},
		"broken server": {status(500), api.KindUnavailable, "500 Internal", "check the network", bundleAttempts, false},
		"busy server":   {status(429), api.KindUnavailable, "429 Too Many", "check the network", bundleAttempts, false},
		"another file": {func(n int, w http.ResponseWriter, r *http.Request) bool {
			_, _ = w.Write([]byte("another file"))
			return true
		}, api.KindUnavailable, "expected sha256", "another file is there", 1, false},
		"cut without ranges": {func(n int, w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(make([]byte, 500))
			return true
		}, api.KindUnavailable, "EOF", "check the network", bundleAttempts, true},
		"huge": {func(n int, w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Length", fmt.Sprint(int64(maxBundle)+1))
			return true
		}, api.KindInvalid, "more than the", "", 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			srv, s, content := newBundleServer(t)
			srv.answer = c.answer
			err := fetch(t, s, srv, content, progress.Discard)
			if api.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.text) || !strings.Contains(api.AsError(err).Hint, c.hint) || !strings.HasPrefix(err.Error(), "fetch "+srv.URL) {
				t.Errorf("%v, hint %q", err, api.AsError(err).Hint)
			}
			if len(srv.requests) != c.requests {
				t.Errorf("%d requests, want %d", len(srv.requests), c.requests)
			}
			if c.left {
				assertOnly(t, s.bundles.dir, digestOf(srv.data)+".part")
			} else {
				assertOnly(t, s.bundles.dir)
			}
		})
	}
}

// TestFetchBundleStartsAnew begins anew where the server or the part is not what one would like.
func TestFetchBundleStartsAnew(t *testing.T) {
	whole := func(srv *bundleServer) func(int, http.ResponseWriter, *http.Request) bool {
		return func(n int, w http.ResponseWriter, r *http.Request) bool {
			_, _ = w.Write(srv.data)
			return true
		}
	}
	for name, c := range map[string]struct {
		part   func(data []byte) []byte
		ranges bool
		want   int // requests
	}{
		"a server without ranges":   {func(d []byte) []byte { return d[:len(d)/2] }, false, 1},
		"a damaged part":            {func(d []byte) []byte { return bytes.Repeat([]byte("x"), len(d)/2) }, true, 2},
		"a part that is too long":   {func(d []byte) []byte { return append(bytes.Clone(d), "more"...) }, true, 2},
		"a part of the same length": {func(d []byte) []byte { return make([]byte, len(d)) }, true, 2},
		"an empty part":             {func(d []byte) []byte { return nil }, true, 1},
		"a whole part":              {bytes.Clone, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			srv, s, content := newBundleServer(t)
			if !c.ranges {
				srv.answer = whole(srv)
			}
			if err := os.MkdirAll(s.bundles.dir, 0o755); err != nil {
				t.Fatal(err)
			}
			overwrite(t, filepath.Join(s.bundles.dir, digestOf(srv.data)+".part"), c.part(srv.data))
			if err := fetch(t, s, srv, content, progress.Discard); err != nil {
				t.Error(err)
			}
			if len(srv.requests) != c.want {
				t.Errorf("%d requests, want %d", len(srv.requests), c.want)
			}
		})
	}
}

// TestFetchNoBundle: what is not a bundle, though it is the file the catalog means, is not kept.
func TestFetchNoBundle(t *testing.T) {
	srv, s, _ := newBundleServer(t)
	srv.data = []byte("no bundle at all")
	err := fetch(t, s, srv, nil, progress.Discard)
	if api.KindOf(err) != api.KindInvalid || !strings.Contains(err.Error(), "unpack "+srv.URL) || !strings.Contains(err.Error(), "not compressed with zstd") {
		t.Errorf("%v", err)
	}
	assertOnly(t, s.bundles.dir)
}

// TestFetchBundleCancelled cancels in either step, and while the server says nothing.
func TestFetchBundleCancelled(t *testing.T) {
	gone := errors.New("gone")
	for _, at := range []string{"download the bundle", "unpack the bundle"} {
		srv, s, content := newBundleServer(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		rep := &recorder{onBytes: func(step string, done int64) {
			if step == at && done > 1000 {
				cancel(gone)
			}
		}}
		dir := t.TempDir()
		if _, err := s.fetchBundle(ctx, srv.URL, digestOf(srv.data), dir, rep); !errors.Is(err, gone) {
			t.Errorf("%s: %v", at, err)
		}
		assertOnly(t, dir)
		assertOnly(t, s.bundles.dir, digestOf(srv.data)+".part")
		if err := fetch(t, s, srv, content, progress.Discard); err != nil {
			t.Errorf("%s: again: %v", at, err)
		}
	}
	srv, s, _ := newBundleServer(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	srv.answer = func(n int, w http.ResponseWriter, r *http.Request) bool {
		cancel(gone)
		<-r.Context().Done()
		return true
	}
	if _, err := s.fetchBundle(ctx, srv.URL, digestOf(srv.data), t.TempDir(), progress.Discard); !errors.Is(err, gone) {
		t.Errorf("a silent server: %v", err)
	}
}

// TestFetchBundleIdle gives up on a server that stops sending.
func TestFetchBundleIdle(t *testing.T) {
	srv, s, content := newBundleServer(t)
	s.bundles.idle = 20 * time.Millisecond
	srv.answer = func(n int, w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", "1000")
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return true
	}
	if err := fetch(t, s, srv, content, progress.Discard); api.KindOf(err) != api.KindUnavailable || !strings.Contains(err.Error(), "nothing came for 20ms") {
		t.Errorf("%v", err)
	}
}

// TestFetchBundleTwice: two at once fetch it one after the other, and both have it.
func TestFetchBundleTwice(t *testing.T) {
	srv, s, _ := newBundleServer(t)
	errs := make(chan error, 2)
	for range 2 {
		dir := t.TempDir()
		go func() {
			_, err := s.fetchBundle(t.Context(), srv.URL, digestOf(srv.data), dir, progress.Discard)
			errs <- err
		}()
	}
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	assertOnly(t, s.bundles.dir)
}

// TestFetchBundleFullDisk: a full cache, and a full store after which nothing is fetched again.
func TestFetchBundleFullDisk(t *testing.T) {
	small := func(dir string) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
			t.Skip("mount:", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
	}
	srv, s, content := newBundleServer(t)
	small(s.bundles.dir)
	if err := fetch(t, s, srv, content, progress.Discard); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a full cache: %v", err)
	}
	srv, s, content = newBundleServer(t)
	dir := t.TempDir()
	small(dir)
	if _, err := s.fetchBundle(t.Context(), srv.URL, digestOf(srv.data), dir, progress.Discard); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a full store: %v", err)
	}
	assertOnly(t, dir)
	if err := fetch(t, s, srv, content, progress.Discard); err != nil || len(srv.requests) != 1 {
		t.Errorf("again: %v, %d requests", err, len(srv.requests))
	}
}

// TestPullBundle pulls an image of the catalog that is served as a bundle, after sources that are not there; what the catalog says of it
// counts more than its manifest.
func TestPullBundle(t *testing.T) {
	srv, s, _ := newBundleServer(t)
	srv.data = bundleOf(t, ext4Of(t, map[string]string{"etc/hello": "hello\n"}))
	s.catalogs.embedded = []entry{{Name: "mine", Description: "of the catalog", Arch: "amd64", Kernel: "k", Env: []string{"A=b"}, Sources: []source{
		{Bundle: srv.URL + "/elsewhere", SHA256: testHex}, {Bundle: srv.URL + "/x", SHA256: digestOf(srv.data)}}}}
	srv.answer = func(n int, w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/elsewhere" {
			http.NotFound(w, r)
			return true
		}
		return false
	}
	img, err := s.Pull(t.Context(), "mine", PullOptions{}, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	want := api.Image{Name: "mine", Description: "of the catalog", Source: srv.URL + "/x", Arch: "amd64", Kernel: "k", Env: []string{"A=b"}, User: "bob", Local: true}
	want.Digest, want.SizeBytes, want.DiskBytes, want.CreatedAt = img.Digest, img.SizeBytes, img.DiskBytes, img.CreatedAt
	if diff := cmp.Diff(want, img); diff != "" {
		t.Error(diff)
	}
	f, err := s.Files(t.Context(), img.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if got := debugfs(t, f.Rootfs, "cat /etc/hello"); !strings.Contains(got, "hello\n") {
		t.Errorf("%q", got)
	}
	if _, err := s.Pull(t.Context(), "mine", PullOptions{Build: true}, progress.Discard); api.KindOf(err) != api.KindInvalid || api.AsError(err).Hint != "leave out --build" {
		t.Errorf("Build: %v", err)
	}
	assertOnly(t, s.bundles.dir)
	assertOnly(t, s.cfg.Dir, strings.Replace(img.Digest, ":", "-", 1))
}

// TestPullBundleOfNoDrive: a bundle whose drive is no file system leaves nothing.
func TestPullBundleOfNoDrive(t *testing.T) {
	srv, s, _ := newBundleServer(t)
	s.catalogs.embedded = []entry{{Name: "mine", Arch: "amd64", Sources: []source{{Bundle: srv.URL, SHA256: digestOf(srv.data)}}}}
	if _, err := s.Pull(t.Context(), "mine", PullOptions{}, progress.Discard); api.KindOf(err) != api.KindInvalid || !strings.Contains(err.Error(), "the file system in "+srv.URL) {
		t.Errorf("%v", err)
	}
	assertOnly(t, s.bundles.dir)
	assertOnly(t, s.cfg.Dir)
}

// ext4Of is the path of a file system with files.
func ext4Of(t *testing.T, files map[string]string) string {
	t.Helper()
	var in bytes.Buffer
	w := tar.NewWriter(&in)
	for name, text := range files {
		err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(text))})
		if _, werr := w.Write([]byte(text)); err != nil || werr != nil {
			t.Fatal(err, werr)
		}
	}
	path := filepath.Join(t.TempDir(), "ext4")
	if err := errors.Join(w.Close(), ext4.FromTar(t.Context(), &in, path, ext4.Options{Label: rootfsLabel})); err != nil {
		t.Fatal(err)
	}
	return path
}

// bundleOf is a bundle of a drive.
func bundleOf(t *testing.T, drive string) []byte {
	t.Helper()
	f, err := os.Open(drive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out bytes.Buffer
	if err := bundle.Write(t.Context(), &out, bundle.Manifest{Name: "x", Description: "of the bundle", Arch: "amd64", User: "bob"}, f, progress.Discard); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
