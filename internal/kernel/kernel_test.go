package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
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
	"git.thaloco.com/thaloco/banger/internal/ext4"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/initramfs"
	"git.thaloco.com/thaloco/banger/internal/kernel/kmod/kmodtest"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

var today = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)

// packageFiles are the files of a kernel package with every module a boot archive wants, but ext4, which is built in.
func packageFiles(t testing.TB, release string) map[string]string {
	t.Helper()
	lib := "./usr/lib/modules/" + release + "/"
	files := map[string]string{
		"./boot/vmlinuz-" + release:            string(bzImage(t, vmlinux(), ".zst")),
		"./boot/System.map-" + release:         "ffffffff ",
		"./usr/share/doc/linux/copyright":      "GPL",
		lib + "modules.builtin":                "kernel/fs/ext4.ko\nkernel/drivers/char/virtio_console.ko\n",
		lib + "modules.builtin.modinfo":        "ext4.alias=fs-ext4\x00",
		lib + "kernel/net/core/failover.ko.xz": string(debtest.Compress(t, kmodtest.Module{Exports: []string{"failover"}}.ELF(), ".xz")),
	}
	order := "kernel/net/core/failover.ko\n"
	for _, name := range bootModules() {
		if name == "ext4" || name == "virtio_console" {
			continue
		}
		m := kmodtest.Module{Info: []string{"alias=for-" + name}, Signed: true}
		if name == "virtio_net" {
			m.Info = append(m.Info, "depends=failover")
		}
		file := "kernel/" + strings.ReplaceAll(name, "_", "-") + ".ko"
		if ext := ".xz"; name == "virtio_net" || name == "overlay" {
			files[lib+file+ext] = string(debtest.Compress(t, m.ELF(), ext))
		} else {
			files[lib+file] = string(m.ELF())
		}
		order += file + "\n"
	}
	files[lib+"modules.order"] = order
	return files
}

// fixture is an archive with a kernel, its security archive, and a store.
type fixture struct {
	*Store
	archive, security *debtest.Archive
	dir               string
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{archive: debtest.New(t), security: debtest.New(t), dir: t.TempDir()}
	f.open(t)
	f.publish(t, f.archive, "trixie", "6.12.9", "1", packageFiles(t, "6.12.9-cloud-amd64"))
	f.security.Publish(debtest.Suite{Codename: "trixie-security", Date: today})
	return f
}

func (f *fixture) open(t *testing.T) {
	t.Helper()
	s, err := New(Config{Dir: filepath.Join(f.dir, "kernels"), CacheDir: filepath.Join(f.dir, "deb"),
		Mirrors: deb.Mirrors{Main: f.archive.URL, Security: []string{f.security.URL}},
		Keyring: append(f.archive.Keyring(), f.security.Keyring()...), Now: func() time.Time { return today }})
	if err != nil {
		t.Fatal(err)
	}
	f.Store = s
}

// publish puts a kernel into an archive, and the package that points to it.
func (f *fixture) publish(t *testing.T, a *debtest.Archive, suite, version, revision string, files map[string]string) {
	t.Helper()
	name := "linux-image-" + version + "-cloud-amd64"
	full := version + "-" + revision
	a.Publish(debtest.Suite{Codename: suite, Date: today, Index: ".gz", Packages: []debtest.Package{
		{Name: "linux-image-cloud-amd64", Version: full, Depends: name + " (= " + full + ")", Data: []byte("meta")},
		{Name: name, Version: full, Data: debtest.Deb(t, "Package: "+name+"\n", files, ".zst")},
		{Name: "unrelated", Version: "1", Data: []byte("x")},
	}})
}

