package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/deb"
	"git.thaloco.com/thaloco/banger/internal/deb/debtest"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

var (
	testNow     = time.Date(2026, 3, 2, 1, 0, 0, 0, time.UTC)
	testRelease = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
)

// world is a Debian archive, an npm registry and a host with a false mmdebstrap.
type world struct {
	archive  *debtest.Archive
	registry *httptest.Server
	missing  bool // the registry has nothing
	dir      string
	cfg      Config
	store    *Store
}

// newWorld makes a world whose mmdebstrap is the given shell script.
func newWorld(t *testing.T, script string) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		// An ordinary user needs newuidmap and subordinate ids of the host even for a false mmdebstrap.
		if err := newHost(os.DirFS("/"), hostexec.Runner{}, os.Geteuid()).check(); err != nil {
			t.Skip(err)
		}
	}
	w := &world{archive: debtest.New(t), dir: t.TempDir()}
	// The users of the build have to get there.
	if err := os.Chmod(filepath.Dir(w.dir), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bookworm", "bookworm-updates", "bookworm-security"} {
		w.archive.Publish(debtest.Suite{Codename: name, Date: testRelease})
	}
	tgz := npmTarball(t, "package/bin/mise", "#!/bin/sh\necho mise\n")
	w.registry = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if w.missing || r.URL.Path != "/@x/mise/-/mise-1.0.tgz" {
			http.NotFound(rw, r)
			return
		}
		_, _ = rw.Write(tgz)
	}))
	t.Cleanup(w.registry.Close)

	bin, scratch := filepath.Join(w.dir, "bin"), filepath.Join(w.dir, "scratch")
	for _, d := range []string{bin, scratch} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	writeScript(t, filepath.Join(bin, "mmdebstrap"), script)
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	w.cfg = Config{
		Dir: filepath.Join(w.dir, "images"), CacheDir: filepath.Join(w.dir, "cache"),
		Mirrors: deb.Mirrors{Main: w.archive.URL, Security: []string{w.archive.URL}}, Keyring: w.archive.Keyring(),
		ScratchDirs: []string{scratch}, Now: func() time.Time { return testNow },
		Getenv: func(name string) string {
			return map[string]string{"npm_config_registry": w.registry.URL, "PATH": os.Getenv("PATH")}[name]
		},
		Catalog: fmt.Appendf(nil, testCatalog, integrityOf(tgz)),
	}
	w.open(t)
	return w
}

func (w *world) open(t *testing.T) {
	t.Helper()
	var err error
	if w.store, err = New(w.cfg); err != nil {
		t.Fatal(err)
	}
}

const testCatalog = `
[[image]]
name = "debian-test"
description = "for tests"
arch = "amd64"
kernel = "generic-6.12"
env = ["PATH=/bin"]
[[image.source]]
recipe = "debian"
release = "bookworm"
updates = "bookworm-updates"
security = "bookworm-security"
packages = ["one", "two"]
docker = "none"
[image.source.mise]
package = "@x/mise"
version = "1.0"
integrity = %q
`

func writeScript(t *testing.T, path, script string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/sh\nset -u\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
}

