//go:build e2e

package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/network/bridge"
)

// hostState prints what of a host banger net may change.
const hostState = `
ip -br link | awk '{print $1}' | grep -v '^docker\|^veth' | sort
ip -4 route | grep -v docker | awk '{print $1, $3}'
cat /proc/sys/net/ipv4/ip_forward
nft list tables | grep banger || true
iptables-save | grep -i banger || true
ls /etc/banger 2>&1 || true
find /etc/systemd -name '*banger-net*'`

// TestNetSetup prepares a host for bridge mode: a VM of the default image, with Docker and systemd-resolved, is the host.
func TestNetSetup(t *testing.T) {
	h := box(t)
	h.ok("vm", "run", "--name", "nest", "--detach", "--wait", "full", "--memory", "1GiB")
	t.Cleanup(func() { h.ok("vm", "delete", "--force", "nest") })
	h.ok("vm", "cp", filepath.Join(install, "bin", "banger"), "nest:/usr/local/bin/banger")
	// as is what alice has by sudo: root, and who she is.
	as := func(script string) result {
		t.Helper()
		return h.run("vm", "exec", "-e", "SUDO_UID=1000", "nest", "--", "bash", "-uc", script)
	}
	sure := func(script string) string {
		t.Helper()
		r := as(script)
		if r.code != 0 {
			t.Fatalf("%s: status %d\n%s%s", script, r.code, r.stdout, r.stderr)
		}
		return r.stdout
	}
	refused := func(script string, texts ...string) {
		t.Helper()
		r := as(script)
		for _, text := range texts {
			if r.code != 1 || !strings.Contains(r.stderr, text) {
				t.Errorf("%s: status %d, not %q:\n%s", script, r.code, text, r.stderr)
			}
		}
	}
	status := func(script string) (bad []bridge.Check) {
		t.Helper()
		r := as(script + " -o json")
		for _, c := range decode[bridge.Report](t, r.stdout).Checks {
			if c.State == bridge.Missing {
				bad = append(bad, c)
			}
		}
		if (r.code != 0) != (len(bad) > 0) {
			t.Errorf("status %d, missing: %+v", r.code, bad)
		}
		return bad
	}
	sure("useradd --create-home --uid 1000 alice")
	refused("banger net setup", "nft", "apt-get install nftables")
	refused("setpriv --reuid 1000 --clear-groups env HOME=/home/alice banger net setup", "root", "hint: sudo /usr/local/bin/banger net setup")
	// The resolver last: it takes over /etc/resolv.conf.
	sure("exec >/dev/null; export DEBIAN_FRONTEND=noninteractive; apt-get -qq update && apt-get -qq install -y --no-install-recommends nftables && apt-get -qq install -y --no-install-recommends systemd-resolved")
	sure("systemctl restart systemd-resolved; chmod 0666 /dev/net/tun") // it could not have its name on the bus before its user was known; no udev here
	sure("systemctl enable --now nftables docker >/dev/null 2>&1; docker info >/dev/null")
	refused("banger net setup", "cidr 172.16.0.0/24 overlaps the host's route to 172.16.0.0/24 by eth0", "hint: set another cidr")
	before := sure(hostState)
	sure(`install -D -o alice /dev/stdin /home/alice/.config/banger/config.toml <<<'cidr = "10.9.0.0/24"
bridge_ip = "10.9.0.1"
tap_pool_size = 4'`)
	if bad := status("banger net status"); len(bad) == 0 {
		t.Error("nothing is missing before it is set up")
	}
	said := sure("banger net setup 2>&1")
	for _, want := range []string{"bridge bngr0 with 10.9.0.1/24\n", "4 TAPs for user alice", "iptables: FORWARD asks", "systemd-resolved asks 10.9.0.1", "banger-net-bngr0.service", `now set network = "bridge" in /home/alice/.config/banger/config.toml`} {
		if !strings.Contains(said, want) {
			t.Errorf("it does not tell %q:\n%s", want, said)
		}
	}
	if again := sure("banger net setup 2>&1"); !strings.HasPrefix(again, "banger: all of it is there already\n") {
		t.Errorf("the second time: %s", again)
	}
	good := func(when string) {
		t.Helper()
		var bad []bridge.Check // a unit that is restarted with another comes after it
		if err := waitFor(time.Minute, func() bool { bad = status("banger net status"); return len(bad) == 0 }); err != nil {
			t.Errorf("%s is missing: %+v\n%s", when, bad, sure("systemctl status --no-pager banger-net-bngr0; journalctl --no-pager -b -u banger-net-bngr0; true"))
		}
		if got := sure("resolvectl domain bngr0; resolvectl dns bngr0"); !strings.Contains(got, "~vm") || !strings.Contains(got, "10.9.0.1") {
			t.Errorf("%s, the resolver: %s", when, got)
		}
	}
	good("at first")
	if bad := status("setpriv --reuid 1000 --clear-groups env HOME=/home/alice banger net status"); len(bad) > 0 {
		t.Errorf("alice misses %+v", bad)
	}
	// With alice's daemon there the names of its network are the host's too.
	h.ok("vm", "cp", filepath.Join(install, "bin", "bangerd"), "nest:/usr/local/bin/bangerd")
	h.ok("vm", "cp", filepath.Join(install, "lib", "banger"), "nest:/usr/local/lib/")
	sure(`echo 'network = "bridge"' >>/home/alice/.config/banger/config.toml`)
	const alice = "setpriv --reuid 1000 --regid 1000 --clear-groups env HOME=/home/alice banger "
	sure("chown -R alice: /home/alice; " + alice + "daemon start")
	// As long as no VM runs nothing is at the other end of the bridge, and systemd-resolved asks nobody there: this is all of one that it sees.
	sure(`nohup setpriv --reuid 1000 --regid 1000 --clear-groups python3 -c '
import fcntl, signal, struct
f = open("/dev/net/tun", "r+b", buffering=0)
fcntl.ioctl(f, 0x400454ca, struct.pack("16sH22x", b"bngr0-t0", 0x5002)) # TUNSETIFF: IFF_TAP, IFF_NO_PI, IFF_VNET_HDR
signal.pause()' >/run/tap.log 2>&1 & echo $! >/run/tap.pid`)
	var found string
	if err := waitFor(waitShort, func() bool {
		found = sure("getent hosts gateway.vm | awk '{print $1}'; getent hosts nosuch.vm || echo none")
		return found == "10.9.0.1\nnone\n"
	}); err != nil {
		t.Errorf("the host's resolver finds %q\n%s", found, sure("cat /run/tap.log; resolvectl status --no-pager; "+alice+"daemon logs"))
	}
	sure("kill $(cat /run/tap.pid); " + alice + "daemon stop")
	// Whoever restarts a firewall takes banger's rules with it; they come back.
	sure("systemctl restart nftables")
	good("after a restart of nftables")
	sure("systemctl restart docker")
	good("after a restart of Docker")
	h.run("vm", "exec", "nest", "--", "reboot")
	h.await("nest", "a second boot", func(vm api.VM) bool { return vm.Restarts == 1 && vm.State == api.StateRunning })
	h.ok("vm", "start", "--wait", "full", "nest")
	sure("chmod 0666 /dev/net/tun")
	if got := strings.TrimSpace(sure("systemctl is-system-running --wait || systemctl --failed --no-legend")); got != "running" {
		t.Errorf("after a reboot the system is %s", got)
	}
	good("after a reboot")
	sure("ip tuntap show >/dev/null; banger net teardown")
	if got := sure("banger net teardown 2>&1"); !strings.Contains(got, "there is no bridge bngr0 of banger's") {
		t.Errorf("the second teardown: %s", got)
	}
	after := sure(hostState)
	if before != after {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
}
