//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/ext4"
)

// TestBusyboxOnly boots an image with nothing in it but busybox: no init, no libc, no users but root.
func TestBusyboxOnly(t *testing.T) {
	box(t) // the kernel is local then
	h := newHost(t)
	own := filepath.Join(h.dir, "data")
	for i, e := range h.env {
		if strings.HasPrefix(e, "XDG_DATA_HOME=") {
			h.env[i] = "XDG_DATA_HOME=" + own
		}
	}
	if err := os.MkdirAll(filepath.Join(own, "banger"), 0o700); err != nil {
		t.Fatal(err)
	}
	command(t, "cp", "-a", filepath.Join(data, "banger", "kernels"), filepath.Join(own, "banger"))
	busyboxImage(t, filepath.Join(own, "banger", "images"))

	h.ok("vm", "run", "--name", "bb", "--image", "busybox", "--detach", "--wait", "full")
	r := h.run("vm", "exec", "bb", "--", "sh", "-c", "echo pid1=$(cat /proc/1/comm) home=$HOME; echo kept > /root/kept; sync; exit 3")
	if r.code != 3 || !strings.Contains(r.stdout, "home=/root") {
		t.Errorf("exit status %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}
	if r := h.feed(bytes.NewReader(make([]byte, 1<<20)), "vm", "exec", "bb", "--", "wc", "-c"); strings.TrimSpace(r.stdout) != "1048576" {
		t.Errorf("1 MiB through stdin: %q %q", r.stdout, r.stderr)
	}
	if zombies := strings.TrimSpace(h.ok("vm", "exec", "bb", "--", "sh", "-c", "(sleep 0.1 & ) ; sleep 1; ps -o stat | grep -c ^Z; true")); zombies != "0" {
		t.Errorf("%s zombies: nobody reaps", zombies)
	}
	h.run("vm", "exec", "bb", "--", "reboot")
	if err := waitFor(time.Minute, func() bool {
		vm := h.vm("bb")
		return vm.Restarts == 1 && vm.State == api.StateRunning
	}); err != nil {
		t.Fatalf("after reboot: %+v", h.vm("bb"))
	}
	if got := h.ok("vm", "exec", "bb", "--", "cat", "/root/kept"); got != "kept\n" {
		t.Errorf("/root/kept: %q", got)
	}
	h.run("vm", "exec", "bb", "--", "poweroff")
	vm := h.waitState("bb", api.StateStopped)
	if vm.Reason != "" {
		t.Errorf("reason %q", vm.Reason)
	}
	h.clean(vm)
	h.ok("vm", "start", "bb")
	h.ok("vm", "stop", "bb")
	h.clean(h.vm("bb"))
}

// busyboxImage puts an image "busybox" into a store, as a pull would.
func busyboxImage(t *testing.T, images string) {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("busybox is not installed: scripts/host-packages test")
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if f, err := elf.NewFile(bytes.NewReader(program)); err != nil || f.Section(".interp") != nil {
		t.Skip("this host's busybox is not statically linked")
	}
	var tree bytes.Buffer
	w := tar.NewWriter(&tree)
	add := func(hdr tar.Header, content []byte) {
		t.Helper()
		hdr.Size, hdr.ModTime = int64(len(content)), time.Unix(1e9, 0)
		if err := w.WriteHeader(&hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	for dir := range strings.FieldsSeq("bin dev etc proc root run sys tmp") {
		add(tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, program)
	for name := range strings.FieldsSeq("sh cat dd echo false grep halt head kill ls mount poweroff ps reboot sleep stty sync test touch true wc yes") {
		add(tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
	}
	add(tar.Header{Name: "bin/panic", Typeflag: tar.TypeReg, Mode: 0o755}, []byte("#!/bin/sh\necho c > /proc/sysrq-trigger\n"))
	add(tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	tmp := filepath.Join(t.TempDir(), "rootfs.ext4")
	if err := ext4.FromTar(t.Context(), &tree, tmp, ext4.Options{}); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(tmp)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	digest := hex.EncodeToString(sum[:])
	dir := filepath.Join(images, "sha256-"+digest)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	command(t, "cp", "--sparse=always", tmp, filepath.Join(dir, "rootfs.ext4"))
	st, err := os.Stat(filepath.Join(dir, "rootfs.ext4"))
	if err != nil {
		t.Fatal(err)
	}
	record, err := json.Marshal(map[string]any{"version": 1, "rootfs_size": st.Size(), "rootfs_mod_time_ns": st.ModTime().UnixNano(),
		"image": api.Image{Name: "busybox", Digest: "sha256:" + digest, Arch: "amd64", SizeBytes: st.Size(), Kernel: "generic-6.12", Local: true}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "image.json"), record, 0o600); err != nil {
		t.Fatal(err)
	}
}
