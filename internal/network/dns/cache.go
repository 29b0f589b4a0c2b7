package dns

import (
	"bytes"
	"container/list"
	"context"
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxEntries and maxBytes bound what the cache holds; of each entry entryBytes count beside the message.
	maxEntries, maxBytes, entryBytes = 4096, 4 << 20, 256
	// maxPositive and maxNegative are how long an answer is kept at most, and that there is none (RFC 2308 section 5
	// would allow some hours).
	maxPositive, maxNegative = 24 * time.Hour, 5 * time.Minute
)

// Bits of a message's third and fourth byte, and of an OPT record's TTL.
const (
	bitRD  = 0x01
	bitsOf = 0x30 // AD and CD
	bitDO  = 1 << 15
)

// cacheKey is what an answer depends on.
type cacheKey struct {
	name          string // in lower case
	qtype, qclass uint16
	bits          byte // AD and CD
	dnssec        bool // the bit DO
}

// key is what the answer to q depends on; ok is false where that is more than a key holds. Questions with options (a client's subnet,
// a cookie), with a signature, that ask for no recursion, or of a type that is for one asker only, are nobody else's.
func (q *query) key() (_ cacheKey, ok bool) {
	if q.raw[2] != bitRD || q.raw[3]&^bitsOf != 0 || q.questionEnd() == 0 {
		return cacheKey{}, false
	}
	if q.Qtype >= 128 && q.Qtype <= 255 || q.Qtype == dns.TypeOPT { // RFC 6895 section 3.1: QTYPEs and meta types
		return cacheKey{}, false
	}
	k := cacheKey{name: q.name, qtype: q.Qtype, qclass: q.Qclass, bits: q.raw[3]}
	switch {
	case len(q.msg.Extra) == 0:
		return k, true
	case len(q.msg.Extra) > 1 || q.edns == nil || len(q.edns.Option) > 0 || q.edns.Hdr.Ttl&^bitDO != 0:
		return cacheKey{}, false
	}
	k.dnssec = q.edns.Do()
	return k, true
}

// questionEnd is where the question ends in the message; 0 where its name is not written plainly.
func (q *query) questionEnd() int {
	for at := headerSize; at < len(q.raw); at += 1 + int(q.raw[at]) {
		switch {
		case q.raw[at] == 0 && at+5 <= len(q.raw):
			return at + 5
		case q.raw[at] == 0 || q.raw[at] > 63:
			return 0
		}
	}
	return 0
}

// shared is a resolver's answer in a form that serves everybody who asks the same. It is not changed any more.
type shared struct {
	wire []byte // without an OPT record
	ttls []int  // where in wire the TTLs are
	// keep is how long it is good for from at on; 0 for those only who waited for it.
	keep time.Duration
	at   time.Time
}

// share makes a resolver's answer one for everybody; nil where it is not to be understood.
func share(answer []byte, at time.Time) *shared {
	m := new(dns.Msg)
	if err := m.Unpack(answer); err != nil || len(m.Question) != 1 || m.Rcode > 0xf {
		return nil
	}
	m.Extra = withoutOPT(m.Extra)
	m.Compress = true
	wire, err := m.Pack()
	if err != nil {
		return nil
	}
	ttls, ok := findTTLs(wire)
	if !ok {
		return nil
	}
	a := &shared{wire: wire, ttls: ttls, at: at}
	if len(wire) <= len(answer) { // else it was written tighter than we can, and may not fit where it did
		a.keep = keepFor(m)
	}
	return a
}

// keepFor is how long an answer may be kept.
func keepFor(m *dns.Msg) time.Duration {
	if m.Truncated || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return 0
	}
	least := uint32(maxPositive / time.Second)
	found := false
	for _, rr := range m.Answer {
		found = found || rr.Header().Rrtype == m.Question[0].Qtype
	}
	if !found || m.Rcode == dns.RcodeNameError {
		least = uint32(maxNegative / time.Second)
		var soa *dns.SOA
		for _, rr := range m.Ns {
			if s, ok := rr.(*dns.SOA); ok {
				soa = s
			}
		}
		if soa == nil { // RFC 2308 section 5: nobody said for how long
			return 0
		}
		least = min(least, soa.Minttl)
	}
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			ttl := rr.Header().Ttl
			if ttl > 1<<31-1 { // RFC 2181 section 8
				ttl = 0
			}
			least = min(least, ttl)
		}
	}
	return time.Duration(least) * time.Second
}

// findTTLs returns where the TTLs of a message of one question are.
func findTTLs(wire []byte) (ttls []int, ok bool) {
	at := skipName(wire, headerSize) + 4
	records := int(binary.BigEndian.Uint16(wire[6:])) + int(binary.BigEndian.Uint16(wire[8:])) + int(binary.BigEndian.Uint16(wire[10:]))
	for range records {
		at = skipName(wire, at)
		if at+10 > len(wire) {
			return nil, false
		}
		ttls = append(ttls, at+4)
		at += 10 + int(binary.BigEndian.Uint16(wire[at+8:]))
	}
	return ttls, at == len(wire)
}

// skipName is where what follows a name begins; beyond the message where that is cut.
func skipName(wire []byte, at int) int {
	for at < len(wire) {
		switch n := int(wire[at]); {
		case n == 0:
			return at + 1
		case n >= 0xc0:
			return at + 2
		default:
			at += 1 + n
		}
	}
	return len(wire) + 1
}

