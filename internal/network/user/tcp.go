package user

import (
	"context"
	"net"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// dialTimeout is how long a guest's connection may take to be accepted outside; then the guest is told.
const dialTimeout = 60 * time.Second

// forwardTCP answers a guest's SYN: the connection is first made outside, so that the guest sees a refusal as one. It runs
// in a goroutine of its own; the forwarder lets each guest have as many as may be half open and ignores further SYNs.
func (p *Port) forwardTCP(r *tcp.ForwarderRequest) {
	dst := local(r.ID())
	if dst.Addr() == p.net.cfg.Gateway && !p.leadsToHost(dst) {
		p.acceptDNS(r)
		return
	}
	if p.tcpFlows() >= p.net.sockets.share(maxTCP) || !p.net.sockets.take() {
		p.c.refused.Add(1)
		r.Complete(true)
		return
	}
	if err := p.allow("tcp", dst); err != nil {
		p.refused("tcp", dst, err)
		p.net.sockets.give()
		r.Complete(true)
		return
	}
	ctx, cancel := context.WithTimeout(p.ctx, dialTimeout)
	conn, err := p.dialTCP(ctx, dst)
	cancel()
	if err != nil {
		p.refused("tcp", dst, err)
		p.net.sockets.give()
		r.Complete(true)
		return
	}
	p.join(r, conn)
}

// drop resets a connection outside that was not relayed: it must not be taken for a conversation that ended.
func (p *Port) drop(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
	p.net.sockets.give()
}

// join completes the guest's handshake and relays between both connections.
func (p *Port) join(r *tcp.ForwarderRequest, conn *net.TCPConn) {
	// a guest that goes now leaves the stack waiting for a while; the socket must not wait with it
	stop := context.AfterFunc(p.ctx, func() { p.drop(conn) })
	wq := &waiter.Queue{}
	ep, terr := r.CreateEndpoint(wq)
	r.Complete(terr != nil)
	mine := stop()
	if terr != nil {
		if mine {
			p.drop(conn)
		}
		return
	}
	if !mine {
		ep.Abort()
		return
	}
	p.tuneEndpoint(ep)
	l, err := newRelay(p, ep, wq, conn)
	if err != nil || !p.addFlow(l) {
		ep.Abort()
		p.drop(conn)
		return
	}
	p.c.flows.Add(1)
	l.start()
}

// Buffers of a guest's connections, in bytes: the first few may fill the fastest path, so many that one guest never holds
// more than a quarter of a GiB or so in each direction.
const (
	fewFlows, manyFlows     = 32, 256
	manyBuffer, mostBuffers = 256 << 10, 64 << 10
)

// tuneEndpoint sets the options of a connection of the guest.
func (p *Port) tuneEndpoint(ep tcpip.Endpoint) {
	opts := ep.SocketOptions()
	switch n := p.tcpFlows(); {
	case n >= manyFlows:
		opts.SetSendBufferSize(mostBuffers, true)
		opts.SetReceiveBufferSize(mostBuffers, true)
	case n >= fewFlows:
		opts.SetSendBufferSize(manyBuffer, true)
		opts.SetReceiveBufferSize(manyBuffer, true)
	}
	opts.SetDelayOption(false)
	// a guest that was paused for a while must find its connections as it left them: patient, but not for ever
	opts.SetKeepAlive(true)
	idle, interval := tcpip.KeepaliveIdleOption(10*time.Minute), tcpip.KeepaliveIntervalOption(time.Minute)
	_ = ep.SetSockOpt(&idle)
	_ = ep.SetSockOpt(&interval)
	_ = ep.SetSockOptInt(tcpip.KeepaliveCountOption, 20)
}

// acceptDNS serves a guest's DNS connection; other ports of the gateway are closed.
func (p *Port) acceptDNS(r *tcp.ForwarderRequest) {
	if r.ID().LocalPort != dnsPort || p.net.cfg.DNS == nil {
		r.Complete(true)
		return
	}
	select {
	case p.dnsConns <- struct{}{}:
		defer func() { <-p.dnsConns }()
	default:
		r.Complete(true)
		return
	}
	wq := &waiter.Queue{}
	ep, terr := r.CreateEndpoint(wq)
	if terr != nil {
		r.Complete(true)
		return
	}
	r.Complete(false)
	p.serveDNS(gonet.NewTCPConn(wq, ep))
}
