package fakeguest

import (
	"context"
	"net"
	"net/netip"
	"sync"

	"git.thaloco.com/thaloco/banger/internal/guest/guestapi"
	"git.thaloco.com/thaloco/banger/internal/guest/tunnel"
)

// dialServer carries connections to the guest's ports, which are those of the host's loopback.
type dialServer struct {
	server tunnel.Server
	ctx    context.Context
	cancel context.CancelFunc

	mu    sync.Mutex // guards what follows, against a connection that comes at the end
	ended bool
	conns sync.WaitGroup
}

func newDialServer() *dialServer {
	s := &dialServer{server: tunnel.Server{UDPListeners: loopbackListeners, Addresses: func() []netip.Addr { return nil }}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// loopbackListeners leaves out the UDP sockets of the host's own addresses.
func loopbackListeners() ([]netip.AddrPort, error) {
	all, err := guestapi.UDPListeners()
	var out []netip.AddrPort
	for _, l := range all {
		if l.Addr().IsLoopback() || l.Addr().IsUnspecified() {
			out = append(out, l)
		}
	}
	return out, err
}

// accept serves a connection; false where the guest is ending.
func (s *dialServer) accept(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.conns.Go(func() { _ = s.server.Serve(s.ctx, conn) }) // who could not connect knows
	return true
}

// close ends all connections.
func (s *dialServer) close() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.cancel()
	s.conns.Wait()
}
