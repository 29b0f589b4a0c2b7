package dns

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

const (
	// zone is the domain of the VMs.
	zone = "vm"
	// hostForDocker is what programs made for Docker's desktop call the host.
	hostForDocker = "host.docker.internal"
	// ttl is how long a guest may keep a VM's address, in seconds: a VM may be deleted and its name be used again.
	ttl = 10
	// ttlFixed is that of what never changes.
	ttlFixed = 3600
)

// infrastructure are the types that resolvers in a guest ask of a top-level domain to find and to verify what is
// below it; they go outside also where a VM has the domain's name.
var infrastructure = []uint16{dns.TypeNS, dns.TypeSOA, dns.TypeDS, dns.TypeDNSKEY}

// local answers what is answered without asking outside; nil for the rest.
func (s *Server) local(q *query) []byte {
	labels := dns.SplitDomainName(q.name)
	if len(labels) == 0 { // the root
		return nil
	}
	if q.name == hostForDocker {
		return q.address(s.cfg.Gateway, ttl)
	}
	switch labels[len(labels)-1] {
	case zone:
		return s.inZone(q, labels[:len(labels)-1])
	case "localhost": // RFC 6761 section 6.3
		return q.address(netip.AddrFrom4([4]byte{127, 0, 0, 1}), ttlFixed)
	case "invalid", "onion": // RFC 6761 section 6.4, RFC 7686
		return q.noName()
	}
	if out, ours := s.reverse(q, labels); ours {
		return out
	}
	switch {
	case len(labels) == 1 && slices.Contains(infrastructure, q.Qtype):
		return nil
	case len(labels) == 1:
		return s.vm(q, labels[0])
	case q.Qtype == dns.TypeANY: // RFC 8482 section 4.2
		return q.answer(&dns.HINFO{Hdr: q.owner(dns.TypeHINFO, ttlFixed), Cpu: "RFC8482"})
	}
	return nil
}

// inZone answers for the names below .vm; labels are those before it.
func (s *Server) inZone(q *query, labels []string) []byte {
	switch len(labels) {
	case 0:
		return q.answer() // it is there, and holds nothing of its own
	case 1:
		if labels[0] == "banger" { // no VM has this name; host is below it
			return q.answer()
		}
		return s.vm(q, labels[0])
	case 2:
		if labels[0] == "host" && labels[1] == "banger" {
			return q.address(s.cfg.Gateway, ttl)
		}
	}
	return q.noName()
}

// vm answers for the VM of this name.
func (s *Server) vm(q *query, name string) []byte {
	if name == "gateway" || name == "host" { // no VM has these names
		return q.address(s.cfg.Gateway, ttl)
	}
	addr, ok := s.cfg.Lookup(name)
	if !ok {
		return q.noName()
	}
	return q.address(addr, ttl)
}

// address answers for a name that has this address and nothing else.
func (q *query) address(addr netip.Addr, ttl uint32) []byte {
	if q.Qtype != dns.TypeA && q.Qtype != dns.TypeANY || !addr.Is4() {
		return q.answer()
	}
	return q.answer(&dns.A{Hdr: q.owner(dns.TypeA, ttl), A: addr.AsSlice()})
}

// reverse answers for the names of the guests' addresses and of the loopback network; ours is false for others.
func (s *Server) reverse(q *query, labels []string) (out []byte, ours bool) {
	n := len(labels)
	if n < 3 || labels[n-1] != "arpa" || labels[n-2] != "in-addr" {
		return nil, false
	}
	labels = labels[:n-2]
	var octets [4]byte
	known := min(len(labels), len(octets))
	for i := range known {
		octet, err := strconv.ParseUint(labels[len(labels)-1-i], 10, 8)
		if err != nil {
			return nil, false
		}
		octets[i] = byte(octet)
	}
	addr := netip.AddrFrom4(octets)
	inside := s.cfg.CIDR.Contains(addr) && known*8 >= s.cfg.CIDR.Bits()
	switch {
	case !inside && octets[0] != 127:
		return nil, false
	case len(labels) < len(octets):
		return q.answer(), true // names are below it
	case len(labels) > len(octets):
		return q.noName(), true
	}
	name, ok := s.nameOf(addr)
	switch {
	case !ok:
		return q.noName(), true
	case q.Qtype != dns.TypePTR && q.Qtype != dns.TypeANY:
		return q.answer(), true
	}
	return q.answer(&dns.PTR{Hdr: q.owner(dns.TypePTR, ttl), Ptr: name}), true
}

// nameOf is the name of an address, with the dot at its end.
func (s *Server) nameOf(addr netip.Addr) (string, bool) {
	switch {
	case addr == netip.AddrFrom4([4]byte{127, 0, 0, 1}):
		return "localhost.", true
	case addr.IsLoopback():
		return "", false
	case addr == s.cfg.Gateway:
		return "gateway." + zone + ".", true
	}
	name, ok := s.cfg.Reverse(addr)
	return strings.ToLower(name) + "." + zone + ".", ok
}
