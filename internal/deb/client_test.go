package deb

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/deb/debtest"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

func hexString(b []byte) string { return hex.EncodeToString(b) }

var today = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)

// fixture is an archive and a client that trusts it.
type fixture struct {
	*debtest.Archive
	*Client
	dir string
	now time.Time
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{Archive: debtest.New(t), dir: t.TempDir(), now: today}
	f.Client = f.client(f.Keyring())
	return f
}

func (f *fixture) client(keys openpgp.EntityList) *Client {
	return New(Config{CacheDir: f.dir, Keyring: keys, Now: func() time.Time { return f.now },
		Idle: 5 * time.Second, RetryDelay: time.Millisecond})
}

func suite(mod ...func(*debtest.Suite)) debtest.Suite {
	s := debtest.Suite{Codename: "trixie", Date: today.Add(-time.Hour), ByHash: true, Index: ".xz", Packages: []debtest.Package{
		{Name: "a", Version: "1.9-1", Data: []byte("package a 1.9")},
		{Name: "a", Version: "1.10-1", Data: []byte("package a 1.10")},
		{Name: "b", Version: "1", Depends: "a (>= 1)", Data: []byte("package b")},
	}}
	for _, m := range mod {
		m(&s)
	}
	return s
}

func all(string) bool { return true }

func (f *fixture) index(t *testing.T) Index {
	t.Helper()
	rel, err := f.Release(t.Context(), f.URL, "trixie")
	if err != nil {
		t.Fatal(err)
	}
	x, err := f.Packages(t.Context(), rel, "main", "amd64", all, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// wantError checks kind and text of an error, and that it says what to do.
func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	var e *api.Error
	if !errors.As(err, &e) || e.Kind != api.KindUnavailable || !strings.Contains(e.Hint, "debian_mirror") {
		t.Errorf("error %q: kind %s, %+v", err, api.KindOf(err), e)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not say %q", err, p)
		}
	}
}

func TestIndexAndDownload(t *testing.T) {
	for _, ext := range []string{"", ".gz", ".xz"} {
		t.Run("Packages"+ext, func(t *testing.T) {
			f := newFixture(t)
			f.Publish(suite(func(s *debtest.Suite) { s.Index = ext }))
			p, ok := f.index(t).Newest("a", Relation{})
			if !ok || p.Version != "1.10-1" {
				t.Fatalf("newest a: %+v", p)
			}
			if old, _ := f.index(t).Newest("a", Relation{Op: "<<", Version: "1.10"}); old.Version != "1.9-1" {
				t.Errorf("a << 1.10: %+v", old)
			}
			if _, ok := f.index(t).Newest("none", Relation{}); ok {
				t.Error("found a package that is not there")
			}
			for range 2 {
				path, err := f.Download(t.Context(), p, progress.Discard)
				if err != nil {
					t.Fatal(err)
				}
				if got, _ := os.ReadFile(path); string(got) != "package a 1.10" {
					t.Errorf("got %q", got)
				}
			}
			asked := 0
			for _, r := range f.Requests() {
				if strings.HasPrefix(r, "pool/") || strings.Contains(r, "Packages") || strings.Contains(r, "by-hash") {
					asked++
				}
			}
			if asked != 2 {
				t.Errorf("%d requests for the index and the package, want one each", asked)
			}
		})
	}
}

func TestIndexByHash(t *testing.T) {
	f := newFixture(t)
	f.Publish(suite(func(s *debtest.Suite) { s.NoPlain = true }))
	f.index(t)
	for _, r := range f.Requests() {
		if strings.HasSuffix(r, "Packages.xz") {
			t.Errorf("asked for %s although it is there by hash", r)
		}
	}
	// A mirror that promises files by hash and does not have them.
	f = newFixture(t)
	f.Publish(suite())
	f.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "by-hash") {
			http.NotFound(w, r)
			return true
		}
		return false
	})
	f.index(t)
	// Lists of older releases leave the cache.
	f.Publish(suite(func(s *debtest.Suite) { s.Date, s.Packages = today, s.Packages[:1] }))
	f.index(t)
	lists, err := os.ReadDir(filepath.Join(f.dir, "lists"))
	if err != nil || len(lists) != 1 {
		t.Errorf("lists in the cache: %v, %v", lists, err)
	}
}

