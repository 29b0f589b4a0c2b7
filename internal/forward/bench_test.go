package forward

import (
	"io"
	"net"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

// BenchmarkForward is what a forward adds to a connection with one request and its answer, and to each further request, over one that goes
// to the server directly. The way into the guest is not in it.
func BenchmarkForward(b *testing.B) {
	server := listen(b, echo)
	s := newService(b)
	through := open(b, s, "web", api.Forward{GuestPort: 1}, dialTo(map[uint16]string{1: server})).String()
	b.Run("connection", func(b *testing.B) {
		measure(b, server, through, func(b *testing.B, to string) {
			conn := dialBench(b, to)
			exchange(b, conn)
			conn.Close()
		})
	})
	b.Run("request", func(b *testing.B) {
		conns := map[string]net.Conn{server: dialBench(b, server), through: dialBench(b, through)}
		measure(b, server, through, func(b *testing.B, to string) { exchange(b, conns[to]) })
		for _, c := range conns {
			c.Close()
		}
	})
}

// measure does work directly and through the forward in turn, and reports the difference.
func measure(b *testing.B, direct, through string, work func(b *testing.B, to string)) {
	var spent [2]time.Duration
	for b.Loop() {
		for i, to := range []string{direct, through} {
			start := time.Now()
			work(b, to)
			spent[i] += time.Since(start)
		}
	}
	added := float64(spent[1]-spent[0]) / float64(b.N) / float64(time.Microsecond)
	b.ReportMetric(added, "added-µs/op")
}

func dialBench(b *testing.B, to string) net.Conn {
	conn, err := net.Dial("tcp", to)
	if err != nil {
		b.Fatal(err)
	}
	return conn
}

func exchange(b *testing.B, conn net.Conn) {
	var buf [64]byte
	if _, err := conn.Write(buf[:]); err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(conn, buf[:]); err != nil {
		b.Fatal(err)
	}
}
