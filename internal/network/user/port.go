package user

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"git.thaloco.com/thaloco/banger/internal/network/egress"
)

// Port is where a VM is attached to the network.
type Port struct {
	net  *Network
	vm   VM
	mac  [6]byte
	ip4  [4]byte
	out  *queue
	tcp  *tcp.Forwarder
	udp  udpTable
	ping pingTable
	// dns has a token for each question being answered, dnsConns one for each DNS connection.
	dns, dnsConns chan struct{}

	ctx    context.Context // ends with the port
	cancel context.CancelFunc
	ended  sync.Once
	done   chan struct{}
	since  time.Time

	plugging sync.Mutex // held while a link takes the place of another

	mu     sync.Mutex
	closed bool                 // guarded by mu
	plug   *plug                // guarded by mu: the last link, nil before the first
	expiry *time.Timer          // guarded by mu: of the last link that was lost
	flows  map[aborter]struct{} // guarded by mu: TCP connections
	told   map[string]struct{}  // guarded by mu: rules that the log has refused a flow by, at most maxTold
	c      counters
}

// aborter is a connection that can be reset.
type aborter interface{ abort() }

type counters struct {
	framesIn, bytesIn, framesOut, bytesOut, invalid, overrun, flows, refused atomic.Uint64
}

// handOver is the size in bytes from which a frame keeps the buffer it was read into; smaller ones are copied, so that
// they do not hold a buffer of 64 KiB while they wait.
const handOver = 24 << 10

func newPort(n *Network, vm VM) *Port {
	p := &Port{
		net: n, vm: vm, mac: [6]byte(vm.MAC), ip4: vm.Addr.As4(), out: newQueue(), done: make(chan struct{}), since: time.Now(),
		dns: make(chan struct{}, maxDNS), dnsConns: make(chan struct{}, maxDNSConns), flows: map[aborter]struct{}{},
		told: map[string]struct{}{},
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.tcp = tcp.NewForwarder(n.stack.stack, 0, n.sockets.share(maxHalfOpen), p.forwardTCP)
	p.udp.flows, p.ping.flows = map[udpKey]*udpFlow{}, map[pingKey]*pingFlow{}
	return p
}

// Done is closed once the VM is detached: Close was called, or its link ended and no other came in time.
func (p *Port) Done() <-chan struct{} { return p.done }

// farewell is how long a guest may take to be sent the resets of its connections when its port is closed.
const farewell = 100 * time.Millisecond

// Close detaches the VM, resets its connections and closes its link. A guest that only receives would not learn of their end by
// itself: the resets reach it before its link goes, if it takes them at once. It may be called twice.
func (p *Port) Close() {
	p.ended.Do(func() {
		p.cancel()
		p.mu.Lock()
		p.closed = true
		l, flows := p.plug, p.flows
		p.flows = nil
		if p.expiry != nil {
			p.expiry.Stop()
		}
		p.mu.Unlock()
		for f := range flows {
			f.abort()
		}
		p.net.remove(p)
		p.udp.close()
		p.ping.close()
		if l != nil {
			p.out.settle(l.ended, farewell)
			l.close()
		}
		p.out.close()
		close(p.done)
	})
	<-p.done
}

// Stats returns the port's counters.
func (p *Port) Stats() Stats {
	p.mu.Lock()
	open := len(p.flows)
	p.mu.Unlock()
	return Stats{
		Since:           p.since,
		FramesFromGuest: p.c.framesIn.Load(), BytesFromGuest: p.c.bytesIn.Load(),
		FramesToGuest: p.c.framesOut.Load(), BytesToGuest: p.c.bytesOut.Load(),
		Invalid: p.c.invalid.Load(), Overrun: p.c.overrun.Load(), Flows: p.c.flows.Load(), Refused: p.c.refused.Load(),
		OpenTCP: open, OpenUDP: p.udp.open(),
	}
}

// send queues a frame for the guest.
func (p *Port) send(f outFrame) {
	if !p.out.put(f) {
		p.c.overrun.Add(1)
	}
}

// sendWhole queues a copy of a whole frame.
func (p *Port) sendWhole(frame []byte) {
	p.send(outFrame{whole: buffer.NewViewWithData(frame)})
}

// addFlow enters a TCP connection; false where the port was closed or has too many.
func (p *Port) addFlow(f aborter) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.flows) >= p.net.sockets.share(maxTCP) {
		return false
	}
	p.flows[f] = struct{}{}
	return true
}

func (p *Port) removeFlow(f aborter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.flows, f)
}

// tcpFlows is how many TCP connections are open.
func (p *Port) tcpFlows() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.flows)
}

// allow asks whoever may refuse a flow before anything of the host is asked.
func (p *Port) allow(proto string, dst netip.AddrPort) error {
	if p.net.cfg.CIDR.Contains(dst.Addr()) && !p.leadsToHost(dst) {
		return &egress.RefusedError{Dst: dst, Rule: "banger's own network"} // the switch lets none through
	}
	if p.net.cfg.Allow == nil {
		return nil
	}
	f := Flow{VM: p.vm.ID, Name: p.vm.Name, Proto: proto, Dst: dst}
	if p.net.cfg.Names != nil {
		f.Names = p.net.cfg.Names(p.vm.ID, dst.Addr())
	}
	if err := p.net.cfg.Allow(f); err != nil {
		return &egress.RefusedError{Dst: dst, Rule: err.Error()}
	}
	return nil
}

// refused counts a flow that was not let out; true where a rule forbade it, rather than the way there.
func (p *Port) refused(proto string, dst netip.AddrPort, err error) bool {
	var r *egress.RefusedError
	if !errors.As(err, &r) {
		return false
	}
	p.c.refused.Add(1)
	level := slog.LevelDebug
	if p.firstBy(r.Rule) {
		level = slog.LevelInfo
	}
	p.net.log.Log(p.ctx, level, "flow refused", "vm", p.vm.Name, "id", p.vm.ID, "proto", proto, "dst", dst.String(), "rule", r.Rule)
	return true
}

// maxTold is how many rules a port's refusals are told by, each once: a guest must not fill the log.
const maxTold = 16

// firstBy reports whether a flow is refused by a rule for the first time. Its user, who sees a connection refused, may look why.
func (p *Port) firstBy(rule string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, told := p.told[rule]; told || len(p.told) >= maxTold {
		return false
	}
	p.told[rule] = struct{}{}
	return true
}