// stored lists the store's directory.
func (f *fixture) stored(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(f.dir, "kernels"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (f *fixture) mustPull(t *testing.T) api.Kernel {
	t.Helper()
	k, err := f.Pull(t.Context(), DefaultName, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestPull(t *testing.T) {
	f := newFixture(t)
	k := f.mustPull(t)
	files, err := f.Files(t.Context(), k.Digest)
	if err != nil {
		t.Fatal(err)
	}
	at := today
	want := api.Kernel{Name: DefaultName, Digest: k.Digest, Description: k.Description, Release: "6.12.9-cloud-amd64",
		Package: "linux-image-6.12.9-cloud-amd64 6.12.9-1", Arch: "x86_64", SizeBytes: k.SizeBytes, Local: true, CreatedAt: &at,
		Source: f.archive.URL + "/pool/main/linux-image-6.12.9-cloud-amd64_6.12.9-1_amd64.deb"}
	if diff := cmp.Diff(want, k); diff != "" {
		t.Error(diff)
	}
	if got, _ := os.ReadFile(files.Vmlinux); !bytes.Equal(got, vmlinux()) {
		t.Errorf("vmlinux: %d bytes, want %d", len(got), len(vmlinux()))
	}
	if files.Release != "6.12.9-cloud-amd64" {
		t.Errorf("release %q", files.Release)
	}
	checkBoot(t, files.BootArchive)
	checkDrive(t, files.ModulesDrive)
	if got := f.stored(t); len(got) != 1 || got[0] != strings.Replace(k.Digest, ":", "-", 1) {
		t.Errorf("in the store: %v", got)
	}
	list, err := f.List()
	if diff := cmp.Diff([]api.Kernel{k}, list); diff != "" || err != nil {
		t.Error(diff, err)
	}
	// The same package makes the same kernel elsewhere.
	other := newFixture(t)
	if k2 := other.mustPull(t); k2.Digest != k.Digest {
		t.Errorf("digest %s, elsewhere %s", k.Digest, k2.Digest)
	}
}

func checkBoot(t *testing.T, path string) {
	t.Helper()
	order, bodies := readBoot(t, path)
	want := "virtio_mmio.ko virtio_blk.ko failover.ko virtio_net.ko virtio_rng.ko virtio_balloon.ko overlay.ko tun.ko autofs4.ko " +
		"vsock.ko vmw_vsock_virtio_transport.ko llc.ko stp.ko bridge.ko br_netfilter.ko"
	if diff := cmp.Diff(strings.Fields(want), order); diff != "" {
		t.Error(diff)
	}
	for _, name := range order {
		body := bodies["modules/"+name]
		if !strings.HasPrefix(body, "\x7fELF") || strings.Contains(body, "signature appended") {
			t.Errorf("%s: %d bytes, not a module without a signature", name, len(body))
		}
	}
	if len(bodies) != len(order)+2 {
		t.Errorf("%d entries for %d modules", len(bodies), len(order))
	}
}

// readBoot returns what a boot archive says of its order, and all its files.
func readBoot(t *testing.T, path string) (order []string, bodies map[string]string) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r := initramfs.NewReader(file)
	bodies = map[string]string{}
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		bodies[h.Name] = string(body)
	}
	return strings.Fields(bodies["modules/order"]), bodies
}

func checkDrive(t *testing.T, path string) {
	t.Helper()
	if super, err := ext4.Superblock(path); err != nil || super.Label != "modules" {
		t.Errorf("superblock: %+v, %v", super, err)
	}
	run := hostexec.Runner{}
	if _, err := run.LookPath("debugfs"); err != nil {
		t.Log("debugfs is not installed: what is in the drive is not looked at")
		return
	}
	for file, want := range map[string]string{
		"modules.dep":          "kernel/virtio-net.ko.xz: kernel/net/core/failover.ko.xz\n",
		"modules.alias":        "alias for-tun tun\n",
		"modules.builtin":      "kernel/fs/ext4.ko\n",
		"kernel/overlay.ko.xz": "\xfd7zXZ",
		"modules.dep.bin":      "\xb0\x07\xf4\x57",
	} {
		out, err := run.Output(t.Context(), hostexec.Cmd{Argv: []string{"debugfs", "-R", "cat /6.12.9-cloud-amd64/" + file, path}})
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %q, %v", file, out[:min(len(out), 200)], err)
		}
	}
}

func TestPullAgain(t *testing.T) {
	f := newFixture(t)
	k := f.mustPull(t)
	f.archive.Requests()
	if diff := cmp.Diff(k, f.mustPull(t)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"dists/trixie/InRelease"}, f.archive.Requests()); diff != "" {
		t.Errorf("a pull of what is there asks for: %s", diff)
	}
	// A newer kernel in the security archive is another kernel; the first stays.
	f.publish(t, f.security, "trixie-security", "6.12.10", "1", packageFiles(t, "6.12.10-cloud-amd64"))
	newer := f.mustPull(t)
	if newer.Release != "6.12.10-cloud-amd64" || newer.Digest == k.Digest {
		t.Errorf("got %+v", newer)
	}
	if left, _ := filepath.Glob(filepath.Join(f.dir, "deb", "pool", "*")); len(left) != 1 || !strings.Contains(left[0], "6.12.10") {
		t.Errorf("packages in the cache: %v", left)
	}
	if _, err := f.Files(t.Context(), k.Digest); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := f.Remove(k.Digest); err != nil {
			t.Error(err)
		}
	}
	_, err := f.Files(t.Context(), k.Digest)
	if api.KindOf(err) != api.KindNotFound {
		t.Errorf("after Remove: %v", err)
	}
	if got := f.stored(t); len(got) != 1 {
		t.Errorf("in the store: %v", got)
	}
}

