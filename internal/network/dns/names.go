package dns

import (
	"container/list"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

const (
	// maxAddrs is how many addresses are remembered of a VM, maxNames how many names of an address.
	maxAddrs, maxNames = 1024, 8
	// maxChain is how many names a chain of CNAMEs may have.
	maxChain = 16
)

// names remember which names the VMs got addresses from. The zero value is ready.
type names struct {
	mu  sync.Mutex // guards vms
	vms map[string]*addrs
}

// addrs are the addresses of one VM's answers.
type addrs struct {
	byAddr map[netip.Addr]*list.Element // of *learnt
	order  *list.List                   // oldest first
}

type learnt struct {
	addr  netip.Addr
	names []string // latest first
}

// NamesOf returns the names that a VM resolved to an address, in lower case and without the dot at the end:
// those it asked for and those of CNAMEs between, the latest first, at most eight. The last 1,024 addresses of a VM
// are remembered.
func (s *Server) NamesOf(vm string, addr netip.Addr) []string {
	s.names.mu.Lock()
	defer s.names.mu.Unlock()
	if a := s.names.vms[vm]; a != nil {
		if e := a.byAddr[addr.Unmap()]; e != nil {
			return slices.Clone(e.Value.(*learnt).names)
		}
	}
	return nil
}

// Forget forgets the names of a VM: it was deleted.
func (s *Server) Forget(vm string) {
	s.names.mu.Lock()
	defer s.names.mu.Unlock()
	delete(s.names.vms, vm)
}

// learn remembers the addresses in an answer to a question for them.
func (s *Server) learn(vm string, q *query, answer []byte) {
	if q.Qtype != dns.TypeA || len(answer) < headerSize || binary.BigEndian.Uint16(answer[6:]) == 0 {
		return
	}
	var m dns.Msg
	if err := m.Unpack(answer); err != nil || m.Rcode != dns.RcodeSuccess {
		return // the guest cannot read it either
	}
	chain, found := follow(q.name, m.Answer)
	if len(found) > 0 {
		s.names.add(vm, chain, found)
	}
}

// follow returns the names from name on along the CNAMEs in records, and the addresses of the last one.
func follow(name string, records []dns.RR) (chain []string, found []netip.Addr) {
	next := map[string]string{}
	for _, rr := range records {
		if c, ok := rr.(*dns.CNAME); ok {
			next[plain(c.Hdr.Name)] = plain(c.Target)
		}
	}
	for ok := true; ok && len(chain) < maxChain && !slices.Contains(chain, name); name, ok = next[name] {
		chain = append(chain, name)
	}
	for _, rr := range records {
		a, ok := rr.(*dns.A)
		if !ok || plain(a.Hdr.Name) != chain[len(chain)-1] {
			continue
		}
		if addr, ok := netip.AddrFromSlice(a.A); ok {
			found = append(found, addr.Unmap())
		}
	}
	return chain, found
}

func plain(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// add remembers that a VM has these addresses from these names.
func (n *names) add(vm string, chain []string, found []netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.vms == nil {
		n.vms = map[string]*addrs{}
	}
	a := n.vms[vm]
	if a == nil {
		a = &addrs{byAddr: map[netip.Addr]*list.Element{}, order: list.New()}
		n.vms[vm] = a
	}
	for _, addr := range found {
		e := a.byAddr[addr]
		if e == nil {
			e = a.order.PushBack(&learnt{addr: addr})
			a.byAddr[addr] = e
		}
		a.order.MoveToBack(e)
		l := e.Value.(*learnt)
		all := append(slices.Clone(chain), l.names...)
		l.names = l.names[:0:0]
		for _, name := range all {
			if len(l.names) < maxNames && !slices.Contains(l.names, name) {
				l.names = append(l.names, name)
			}
		}
	}
	for a.order.Len() > maxAddrs {
		oldest := a.order.Remove(a.order.Front()).(*learnt)
		delete(a.byAddr, oldest.addr)
	}
}
