package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/files"
)

// What an image made of a guest never has: what makes the guest this one. And what only a running system has, or what cannot be part of an
// overlay's lower layer.
var (
	rootDrops = []string{"etc/hostname", "etc/machine-id", "etc/resolv.conf", "etc/ssh/ssh_host_*", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed",
		"var/lib/systemd/credential.secret", "lost+found"}
	rootEmpties = []string{"proc", "sys", "dev", "run", "tmp", "var/tmp", "var/lib/docker", "var/lib/containerd", "var/lib/containers"}
)

// packRoot writes what the guest's root holds as a tar stream, without what is mounted in it: /root and /home are as the image had them when
// clean, and as they are otherwise.
func packRoot(ctx context.Context, w io.Writer, clean bool) (files.Result, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return files.Result{}, fmt.Errorf("open the root without its mounts: %w", err)
	}
	defer unix.Close(fd)
	tree, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return files.Result{}, err
	}
	defer tree.Close()
	r := files.Root{Tree: tree, Drop: rootDrops, Empty: rootEmpties, Homes: map[string]*os.Root{},
		Rewrite: map[string]func([]byte) []byte{"etc/hosts": withoutOwnName}}
	if !clean {
		for _, dir := range []string{"root", "home"} {
			home, err := os.OpenRoot("/" + dir)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return files.Result{}, err
			}
			defer home.Close()
			r.Homes[dir] = home
		}
	}
	return files.PackRoot(ctx, w, r)
}

// withoutOwnName is an /etc/hosts without the line that names its host.
func withoutOwnName(hosts []byte) []byte {
	var b strings.Builder
	for line := range strings.Lines(string(hosts)) {
		if f := strings.Fields(line); len(f) == 0 || f[0] != "127.0.1.1" {
			b.WriteString(line)
		}
	}
	return []byte(b.String())
}