// to is the answer for one who asks q: under its id, with the name as it wrote it, EDNS if it speaks that, and the time that is left.
func (a *shared) to(q *query, now time.Time) []byte {
	out := append(make([]byte, 0, len(a.wire)+11), a.wire...)
	copy(out, q.raw[:2])
	copy(out[headerSize:], q.raw[headerSize:q.questionEnd()])
	age := uint32(max(0, min(now.Sub(a.at), maxPositive)) / time.Second)
	for _, at := range a.ttls {
		ttl := binary.BigEndian.Uint32(out[at:])
		binary.BigEndian.PutUint32(out[at:], ttl-min(age, ttl))
	}
	if q.edns != nil {
		binary.BigEndian.PutUint16(out[10:], binary.BigEndian.Uint16(out[10:])+1)
		out = append(out, 0, 0, byte(dns.TypeOPT), maxUDP>>8, maxUDP&0xff)
		out = binary.BigEndian.AppendUint32(out, q.edns.Hdr.Ttl&bitDO)
		out = append(out, 0, 0)
	}
	return out
}

// cache holds answers until their time is over, and the questions that are being asked. The zero value is ready.
type cache struct {
	mu         sync.Mutex // guards what follows
	generation uint64     // of the resolvers whose answers these are
	entries    map[cacheKey]*list.Element
	order      *list.List // of *entry, the last used first
	bytes      int
	flights    map[cacheKey]*flight
}

type entry struct {
	key    cacheKey
	answer *shared
}

func (e *entry) size() int {
	return entryBytes + len(e.key.name) + len(e.answer.wire) + 8*len(e.answer.ttls)
}

// atLocked forgets everything where the resolvers have changed; false where the caller's are the older ones. The caller holds c.mu.
func (c *cache) atLocked(generation uint64) bool {
	if c.entries == nil || generation > c.generation {
		c.generation, c.bytes = generation, 0
		c.entries, c.order, c.flights = map[cacheKey]*list.Element{}, list.New(), map[cacheKey]*flight{}
	}
	return generation == c.generation
}

// get returns an answer that is still good, nil for none.
func (c *cache) get(k cacheKey, generation uint64, now time.Time) *shared {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.atLocked(generation) {
		return nil
	}
	el := c.entries[k]
	if el == nil {
		return nil
	}
	e := el.Value.(*entry)
	if age := now.Sub(e.answer.at); age < 0 || age >= e.answer.keep {
		c.dropLocked(el)
		return nil
	}
	c.order.MoveToFront(el)
	return e.answer
}

func (c *cache) dropLocked(el *list.Element) {
	e := c.order.Remove(el).(*entry)
	delete(c.entries, e.key)
	c.bytes -= e.size()
}

// putLocked keeps an answer, and drops what was used least lately for it.
func (c *cache) putLocked(k cacheKey, a *shared) {
	if el := c.entries[k]; el != nil {
		c.dropLocked(el)
	}
	e := &entry{k, a}
	c.entries[k] = c.order.PushFront(e)
	c.bytes += e.size()
	for len(c.entries) > maxEntries || c.bytes > maxBytes {
		c.dropLocked(c.order.Back())
	}
}

// flight is a question on its way, and those who wait for its answer.
type flight struct {
	key        cacheKey
	generation uint64
	q          *query // as the first of them asked it
	cancel     context.CancelFunc
	waiting    int           // guarded by cache.mu
	done       chan struct{} // closed once what follows is there
	answer     []byte
	shared     *shared
	err        error
}

// askOnce asks the resolvers, unless somebody asks them the same at the moment: then it waits for that answer.
func (s *Server) askOnce(ctx context.Context, k cacheKey, up resolversNow, q *query) ([]byte, error) {
	f, first := s.cache.board(k, up, q)
	if first {
		go s.fly(f, up.list)
	}
	select {
	case <-f.done:
	case <-ctx.Done():
		s.cache.leave(f)
		return nil, context.Cause(ctx)
	}
	switch {
	case f.err != nil:
		return nil, f.err
	case first:
		return f.answer, nil
	case f.shared != nil:
		return f.shared.to(q, f.shared.at), nil
	}
	return q.fail(dns.RcodeServerFailure, dns.ExtendedErrorCodeOther, "the host's resolver sent no DNS message that can be read"), nil
}

// board joins who asks k, or is the first to.
func (c *cache) board(k cacheKey, up resolversNow, q *query) (_ *flight, first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	current := c.atLocked(up.generation)
	if f := c.flights[k]; current && f != nil {
		f.waiting++
		return f, false
	}
	own := *q // the asker may be gone before the answer is there, and its message with it
	own.raw = bytes.Clone(q.raw)
	f := &flight{key: k, generation: up.generation, q: &own, waiting: 1, done: make(chan struct{})}
	if current {
		c.flights[k] = f
	}
	return f, true
}

// fly asks, and tells who waits.
func (s *Server) fly(f *flight, upstreams []netip.AddrPort) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if !s.cache.started(f, cancel) {
		return
	}
	f.answer, f.err = s.askAll(ctx, upstreams, f.q)
	if f.err == nil {
		f.shared = share(f.answer, s.cfg.Now())
	}
	s.cache.land(f)
	close(f.done)
}

// started enters what ends a flight; false where nobody waits for it any more.
func (c *cache) started(f *flight, cancel context.CancelFunc) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	f.cancel = cancel
	return f.waiting > 0
}

// leave is for one who waits no longer. With the last the question is given up.
func (c *cache) leave(f *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.waiting--; f.waiting > 0 {
		return
	}
	if c.flights[f.key] == f {
		delete(c.flights, f.key)
	}
	if f.cancel != nil {
		f.cancel()
	}
}

// land keeps a flight's answer where it is one to keep.
func (c *cache) land(f *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flights[f.key] == f {
		delete(c.flights, f.key)
	}
	if f.shared != nil && f.shared.keep > 0 && c.generation == f.generation {
		c.putLocked(f.key, f.shared)
	}
}