func npmTarball(t *testing.T, name, content string) []byte {
	t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write([]byte(content))
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func integrityOf(b []byte) string {
	sum := sha512.Sum512(b)
	return "sha512-" + base64.StdEncoding.EncodeToString(sum[:])
}

// rootScript makes a root file system in TMPDIR as mmdebstrap would, and tells of it.
const rootScript = `
echo 'I: running apt-get update...' >&2
echo 'I: downloading packages with apt...' >&2
echo 'Need to get 3000 B of archives.' >&2
echo 'Get:1 http://mirror bookworm/main amd64 one amd64 1.0 [1000 B]' >&2
echo 'Get:2 http://mirror bookworm/main amd64 two amd64 1.0 [2000 B]' >&2
echo 'I: installing essential packages...' >&2
root=$TMPDIR/mmdebstrap.test
mkdir -p "$root/usr/bin" "$root/etc" && echo hello >"$root/etc/greeting" && mkdir -m 700 "$root/secret" && echo x >"$root/secret/x"
`

const tarScript = `
echo 'Unpacking one:amd64 (1.0) ...' >&2
echo 'Setting up one:amd64 (1.0) ...' >&2
echo 'I: creating tarball...' >&2
tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner -C "$root" -c .
rm -rf "$root"
`

// assertClean fails the test where anything is left of a build; images are the names in the store.
func (w *world) assertClean(t *testing.T, images ...string) {
	t.Helper()
	assertOnly(t, w.cfg.Dir, images...)
	assertOnly(t, w.cfg.ScratchDirs[0])
}

func TestPull(t *testing.T) {
	w := newWorld(t, rootScript+tarScript)
	rep := &recorder{}
	img, err := w.store.Pull(t.Context(), "debian-test", PullOptions{Build: true}, rep)
	if err != nil {
		t.Fatal(err)
	}
	dir := strings.Replace(img.Digest, ":", "-", 1)
	w.assertClean(t, dir)
	f, err := w.store.Files(t.Context(), img.Digest)
	if err != nil {
		t.Fatal(err)
	}
	fsck(t, f.Rootfs)
	for command, want := range map[string]string{
		"cat /etc/greeting": "hello\n", "cat /usr/local/bin/mise": "echo mise", "stat /usr/local/bin/mise": "Mode:  0755",
	} {
		if got := debugfs(t, f.Rootfs, command); !strings.Contains(got, want) {
			t.Errorf("%s: %q", command, got)
		}
	}
	want := []string{"look up Debian bookworm", "read Debian's package lists", "download Debian's essential packages",
		"install Debian's essential packages", "write the base drive", "verify the base drive"}
	if diff := cmp.Diff(want, rep.steps); diff != "" {
		t.Error(diff)
	}
	if rep.problem != "" || rep.most["download Debian's essential packages"] != 3000 || rep.most["install Debian's essential packages"] != 1000 {
		t.Errorf("bytes: %v, %s", rep.most, rep.problem)
	}
	listed, err := w.store.List()
	if err != nil || len(listed) != 1 || listed[0].Name != "debian-test" || !listed[0].Local || listed[0].SizeBytes == 0 || listed[0].Env[0] != "PATH=/bin" {
		t.Errorf("List: %+v, %v", listed, err)
	}

	again, err := w.store.Pull(t.Context(), "debian-test", PullOptions{}, progress.Discard)
	if err != nil || again.Digest != img.Digest {
		t.Errorf("a second build of the same: %v, %v, want %v", again.Digest, err, img.Digest)
	}
	w.assertClean(t, dir)
	if err := w.store.Remove(img.Digest); err != nil {
		t.Fatal(err)
	}
	if err := w.store.Remove(img.Digest); err != nil {
		t.Error("removing what is gone:", err)
	}
	w.assertClean(t)
	if _, err := w.store.Files(t.Context(), img.Digest); api.KindOf(err) != api.KindNotFound {
		t.Errorf("after Remove: %v", err)
	}
}

// TestArguments checks what mmdebstrap is asked for and that no more than needed reaches it.
func TestArguments(t *testing.T) {
	w := newWorld(t, rootScript+`for a; do printf '%s\n' "$a"; done >"$root/etc/args"; env >"$root/etc/env"; id -u >"$root/etc/id"
test -r "$TMPDIR/archive.gpg" && echo yes >"$root/etc/keyring"`+tarScript)
	img, err := w.store.Pull(t.Context(), "debian-test", PullOptions{}, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	f, err := w.store.Files(t.Context(), img.Digest)
	if err != nil {
		t.Fatal(err)
	}
	args, env := debugfs(t, f.Rootfs, "cat /etc/args"), debugfs(t, f.Rootfs, "cat /etc/env")
	for _, want := range []string{"--mode=unshare\n", "--include=one,two\n", "deb [signed-by=", w.archive.URL + " bookworm main", w.archive.URL + " bookworm-security main"} {
		if !strings.Contains(args, want) {
			t.Errorf("no %q in\n%s", want, args)
		}
	}
	if !strings.Contains(env, fmt.Sprintf("SOURCE_DATE_EPOCH=%d\n", testRelease.Unix())) || strings.Contains(env, "npm_config") {
		t.Errorf("environment:\n%s", env)
	}
	if !strings.Contains(debugfs(t, f.Rootfs, "cat /etc/keyring"), "yes") {
		t.Error("the keyring cannot be read")
	}
	if os.Geteuid() == 0 && !strings.Contains(debugfs(t, f.Rootfs, "cat /etc/id"), "0\n") {
		t.Error("not root of its namespace")
	}
}

// TestNotHostRoot shows that what root builds does not run as the host's root.
func TestNotHostRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, `cat `+victim+` && echo 'E: could read it' >&2; exit 7`)
	_, err := w.store.Pull(t.Context(), "debian-test", PullOptions{}, progress.Discard)
	if err == nil || strings.Contains(err.Error(), "could read it") || !strings.Contains(err.Error(), "exit status 7") {
		t.Error(err)
	}
	w.assertClean(t)
}

