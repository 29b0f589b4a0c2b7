//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"git.thaloco.com/thaloco/banger/api"
)

// tinyCatalog has an image that a recipe makes of a base.
const tinyCatalog = `[[image]]
name = "tiny"
description = "Debian and jq"
arch = "amd64"
kernel = "generic-6.12"
env = ["PATH=/usr/local/bin:/usr/bin:/bin", "MADE=here"]
work_dir = "/root"
user = "root"

[[image.source]]
recipe = "debian"
release = "bookworm"
base = %q
packages = ["jq"]
docker = "none"
`

// only gives a host no programs but those named and those in the sbin directories.
func (h *host) only(t testing.TB, programs ...string) {
	t.Helper()
	bin := filepath.Join(h.dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		path, err := exec.LookPath(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(bin, p)); err != nil {
			t.Fatal(err)
		}
	}
	for i, e := range h.env {
		if strings.HasPrefix(e, "PATH=") {
			h.env[i] = "PATH=" + bin
		}
	}
}

// TestImageBuiltInVM: a host without mmdebstrap builds the image of a recipe in a VM of the recipe's base, with apt and from the mirror
// that the guest reaches.
func TestImageBuiltInVM(t *testing.T) {
	box(t) // the kernel is local then
	at := serveRegistry(t)
	// What images for containers have, and an image for VMs must not.
	push(t, at+"/debian:base", v1.Config{Cmd: []string{"bash"}, User: "nobody"}, debianTar(t, "apt"), layerOf(t, map[string]string{
		"etc/apt/apt.conf.d/docker-clean":       "APT::Update::Post-Invoke { \"false\"; };\n",
		"etc/apt/sources.list.d/debian.sources": "Types: deb\nURIs: http://mirror.invalid/debian\nSuites: bookworm\nComponents: main\n",
	}))
	h := newHost(t)
	h.ownData(t)
	h.only(t, "qemu-system-x86_64", "git")
	catalog := filepath.Join(h.dir, "images.toml")
	if err := os.WriteFile(catalog, fmt.Appendf(nil, tinyCatalog, at+"/debian:base"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.config(fmt.Sprintf("image_catalog = [%q]\n", catalog))

	// The daemon dies in between: the next one takes the VM away, and what there is of an image.
	dies := h.cmd(t.Context(), "image", "pull", "tiny")
	if err := dies.Start(); err != nil {
		t.Fatal(err)
	}
	if err := waitFor(2*time.Minute, func() bool { vms := h.vms(); return len(vms) == 1 && vms[0].VMMPID != 0 }); err != nil {
		t.Fatal("no VM to build in:", err)
	}
	kill(t, h.daemonPID())
	if err := dies.Wait(); err == nil {
		t.Error("the pull outlived the daemon")
	}
	if err := waitFor(waitShort, func() bool { return len(h.vms()) == 0 }); err != nil {
		t.Errorf("after the daemon's end: %+v", h.vms())
	}
	if half, _ := filepath.Glob(filepath.Join(h.dir, "data/banger/images/.tmp-*")); len(half) > 0 {
		t.Errorf("left are %q", half)
	}

	r := h.run("image", "pull", "tiny")
	t.Logf("the pull took %s\n%s", r.took, r.stderr)
	if r.code != 0 || !strings.Contains(r.stderr, "mmdebstrap: not installed") || !strings.Contains(r.stderr, "built in a VM") {
		t.Fatalf("exit status %d", r.code)
	}
	if vms := h.vms(); len(vms) != 0 {
		t.Errorf("left is %+v", vms)
	}
	if img := decode[api.Image](t, h.ok("image", "show", "tiny", "-o", "json")); !strings.HasSuffix(img.Source, "in a VM of "+at+"/debian:base") || img.WorkDir != "/root" {
		t.Errorf("%+v", img)
	}
	files := h.ok("image", "inspect", "tiny", "--files", "-o", "name")
	for _, want := range []string{"/usr/bin/jq", "/etc/dpkg/dpkg.cfg.d/banger-slim", "/root/.bashrc", "/usr/share/doc/jq/copyright"} {
		if !strings.Contains(files, want+"\n") {
			t.Errorf("the image lacks %s", want)
		}
	}
	for _, never := range []string{"policy-rc.d", "mmdebstrap", "docker-clean", "debian.sources", "/usr/share/man/man1/jq", "/etc/hostname", "/var/cache/apt/pkgcache.bin"} {
		if strings.Contains(files, never) {
			t.Errorf("the image has %s", never)
		}
	}
	run := h.run("vm", "run", "--image", "tiny", "--rm", "--", "sh", "-c", `jq -n 1; echo "$MADE $(id -un) $(pwd)"; dpkg --audit`)
	if run.code != 0 || run.stdout != "1\nhere root /root\n" {
		t.Errorf("exit status %d, stdout %q, stderr %q", run.code, run.stdout, run.stderr)
	}
}
