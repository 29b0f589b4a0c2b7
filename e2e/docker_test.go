//go:build e2e

package e2e

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestDocker uses the guest's Docker from the host, by ssh, with Debian's client: the guest's own, for both are Debian.
func TestDocker(t *testing.T) {
	u := newSSHUser(t)
	client := filepath.Join(u.dir, "docker")
	u.ok("vm", "cp", "box:/usr/bin/docker", client)
	if out, err := exec.Command(client, "--version").CombinedOutput(); err != nil {
		t.Skipf("Debian's docker client does not run here: %v: %s", err, out)
	}
	docker := func(args ...string) string {
		t.Helper()
		return u.gets(append([]string{client, "-H", "ssh://box.vm"}, args...)...)
	}
	start := time.Now()
	version := docker("version", "--format", "{{.Client.Version}} {{.Server.Version}}")
	t.Logf("%s: the first answer, for which the guest starts its Docker, took %s", strings.TrimSpace(version), time.Since(start).Round(time.Millisecond))
	t.Cleanup(func() { u.run("vm", "exec", "box", "--", "systemctl", "stop", "docker.socket", "docker", "containerd") })

	// An image of one file, sent from here.
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(u.dir, "container")
	commandIn(t, u.dir, "sh", "-ec", `mkdir -p "$0/bin" "$0/tmp"; cp "$1" "$0/bin/busybox"; "$1" --list | while read -r a; do [ "$a" = busybox ] || ln "$0/bin/busybox" "$0/bin/$a"; done`, root, busybox)
	u.gets("sh", "-ec", `tar c -C "$1" . | "$0" -H ssh://box.vm import - bb`, client, root)

	u.inGuest("box", "mkdir -p /root/www; echo served >/root/www/page")
	address := u.vm("box").Address.String()
	server := u.begin("vm", "exec", "box", "-w", "/root/www", "--", "python3", "-u", "-m", "http.server", "--bind", address, "0")
	t.Cleanup(func() { u.run("vm", "exec", "box", "--", "pkill", "-f", "http.server"); server.wait() })
	port := u.await(server, `port (\d+)`)
	got := docker("run", "--rm", "bb", "sh", "-ec", `
		ping -c1 -W10 172.16.0.1 >/dev/null && echo gateway
		wget -q -O- http://box.vm:`+port+`/page
		hostname | wc -c; id -u; exit 0`)
	if got != "gateway\nserved\n13\n0\n" {
		t.Errorf("in the container: %q", got)
	}
	r := u.does(strings.NewReader("through\n"), client, "-H", "ssh://box.vm", "run", "--rm", "-i", "--network=none", "bb", "sh", "-c", "cat; exit 5")
	if r.code != 5 || r.stdout != "through\n" {
		t.Errorf("status %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}
	u.env = append(slices.Clip(u.env), "DOCKER_HOST=ssh://box.vm")
	if got := u.gets(client, "image", "ls", "--format", "{{.Repository}}"); got != "bb\n" {
		t.Errorf("images: %q", got)
	}
	t.Logf("all in all %s", time.Since(start).Round(time.Millisecond))
}