func TestPullFailures(t *testing.T) {
	for name, c := range map[string]struct {
		script     string
		change     func(*world)
		kind       api.ErrorKind
		text, hint string
	}{
		"fails at once":            {script: "echo 'E: no idea' >&2; exit 25", kind: api.KindUnavailable, text: "exit status 25: no idea"},
		"fails half-way":           {script: rootScript + "echo 'dpkg: error: broken package' >&2; exit 1", kind: api.KindUnavailable, text: "broken package"},
		"killed":                   {script: rootScript + "kill -9 $$", kind: api.KindUnavailable},
		"fails after half a tar":   {script: rootScript + `tar -C "$root" -c . | head -c 3000; exit 1`, kind: api.KindUnavailable, text: "exit status 1"},
		"writes garbage":           {script: rootScript + `yes garbage | head -c 100000; exit 0`, kind: api.KindInternal, text: "read tar"},
		"writes nothing":           {script: "exit 0", kind: api.KindInternal, text: "wrote no file system"},
		"disk full":                {script: "echo 'cannot copy: No space left on device' >&2; exit 1", kind: api.KindUnavailable, text: "No space left", hint: "make room in"},
		"mirror gone later":        {script: "echo 'E: Failed to fetch http://x  Could not connect' >&2; exit 100", kind: api.KindUnavailable, text: "Failed to fetch", hint: "debian_mirror"},
		"no user namespaces":       {script: "echo 'E: unshare syscall failed: Operation not permitted' >&2; exit 1", kind: api.KindUnavailable, hint: "user namespaces"},
		"mirror without the suite": {change: func(w *world) { w.archive.Put("dists/bookworm/InRelease", nil) }, kind: api.KindUnavailable, text: "127.0.0.1"},
		"unsigned mirror":          {change: func(w *world) { w.archive.Put("dists/bookworm/InRelease", []byte("nonsense")) }, kind: api.KindUnavailable, text: "InRelease"},
		"no room":                  {change: func(w *world) { w.cfg.ScratchDirs = []string{"/does/not/exist"} }, kind: api.KindUnavailable, text: "/does/not/exist", hint: "make room"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, c.script)
			scratch := w.cfg.ScratchDirs[0]
			if c.change != nil {
				c.change(w)
				w.open(t)
			}
			_, err := w.store.Pull(t.Context(), "debian-test", PullOptions{}, progress.Discard)
			if api.KindOf(err) != c.kind || !strings.Contains(fmt.Sprint(err), c.text) || !strings.HasPrefix(fmt.Sprint(err), `pull image "debian-test": `) {
				t.Errorf("%v: %v, want %v with %q", api.KindOf(err), err, c.kind, c.text)
			}
			if hint := api.AsError(err).Hint; !strings.Contains(hint, c.hint) {
				t.Errorf("hint %q, want %q", hint, c.hint)
			}
			assertOnly(t, w.cfg.Dir)
			assertOnly(t, scratch)
		})
	}
}

