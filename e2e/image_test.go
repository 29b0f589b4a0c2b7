//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/deb"
)

// ownData gives a host images of its own, beside the kernels of all: what is deleted there nobody else misses.
func (h *host) ownData(t testing.TB) string {
	t.Helper()
	own := filepath.Join(h.dir, "data")
	for i, e := range h.env {
		for _, name := range []string{"XDG_DATA_HOME", "XDG_CACHE_HOME"} {
			if strings.HasPrefix(e, name+"=") {
				h.env[i] = name + "=" + filepath.Join(h.dir, strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(name, "XDG_"), "_HOME")))
			}
		}
	}
	if err := os.MkdirAll(filepath.Join(own, "banger"), 0o700); err != nil {
		t.Fatal(err)
	}
	command(t, "cp", "-a", filepath.Join(data, "banger", "kernels"), filepath.Join(own, "banger"))
	return own
}

// serveRegistry serves a registry on the loopback and returns its address.
func serveRegistry(t testing.TB) string {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// push puts an image of layers, each a tar, into a registry.
func push(t testing.TB, ref string, cfg v1.Config, layers ...[]byte) {
	t.Helper()
	img := empty.Image
	for _, b := range layers {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
		if err == nil {
			img, err = mutate.AppendLayers(img, l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	f, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	f = f.DeepCopy()
	f.OS, f.Architecture, f.Config = "linux", "amd64", cfg
	if img, err = mutate.ConfigFile(img, f); err != nil {
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

// busyboxLayer is a tree with nothing in it but busybox.
func busyboxLayer(t testing.TB) []byte {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("busybox is not installed: scripts/host-packages test")
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, content []byte) {
		t.Helper()
		h.Size, h.ModTime = int64(len(content)), time.Unix(1e9, 0)
		err := w.WriteHeader(&h)
		if err == nil {
			_, err = w.Write(content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for dir := range strings.FieldsSeq("bin etc home root srv tmp usr var") {
		add(tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, program)
	for applet := range strings.FieldsSeq(command(t, path, "--list")) {
		if applet != "busybox" && applet != "init" {
			add(tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
		}
	}
	add(tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1000::/srv:/bin/sh\n"))
	add(tar.Header{Name: "etc/below", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("hidden by the layer above\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// layerOf is a layer of small files.
func layerOf(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for n, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: n, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// debianTar is a Debian with as little in it as there can be, and packages.
func debianTar(t testing.TB, packages ...string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "debian.tar")
	argv := []string{"mmdebstrap", "--quiet", "--variant=essential", "--aptopt=Apt::Install-Recommends false", "--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/man/*"}
	if len(packages) > 0 {
		argv = append(argv, "--include="+strings.Join(packages, ","))
	}
	start := time.Now()
	command(t, append(argv, "bookworm", out, deb.ChooseMirrors("", os.DirFS("/")).Main)...)
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("mmdebstrap with %q took %s and made %d MB", packages, time.Since(start).Round(time.Second), len(b)>>20)
	return b
}

// TestImagesOfRegistries boots what others made, with nothing of banger in it: it has a network and ssh all the same.
func TestImagesOfRegistries(t *testing.T) {
	box(t) // the kernel is local then
	h := newHost(t)
	h.ownData(t)
	at := serveRegistry(t)
	push(t, at+"/lib/busybox:1", v1.Config{Env: []string{"PATH=/bin", "GREETING=hello there"}, WorkingDir: "/srv", User: "worker", Cmd: []string{"sh"}},
		busyboxLayer(t), layerOf(t, map[string]string{"etc/.wh.below": "", "etc/above": "above\n"}))
	push(t, at+"/debian:none", v1.Config{Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, Cmd: []string{"bash"}}, debianTar(t))
	push(t, at+"/debian:openrc", v1.Config{}, debianTar(t, "openrc", "sysvinit-core", "iproute2", "iputils-ping"))

	t.Run("busybox", func(t *testing.T) {
		h.t = t
		ref := at + "/lib/busybox:1"
		// By its reference alone, from nothing.
		r := h.run("vm", "run", "--rm", "--image", ref, "--", "sh", "-c", `echo "$GREETING,$(pwd),$(id -un),$HOME"; cat /etc/above; ls /etc/below; exit 5`)
		if r.code != 5 || r.stdout != "hello there,/srv,worker,/srv\nabove\n" {
			t.Errorf("exit status %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
		}
		if names := h.ok("image", "list", "-o", "name"); !slices.Contains(strings.Fields(names), ref) {
			t.Errorf("the list holds %q", names)
		}
		h.ok("image", "pull", ref, "--name", "bb", "--kernel-ref", "generic-6.12")
		h.ok("vm", "run", "--name", "bb", "--image", "bb", "--detach", "-e", "MORE=1")
		address := h.vm("bb").Address.String()
		for script, want := range map[string]string{
			"ip -4 addr show dev eth0":            address,
			"ping -c1 -W20 gateway.vm && echo ok": "ok",
			"cat /etc/resolv.conf":                "nameserver 172.16.0.1",
			"hostname":                            "bb",
		} {
			if out := h.ok("vm", "exec", "bb", "--user", "root", "--", "sh", "-c", script); !strings.Contains(out, want) {
				t.Errorf("%s: %q", script, out)
			}
		}
		if out := h.ok("vm", "ssh", "bb", "--", "id -un; pwd; echo $GREETING"); out != "worker\n/srv\nhello there\n" {
			t.Errorf("over ssh: %q", out)
		}
		h.fails(1, []string{`in use by vm "bb"`}, "image", "delete", "bb", ref)
		h.ok("vm", "delete", "--force", "bb")
	})
	t.Run("nothing but a program", func(t *testing.T) {
		h.t = t
		path, err := exec.LookPath("busybox")
		if err != nil {
			t.Fatal(err)
		}
		program, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		push(t, at+"/scratch", v1.Config{Entrypoint: []string{"/busybox", "echo"}, Cmd: []string{"what", "it runs"}}, layerOf(t, map[string]string{"busybox": string(program)}))
		if r := h.run("vm", "run", "--rm", "--image", at+"/scratch"); r.code != 0 || r.stdout != "what it runs\n" {
			t.Errorf("exit status %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
		}
	})
	for _, tag := range []string{"none", "openrc"} {
		t.Run("debian with init "+tag, func(t *testing.T) {
			h.t = t
			ref, vm := at+"/debian:"+tag, "d"+tag
			h.ok("vm", "run", "--name", vm, "--image", ref, "--detach")
			if out := h.ok("vm", "exec", vm, "--", "cat", "/proc/1/comm"); tag == "openrc" && out != "init\n" {
				t.Errorf("PID 1 is %q", out)
			}
			if out := h.ok("vm", "exec", vm, "--", "sh", "-c", "cat /etc/hostname; getent hosts gateway.vm; . /etc/os-release; echo $ID"); out != vm+"\n172.16.0.1      gateway.vm\ndebian\n" {
				t.Errorf("%q", out)
			}
			if tag == "openrc" {
				if err := waitFor(time.Minute, func() bool { // it has begun; how long its scripts take is theirs
					return strings.TrimSpace(h.run("vm", "exec", vm, "--", "rc-status", "--runlevel").stdout) != ""
				}); err != nil {
					t.Errorf("OpenRC: %s", h.run("vm", "exec", vm, "--", "rc-status").stdout)
				}
			}
			if out := h.ok("vm", "ssh", vm, "--", "echo over ssh as $(whoami)"); out != "over ssh as root\n" {
				t.Errorf("%q", out)
			}
			h.ok("vm", "stop", vm)
			h.clean(h.vm(vm))
			h.ok("vm", "delete", vm)
		})
	}
}

// TestImagesOfOnesOwn: a VM becomes an image, the image a file, the file an image elsewhere; names, and what is not used goes.
func TestImagesOfOnesOwn(t *testing.T) {
	box(t)
	h := newHost(t)
	own := h.ownData(t)
	rootfs := filepath.Join(h.dir, "rootfs.tar")
	if err := os.WriteFile(rootfs, busyboxLayer(t), 0o600); err != nil {
		t.Fatal(err)
	}
	h.ok("image", "register", "--name", "base", "--rootfs", rootfs)
	if err := os.Remove(rootfs); err != nil {
		t.Fatal(err)
	}
	h.ok("vm", "run", "--name", "maker", "--image", "base", "--detach")
	h.ok("vm", "exec", "maker", "--", "sh", "-c", `set -e
		echo made > /usr/made; chmod 4711 /usr/made; ln /usr/made /usr/linked; mkdir -p /srv/a; mkfifo /srv/a/pipe; mknod /srv/a/null c 1 3; chown 1234:4321 /srv/a
		rm /etc/below; mkdir /etc/ssh; echo key > /etc/ssh/ssh_host_ed25519_key
		echo mine > /root/mine; echo temp > /tmp/temp; mkdir -p /var/lib/docker; echo store > /var/lib/docker/store`)
	maker := h.vm("maker")
	h.ok("image", "promote", "maker", "--name", "made")
	h.ok("image", "promote", "maker", "--name", "clean", "--clean")
	h.fails(1, []string{`"made" is there already`}, "image", "promote", "maker", "--name", "made")
	h.ok("vm", "stop", "maker")
	h.fails(1, []string{"banger vm start maker"}, "image", "promote", "maker", "--name", "stopped")

	files := h.ok("image", "inspect", "made", "--files")
	for _, want := range []string{"-rws--x--x ", " /usr/made\n", " /usr/linked\n", "p", " /srv/a/null\n", " /root/mine\n", " /var/lib/docker\n"} {
		if !strings.Contains(files, want) {
			t.Errorf("the files of the image lack %q:\n%s", want, files)
		}
	}
	for _, never := range []string{"ssh_host", "/etc/machine-id", "/etc/hostname", "/etc/resolv.conf", "/etc/below", "/tmp/temp", "/var/lib/docker/store"} {
		if strings.Contains(files, never) {
			t.Errorf("the image has %s", never)
		}
	}
	if files := h.ok("image", "inspect", "clean", "--files", "-o", "name"); strings.Contains(files, "/root/mine") || !strings.Contains(files, "/usr/made\n") {
		t.Errorf("the clean image has:\n%s", files)
	}

	bundle := filepath.Join(h.dir, "made.tar.zst")
	h.ok("image", "export", "made", "-o", bundle)
	h.fails(1, []string{"--force"}, "image", "export", "made", "-o", bundle)
	digest := decode[api.Image](t, h.ok("image", "show", "made", "-o", "json")).Digest
	h.ok("image", "delete", "made")
	h.fails(1, []string{"not known"}, "vm", "create", "--image", "made", "--no-start")
	h.ok("image", "import", bundle)
	if got := decode[api.Image](t, h.ok("image", "show", "made", "-o", "json")).Digest; got != digest {
		t.Errorf("the image that comes back is %s, was %s", got, digest)
	}
	r := h.run("vm", "run", "--rm", "--name", "other", "--image", "made", "--", "sh", "-c",
		`cat /usr/linked /root/mine /etc/hostname; cat /etc/machine-id; stat -c "%a %u:%g %h" /usr/made /srv/a; grep -c maker /etc/hosts; exit 9`)
	want := fmt.Sprintf("made\nmine\nother\n%s\n4711 0:0 2\n755 1234:4321 2\n0\n", strings.Fields(strings.TrimPrefix(r.stdout, "made\nmine\nother\n") + " none")[0])
	if r.code != 9 || r.stdout != want || strings.Contains(r.stdout, maker.ID) {
		t.Errorf("exit status %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}

	h.ok("image", "tag", "clean", "alias")
	if out := h.ok("image", "prune", "--dry-run", "-o", "name"); out != "alias\nclean\nmade\n" {
		t.Errorf("would be removed: %q", out)
	}
	h.fails(1, []string{`in use by vm "maker"`}, "image", "delete", "base")
	h.ok("image", "prune", "--force")
	left, _ := filepath.Glob(filepath.Join(own, "banger", "images", "*"))
	if len(left) != 1 {
		t.Errorf("left are %q", left)
	}
	h.ok("vm", "start", "maker") // of an image that had to stay
}
