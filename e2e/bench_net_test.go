//go:build e2e && bench

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/internal/network/nettest"
)

// slirp is a QEMU with a second network device, on its own user network. The rest is as banger wants it.
const slirp = `#!/bin/sh
case "$*" in
*-blockdev*) exec qemu-system-x86_64 "$@" -netdev user,id=slirp -device virtio-net-device,netdev=slirp,mac=52:54:00:00:00:99 ;;
esac
exec qemu-system-x86_64 "$@"
`

// netVM is a host in an internet of its own with a VM that has a second way there, by slirp.
type netVM struct {
	*host
	b *testing.B
}

func newNetVM(b *testing.B) *netVM {
	b.Helper()
	h := newHost(b)
	in := nettest.NewInternet(b)
	wrapper := filepath.Join(h.dir, "qemu")
	if err := os.WriteFile(wrapper, []byte(slirp), 0o755); err != nil {
		b.Fatal(err)
	}
	h.config(fmt.Sprintf("qemu_bin = %q\n", wrapper))
	h.startIn(in.Host)
	h.ok("vm", "run", "--name", "v", "--detach", "--wait", "full")
	n := &netVM{h, b}
	n.push(filepath.Join(h.dir, "netbench"))
	n.inGuest("v", `
		dev=$(grep -l 52:54:00:00:00:99 /sys/class/net/*/address | cut -d/ -f5)
		ip addr add 10.0.2.15/24 dev $dev
		ip link set $dev up`)
	return n
}

// push builds the guest's program and copies it to the VM.
func (n *netVM) push(program string) {
	n.b.Helper()
	n.b.Setenv("CGO_ENABLED", "0")
	commandIn(n.b, ".", "go", "build", "-o", program, "./testdata/netbench")
	n.ok("vm", "cp", program, "v:/root/netbench")
}

// by sends what goes to the servers by banger's network or by slirp's, and runs netbench.
func (n *netVM) by(way, what, to string, count int) float64 {
	n.b.Helper()
	route := "ip route del 203.0.113.7 2>/dev/null || true"
	if way == "slirp" {
		route = "ip route replace 203.0.113.7 via 10.0.2.2"
	}
	out := n.inGuest("v", fmt.Sprintf("%s; /root/netbench %s %s %d", route, what, to, count))
	v, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
	if err != nil {
		n.b.Fatal(err)
	}
	return v
}

// BenchmarkNetwork compares banger's network with QEMU's own in the same VM, in turns.
func BenchmarkNetwork(b *testing.B) {
	n := newNetVM(b)
	for _, tc := range []struct {
		name, what, to, unit string
		count                int
	}{
		{"from_guest", "send", nettest.Discard.String(), "MB/s", 100},
		{"to_guest", "recv", nettest.Chargen.String(), "MB/s", 100},
		{"connect", "connect", nettest.Echo.String(), "ms", 100},
		{"connect_and_byte", "exchange", nettest.Echo.String(), "ms", 100},
	} {
		b.Run(tc.name, func(b *testing.B) {
			n.t, n.b = b, b
			var ours, theirs []float64
			for range rounds {
				ours = append(ours, n.by("banger", tc.what, tc.to, tc.count))
				theirs = append(theirs, n.by("slirp", tc.what, tc.to, tc.count))
			}
			b.ReportMetric(medianOf(ours), "banger-"+tc.unit)
			b.ReportMetric(medianOf(theirs), "slirp-"+tc.unit)
			b.ReportMetric(medianOf(ours)/medianOf(theirs), "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkNeighbour compares bulk TCP between two VMs with that from a VM to the outside, in turns.
func BenchmarkNeighbour(b *testing.B) {
	n := newNetVM(b)
	n.neighbour(b, nettest.Discard.String())
}

// neighbour starts a second VM and measures the way to it, and the way to an address outside.
func (n *netVM) neighbour(b *testing.B, outside string) {
	n.ok("vm", "run", "--name", "w", "--detach", "--wait", "full")
	n.ok("vm", "cp", filepath.Join(n.dir, "netbench"), "w:/root/netbench")
	d := n.begin("vm", "exec", "w", "--", "/root/netbench", "sink", "0.0.0.0:9", strconv.Itoa(rounds))
	d.await("listening")
	var inside, out []float64
	for range rounds {
		out = append(out, n.by("banger", "send", outside, 100))
		inside = append(inside, n.by("banger", "send", n.vm("w").Address.String()+":9", 100))
	}
	d.wait()
	b.ReportMetric(medianOf(inside), "neighbour-MB/s")
	b.ReportMetric(medianOf(out), "outside-MB/s")
	b.ReportMetric(medianOf(inside)/medianOf(out), "ratio")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkBridge measures bulk TCP of a VM in bridge mode and of one in user mode, in turns: the daemons are in an internet each.
func BenchmarkBridge(b *testing.B) {
	user := newNetVM(b)
	br := &netVM{newBridged(b, "").host, b}
	br.ok("vm", "run", "--name", "v", "--detach", "--wait", "full")
	br.push(filepath.Join(br.dir, "netbench"))
	for _, tc := range []struct{ name, what, to string }{
		{"from_guest", "send", nettest.Discard.String()},
		{"to_guest", "recv", nettest.Chargen.String()},
	} {
		b.Run(tc.name, func(b *testing.B) {
			user.t, user.b, br.t, br.b = b, b, b, b
			var ours, theirs []float64
			for range rounds {
				ours = append(ours, br.by("banger", tc.what, tc.to, 100))
				theirs = append(theirs, user.by("banger", tc.what, tc.to, 100))
			}
			b.ReportMetric(medianOf(ours), "bridge-MB/s")
			b.ReportMetric(medianOf(theirs), "user-MB/s")
			b.ReportMetric(medianOf(ours)/medianOf(theirs), "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
	b.Run("neighbour", func(b *testing.B) {
		br.t, br.b = b, b
		br.neighbour(b, nettest.Discard.String())
	})
}

// BenchmarkNetworkMemory is what VMs and connections that are idle cost the daemon.
func BenchmarkNetworkMemory(b *testing.B) {
	const vms, conns = 3, 1000
	n := newNetVM(b)
	alone := rss(b, n.daemonPID())
	for i := range vms {
		n.ok("vm", "run", "--name", fmt.Sprint("idle", i), "--detach", "--memory", "256MiB")
	}
	b.ReportMetric((rss(b, n.daemonPID())-alone)/vms, "MiB/vm")
	alone = rss(b, n.daemonPID())
	d := n.begin("vm", "exec", "v", "--", "/root/netbench", "idle", nettest.Echo.String(), strconv.Itoa(conns))
	d.await("holding")
	b.ReportMetric((rss(b, n.daemonPID())-alone)*1024/conns, "KiB/conn")
	b.ReportMetric(0, "ns/op")
	d.wait()
}
