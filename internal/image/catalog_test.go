package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// entryOf is the TOML of an image with the given lines of its own and of its source.
func entryOf(name, lines, source string) string {
	return fmt.Sprintf("[[image]]\nname = %q\narch = \"amd64\"\n%s\n[[image.source]]\n%s\n", name, lines, source)
}

const (
	testHex     = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	testBundle  = "bundle = 'https://user:secret@h.example/x.tar.zst'\nsha256 = '" + testHex + "'"
	testOCI     = "oci = 'ghcr.io/org/x@sha256:" + testHex + "'"
	testNowhere = "bundle = 'http://127.0.0.1:1/x.tar.zst'\nsha256 = '" + testHex + "'"
	testRecipe  = "recipe = 'debian'\nrelease = 'trixie'"
)

func TestParseCatalog(t *testing.T) {
	text := entryOf("two", "description = 'second'\nkernel = 'k'\nsize = 5_000\ndownload = 7\nenv = ['A=b']\nwork_dir = '/w'\nuser = 'u'",
		testBundle+"\n[[image.source]]\n"+testOCI+"\n[[image.source]]\n"+testRecipe+"\nupdates = 'trixie-updates'\npackages = ['g++', 'make']\nmise = {package='m', version='1', integrity='sha512-x'}") +
		entryOf("one", "", testRecipe) + strings.Replace(entryOf("foreign", "", testOCI), "amd64", "arm64", 1)
	got, err := parseCatalog([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []entry{
		{Name: "one", Arch: "amd64", Sources: []source{{Recipe: "debian", Release: "trixie"}}},
		{Name: "two", Description: "second", Arch: "amd64", Kernel: "k", Size: 5000, Download: 7, Env: []string{"A=b"}, WorkDir: "/w", User: "u",
			Sources: []source{
				{Bundle: "https://user:secret@h.example/x.tar.zst", SHA256: testHex},
				{OCI: "ghcr.io/org/x@sha256:" + testHex},
				{Recipe: "debian", Release: "trixie", Updates: "trixie-updates", Packages: []string{"g++", "make"}, Mise: &npmPackage{"m", "1", "sha512-x"}},
			}},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(entry{})); diff != "" {
		t.Fatal(diff)
	}
	var kinds, shown []string
	for _, s := range got[1].Sources {
		kinds, shown = append(kinds, string(s.kind())), append(shown, s.String())
	}
	if diff := cmp.Diff([]string{"bundle", "oci", "recipe"}, kinds); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"https://user:xxxxx@h.example/x.tar.zst", "ghcr.io/org/x@sha256:" + testHex, "built on this host from Debian trixie"}, shown); diff != "" {
		t.Error(diff)
	}
}

func TestParseCatalogMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"[[":                                         "line 1, column ",
		"\n\nx":                                      "line 3, column ",
		"[image]\nname='x'":                          "image: expected entries that begin with [[…image]]",
		"image = ['x']":                              "image: entry 1 is of another type",
		"imgae = 1":                                  `unknown key "imgae"; did you mean image?`,
		"[[image]]\nname='a'\narch='amd64'":          `image "a": source: there is none`,
		"[[image]]\narch='amd64'":                    `image 1: name: expected letters`,
		"[[image]]\nname=1":                          `image 1: name: expected a string in quotes`,
		entryOf("a/b", "", testOCI):                  `image "a/b": name: expected letters`,
		entryOf("A", "", testOCI):                    `image "A": name: expected letters`,
		entryOf("a", "sise = 1", testOCI):            `image "a": unknown key "sise"; did you mean size?`,
		entryOf("a", "zzzzzzz = 1", testOCI):         `image "a": unknown key "zzzzzzz"; the keys are name, description, arch,`,
		entryOf("a", "size = '1GiB'", testOCI):       `image "a": size: expected a number of bytes`,
		entryOf("a", "size = -1", testOCI):           `image "a": size: expected a number of bytes`,
		entryOf("a", "env = 'A=b'", testOCI):         `image "a": env: expected a list of strings`,
		entryOf("a", "env = [1]", testOCI):           `image "a": env: entry 1 is of another type`,
		entryOf("a", "env = ['A']", testOCI):         `image "a": env: "A" is not NAME=VALUE`,
		entryOf("a", "work_dir = 'x'", testOCI):      `image "a": work_dir: "x" is not an absolute path`,
		"[[image]]\nname='a'\narch='arm'\n":          `image "a": arch: expected amd64 or arm64, found "arm"`,
		entryOf("a", "", testOCI+"\nurl='x'"):        `image "a": source 1: unknown key "url"`,
		entryOf("a", "", "release='x'"):              `image "a": source 1: expected one of the keys bundle, oci and recipe, found none`,
		entryOf("a", "", testOCI+"\n"+testRecipe):    `image "a": source 1: expected one of the keys bundle, oci and recipe, found oci and recipe`,
		entryOf("a", "", testBundle+"\nrelease='x'"): `image "a": source 1: release: this key does not go with bundle`,
		entryOf("a", "", testOCI+"\nsha256='x'"):     `image "a": source 1: sha256: this key does not go with oci`,
		entryOf("a", "", testRecipe+"\nsha256='x'"):  `image "a": source 1: sha256: this key does not go with recipe`,
		entryOf("a", "", testOCI+"\n[[image.source]]\nbundle='ftp://x/y'"):                `image "a": source 2: bundle: "ftp://x/y" is not an http or https URL`,
		entryOf("a", "", "bundle='https://x/y'"):                                          `image "a": source 1: sha256: expected the 64 hexadecimal digits`,
		entryOf("a", "", "oci='debian:13'"):                                               `image "a": source 1: oci: "debian:13" is not REPOSITORY@sha256:HEX`,
		entryOf("a", "", "recipe='arch'"):                                                 `image "a": source 1: recipe: expected debian, found "arch"`,
		entryOf("a", "", "recipe='debian'"):                                               `image "a": source 1: release: expected the codename`,
		entryOf("a", "", testRecipe+"\nupdates='a b'"):                                    `image "a": source 1: updates: expected the codename`,
		entryOf("a", "", testRecipe+"\npackages=['a,b']"):                                 `image "a": source 1: packages: "a,b" is not the name of a package`,
		entryOf("a", "", testRecipe+"\nmise={}"):                                          `image "a": source 1: mise: expected package, version and integrity`,
		entryOf("a", "", testRecipe+"\nmise='x'"):                                         `image "a": source 1: mise: expected a table`,
		entryOf("a", "", testRecipe+"\nmise={pakage='x'}"):                                `image "a": source 1: mise: unknown key "pakage"; did you mean package?`,
		entryOf("a", "", testRecipe+"\ndocker='podman'"):                                  `image "a": source 1: docker: expected debian, ce or none, found "podman"`,
		entryOf("a", "", testRecipe+"\ndocker_key='/k'"):                                  `image "a": source 1: docker_mirror, docker_key: these keys only go with docker = "ce"`,
		entryOf("a", "", testRecipe+"\ndocker='ce'"):                                      `image "a": source 1: docker_mirror: expected the URL`,
		entryOf("a", "", testRecipe+"\ndocker='ce'\ndocker_mirror='http://x'"):            `image "a": source 1: docker_key: expected the armored key`,
		entryOf("a", "", testRecipe+"\ndocker='ce'\ndocker_mirror='http://x/a b'"):        `image "a": source 1: docker_mirror: expected the URL`,
		entryOf("a", "", testOCI) + entryOf("b", "", testOCI) + entryOf("a", "", testOCI): `image "a": it is there twice`,
	} {
		if got, err := parseCatalog([]byte(text)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s\n got  %v, %+v\n want %s", text, err, got, want)
		}
	}
	if _, err := New(Config{Catalog: []byte("[[")}); err == nil || !strings.HasPrefix(err.Error(), "read image catalog: ") {
		t.Errorf("New: %v", err)
	}
}

// TestEmbeddedCatalog checks what is promised of the images banger knows by itself.
func TestEmbeddedCatalog(t *testing.T) {
	all, err := parseCatalog(embeddedCatalog)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range all {
		names = append(names, e.Name)
		img := e.image()
		if img.SizeBytes == 0 || img.DownloadBytes == 0 || img.Kernel == "" || img.Description == "" || img.Source != "built on this host from Debian "+e.Sources[0].Release {
			t.Errorf("%+v", img)
		}
	}
	if diff := cmp.Diff([]string{"debian-bookworm", "debian-trixie"}, names); diff != "" {
		t.Error(diff)
	}
}

// FuzzParseCatalog: whatever a catalog holds, what is taken from it is complete.
func FuzzParseCatalog(f *testing.F) {
	f.Add(embeddedCatalog)
	f.Add([]byte(entryOf("a", "size = 1", testBundle)))
	f.Add([]byte(entryOf("a", "", testRecipe+"\ndocker='ce'\ndocker_mirror='http://x'\ndocker_key='/k'")))
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := parseCatalog(data)
		if err != nil {
			return
		}
		for _, e := range all {
			if e.check() != nil || e.image().Source == "" || e.Size < 0 || strings.ContainsAny(e.Name, "/:@") {
				t.Errorf("%+v", e)
			}
		}
	})
}

