//go:build e2e && bench

package e2e

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

// BenchmarkReach is what the ways into a VM add to a request, compared with one to its address by the bridge; in turns, on a connection that
// is kept and on a new one.
func BenchmarkReach(b *testing.B) {
	h := newBridged(b, "")
	h.ok("vm", "run", "--name", "v", "--detach", "--wait", "full")
	h.netserve(b, "v", "0.0.0.0")
	direct := netip.AddrPortFrom(h.vm("v").Address, 8080).String()
	forwarded := h.forward("v", "0:8080")
	web := decode[api.DaemonStatus](b, h.ok("daemon", "status", "-o", "json")).WebAddress
	for _, kept := range []bool{true, false} {
		name := "new connection"
		if kept {
			name = "kept connection"
		}
		b.Run(strings.ReplaceAll(name, " ", "_"), func(b *testing.B) {
			ways := map[string]*way{
				"direct":  {h: h, to: direct, host: "v", kept: kept},
				"forward": {h: h, to: forwarded, host: "v", kept: kept},
				"preview": {h: h, to: web, host: "8080.v.localhost", kept: kept},
			}
			for range 200 {
				for _, w := range ways {
					w.request(b)
				}
			}
			base := ways["direct"].median()
			b.ReportMetric(base, "direct-ms")
			b.ReportMetric(ways["forward"].median()-base, "forward-added-ms")
			b.ReportMetric(ways["preview"].median()-base, "preview-added-ms")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// way is one way to the server.
type way struct {
	h      *bridged
	to     string
	host   string
	kept   bool
	client *http.Client
	took   []time.Duration
}

func (w *way) request(b *testing.B) {
	b.Helper()
	if w.client == nil {
		w.client = &http.Client{Timeout: time.Minute, Transport: &http.Transport{
			DisableKeepAlives: !w.kept,
			DialContext: func(context.Context, string, string) (conn net.Conn, err error) {
				err = w.h.in.Host.Try(func() error {
					conn, err = net.DialTimeout("tcp", w.to, waitShort)
					return err
				})
				return conn, err
			}}}
	}
	start := time.Now()
	resp, err := w.client.Get("http://" + w.host + "/")
	if err != nil {
		b.Fatal(err)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusOK {
		b.Fatalf("%s: %d, %v", w.host, resp.StatusCode, err)
	}
	w.took = append(w.took, time.Since(start))
}

// median is in ms.
func (w *way) median() float64 {
	slices.Sort(w.took)
	return float64(w.took[len(w.took)/2].Microseconds()) / 1000
}
