package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// newStore returns a store with empty directories.
func newStore(t *testing.T) *Store {
	t.Helper()
	s, err := New(Config{Dir: filepath.Join(t.TempDir(), "images"), CacheDir: filepath.Join(t.TempDir(), "cache")})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// file is an entry of a tar: of a name that ends with a slash a directory, of content that begins with "-> " a symbolic link, with "=> "
// a hard link.
type file struct{ name, content string }

func tarOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: 0o755, Typeflag: tar.TypeReg, Size: int64(len(f.content))}
		switch {
		case strings.HasSuffix(f.name, "/"):
			h.Typeflag, h.Size = tar.TypeDir, 0
		case strings.HasPrefix(f.content, "-> "):
			h.Typeflag, h.Size, h.Linkname = tar.TypeSymlink, 0, f.content[3:]
		case strings.HasPrefix(f.content, "=> "):
			h.Typeflag, h.Size, h.Linkname = tar.TypeLink, 0, f.content[3:]
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(tw, f.content); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// listing is what an image holds: paths and types.
func listing(t *testing.T, s *Store, digest string) []string {
	t.Helper()
	var out []string
	if err := s.Walk(t.Context(), digest, func(f api.ImageFile) error {
		if f.Path != "/lost+found" {
			out = append(out, f.Type+" "+f.Path)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// push puts an image into a registry.
func push(t *testing.T, ref string, cfg v1.Config, layer []byte) {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer)), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err == nil {
		img, err = mutate.ConfigFile(img, &v1.ConfigFile{Architecture: "amd64", OS: "linux", Config: cfg, RootFS: v1.RootFS{Type: "layers", DiffIDs: diffIDs(t, img)}})
	}
	if err != nil {
		t.Fatal(err)
	}
	r, err := name.ParseReference(ref)
	if err == nil {
		err = remote.Write(r, img)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func diffIDs(t *testing.T, img v1.Image) []v1.Hash {
	t.Helper()
	f, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return f.RootFS.DiffIDs
}

// TestPullReference: an image of a registry is called by its reference and keeps what it says of itself; the same again is not fetched again, and
// a tag that moved is.
func TestPullReference(t *testing.T) {
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	ref := host + "/org/tool:1"
	cfg := v1.Config{Env: []string{"PATH=/bin", "A=b"}, WorkingDir: "/work", User: "1000", Entrypoint: []string{"/bin/tool"}, Cmd: []string{"-x"}}
	push(t, ref, cfg, tarOf(t, file{"bin/", ""}, file{"bin/tool", "one"}))
	s := newStore(t)
	img, err := s.PullReference(t.Context(), ref, ReferenceOptions{Kernel: "mine"}, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	got := img
	got.Digest, got.Source, got.CreatedAt, got.SizeBytes, got.DiskBytes = "", "", nil, 0, 0
	want := api.Image{Name: ref, Description: "pulled from " + host, Arch: "amd64", Kernel: "mine", Env: cfg.Env, WorkDir: "/work", User: "1000", Entry: cfg.Entrypoint, Cmd: cfg.Cmd, Local: true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if !strings.HasPrefix(img.Source, ref+"@sha256:") || img.SizeBytes == 0 {
		t.Errorf("%+v", img)
	}
	if diff := cmp.Diff([]string{"dir /", "dir /bin", "file /bin/tool"}, listing(t, s, img.Digest)); diff != "" {
		t.Error(diff)
	}

	again, err := s.PullReference(t.Context(), ref, ReferenceOptions{Kernel: "mine", Have: []api.Image{img}}, progress.Discard)
	if diff := cmp.Diff(img, again); diff != "" || err != nil {
		t.Error(diff, err)
	}
	// The same files in an image that says something else of itself is another one.
	other, err := s.PullReference(t.Context(), ref, ReferenceOptions{Name: "other", Kernel: "another", Have: []api.Image{img}}, progress.Discard)
	if err != nil || other.Digest == img.Digest || other.Name != "other" || other.Kernel != "another" {
		t.Errorf("%+v, %v", other, err)
	}
	push(t, ref, cfg, tarOf(t, file{"bin/", ""}, file{"bin/tool", "two"}))
	moved, err := s.PullReference(t.Context(), ref, ReferenceOptions{Kernel: "mine", Have: []api.Image{img}}, progress.Discard)
	if err != nil || moved.Digest == img.Digest {
		t.Errorf("a tag that moved: %+v, %v", moved, err)
	}
	assertOnly(t, s.cfg.Dir, dirsOf(img, other, moved)...)
}

// dirsOf are the names of the directories of images, sorted.
func dirsOf(images ...api.Image) []string {
	var out []string
	for _, i := range images {
		out = append(out, strings.Replace(i.Digest, ":", "-", 1))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// TestPullReferenceFails: a clear error, and nothing left.
func TestPullReferenceFails(t *testing.T) {
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	push(t, host+"/org/tool:1.0", v1.Config{}, tarOf(t, file{"a", "a"}))
	push(t, host+"/org/evil:1", v1.Config{}, tarOf(t, file{"../a", "a"}))
	push(t, host+"/org/long:1", v1.Config{}, tarOf(t, file{strings.Repeat("x", 300), "a"}))
	s := newStore(t)
	if _, err := s.PullReference(t.Context(), host+"/org/long:1", ReferenceOptions{}, progress.Discard); err == nil || strings.Contains(err.Error(), tmpPrefix) {
		t.Errorf("a name that no file system has: %v", err)
	}
	for ref, want := range map[string]struct {
		kind api.ErrorKind
		text string
		hint string
	}{
		host + "/org/tool:1.1":   {api.KindNotFound, "has no", "1.0"},
		host + "/org/evil:1":     {api.KindInternal, "leads out of the image", ""},
		"Not/A:Reference:at all": {api.KindInvalid, "no reference", "docker.io/library/alpine:3.20"},
	} {
		_, err := s.PullReference(t.Context(), ref, ReferenceOptions{}, progress.Discard)
		if err == nil || !strings.Contains(err.Error(), want.text) || !strings.Contains(api.AsError(err).Hint, want.hint) {
			t.Errorf("%s: %v (%s), hint %q", ref, err, api.KindOf(err), api.AsError(err).Hint)
		}
	}
	if _, err := s.PullReference(t.Context(), host+"/org/tool:1.0", ReferenceOptions{Platform: "linux/arm64"}, progress.Discard); api.KindOf(err) != api.KindInvalid {
		t.Errorf("a platform that VMs do not run: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.PullReference(ctx, host+"/org/tool:1.0", ReferenceOptions{}, progress.Discard); api.KindOf(err) != api.KindCancelled {
		t.Errorf("cancelled: %v", err)
	}
	assertOnly(t, s.cfg.Dir)
}

// makeExt4 makes a file system of a directory's files.
func makeExt4(t *testing.T, path string, files ...file) {
	t.Helper()
	dir := t.TempDir()
	for _, f := range files {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, f.name)), 0o755), os.WriteFile(filepath.Join(dir, f.name), []byte(f.content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	output(t, "mke2fs", "-q", "-t", "ext4", "-d", dir, path, "16M")
}

func compressed(t *testing.T, kind string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch kind {
	case "gz":
		w = gzip.NewWriter(&out)
	case "zst":
		w, err = zstd.NewWriter(&out)
	case "xz":
		w, err = xz.NewWriter(&out)
	default:
		return b
	}
	if err == nil {
		_, err = w.Write(b)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestRegister: an image is made of a file system and of a tar, however it is compressed, and what becomes of the file changes nothing.
func TestRegister(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	files := []file{{"etc/", ""}, {"etc/name", "value"}}
	want := []string{"dir /", "dir /etc", "file /etc/name"}
	ext := filepath.Join(dir, "rootfs.ext4")
	makeExt4(t, ext, files[1:]...)
	paths := []string{ext}
	for _, kind := range []string{"tar", "gz", "zst", "xz"} {
		paths = append(paths, filepath.Join(dir, "rootfs."+kind))
		if err := os.WriteFile(paths[len(paths)-1], compressed(t, kind, tarOf(t, files...)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var all []api.Image
	for _, p := range paths {
		img, err := s.Register(t.Context(), api.Image{Name: "base", Arch: "amd64", Kernel: "mine"}, p, progress.Discard)
		if err != nil {
			t.Errorf("%s: %v", p, err)
			continue
		}
		if img.Name != "base" || img.Kernel != "mine" || img.Source != p || !img.Local {
			t.Errorf("%+v", img)
		}
		if err := os.WriteFile(p, []byte("gone"), 0o600); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, listing(t, s, img.Digest)); diff != "" {
			t.Errorf("%s: %s", p, diff)
		}
		f, err := s.Files(t.Context(), img.Digest)
		if err != nil {
			t.Fatal(err)
		}
		fsck(t, f.Rootfs)
		all = append(all, img)
	}
	assertOnly(t, s.cfg.Dir, dirsOf(all...)...)
}

// TestRegisterRefuses: what is no root file system is refused in words that say what to do, and nothing is left of it.
func TestRegisterRefuses(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	put := func(name string, b []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	dirty := filepath.Join(dir, "dirty")
	makeExt4(t, dirty, file{"a", "a"})
	output(t, "debugfs", "-w", "-R", "ssv state 0", dirty)
	short := filepath.Join(dir, "short")
	makeExt4(t, short, file{"a", "a"})
	if err := os.Truncate(short, 8<<20); err != nil {
		t.Fatal(err)
	}
	whole := tarOf(t, file{"a", strings.Repeat("a", 100_000)})
	for path, want := range map[string]struct {
		kind       api.ErrorKind
		text, hint string
	}{
		filepath.Join(dir, "nothing"): {api.KindNotFound, "no such file", ""},
		dir:                           {api.KindInvalid, "is a directory", "tar -C " + dir},
		"/dev/null":                   {api.KindInvalid, "no regular file", ""},
		put("empty", nil):             {api.KindInvalid, "neither an ext4 file system nor a tar", "tar -C"},
		put("text", []byte(strings.Repeat("hello ", 1000))): {api.KindInvalid, "neither an ext4 file system nor a tar", "tar -C"},
		put("bz2", []byte("BZh91AY&SY")):                    {api.KindInvalid, "bzip2", ""},
		dirty:                                               {api.KindInvalid, "", "e2fsck -f " + dirty},
		short:                                               {api.KindInvalid, "", ""},
		put("cut", whole[:len(whole)/2]):                    {api.KindInternal, "unexpected EOF", ""},
		put("cutgz", compressed(t, "gz", whole)[:200]):                              {api.KindInternal, "unexpected EOF", ""},
		put("dots", tarOf(t, file{"a", "a"}, file{"b/../../c", "c"})):               {api.KindInvalid, `"b/../../c" leads out of the directory`, ""},
		put("absolute", tarOf(t, file{"/etc/passwd", "a"})):                         {api.KindInvalid, `"/etc/passwd" is an absolute path`, ""},
		put("through", tarOf(t, file{"l", "-> /tmp"}, file{"l/x", "x"})):            {api.KindInvalid, `"l/x" is below "l", which is a symbolic link`, ""},
		put("hardlink", tarOf(t, file{"a", "=> ../../etc/passwd"})):                 {api.KindInvalid, `"a" is a hard link`, ""},
		put("absolute hardlink", tarOf(t, file{"a", "=> /etc/passwd"})):             {api.KindInvalid, `"a" is a hard link`, ""},
		put("zst", append(compressed(t, "zst", whole), "trailing garbage here"...)): {api.KindInternal, "", ""},
	} {
		img, err := s.Register(t.Context(), api.Image{Name: "base"}, path, progress.Discard)
		if err == nil || !strings.Contains(err.Error(), want.text) || !strings.Contains(api.AsError(err).Hint, want.hint) ||
			want.kind != api.KindInternal && api.KindOf(err) != want.kind || !strings.HasPrefix(err.Error(), `register image "base": `) {
			t.Errorf("%s: %+v, %v (%s), hint %q", path, img, err, api.KindOf(err), api.AsError(err).Hint)
		}
	}
	assertOnly(t, s.cfg.Dir)
}

// TestExportImport: what comes out of a bundle is what went in.
func TestExportImport(t *testing.T) {
	s, other, dir := newStore(t), newStore(t), t.TempDir()
	img, err := s.AddTar(t.Context(), api.Image{Name: "tools", Arch: "amd64", Kernel: "mine", Env: []string{"A=b"}, WorkDir: "/w", User: "me", Cmd: []string{"sh"},
		Description: "d"}, bytes.NewReader(tarOf(t, file{"a", strings.Repeat("a", 50_000)})), progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "x.tar.zst")
	if err := s.Export(t.Context(), img, path, false, progress.Discard); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Register(t.Context(), api.Image{Name: "x"}, path, progress.Discard); api.KindOf(err) != api.KindInvalid || !strings.Contains(api.AsError(err).Hint, "banger image import") {
		t.Errorf("a bundle as a root file system: %v", err)
	}
	if err := s.Export(t.Context(), img, path, false, progress.Discard); api.KindOf(err) != api.KindConflict || !strings.Contains(api.AsError(err).Hint, "--force") {
		t.Errorf("a file that is there: %v", err)
	}
	if err := s.Export(t.Context(), img, path, true, progress.Discard); err != nil {
		t.Errorf("replaced: %v", err)
	}
	for bad, kind := range map[string]api.ErrorKind{dir: api.KindInvalid, filepath.Join(dir, "no", "x"): api.KindInvalid} {
		if err := s.Export(t.Context(), img, bad, true, progress.Discard); api.KindOf(err) != kind {
			t.Errorf("%s: %v", bad, err)
		}
	}
	assertOnly(t, dir, "x.tar.zst")
	var asked []string
	got, err := other.Import(t.Context(), path, "", func(n string) error { asked = append(asked, n); return nil }, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	got.CreatedAt = img.CreatedAt
	got.DiskBytes = img.DiskBytes
	if diff := cmp.Diff(img, got); diff != "" || !slices.Equal(slices.Compact(asked), []string{"tools"}) {
		t.Error(diff, asked)
	}
	if got, err := other.Import(t.Context(), path, "mine", func(string) error { return nil }, progress.Discard); err != nil || got.Name != "mine" {
		t.Errorf("%+v, %v", got, err)
	}
	taken := api.Errorf(api.KindConflict, "taken")
	third := newStore(t)
	if _, err := third.Import(t.Context(), path, "", func(string) error { return taken }, progress.Discard); !errors.Is(err, taken) {
		t.Errorf("a name that is taken: %v", err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, whole[:len(whole)*2/3], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := third.Import(t.Context(), path, "", func(string) error { return nil }, progress.Discard); api.KindOf(err) != api.KindInvalid {
		t.Errorf("half a bundle: %v", err)
	}
	assertOnly(t, third.cfg.Dir)
}

func TestNames(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	for in, want := range map[string]string{
		"debian-bookworm": "debian-bookworm", "alpine:3.20": "alpine:3.20", "docker.io/library/alpine:3.20": "alpine:3.20", "docker.io/library/alpine": "alpine:latest",
		"org/img": "org/img:latest", "docker.io/org/img:1": "org/img:1", "ghcr.io/org/img:1": "ghcr.io/org/img:1", "localhost:5000/x": "localhost:5000/x:latest",
		"index.docker.io/library/alpine:1": "alpine:1", "alpine@" + digest: "alpine@" + digest, "alpine:1@" + digest: "alpine@" + digest,
	} {
		got, reference, err := Canonical(in)
		if got != want || err != nil || reference != (in != "debian-bookworm") {
			t.Errorf("%s: %q, %v, %v", in, got, reference, err)
		}
		if again, _, err := Canonical(got); again != got || err != nil {
			t.Errorf("%s, again: %q, %v", got, again, err)
		}
	}
	for _, bad := range []string{"a b:c", "UPPER/x", "x:", "/etc", "./rootfs.ext4", "http://x/y", ":"} {
		if got, _, err := Canonical(bad); api.KindOf(err) != api.KindInvalid {
			t.Errorf("%s: %q, %v", bad, got, err)
		}
	}
	for n, ok := range map[string]bool{"a": true, "my-image_2.0": true, "": false, "-a": false, "a-": false, "A": false, "a/b": false, "a:b": false,
		strings.Repeat("a", 63): true, strings.Repeat("a", 64): false, "..": false} {
		if err := CheckName(n); (err == nil) != ok {
			t.Errorf("%q: %v", n, err)
		}
	}
	for _, c := range []struct {
		source, ref string
		want        bool
	}{
		{"docker.io/library/alpine:3.19@" + digest, "alpine:3.20", true}, {"docker.io/library/alpine@" + digest, "alpine:3.20", true},
		{"ghcr.io/library/alpine:3.19@" + digest, "alpine:3.20", false}, {"/home/me/rootfs.tar", "alpine:3.20", false}, {"", "alpine:3.20", false},
	} {
		if got := SameRepository(c.source, c.ref); got != c.want {
			t.Errorf("%q and %q: %v", c.source, c.ref, got)
		}
	}
}

// TestPruneCache: what is older goes, with dryRun it is only counted.
func TestPruneCache(t *testing.T) {
	s := newStore(t)
	old, young := filepath.Join(s.OCICache(), "sha256-old"), filepath.Join(s.OCICache(), "sha256-young")
	now := testNow
	for path, at := range map[string]int{old: -2, young: 0} {
		when := now.AddDate(0, 0, at)
		if err := errors.Join(os.MkdirAll(s.OCICache(), 0o755), os.WriteFile(path, make([]byte, 5000), 0o600), os.Chtimes(path, when, when)); err != nil {
			t.Fatal(err)
		}
	}
	for _, dry := range []bool{true, false} {
		if n, err := s.PruneCache(now.AddDate(0, 0, -1), dry); n < 5000 || n >= 10_000 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		want := []string{"sha256-old", "sha256-young"}
		if !dry {
			want = want[1:]
		}
		assertOnly(t, s.OCICache(), want...)
	}
}

// FuzzTar: whatever a tar holds, an image is made or refused, and its files are within it.
func FuzzTar(f *testing.F) {
	f.Add(tarOf(f, file{"a/", ""}, file{"a/b", "x"}, file{"c", "-> a"}, file{"d", "=> a/b"}))
	f.Add(tarOf(f, file{"l", "-> /tmp"}, file{"l/x", "x"}))
	f.Add([]byte("x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := New(Config{Dir: filepath.Join(t.TempDir(), "images"), CacheDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		img, err := s.AddTar(t.Context(), api.Image{Name: "x"}, bytes.NewReader(b), progress.Discard)
		if err != nil {
			assertOnly(t, s.cfg.Dir)
			return
		}
		seen := map[string]bool{}
		if err := s.Walk(t.Context(), img.Digest, func(f api.ImageFile) error {
			if seen[f.Path] || strings.Contains(f.Path, "/../") || !strings.HasPrefix(f.Path, "/") {
				return fmt.Errorf("path %q", f.Path)
			}
			seen[f.Path] = true
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
}
