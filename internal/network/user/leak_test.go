package user

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"
)

// TestNothingIsLeftOfConnections ends many connections in every way at once; all goroutines and sockets come back.
func TestNothingIsLeftOfConnections(t *testing.T) {
	o := &outside{tcp: map[uint16]string{80: serveTCP(t, endAnyhow)}}
	n := newNetwork(t, o)
	a, b := newGuest(t, n, 1), newGuest(t, n, 2)
	before := runtime.NumGoroutine()
	var all sync.WaitGroup
	for i := range 300 {
		g := a
		if i%3 == 0 {
			g = b
		}
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			c, err := g.dial(ctx, "203.0.113.5:80")
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(3 * time.Second))
			msg := make([]byte, rand.IntN(200_000))
			switch i % 5 {
			case 0:
				_, _ = c.Write(msg)
				_ = c.CloseWrite()
				_, _ = io.Copy(io.Discard, c)
			case 1:
				go func() { _, _ = io.Copy(io.Discard, c) }()
				_, _ = c.Write(msg)
			case 2:
				_, _ = c.Read(make([]byte, 1))
			case 3:
				_ = c.CloseRead()
				_, _ = c.Write(msg)
			}
			_ = c.Close()
		})
		if i == 200 {
			all.Go(func() { b.port.Close() })
		}
	}
	all.Wait()
	a.port.Close()
	eventuallyIn(t, 3*time.Minute, "all sockets come back", func() bool {
		n.sockets.mu.Lock()
		defer n.sockets.mu.Unlock()
		return n.sockets.free == n.sockets.size
	})
	// The stack gives up the handshake of a guest that has gone after six SYN-ACKs, more than a minute.
	eventuallyIn(t, 3*time.Minute, "all goroutines end", func() bool { return runtime.NumGoroutine() <= before })
}

// endAnyhow serves a connection and ends it in one of many ways.
func endAnyhow(c *net.TCPConn) {
	switch rand.IntN(5) {
	case 0:
		echoTCP(c)
	case 1:
		_ = c.SetLinger(0)
	case 2:
		_ = c.CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	case 3:
		_, _ = c.Write(make([]byte, rand.IntN(200_000)))
		_ = c.SetLinger(0)
	}
	_ = c.Close()
}
