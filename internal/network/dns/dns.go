// Package dns is the resolver guests ask: it answers for the VMs by name and by
// address, and hands everything else, as it came, to the host's resolvers. It
// reads and writes messages only; whoever owns the guest's network carries them.
//
// What is never asked outside: names below .vm, names of one label (but for what
// the DNS itself needs), the addresses of the guests' network, and names that
// RFC 6761 and RFC 7686 keep out of the DNS. host.banger.vm and host.docker.internal are
// the host, as far as a VM is let through to it: the gateway's address.
//
// What the resolvers say is kept for as long as they allow, a day at most, and that there is no such name or
// record for five minutes at most; whoever asks the same while a question is on its way waits for that one's answer. What one guest
// has asked another can tell by the time an answer takes, as with every resolver that is shared. When the host's resolvers change
// all is forgotten.
//
// IPv6 does not leave a guest yet, so the addresses are taken out of answers to AAAA.
// The question is asked all the same: whether there is such a name, and whether a resolver
// could tell, must come out the same for AAAA as for A, or glibc makes of a resolver that is
// down (EAI_AGAIN) a name without addresses (EAI_NODATA). SVCB and HTTPS pass with their
// ipv6hint: a guest without a route of IPv6 does not use it, and an edited record
// would break its signature.
//
// The files: dns.go has the Server and what it does with a message, query.go reads
// and answers one, zone.go knows what is answered here, forward.go asks the
// others, turns.go says who may when, cache.go keeps what they said, exchange.go is one question to one resolver, resolvconf.go finds them,
// names.go remembers which names a VM has the addresses from.
package dns

import (
	"container/list"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxUDP is the greatest answer by UDP in bytes: what fits every path without fragments (DNS flag day 2020).
	maxUDP = 1232
	// maxQuery is the greatest query that is read, in bytes. Real ones are below 600.
	maxQuery = 4096
	// maxPerVM and maxInFlight bound the questions that wait for resolvers, of one VM and of all.
	maxPerVM, maxInFlight = 64, 512
	// maxTurns and maxTurnsAll bound those that wait for their turn to be asked: a busy guest is answered later, not refused.
	maxTurns, maxTurnsAll = 1024, 4096
)

// Config is what a Server is made of. All fields are required but those with a default.
type Config struct {
	// Gateway is the address gateway.vm and host.vm have.
	Gateway netip.Addr
	// CIDR are the guests' addresses, IPv4.
	CIDR netip.Prefix
	// Lookup finds the address of the VM of a name, in lower case and without ".vm". Reverse finds its name.
	Lookup  func(name string) (netip.Addr, bool)
	Reverse func(addr netip.Addr) (string, bool)
	// Upstreams are the resolvers to ask, in this order; none for those ResolvConf names.
	Upstreams []netip.AddrPort
	// ResolvConf is a file as resolv.conf(5) describes it; empty for /etc/resolv.conf. It is read again when it changes.
	ResolvConf string
	// Dial connects to a resolver; network is "udp" or "tcp". Nil for the host's own sockets.
	Dial func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)
	Log  *slog.Logger
	// Now is the clock; nil for time.Now.
	Now func() time.Time
}

// Server answers guests. It may be used by several goroutines at once and has nothing to close.
type Server struct {
	cfg      Config
	resolvs  resolvers
	names    names
	cache    cache
	within   time.Duration  // answersWithin
	mu       sync.Mutex     // guards what follows
	inFlight map[string]int // questions that wait, by VM; no entry for 0
	total    int
	turns    list.List      // of *turn: questions that wait to be asked, the first is the oldest
	waiting  map[string]int // how many turns a VM has; no entry for 0
	failing  bool           // the last question to go outside brought no answer, which was logged
}

// New returns a Server.
func New(cfg Config) *Server {
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = "/etc/resolv.conf"
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Dial == nil {
		var d net.Dialer
		cfg.Dial = func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
			return d.DialContext(ctx, network, to.String())
		}
	}
	return &Server{
		cfg:      cfg,
		resolvs:  resolvers{fixed: cfg.Upstreams, path: cfg.ResolvConf, now: cfg.Now},
		within:   answersWithin,
		inFlight: map[string]int{},
		waiting:  map[string]int{},
	}
}

// Answer answers a message of a VM, which came by UDP or by TCP (there without its length). Nil is no answer: to
// what is no question, and when ctx ends. An answer by UDP has at most 1,232 bytes, or what the guest says it takes
// where that is less. It takes some seconds where the host's resolvers are slow: call it in a goroutine of its own.
func (s *Server) Answer(ctx context.Context, vm string, udp bool, msg []byte) []byte {
	q, reply := readQuery(msg, udp)
	if q == nil {
		return reply
	}
	out := s.refuse(q)
	if out == nil {
		out = s.local(q)
	}
	if out == nil {
		out = s.forward(ctx, vm, q)
	}
	if ctx.Err() != nil {
		return nil
	}
	s.learn(vm, q, out)
	return out
}

// refuse answers what a resolver for hosts does not do; nil for the rest.
func (s *Server) refuse(q *query) []byte {
	switch {
	case q.edns != nil && q.edns.Version() != 0:
		return q.fail(dns.RcodeBadVers, noCode, "")
	case q.Qclass != dns.ClassINET: // version.bind in class CH and the like
		return q.fail(dns.RcodeRefused, noCode, "")
	case q.Qtype == dns.TypeAXFR || q.Qtype == dns.TypeIXFR || q.Qtype == dns.TypeMAILA || q.Qtype == dns.TypeMAILB:
		return q.fail(dns.RcodeRefused, noCode, "")
	}
	return nil
}
