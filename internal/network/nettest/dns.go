package nettest

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// Names of the zone example.test. Each has A records only, except as said.
const (
	// NameHTTP is the address of HTTP, NameEcho of Echo; NameBoth has an AAAA record too.
	NameHTTP = "www.example.test."
	NameEcho = "echo.example.test."
	NameBoth = "both.example.test."
	// NameAlias is a CNAME of NameHTTP.
	NameAlias = "alias.example.test."
	// NameMissing does not exist, NameBroken answers SERVFAIL, NameSilent never answers.
	NameMissing = "missing.example.test."
	NameBroken  = "broken.example.test."
	NameSilent  = "silent.example.test."
	// NameBig has 100 addresses: over UDP the answer is truncated.
	NameBig = "big.example.test."
	// NamePrivate resolves to an address of a private network, NameLoopback to 127.0.0.1.
	NamePrivate  = "private.example.test."
	NameLoopback = "loopback.example.test."
)

// serveDNS starts the name server, over UDP and TCP.
func (in *Internet) serveDNS(t testing.TB) {
	t.Helper()
	for _, s := range []*dns.Server{
		{PacketConn: in.listenPacket(t, DNS), Handler: dns.HandlerFunc(answer)},
		{Listener: in.listen(t, DNS), Handler: dns.HandlerFunc(answer)},
	} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { _ = s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
}

// answer answers one question of the zone.
func answer(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(q)
	if len(q.Question) != 1 {
		m.Rcode = dns.RcodeFormatError
		_ = w.WriteMsg(m)
		return
	}
	name, kind := strings.ToLower(q.Question[0].Name), q.Question[0].Qtype
	if name == NameSilent {
		return
	}
	m.Authoritative = true
	m.Rcode = records(m, name, kind)
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size := dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = int(o.UDPSize())
		}
		m.Truncate(size)
	}
	_ = w.WriteMsg(m) // who asked has gone
}

// records adds what the zone has of a name and returns the code of the answer.
func records(m *dns.Msg, name string, kind uint16) int {
	add := func(format string, args ...any) {
		rr, err := dns.NewRR(fmt.Sprintf(format, args...))
		if err != nil {
			panic(err) // the zone is written below
		}
		if h := rr.Header().Rrtype; h == kind || h == dns.TypeCNAME {
			m.Answer = append(m.Answer, rr)
		}
	}
	switch name {
	case NameHTTP:
		add("%s 60 A %s", name, HTTP.Addr())
	case NameEcho:
		add("%s 60 A %s", name, Echo.Addr())
	case NameBoth:
		add("%s 60 A %s", name, HTTP.Addr())
		add("%s 60 AAAA 2001:db8::1", name)
	case NameAlias:
		add("%s 60 CNAME %s", name, NameHTTP)
		add("%s 60 A %s", NameHTTP, HTTP.Addr())
	case NameBig:
		for i := range 100 {
			add("%s 60 A 198.51.100.%d", name, 100+i)
		}
	case NamePrivate:
		add("%s 60 A %s", name, PrivatePeer.Addr())
	case NameLoopback:
		add("%s 60 A 127.0.0.1", name)
	case NameBroken:
		return dns.RcodeServerFailure
	default:
		return dns.RcodeNameError
	}
	return dns.RcodeSuccess
}