// catalogStore is a store with catalogs of the user's, over a clock that the test moves.
func catalogStore(t *testing.T, now *time.Time, log *bytes.Buffer, places ...string) *Store {
	t.Helper()
	dir := t.TempDir()
	s, err := New(Config{Dir: filepath.Join(dir, "images"), CacheDir: filepath.Join(dir, "cache"), Catalogs: places,
		Catalog: []byte(entryOf("own", "", testRecipe) + entryOf("shared", "", testRecipe)), HTTP: http.DefaultClient,
		Now: func() time.Time { return *now }, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	s.bundles.delay = time.Millisecond
	return s
}

func sourcesOf(images []api.Image) map[string]string {
	out := map[string]string{}
	for _, i := range images {
		out[i.Name] = i.Source
	}
	return out
}

func TestUserCatalogs(t *testing.T) {
	var asked atomic.Int32
	text := []byte(entryOf("remote", "", testOCI) + entryOf("shared", "", testOCI))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		_, _ = w.Write(text)
	}))
	defer srv.Close()
	file := filepath.Join(t.TempDir(), "mine.toml")
	overwrite(t, file, []byte(entryOf("mine", "", testBundle)+entryOf("shared", "", testBundle)))
	now, log := testNow, &bytes.Buffer{}
	s := catalogStore(t, &now, log, srv.URL+"/c.toml#sha256="+digestOf(text), file)

	oci, recipe, bundle := "ghcr.io/org/x@sha256:"+testHex, "built on this host from Debian trixie", "https://user:xxxxx@h.example/x.tar.zst"
	want := map[string]string{"own": recipe, "remote": oci + " (catalog " + srv.URL + "/c.toml)", "mine": bundle + " (catalog " + file + ")",
		"shared": bundle + " (catalog " + file + ")"}
	for range 3 {
		got, errs := s.Catalog(t.Context())
		if diff := cmp.Diff(want, sourcesOf(got)); diff != "" || errs != nil {
			t.Errorf("%s, %v", diff, errs)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("fetched %d times", n)
	}
	assertOnly(t, filepath.Join(s.cfg.CacheDir, "catalog"), digestOf(text)+".toml")
	if e, errs, err := s.find(t.Context(), "remote"); err != nil || errs != nil || e.Sources[0].kind() != sourceOCI {
		t.Errorf("find: %+v, %v, %v", e, errs, err)
	}

	// What the cache holds is verified, and fetched again where it was changed; a file is read anew.
	overwrite(t, filepath.Join(s.cfg.CacheDir, "catalog", digestOf(text)+".toml"), []byte(entryOf("evil", "", testOCI)))
	overwrite(t, file, []byte(entryOf("later", "", testBundle)))
	got, errs := s.Catalog(t.Context())
	want = map[string]string{"own": recipe, "remote": want["remote"], "shared": oci + " (catalog " + srv.URL + "/c.toml)", "later": bundle + " (catalog " + file + ")"}
	if diff := cmp.Diff(want, sourcesOf(got)); diff != "" || errs != nil || asked.Load() != 2 {
		t.Errorf("%s, %v, fetched %d times", diff, errs, asked.Load())
	}
	if log.Len() > 0 {
		t.Errorf("log: %s", log)
	}
}

