package user

import (
	"context"
	"net"
	"net/netip"
	"slices"
)

// leadsToHost says whether a guest's destination is a port of the host's loopback that was let through to it.
func (p *Port) leadsToHost(dst netip.AddrPort) bool {
	return dst.Addr() == p.net.cfg.Gateway && dst.Port() != dnsPort && slices.Contains(p.vm.HostPorts, dst.Port())
}

// dialTCP connects to where a guest's connection leads.
func (p *Port) dialTCP(ctx context.Context, dst netip.AddrPort) (*net.TCPConn, error) {
	if p.leadsToHost(dst) {
		return p.net.cfg.Policy.DialHostTCP(ctx, dst.Port())
	}
	return p.net.cfg.Policy.DialTCP(ctx, dst)
}

// dialUDP is dialTCP for datagrams.
func (p *Port) dialUDP(ctx context.Context, dst netip.AddrPort) (*net.UDPConn, error) {
	if p.leadsToHost(dst) {
		return p.net.cfg.Policy.DialHostUDP(ctx, dst.Port())
	}
	return p.net.cfg.Policy.DialUDP(ctx, dst)
}
