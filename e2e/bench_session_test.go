//go:build e2e && bench

package e2e

import (
	"context"
	"net"
	"testing"
	"time"
)

// BenchmarkSession is the time from an attachment to a session until its first byte: by the command, and by the session's socket.
func BenchmarkSession(b *testing.B) {
	h := newHost(b)
	h.ok("vm", "run", "--name", "v", "--detach", "--wait", "full")
	h.ok("vm", "session", "start", "v", "--name", "s", "--stdin-mode", "pipe", "--", "sh", "-c", "echo ready; exec cat")
	socket := h.session("v", "s").Socket
	var command, raw []float64
	for range 3 * rounds {
		ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
		c := h.cmd(ctx, "vm", "session", "attach", "--no-stdin", "v", "s")
		out, err := c.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		if err := c.Start(); err != nil {
			b.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil {
			b.Fatal(err)
		}
		command = append(command, float64(time.Since(start).Microseconds())/1000)
		cancel()
		_ = c.Wait()

		start = time.Now()
		conn, err := net.Dial("unix", socket)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := conn.Write([]byte("x")); err != nil {
			b.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			b.Fatal(err)
		}
		raw = append(raw, float64(time.Since(start).Microseconds())/1000)
		_ = conn.Close()
	}
	b.ReportMetric(medianOf(command), "attach-ms")
	b.ReportMetric(medianOf(raw), "socket-echo-ms")
	b.ReportMetric(0, "ns/op")
}
