package dns

import (
	"context"
	"errors"
	"net/netip"

	"github.com/miekg/dns"
)

// errNoResolver says that the host names no resolver.
var errNoResolver = errors.New("the host has no resolver")

// forward answers a question as the host's resolvers do: from what one said lately, or by handing it to them.
func (s *Server) forward(ctx context.Context, vm string, q *query) []byte {
	up := s.resolvs.inOrder()
	key, known := q.key()
	if known {
		now := s.cfg.Now()
		if a := s.cache.get(key, up.generation, now); a != nil {
			return q.deliver(a.to(q, now))
		}
	}
	if !s.acquire(ctx, vm) {
		return q.fail(dns.RcodeServerFailure, dns.ExtendedErrorCodeOther, "too many questions wait for an answer")
	}
	defer s.release(vm)
	if len(up.list) == 0 {
		s.tell(vm, errNoResolver)
		return q.fail(dns.RcodeServerFailure, dns.ExtendedErrorCodeNetworkError, "the host has no resolver: neither resolv.conf nor default_dns names one")
	}
	var answer []byte
	var err error
	if known {
		answer, err = s.askOnce(ctx, key, up, q)
	} else {
		answer, err = s.askAll(ctx, up.list, q)
	}
	if ctx.Err() != nil {
		return nil
	}
	s.tell(vm, err)
	if err != nil {
		return q.fail(dns.RcodeServerFailure, dns.ExtendedErrorCodeNoReachableAuthority, "the host's resolvers do not answer")
	}
	return q.deliver(answer)
}

// deliver makes a resolver's answer one for the guest.
func (q *query) deliver(answer []byte) []byte {
	if q.Qtype == dns.TypeAAAA && answer[3]&0xf == dns.RcodeSuccess {
		return q.withoutAddresses(answer)
	}
	return q.fit(answer)
}

// withoutAddresses is an answer that keeps nothing of another but the names its question leads to.
func (q *query) withoutAddresses(answer []byte) []byte {
	m := new(dns.Msg)
	if err := m.Unpack(answer); err != nil {
		return q.fail(dns.RcodeServerFailure, dns.ExtendedErrorCodeOther, "the host's resolver sent no DNS message")
	}
	out := q.reply(dns.RcodeSuccess)
	for _, rr := range m.Answer {
		if rr.Header().Rrtype == dns.TypeCNAME {
			out.Answer = append(out.Answer, rr)
		}
	}
	return q.pack(out)
}

// askAll asks one resolver after the other. One that cannot help, which is not the same as that there is no such
// name, is followed by the next as in glibc; where none can, its answer stands.
func (s *Server) askAll(ctx context.Context, upstreams []netip.AddrPort, q *query) ([]byte, error) {
	var (
		helpless []byte
		errs     []error
	)
	for _, up := range upstreams {
		answer, err := s.ask(ctx, up, q)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		switch int(answer[3] & 0xf) {
		case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented:
			if helpless == nil {
				helpless = answer
			}
			continue
		}
		s.resolvs.prefer(up)
		return answer, nil
	}
	if helpless != nil {
		return helpless, nil
	}
	return nil, errors.Join(errs...)
}

// tell logs that names cannot be resolved, once until one can be again.
func (s *Server) tell(vm string, err error) {
	s.mu.Lock()
	was := s.failing
	s.failing = err != nil
	s.mu.Unlock()
	switch {
	case err != nil && !was:
		s.cfg.Log.Warn("guests cannot resolve names", "vm", vm, "error", err)
	case err == nil && was:
		s.cfg.Log.Info("guests can resolve names again", "vm", vm)
	}
}
