//go:build e2e && long

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/network/nettest"
)

// TestLongReach moves SIZE MiB, 1024 of them unless told otherwise, each way by every way from the host to a server in a VM, and compares what
// came with its hash; WAY names one of them: in user mode through a forward and the web port, in bridge mode to the VM's address as well. In
// both modes as much goes from a VM to an echo server of an internet around the daemon and back (WAY=outside).
func TestLongReach(t *testing.T) {
	size := int64(envNumber(t, "SIZE", 1024)) << 20
	ways := func(t *testing.T, h *host, vm string, direct string, in func(f func() error) error) {
		web := decode[api.DaemonStatus](t, h.ok("daemon", "status", "-o", "json")).WebAddress
		to := map[string]string{"forward": h.forward(vm, "0:8080"), "web port": web}
		if direct != "" {
			to["address"] = direct
		}
		for way, address := range to {
			if only := os.Getenv("WAY"); only != "" && only != way {
				continue
			}
			client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (conn net.Conn, err error) {
				err = in(func() error {
					conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", address)
					return err
				})
				return conn, err
			}}}
			start := time.Now()
			previewBulk(t, client, fmt.Sprintf("http://8080.%s.localhost/", vm), size)
			took := time.Since(start)
			t.Logf("%s: %d MiB in and out took %s (%.1f MiB/s)", way, size>>20, took.Round(time.Second), 2*float64(size>>20)/took.Seconds())
			client.CloseIdleConnections()
			if g := decode[api.VMStats](t, h.ok("vm", "stats", vm, "-o", "json")).Guest; g != nil {
				t.Logf("the guest has %d of %d MiB left\n%s", g.MemoryAvailableBytes>>20, g.MemoryTotalBytes>>20, h.inGuest(vm, "ps -eo rss,comm --sort=-rss | head -5; dmesg | grep -i 'out of memory\\|oom' | tail -3 || true"))
			}
		}
	}
	outside := func(t *testing.T, h *host, vm string) {
		if only := os.Getenv("WAY"); only != "" && only != "outside" {
			return
		}
		start := time.Now()
		h.busy(t, vm, int(size>>20))
		took := time.Since(start)
		t.Logf("outside: %d MiB out and in took at most %s (%.1f MiB/s)", size>>20, took.Round(time.Second), 2*float64(size>>20)/took.Seconds())
	}
	t.Run("user, outside", func(t *testing.T) {
		box(t)
		h := newHost(t)
		in := nettest.NewInternet(t)
		h.config(fmt.Sprintf("default_dns = [%q]\n", nettest.DNS.Addr()))
		h.startIn(in.Host)
		h.ok("vm", "run", "--name", "v", "--detach")
		outside(t, h, "v")
	})
	t.Run("user", func(t *testing.T) {
		h := box(t)
		h.netserve(t, "box", "127.0.0.1")
		ways(t, h, "box", "", func(f func() error) error { return f() })
	})
	t.Run("bridge", func(t *testing.T) {
		b := newBridged(t, "")
		b.ok("vm", "run", "--name", "v", "--detach", "--wait", "full")
		outside(t, b.host, "v")
		b.netserve(t, "v", "0.0.0.0")
		ways(t, b.host, "v", netip.AddrPortFrom(b.vm("v").Address, 8080).String(), b.in.Host.Try)
	})
}