func TestUnknownImage(t *testing.T) {
	s, err := New(Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Pull(t.Context(), "debian-bookwurm", PullOptions{}, progress.Discard)
	if api.KindOf(err) != api.KindNotFound || !strings.Contains(api.AsError(err).Hint, "debian-bookworm") {
		t.Errorf("%v, hint %q", err, api.AsError(err).Hint)
	}
	if all, errs := s.Catalog(t.Context()); len(all) != 2 || all[0].Name != DefaultName || !all[0].Default || all[0].Local || all[0].Kernel == "" || errs != nil {
		t.Errorf("catalog: %+v, %v", all, errs)
	}
}

// TestCancel cancels at every step, where mmdebstrap ends by itself and where it does not.
func TestCancel(t *testing.T) {
	hang := "sleep 1000 & sleep 1000 & wait\n"
	for name, script := range map[string]string{
		"at the first step": "echo 'I: running apt-get update...' >&2\n" + hang,
		"with a root":       rootScript + hang,
		"deaf":              "trap '' TERM\n" + rootScript + hang + hang + hang,
		"in the tar":        rootScript + `echo 'I: creating tarball...' >&2; tar -C "$root" -c . | head -c 2000` + "\n" + hang,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, script)
			ctx, cancel := context.WithCancel(t.Context())
			last := "install Debian's essential packages"
			switch name {
			case "at the first step":
				last = "read Debian's package lists"
			case "in the tar":
				last = "write the base drive"
			}
			rep := &recorder{onStep: func(step string) {
				if step == last {
					cancel()
				}
			}}
			_, err := w.store.Pull(ctx, "debian-test", PullOptions{}, rep)
			if api.KindOf(err) != api.KindCancelled || !errors.Is(err, context.Canceled) {
				t.Errorf("%v: %v", api.KindOf(err), err)
			}
			w.assertClean(t)
		})
	}
}

func TestMiseIsOptional(t *testing.T) {
	for name, change := range map[string]func(*world){
		"registry has nothing": func(w *world) { w.missing = true },
		"registry is gone":     func(w *world) { w.registry.Close() },
		"another tarball":      func(w *world) { w.cfg.Catalog = fmt.Appendf(nil, testCatalog, integrityOf([]byte("x"))) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, rootScript+tarScript)
			change(w)
			w.open(t)
			rep := &recorder{}
			img, err := w.store.Pull(t.Context(), "debian-test", PullOptions{}, rep)
			if err != nil {
				t.Fatal(err)
			}
			if len(rep.notes) != 1 || !strings.Contains(rep.notes[0], "without mise") {
				t.Errorf("notes: %q", rep.notes)
			}
			f, err := w.store.Files(t.Context(), img.Digest)
			if err != nil {
				t.Fatal(err)
			}
			if got := debugfs(t, f.Rootfs, "stat /usr/local/bin/mise"); !strings.Contains(got, "not found") {
				t.Error(got)
			}
		})
	}
}

func TestDamaged(t *testing.T) {
	w := newWorld(t, rootScript+tarScript)
	img, err := w.store.Pull(t.Context(), "debian-test", PullOptions{}, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	f, err := w.store.Files(t.Context(), img.Digest)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string) {
		t.Helper()
		_, err := w.store.Files(t.Context(), img.Digest)
		if api.KindOf(err) != api.KindUnavailable || !strings.Contains(api.AsError(err).Hint, "banger image pull debian-") {
			t.Errorf("%s: %v, hint %q", what, err, api.AsError(err).Hint)
		}
	}
	// Touched, but whole: fine, and recorded, so that the content is read once.
	if err := os.Chtimes(f.Rootfs, testNow, testNow); err != nil {
		t.Fatal(err)
	}
	if _, err := w.store.Files(t.Context(), img.Digest); err != nil {
		t.Errorf("touched: %v", err)
	}
	if r, err := readRecord(filepath.Dir(f.Rootfs)); err != nil || r.RootfsModTime != testNow.UnixNano() {
		t.Errorf("record %+v, %v", r, err)
	}

	// Changed without a trace in size and time: the full check sees it.
	b, err := os.ReadFile(f.Rootfs)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	overwrite(t, f.Rootfs, b)
	if err := os.Chtimes(f.Rootfs, testNow, testNow); err != nil {
		t.Fatal(err)
	}
	err = w.store.Verify(t.Context(), img.Digest)
	if api.KindOf(err) != api.KindUnavailable || !strings.Contains(err.Error(), "rootfs.ext4") || strings.Count(err.Error(), "sha256:") < 3 {
		t.Errorf("Verify: %v", err)
	}
	overwrite(t, f.Rootfs, b[:100])
	check("cut short")
	if err := os.Remove(f.Rootfs); err != nil {
		t.Fatal(err)
	}
	check("no drive")
	overwrite(t, filepath.Join(filepath.Dir(f.Rootfs), fileJSON), []byte("{"))
	check("no record")

	// The next pull mends it.
	if again, err := w.store.Pull(t.Context(), "debian-test", PullOptions{}, progress.Discard); err != nil || again.Digest != img.Digest {
		t.Errorf("pull: %v, %v", again.Digest, err)
	}
	if err := w.store.Verify(t.Context(), img.Digest); err != nil {
		t.Error("after the pull:", err)
	}
}