// TestBrokenUserCatalogs: a catalog that cannot be read takes nothing from the others; it is said in the log once.
func TestBrokenUserCatalogs(t *testing.T) {
	var asked atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		switch r.URL.Path {
		case "/gone":
			http.NotFound(w, r)
		case "/huge":
			_, _ = w.Write(make([]byte, maxCatalog+1))
		default:
			_, _ = w.Write([]byte("something else"))
		}
	}))
	defer srv.Close()
	dir := t.TempDir()
	good, bad, huge := filepath.Join(dir, "good.toml"), filepath.Join(dir, "bad.toml"), filepath.Join(dir, "huge.toml")
	overwrite(t, good, []byte(entryOf("mine", "", testNowhere)))
	overwrite(t, bad, []byte(entryOf("a", "", "oci = 1")))
	overwrite(t, huge, make([]byte, maxCatalog+1))
	for name, c := range map[string]struct {
		place string
		kind  api.ErrorKind
		text  string
	}{
		"no file":         {filepath.Join(dir, "none.toml"), api.KindInvalid, "no such file"},
		"a directory":     {dir, api.KindInvalid, "not a regular file"},
		"a mistake":       {bad, api.KindInvalid, `image "a": source 1: oci: expected a string`},
		"a huge file":     {huge, api.KindInvalid, "larger than"},
		"a relative path": {"mine.toml", api.KindInvalid, "neither an absolute path nor a URL with a digest"},
		"not pinned":      {srv.URL + "/x", api.KindInvalid, "neither an absolute path nor a URL with a digest"},
		"not there":       {srv.URL + "/gone#sha256=" + testHex, api.KindUnavailable, "404"},
		"huge":            {srv.URL + "/huge#sha256=" + testHex, api.KindUnavailable, "longer than"},
		"changed":         {srv.URL + "/c#sha256=" + testHex, api.KindUnavailable, "expected sha256 " + testHex},
	} {
		now, log := testNow, &bytes.Buffer{}
		asked.Store(0)
		s := catalogStore(t, &now, log, c.place, good)
		remote := c.kind == api.KindUnavailable
		for range 3 {
			got, errs := s.Catalog(t.Context())
			if len(got) != 3 || got[0].Name != "mine" || len(errs) != 1 || api.KindOf(errs[0]) != c.kind || !strings.Contains(errs[0].Error(), c.text) ||
				api.AsError(errs[0]).Hint == "" || !strings.HasPrefix(errs[0].Error(), "read image catalog \"") {
				t.Errorf("%s: %d images, %v", name, len(got), errs)
			}
		}
		if n := asked.Load(); remote && n != 1 || !remote && n != 0 {
			t.Errorf("%s: asked %d times", name, n)
		}
		now = now.Add(2 * catalogRetry)
		if e, errs, err := s.find(t.Context(), "mine"); err != nil || len(errs) != 1 || e.Name != "mine" {
			t.Errorf("%s: find: %v, %v", name, errs, err)
		}
		if n := asked.Load(); remote && n != 2 {
			t.Errorf("%s: asked %d times after a while", name, n)
		}
		if _, _, err := s.find(t.Context(), "min"); api.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), `pull image "min"`) {
			t.Errorf("%s: find: %v", name, err)
		}
		rep := &recorder{}
		if _, err := s.Pull(t.Context(), "mine", PullOptions{}, rep); err == nil || len(rep.notes) != 1 || !strings.Contains(rep.notes[0], c.text) {
			t.Errorf("%s: pull: %v, notes %q", name, err, rep.notes)
		}
		if strings.Count(log.String(), "cannot read an image catalog") != 1 {
			t.Errorf("%s: log:\n%s", name, log)
		}
		if left, _ := filepath.Glob(filepath.Join(s.cfg.CacheDir, "catalog", "*")); len(left) > 0 {
			t.Errorf("%s: left %q", name, left)
		}
	}
}

// TestCatalogWaits: who asks while a catalog is being fetched waits no longer than they want to, and nobody remembers that it
// was broken off.
func TestCatalogWaits(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	text := []byte(entryOf("remote", "", testOCI))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case arrived <- struct{}{}:
			select {
			case <-release:
			case <-r.Context().Done():
			}
		default:
		}
		_, _ = w.Write(text)
	}))
	defer srv.Close()
	now := testNow
	s := catalogStore(t, &now, &bytes.Buffer{}, srv.URL+"#sha256="+digestOf(text))
	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		_, _, err := s.find(ctx, "remote")
		done <- err
	}()
	<-arrived
	short, stop := context.WithCancelCause(t.Context())
	stop(gone)
	if got, errs := s.Catalog(short); len(got) != 2 || len(errs) != 1 || !errors.Is(errs[0], gone) {
		t.Errorf("while it is fetched: %d images, %v", len(got), errs)
	}
	cancel(gone)
	if err := <-done; !errors.Is(err, gone) {
		t.Errorf("broken off: %v", err)
	}
	close(release)
	if e, errs, err := s.find(t.Context(), "remote"); err != nil || errs != nil || e.Name != "remote" {
		t.Errorf("%v, %v", errs, err)
	}
}

func TestOfflineCatalogs(t *testing.T) {
	text := []byte(entryOf("remote", "", testNowhere))
	now := testNow
	s := catalogStore(t, &now, &bytes.Buffer{}, "http://127.0.0.1:1/c#sha256="+digestOf(text))
	s.catalogs.offline = true
	if got, errs := s.Catalog(t.Context()); len(got) != 2 || len(errs) != 1 || !errors.Is(errs[0], errOffline) {
		t.Errorf("%d images, %v", len(got), errs)
	}
	dir := filepath.Join(s.cfg.CacheDir, "catalog")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	overwrite(t, filepath.Join(dir, digestOf(text)+".toml"), text)
	if got, errs := s.Catalog(t.Context()); len(got) != 3 || errs != nil {
		t.Errorf("%d images, %v", len(got), errs)
	}
	if _, err := s.Pull(t.Context(), "remote", PullOptions{}, progress.Discard); api.KindOf(err) != api.KindUnavailable {
		t.Errorf("%v", err)
	}
}
