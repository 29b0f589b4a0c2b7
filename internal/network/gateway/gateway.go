// Package gateway is what bangerd serves at the bridge's address in bridge mode: DNS, and the ports of the host's loopback that
// a VM is let through to. The rules of the bridge (package bridge) lead there what guests send to the gateway's other ports.
//
// A guest is hostile: what one may have open is bounded, and so is what all may. dns.go serves questions, proxy.go connections.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"git.thaloco.com/thaloco/banger/api"
)

// Answerer answers DNS messages (dns.Server).
type Answerer interface {
	// Answer returns the answer to msg, cut to what UDP takes where udp is true; nil for none.
	Answer(ctx context.Context, vm string, udp bool, msg []byte) []byte
}

// Config is what a Gateway needs. Every field is required.
type Config struct {
	// Address is the bridge's. DNSPort and ProxyPort are its ports that questions, and connections to ports of the host, are led to.
	Address            netip.Addr
	DNSPort, ProxyPort uint16
	DNS                Answerer
	// VM finds the VM that has an address.
	VM func(netip.Addr) (id string, ok bool)
	// HostPort tells whether a VM is let through to a port of the host's loopback.
	HostPort func(id string, port uint16) bool
	// Destination is where a connection was going before it was led here.
	Destination func(*net.TCPConn) (netip.AddrPort, error)
	Log         *slog.Logger
}

// Limits, of one address and of all together.
const (
	maxQuestions, maxQuestionsAll     = 1088, 4608 // most of which may wait for their turn (dns.Server)
	maxDNSConns, maxDNSConnsAll       = 16, 256
	maxConnections, maxConnectionsAll = 1024, 4096
)

// Gateway is the open listeners.
type Gateway struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	udp    *net.UDPConn
	tcp    *net.TCPListener
	proxy  *net.TCPListener
	tasks  sync.WaitGroup

	questions, dnsConns, connections *limiter
}

// Listen opens the listeners and serves them until Close.
func Listen(cfg Config) (_ *Gateway, err error) {
	g := &Gateway{cfg: cfg, questions: newLimiter(maxQuestions, maxQuestionsAll), dnsConns: newLimiter(maxDNSConns, maxDNSConnsAll),
		connections: newLimiter(maxConnections, maxConnectionsAll)}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			g.Close()
		}
	}()
	dns, proxy := netip.AddrPortFrom(cfg.Address, cfg.DNSPort), netip.AddrPortFrom(cfg.Address, cfg.ProxyPort)
	if g.udp, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(dns)); err != nil {
		return nil, explain(dns, err)
	}
	if g.tcp, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(dns)); err != nil {
		return nil, explain(dns, err)
	}
	if g.proxy, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(proxy)); err != nil {
		return nil, explain(proxy, err)
	}
	g.tasks.Go(g.serveUDP)
	g.tasks.Go(func() { g.accept(g.tcp, g.dnsConns, g.serveDNS) })
	g.tasks.Go(func() { g.accept(g.proxy, g.connections, g.serveProxy) })
	return g, nil
}

func explain(at netip.AddrPort, err error) error {
	switch {
	case errors.Is(err, errNoAddress):
		return api.Errorf(api.KindUnavailable, "serve the bridge at %s: the host has no such address", at).WithHint("sudo banger net setup")
	case errors.Is(err, errInUse):
		return api.Errorf(api.KindConflict, "serve the bridge at %s: another process has this port, perhaps the daemon of another user", at).
			WithHint("ss -lnp src %s   # says which", at)
	}
	return fmt.Errorf("serve the bridge: %w", err)
}

// Close ends everything that is open.
func (g *Gateway) Close() {
	g.cancel()
	if g.udp != nil {
		_ = g.udp.Close() // questions have no last word
	}
	for _, l := range []*net.TCPListener{g.tcp, g.proxy} {
		if l != nil {
			_ = l.Close()
		}
	}
	g.tasks.Wait()
}

// peerID is the VM that has an address; the host itself, which may ask for names, is the empty one.
func (g *Gateway) peerID(a netip.Addr) (id string, ok bool) {
	if a = a.Unmap(); a == g.cfg.Address || a.IsLoopback() {
		return "", true
	}
	return g.cfg.VM(a)
}

// limiter counts what is open, by address.
type limiter struct {
	each, all int

	mu    sync.Mutex
	open  map[netip.Addr]int // guarded by mu
	total int                // guarded by mu
}

func newLimiter(each, all int) *limiter {
	return &limiter{each: each, all: all, open: map[netip.Addr]int{}}
}

// take takes a place for an address; false where it has too many, or all have.
func (l *limiter) take(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[a] >= l.each || l.total >= l.all {
		return false
	}
	l.open[a]++
	l.total++
	return true
}

func (l *limiter) give(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.open[a]--; l.open[a] == 0 {
		delete(l.open, a)
	}
}