func TestReleaseRefused(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(t *testing.T, f *fixture)
		want    string
	}{
		"other key": {func(t *testing.T, f *fixture) {
			f.Publish(suite(func(s *debtest.Suite) { s.Keys = []*openpgp.Entity{debtest.NewKey(t)} }))
		}, "no good signature by a known key"},
		"changed": {func(_ *testing.T, f *fixture) {
			f.Publish(suite())
			const path = "dists/trixie/InRelease"
			f.Put(path, []byte(strings.Replace(string(f.Get(path)), "Origin: Test", "Origin: Tist", 1)))
		}, "no good signature by a known key"},
		"unsigned": {func(_ *testing.T, f *fixture) {
			f.Put("dists/trixie/InRelease", []byte("Codename: trixie\n"))
		}, "not a signed file"},
		"text behind": {func(_ *testing.T, f *fixture) {
			f.Publish(suite())
			const path = "dists/trixie/InRelease"
			f.Put(path, append(f.Get(path), "Codename: sid\n"...))
		}, "text follows the signature"},
		"other suite": {func(_ *testing.T, f *fixture) {
			f.Publish(suite(func(s *debtest.Suite) { s.Codename = "sid" }))
			f.Put("dists/trixie/InRelease", f.Get("dists/sid/InRelease"))
		}, `it is of "sid"`},
		"expired": {func(_ *testing.T, f *fixture) {
			f.Publish(suite(func(s *debtest.Suite) { s.ValidUntil = today.Add(-time.Second) }))
		}, "valid until 2026-05-04T03:02:00Z"},
		"older than seen": {func(t *testing.T, f *fixture) {
			f.Publish(suite())
			f.index(t)
			f.Publish(suite(func(s *debtest.Suite) { s.Date = s.Date.Add(-time.Second) }))
		}, "older than the one"},
		"missing":   {func(*testing.T, *fixture) {}, "HTTP status 404"},
		"too large": {func(_ *testing.T, f *fixture) { f.Put("dists/trixie/InRelease", make([]byte, maxRelease+1)) }, "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			c.prepare(t, f)
			rel, err := f.client(f.Keyring()).Release(t.Context(), f.URL, "trixie")
			if rel != nil {
				t.Error("a release was returned")
			}
			wantError(t, err, c.want, f.URL+"/dists/trixie/InRelease")
			if unreachable := name == "missing" || name == "too large"; IsUnreachable(err) != unreachable {
				t.Errorf("IsUnreachable is %v", !unreachable)
			}
		})
	}
}

// Debian signs with several keys; a host that knows one of them must be content, whichever it is.
func TestReleaseSeveralSignatures(t *testing.T) {
	f := newFixture(t)
	other := debtest.NewKey(t)
	for _, keys := range [][]*openpgp.Entity{{f.Key, other}, {other, f.Key}} {
		f.Publish(suite(func(s *debtest.Suite) { s.Keys = keys }))
		if _, err := f.Release(t.Context(), f.URL, "trixie"); err != nil {
			t.Error(err)
		}
	}
}

func TestDatesSurviveDamage(t *testing.T) {
	f := newFixture(t)
	f.Publish(suite(func(s *debtest.Suite) { s.ValidUntil = today.Add(time.Hour) }))
	f.index(t)
	if err := os.WriteFile(filepath.Join(f.dir, "dates.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.index(t)
	f.Publish(suite(func(s *debtest.Suite) { s.Date = s.Date.Add(-time.Second) }))
	if _, err := f.Release(t.Context(), f.URL, "trixie"); err == nil {
		t.Error("an older release was accepted after the dates had been damaged and written anew")
	}
}

func TestUnreachable(t *testing.T) {
	f := newFixture(t)
	_, err := f.Release(t.Context(), "http://127.0.0.1:1/debian", "trixie")
	wantError(t, err, "http://127.0.0.1:1/debian/dists/trixie/InRelease", "connection refused")
	if !IsUnreachable(err) {
		t.Error("IsUnreachable is false")
	}
}

func (f *fixture) big(t *testing.T) (Package, []byte) {
	t.Helper()
	data := []byte(strings.Repeat("0123456789abcdef", 64<<10))
	f.Publish(suite(func(s *debtest.Suite) {
		s.Packages = []debtest.Package{{Name: "big", Version: "1", Data: data}}
	}))
	p, _ := f.index(t).Newest("big", Relation{})
	f.Requests()
	return p, data
}

func TestDownloadResumes(t *testing.T) {
	f := newFixture(t)
	p, data := f.big(t)
	var cuts atomic.Int32
	f.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if cuts.Add(1) > 2 {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		from := 0
		if r.Header.Get("Range") != "" {
			from = 300_000
			w.Header().Set("Content-Length", fmt.Sprint(len(data)-from))
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = w.Write(data[from : from+300_000])
		panic(http.ErrAbortHandler) // the connection breaks
	})
	path, err := f.Download(t.Context(), p, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); string(got) != string(data) {
		t.Error("the file is not what was served")
	}
	want := []string{p.Filename, p.Filename + " bytes=300000-", p.Filename + " bytes=600000-"}
	if diff := cmp.Diff(want, f.Requests()); diff != "" {
		t.Error(diff)
	}
}

// What is left of an earlier download may be of another file, longer, or all of it; the server may ignore ranges.
func TestDownloadPartOfAnything(t *testing.T) {
	for name, c := range map[string]struct {
		part     func(data []byte) []byte
		noRanges bool
	}{
		"right half":      {part: func(d []byte) []byte { return d[:len(d)/2] }},
		"wrong half":      {part: func(d []byte) []byte { return make([]byte, len(d)/2) }},
		"complete":        {part: func(d []byte) []byte { return d }},
		"complete, wrong": {part: func(d []byte) []byte { return make([]byte, len(d)) }},
		"too long":        {part: func(d []byte) []byte { return make([]byte, len(d)+1) }},
		"no ranges":       {part: func(d []byte) []byte { return make([]byte, len(d)/2) }, noRanges: true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			p, data := f.big(t)
			path := filepath.Join(f.dir, "pool", p.SHA256[:16]+"_"+filepath.Base(p.Filename))
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path+".part", c.part(data), 0o600); err != nil {
				t.Fatal(err)
			}
			f.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
				if c.noRanges {
					r.Header.Del("Range")
				}
				return false
			})
			got, err := f.Download(t.Context(), p, progress.Discard)
			if err != nil || got != path {
				t.Fatalf("%q, %v", got, err)
			}
			if got, _ := os.ReadFile(path); string(got) != string(data) {
				t.Error("the file is not what was served")
			}
			if _, err := os.Stat(path + ".part"); err == nil {
				t.Error("the partial file is still there")
			}
		})
	}
}

