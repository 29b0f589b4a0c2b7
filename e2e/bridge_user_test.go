//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"git.thaloco.com/thaloco/banger/internal/network/nettest"
)

// bridgeUser is a user whom root has set up a bridge for.
const bridgeUser = "banger-bridge"

// TestBridgeOfUser is bridge mode as README has it: root sets up the host for a user, whose daemon then has no privilege of any kind.
func TestBridgeOfUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("making a user needs root")
	}
	box(t) // image and kernel are local from here on
	in := nettest.NewInternet(t)
	h, err := addUser(bridgeUser)
	t.Cleanup(func() { removeUser(h, bridgeUser) })
	if err != nil {
		t.Fatal(err)
	}
	h.t = t
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(h.run("daemon", "logs").stdout)
		}
	})
	config := fmt.Sprintf("network = \"bridge\"\ntap_pool_size = 2\nallow_private_networks = false\ndefault_dns = [%q]\n", nettest.DNS.Addr())
	commandIn(t, h.dir, "sh", "-ec", `
		mkdir -p .config/banger .local/share
		printf %s "$1" >.config/banger/config.toml
		cp -r --sparse=always "$2" .local/share/
		chown -R "$3:" .config .local`, "sh", config, filepath.Join(data, "banger"), bridgeUser)
	b := &bridged{h, in}
	b.program(filepath.Join(install, "bin", "banger"), "net", "setup", "--no-boot", "--owner", bridgeUser)

	// Where tests run /dev/net/tun may be root's alone. This daemon's is as that of usual hosts, in a mount namespace of its own.
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	c := exec.CommandContext(ctx, "unshare", "--mount", "sh", "-ec", `
		mount -t tmpfs none /dev/net
		mknod -m 0666 /dev/net/tun c 10 200
		exec setpriv --reuid "$1" --regid "$2" --clear-groups --bounding-set=-all --inh-caps=-all "$3" daemon start`,
		"sh", fmt.Sprint(h.uid), fmt.Sprint(h.gid), filepath.Join(h.prefix, "bin", "banger"))
	c.Env, c.Dir = h.env, h.dir
	if err := in.Host.Start(c); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Fatalf("banger daemon start: %v", err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.daemonPID()))
	if err != nil || !regexp.MustCompile(`(?m)^Uid:\t`+fmt.Sprint(h.uid)+`\t`).Match(status) || !regexp.MustCompile(`(?m)^CapEff:\t0+$`).Match(status) {
		t.Errorf("the daemon has privileges: %s, %v", status, err)
	}
	got := h.ok("vm", "run", "--rm", "--memory", "256MiB", "--", "sh", "-c", `
		ip -4 -o addr show eth0 | awk '{print $4}'
		cat /sys/class/net/eth0/mtu
		getent hosts alias.example.test | awk '{print $1}'
		getent hosts gateway.vm | awk '{print $1}'
		curl -s http://www.example.test/x`)
	if want := "172.16.0.2/24\n1500\n203.0.113.10\n172.16.0.1\nhello from www.example.test /x\n"; got != want {
		t.Errorf("in the guest:\n%swant:\n%s", got, want)
	}
	h.ok("daemon", "stop")
	b.program(filepath.Join(install, "bin", "banger"), "net", "teardown")
	if left := b.program("sh", "-c", "ip -br link | grep bngr; nft list tables | grep banger; true"); left != "" {
		t.Errorf("left: %s", left)
	}
}
