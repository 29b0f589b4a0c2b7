package dns

import (
	"cmp"
	"encoding/binary"
	"strings"

	"github.com/miekg/dns"
)

// headerSize is the size of a message's header in bytes (RFC 1035 section 4.1.1).
const headerSize = 12

// noCode is no extended error: 65535 is of the range for private use and is never sent.
const noCode = 0xffff

// query is a message of a guest that asks one question.
type query struct {
	dns.Question
	raw  []byte
	msg  *dns.Msg
	edns *dns.OPT // nil where the guest does not speak EDNS
	udp  bool
	// name is the question's name in lower case without the dot at its end; empty for the root.
	name string
	// limit is the greatest answer in bytes.
	limit int
}

// readQuery reads a message. Where it is no question, q is nil and reply says so to the guest, nil for silence.
func readQuery(raw []byte, udp bool) (q *query, reply []byte) {
	if len(raw) < headerSize || raw[2]&0x80 != 0 { // short, or an answer
		return nil, nil
	}
	if opcode := int(raw[2]>>3) & 0xf; opcode != dns.OpcodeQuery {
		return nil, bare(raw, dns.RcodeNotImplemented)
	}
	counts := binary.BigEndian.Uint64(raw[4:headerSize]) // questions, answers, authorities, additional
	if len(raw) > maxQuery || counts>>16 != 1<<32 {
		return nil, bare(raw, dns.RcodeFormatError)
	}
	m := new(dns.Msg)
	if err := m.Unpack(raw); err != nil || len(m.Question) != 1 || uint64(len(m.Extra)) != counts&0xffff {
		return nil, bare(raw, dns.RcodeFormatError)
	}
	q = &query{Question: m.Question[0], raw: raw, msg: m, udp: udp, limit: dns.MaxMsgSize}
	opts := 0
	for _, rr := range m.Extra {
		if opt, ok := rr.(*dns.OPT); ok {
			q.edns = opt
			opts++
		}
	}
	if opts > 1 { // RFC 6891 section 6.1.1
		return nil, bare(raw, dns.RcodeFormatError)
	}
	q.name = strings.ToLower(strings.TrimSuffix(q.Name, "."))
	if udp {
		q.limit = dns.MinMsgSize
		if q.edns != nil {
			q.limit = max(dns.MinMsgSize, min(maxUDP, int(q.edns.UDPSize())))
		}
	}
	return q, nil
}

// bare answers a message that cannot be read with its header alone.
func bare(raw []byte, rcode int) []byte {
	out := make([]byte, headerSize)
	copy(out, raw[:4])
	out[2] = out[2]&0x79 | 0x80 // an answer; opcode and RD as they came
	out[3] = byte(rcode)        // no RA, AD, CD
	return out
}

// reply begins an answer.
func (q *query) reply(rcode int) *dns.Msg {
	m := new(dns.Msg).SetReply(q.msg)
	m.RecursionAvailable = true
	m.Compress = true
	if q.edns != nil {
		m.SetEdns0(maxUDP, q.edns.Do())
		m.IsEdns0().SetExtendedRcode(uint16(rcode))
	}
	m.Rcode = rcode
	return m
}

// fail answers with rcode, and where the guest speaks EDNS and code is not noCode, with why (RFC 8914).
func (q *query) fail(rcode int, code uint16, why string) []byte {
	m := q.reply(rcode)
	if opt := m.IsEdns0(); opt != nil && code != noCode {
		opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: code, ExtraText: why})
	}
	return q.pack(m)
}

// answer answers with records, none of which is "no such data", from banger's own knowledge.
func (q *query) answer(records ...dns.RR) []byte {
	m := q.reply(dns.RcodeSuccess)
	m.Authoritative = true
	m.Answer = records
	return q.pack(m)
}

// noName answers that the name does not exist. No negative answer has a SOA, so nobody keeps it (RFC 2308 section
// 5): a VM of that name may be there the next moment.
func (q *query) noName() []byte {
	m := q.reply(dns.RcodeNameError)
	m.Authoritative = true
	return q.pack(m)
}

// pack makes the message, cut to what the guest takes.
func (q *query) pack(m *dns.Msg) []byte {
	m.Truncate(q.limit)
	out, err := m.Pack()
	if err != nil { // a name that was read and cannot be written
		return bare(q.raw, dns.RcodeServerFailure)
	}
	return out
}

// fit makes a resolver's answer one for the guest: its id, and no longer than it takes.
func (q *query) fit(answer []byte) []byte {
	if binary.BigEndian.Uint16(answer[4:]) == 0 { // glibc takes no answer without the question
		return q.fail(int(answer[3]&0xf), noCode, "")
	}
	copy(answer[:2], q.raw[:2])
	if len(answer) <= q.limit {
		return answer
	}
	m := new(dns.Msg)
	if err := m.Unpack(answer); err != nil {
		m = q.reply(int(answer[3] & 0xf))
		m.Truncated = true
		return q.pack(m)
	}
	m.Compress = true
	return q.pack(m)
}

// asksFor reports whether answer is one to q asked with this id. An error without a question counts: some
// servers leave it out of what they could not read.
func (q *query) asksFor(id uint16, answer []byte) bool {
	if len(answer) < headerSize || binary.BigEndian.Uint16(answer) != id || answer[2]&0xf8 != 0x80 {
		return false
	}
	switch binary.BigEndian.Uint16(answer[4:]) {
	case 0:
		return answer[3]&0xf != dns.RcodeSuccess && answer[3]&0xf != dns.RcodeNameError
	case 1:
	default:
		return false
	}
	name, end, err := dns.UnpackDomainName(answer, headerSize)
	if err != nil || len(answer) < end+4 {
		return false
	}
	qtype, qclass := binary.BigEndian.Uint16(answer[end:]), binary.BigEndian.Uint16(answer[end+2:])
	return strings.EqualFold(name, q.Name) && qtype == q.Qtype && qclass == q.Qclass
}

// owner is the name records of the answer have: as it was asked.
func (q *query) owner(rrtype uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: cmp.Or(q.Name, "."), Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}