func TestDownloadRefused(t *testing.T) {
	for name, c := range map[string]struct {
		serve []byte
		want  string
	}{
		"changed":   {[]byte("package a 1.1x"), "digest mismatch: expected sha256"},
		"too long":  {[]byte("package a 1.10 and more"), "the server has 23 bytes of it, the index says 14"},
		"too short": {[]byte("package"), "the server has 7 bytes of it"},
		"gone":      {nil, "HTTP status 404"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.Publish(suite())
			p, _ := f.index(t).Newest("a", Relation{})
			f.Put(p.Filename, c.serve)
			_, err := f.Download(t.Context(), p, progress.Discard)
			wantError(t, err, c.want, p.URL())
			if left, _ := filepath.Glob(filepath.Join(f.dir, "pool", "*.deb")); len(left) > 0 {
				t.Errorf("left in the cache: %v", left)
			}
			f.Put(p.Filename, []byte("package a 1.10"))
			if _, err := f.Download(t.Context(), p, progress.Discard); err != nil {
				t.Errorf("after the mirror was mended: %v", err)
			}
		})
	}
}

func TestDownloadIdle(t *testing.T) {
	f := newFixture(t)
	p, data := f.big(t)
	release := make(chan struct{})
	defer close(release)
	f.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:1000])
		_ = http.NewResponseController(w).Flush()
		select {
		case <-release:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	})
	f.cfg.Idle = 20 * time.Millisecond
	_, err := f.Download(t.Context(), p, progress.Discard)
	wantError(t, err, "the server stopped sending")
}

func TestDownloadCancelled(t *testing.T) {
	f := newFixture(t)
	p, data := f.big(t)
	ctx, cancel := context.WithCancel(t.Context())
	f.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:1000])
		_ = http.NewResponseController(w).Flush()
		cancel()
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	})
	if _, err := f.Download(ctx, p, progress.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	f.Intercept(nil)
	if _, err := f.Download(t.Context(), p, progress.Discard); err != nil {
		t.Error(err)
	}
}

// Two that want the same file at once get it, fetched once.
func TestDownloadTogether(t *testing.T) {
	f := newFixture(t)
	p, _ := f.big(t)
	errs := make(chan error, 4)
	for range cap(errs) {
		go func() {
			_, err := f.Download(t.Context(), p, progress.Discard)
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if r := f.Requests(); len(r) != 1 {
		t.Errorf("requests: %v", r)
	}
}

func TestParseContentRange(t *testing.T) {
	for s, want := range map[string]string{
		"bytes 5-9/10": "5 10 true", "bytes 5-9/*": "5 -1 true", "bytes 5-9/4": "5 4 false", "bytes -1-9/10": "0 0 false",
		"5-9/10": "0 0 false", "bytes 5/10": "0 0 false", "bytes x-9/10": "0 0 false", "": "0 0 false",
	} {
		first, total, ok := parseContentRange(s)
		if got := fmt.Sprint(first, total, ok); got != want {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
	}
}

func TestPrune(t *testing.T) {
	f := newFixture(t)
	f.Publish(suite())
	x := f.index(t)
	var paths []string
	for _, p := range x {
		path, err := f.Download(t.Context(), p, progress.Discard)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	f.Prune(paths[1], func(name string) bool { return strings.HasPrefix(name, "a_") })
	left, err := filepath.Glob(filepath.Join(f.dir, "pool", "*"))
	if err != nil || len(left) != 2 {
		t.Errorf("left: %v, %v", left, err)
	}
	for _, path := range paths[1:] {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}

func TestSecurityFor(t *testing.T) {
	f := newFixture(t)
	f.Publish(suite(func(s *debtest.Suite) { s.Codename = "trixie-security" }))
	m := Mirrors{Security: []string{"http://127.0.0.1:1/x", f.URL + "/nothing", f.URL}}
	got, err := m.SecurityFor(t.Context(), NewHTTPClient(), "trixie")
	if err != nil || got != f.URL {
		t.Errorf("got %q, %v", got, err)
	}
	_, err = m.SecurityFor(t.Context(), NewHTTPClient(), "bookworm")
	wantError(t, err, "127.0.0.1:1", "HTTP status 404")
}
