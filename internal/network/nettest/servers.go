package nettest

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
)

// serve starts what listens outside.
func (in *Internet) serve(t testing.TB) {
	t.Helper()
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "hello from %s %s\n", r.Host, r.URL.Path) // whoever asks sees what is missing
	})}
	l := in.listen(t, HTTP)
	go func() { _ = web.Serve(l) }()
	t.Cleanup(func() { _ = web.Close() })

	in.handle(t, Echo, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	in.handle(t, PrivatePeer, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	in.handle(t, Discard, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
	in.handle(t, Chargen, chargen)
	in.handle(t, Silent, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
	in.handle(t, Reset, func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.SetLinger(0)
	})
	in.echoUDP(t)
	in.serveDNS(t)
}

// listen listens outside until the test ends.
func (in *Internet) listen(t testing.TB, a netip.AddrPort) net.Listener {
	t.Helper()
	var l net.Listener
	in.Outside.Do(t, func() (err error) {
		l, err = net.Listen("tcp4", a.String())
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// listenPacket is listen for UDP.
func (in *Internet) listenPacket(t testing.TB, a netip.AddrPort) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	in.Outside.Do(t, func() (err error) {
		c, err = net.ListenPacket("udp4", a.String())
		return err
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// handle accepts connections and closes each once serve returns; those that are open when the test ends are closed then.
func (in *Internet) handle(t testing.TB, a netip.AddrPort, serve func(*net.TCPConn)) {
	t.Helper()
	l := in.listen(t, a)
	var mu sync.Mutex
	open := map[net.Conn]bool{} // guarded by mu
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		for c := range open {
			_ = c.Close()
		}
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			go func() {
				serve(c.(*net.TCPConn))
				mu.Lock()
				delete(open, c)
				mu.Unlock()
				_ = c.Close()
			}()
		}
	}()
}

// chargen writes zeros until the other side has had enough.
func chargen(c *net.TCPConn) {
	block := make([]byte, 256<<10)
	for {
		if _, err := c.Write(block); err != nil {
			return
		}
	}
}

// echoUDP sends every datagram back.
func (in *Internet) echoUDP(t testing.TB) {
	t.Helper()
	c := in.listenPacket(t, Echo)
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(buf[:n], from) // lost, as a datagram may be
		}
	}()
}