func TestUnknownName(t *testing.T) {
	f := newFixture(t)
	_, err := f.Pull(t.Context(), "generic-6.1", progress.Discard)
	var e *api.Error
	if !errors.As(err, &e) || e.Kind != api.KindNotFound || !strings.Contains(e.Hint, DefaultName) {
		t.Errorf("got %v, %+v", err, e)
	}
	if c := f.Catalog(); len(c) != 1 || c[0].Name != DefaultName || c[0].Local || !c[0].Default {
		t.Errorf("catalog: %+v", c)
	}
}

func TestSecurityArchive(t *testing.T) {
	f := newFixture(t)
	dead := "http://127.0.0.1:1/debian-security"
	f.cfg.Mirrors.Security = []string{dead, f.security.URL}
	notes := &notesReporter{}
	if _, err := f.Pull(t.Context(), DefaultName, notes); err != nil || len(notes.notes) != 0 {
		t.Errorf("with a second address that answers: %v, %q", err, notes.notes)
	}
	f.cfg.Mirrors.Security = []string{dead}
	if _, err := f.Pull(t.Context(), DefaultName, notes); err != nil || len(notes.notes) != 1 {
		t.Errorf("with none that answers: %v, notes %q", err, notes.notes)
	}
	// One that answers, but with something Debian did not sign, is no such case.
	f.cfg.Mirrors.Security = []string{f.security.URL}
	f.security.Put("dists/trixie-security/InRelease", []byte("nonsense"))
	if _, err := f.Pull(t.Context(), DefaultName, notes); err == nil || api.KindOf(err) != api.KindUnavailable {
		t.Errorf("with a bad signature: %v", err)
	}
}

type notesReporter struct{ notes []string }

func (*notesReporter) Step(string)        {}
func (*notesReporter) Bytes(int64, int64) {}
func (n *notesReporter) Note(s string)    { n.notes = append(n.notes, s) }

func TestPullRefuses(t *testing.T) {
	const lib = "./usr/lib/modules/6.12.9-cloud-amd64/"
	for name, c := range map[string]struct {
		change func(t *testing.T, files map[string]string)
		want   string
	}{
		"no image": {func(_ *testing.T, f map[string]string) { delete(f, "./boot/vmlinuz-6.12.9-cloud-amd64") }, "no kernel image"},
		"no modules": {func(_ *testing.T, f map[string]string) {
			for name := range f {
				if strings.HasPrefix(name, lib) {
					delete(f, name)
				}
			}
		}, "or no modules"},
		"not an image": {func(_ *testing.T, f map[string]string) {
			f["./boot/vmlinuz-6.12.9-cloud-amd64"] = strings.Repeat("x", 5000)
		}, "no setup header"},
		"not an ELF": {func(t *testing.T, f map[string]string) {
			f["./boot/vmlinuz-6.12.9-cloud-amd64"] = string(bzImage(t, []byte("text"), ".gz"))
		}, "not a kernel image"},
		"two releases":   {func(_ *testing.T, f map[string]string) { f["./lib/modules/7.0/kernel/x.ko"] = "x" }, `"7.0"`},
		"module missing": {func(_ *testing.T, f map[string]string) { delete(f, lib+"kernel/overlay.ko.xz") }, `module "overlay"`},
		"bad module":     {func(_ *testing.T, f map[string]string) { f[lib+"kernel/bad.ko"] = "x" }, `"kernel/bad.ko"`},
		"bad xz":         {func(_ *testing.T, f map[string]string) { f[lib+"kernel/bad.ko.xz"] = "x" }, `"kernel/bad.ko.xz"`},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			files := packageFiles(t, "6.12.9-cloud-amd64")
			c.change(t, files)
			f.publish(t, f.archive, "trixie", "6.12.9", "1", files)
			_, err := f.Pull(t.Context(), DefaultName, progress.Discard)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), `pull kernel "generic-6.12": `) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if got := f.stored(t); len(got) > 0 {
				t.Errorf("left: %v", got)
			}
		})
	}
}

func TestFindPackageRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		packages []debtest.Package
		want     string
	}{
		"no meta":  {nil, "not in trixie"},
		"no image": {[]debtest.Package{{Name: "linux-image-cloud-amd64", Version: "1", Depends: "linux-image-6.12.9-cloud-amd64"}}, "depends on"},
		"another kernel": {[]debtest.Package{{Name: "linux-image-cloud-amd64", Version: "1", Depends: "linux-image-7.1.0-cloud-amd64"}},
			"not of generic-6.12"},
		"bad depends": {[]debtest.Package{{Name: "linux-image-cloud-amd64", Version: "1", Depends: "a ("}}, "malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.archive.Publish(debtest.Suite{Codename: "trixie", Date: today, Packages: c.packages})
			if _, err := f.Pull(t.Context(), DefaultName, progress.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// cancelReporter cancels at the n-th call.
type cancelReporter struct {
	n      int
	cancel context.CancelFunc
	at     string
}

func (c *cancelReporter) Step(name string)   { c.count("step " + name) }
func (c *cancelReporter) Bytes(int64, int64) { c.count("bytes") }
func (c *cancelReporter) Note(string)        {}
func (c *cancelReporter) count(at string) {
	if c.n--; c.n == 0 {
		c.at = at
		c.cancel()
	}
}

// Cancelled at any point, a pull leaves nothing, and the next one succeeds.
func TestPullCancelledAnywhere(t *testing.T) {
	f := newFixture(t)
	cancelled := 0
	for n := 1; ; n++ {
		ctx, cancel := context.WithCancel(t.Context())
		rep := &cancelReporter{n: n, cancel: cancel}
		_, err := f.Pull(ctx, DefaultName, rep)
		cancel()
		if rep.at == "" {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		if err == nil { // too late to matter: the kernel is complete
			if err := f.Remove(f.mustPull(t).Digest); err != nil {
				t.Fatal(err)
			}
			continue
		}
		cancelled++
		if !errors.Is(err, context.Canceled) {
			t.Errorf("at %q: %v", rep.at, err)
		}
		if got := f.stored(t); len(got) > 0 {
			t.Fatalf("at %q: left %v", rep.at, got)
		}
	}
	if cancelled < 8 {
		t.Errorf("only %d pulls were cancelled", cancelled)
	}
	if got := f.stored(t); len(got) != 1 {
		t.Errorf("in the store: %v", got)
	}
}

// A disk that fills up at any point: a clear error, nothing half-made.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	f := newFixture(t)
	pull := func(kilobytes int) (full bool) {
		if err := unix.Mount("tmpfs", f.dir, "tmpfs", 0, fmt.Sprintf("size=%dk", kilobytes)); err != nil {
			t.Skipf("mount a tmpfs: %v", err)
		}
		defer func() {
			if err := unix.Unmount(f.dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}()
		f.open(t)
		_, err := f.Pull(t.Context(), DefaultName, progress.Discard)
		if err == nil {
			return false
		}
		var e *api.Error
		if !errors.As(err, &e) || e.Kind != api.KindUnavailable || !strings.Contains(err.Error(), "no space left on device") ||
			!strings.Contains(e.Hint, "make room") {
			t.Errorf("with %d KiB: %v, %+v", kilobytes, err, e)
		}
		if got := f.stored(t); len(got) > 0 {
			t.Errorf("with %d KiB: left %v", kilobytes, got)
		}
		return true
	}
	size := 4
	for ; pull(size); size += 48 {
		if size > 4096 {
			t.Fatal("4 MiB are not enough for a small kernel")
		}
	}
	if size < 100 {
		t.Errorf("a pull succeeded with %d KiB", size)
	}
}

func TestUnreachableMirror(t *testing.T) {
	f := newFixture(t)
	f.archive.Intercept(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusForbidden)
		return true
	})
	_, err := f.Pull(t.Context(), DefaultName, progress.Discard)
	e := api.AsError(err)
	if e.Kind != api.KindUnavailable || !strings.Contains(e.Message, f.archive.URL) || !strings.Contains(e.Hint, "debian_mirror") {
		t.Errorf("got %+v", e)
	}
}