func overwrite(t *testing.T, path string, b []byte) {
	t.Helper()
	_ = os.Remove(path)
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestNotADigest(t *testing.T) {
	s, err := New(Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	for _, digest := range []string{"", "sha256:", "sha256:../../..", "sha256:" + strings.Repeat("A", 64), "md5:" + strings.Repeat("a", 64)} {
		if _, err := s.Files(t.Context(), digest); api.KindOf(err) != api.KindInvalid {
			t.Errorf("Files(%q): %v", digest, err)
		}
		if err := s.Remove(digest); api.KindOf(err) != api.KindInvalid {
			t.Errorf("Remove(%q): %v", digest, err)
		}
	}
}

// TestSweep has a build that was broken off, and one that is going on.
func TestSweep(t *testing.T) {
	w := newWorld(t, "exit 1")
	old, young := filepath.Join(w.cfg.Dir, tmpPrefix+"old"), filepath.Join(w.cfg.Dir, tmpPrefix+"young")
	for _, d := range []string{old, young} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	scratch, err := w.store.makeScratch(old, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(scratch, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for d, at := range map[string]time.Time{old: now.Add(-time.Hour), young: now.Add(time.Hour)} {
		if err := os.Chtimes(d, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.store.Sweep(now); err != nil {
		t.Fatal(err)
	}
	w.assertClean(t, tmpPrefix+"young")
}

// TestSweepKeepsOthers has a record that names what is no scratch directory.
func TestSweepKeepsOthers(t *testing.T) {
	w := newWorld(t, "exit 1")
	precious := filepath.Join(t.TempDir(), "precious")
	dir := filepath.Join(w.cfg.Dir, tmpPrefix+"x")
	for _, d := range []string{precious, dir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	overwrite(t, filepath.Join(dir, scratchFile), []byte(precious))
	if err := w.store.Sweep(time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
	w.assertClean(t)
}

// TestFullStore has no room for the drive itself.
func TestFullStore(t *testing.T) {
	w := newWorld(t, rootScript+`head -c 8000000 /dev/urandom >"$root/big"`+tarScript)
	if err := os.MkdirAll(w.cfg.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", w.cfg.Dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("mount:", err)
	}
	defer func() {
		if err := unix.Unmount(w.cfg.Dir, 0); err != nil {
			t.Error(err)
		}
	}()
	_, err := w.store.Pull(t.Context(), "debian-test", PullOptions{}, progress.Discard)
	if api.KindOf(err) != api.KindUnavailable || !errors.Is(err, unix.ENOSPC) || !strings.Contains(api.AsError(err).Hint, w.cfg.Dir) {
		t.Errorf("%v: %v", api.KindOf(err), err)
	}
	w.assertClean(t)
}

// TestPullsWait has two pulls of the same image at once.
func TestPullsWait(t *testing.T) {
	w := newWorld(t, `mkdir "$TMPDIR/../busy" || { echo 'E: two at once' >&2; exit 1; }`+"\n"+rootScript+tarScript+`rmdir "$TMPDIR/../busy"`)
	if err := os.Chmod(w.cfg.ScratchDirs[0], 0o777); err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := w.store.Pull(t.Context(), "debian-test", PullOptions{}, progress.Discard)
			errs <- err
		}()
	}
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
