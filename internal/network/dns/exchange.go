package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/miekg/dns"
)

const (
	// answersWithin is how long one resolver may take, by UDP and by TCP each; after half of it a datagram is repeated.
	answersWithin = 2 * time.Second
	// maxDatagram is the greatest answer by UDP that is read; a larger one counts as cut short.
	maxDatagram = 4096
	// truncated is the bit TC in the third byte of a message.
	truncated = 0x02
)

// ask asks one resolver: by UDP, and by TCP where that cuts the answer short; or by TCP where the guest came by it.
// One that does not speak TCP is asked by UDP alone.
func (s *Server) ask(ctx context.Context, up netip.AddrPort, q *query) ([]byte, error) {
	if !q.udp {
		answer, err := s.exchange(ctx, "tcp", up, q, q.raw)
		if err == nil || ctx.Err() != nil {
			return answer, err
		}
		return s.askLargeUDP(ctx, up, q)
	}
	answer, err := s.exchange(ctx, "udp", up, q, q.raw)
	if err != nil || answer[2]&truncated == 0 {
		return answer, err
	}
	if whole, err := s.exchange(ctx, "tcp", up, q, q.raw); err == nil {
		return whole, nil
	}
	return q.whole(answer), nil
}

// askLargeUDP asks by UDP for a guest that came by TCP: it takes more than the 512 bytes of a question without EDNS.
func (s *Server) askLargeUDP(ctx context.Context, up netip.AddrPort, q *query) ([]byte, error) {
	if q.edns != nil || len(q.msg.Extra) > 0 {
		answer, err := s.exchange(ctx, "udp", up, q, q.raw)
		return q.whole(answer), err
	}
	m := q.msg.Copy()
	m.SetEdns0(maxDatagram, false)
	raw, err := m.Pack()
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", up, err)
	}
	answer, err := s.exchange(ctx, "udp", up, q, raw)
	if err != nil {
		return nil, err
	}
	var got dns.Msg
	if err := got.Unpack(answer); err != nil {
		return q.whole(answer), nil
	}
	got.Extra = withoutOPT(got.Extra)
	got.Compress = true
	out, err := got.Pack()
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", up, err)
	}
	return out, nil
}

func withoutOPT(rrs []dns.RR) []dns.RR {
	var out []dns.RR
	for _, rr := range rrs {
		if _, is := rr.(*dns.OPT); !is {
			out = append(out, rr)
		}
	}
	return out
}

// whole is answer, or where not all of it was read one that only says it was cut short.
func (q *query) whole(answer []byte) []byte {
	if len(answer) <= maxDatagram {
		return answer
	}
	m := q.reply(int(answer[3] & 0xf))
	m.Truncated = true
	return q.pack(m)
}

// exchange sends raw, which asks q, under an id of its own and returns the answer. By UDP one of more than
// maxDatagram bytes has maxDatagram+1 of them, and TC set.
func (s *Server) exchange(ctx context.Context, network string, up netip.AddrPort, q *query, raw []byte) ([]byte, error) {
	parent := ctx
	ctx, cancel := context.WithTimeout(ctx, s.within)
	defer cancel()
	conn, err := s.cfg.Dial(ctx, network, up)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", up, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	x := exchange{Conn: conn, q: q, id: uint16(rand.Uint32()), until: time.Now().Add(s.within), within: s.within}
	msg := append([]byte(nil), raw...)
	binary.BigEndian.PutUint16(msg, x.id)
	var answer []byte
	if network == "udp" {
		answer, err = x.datagrams(msg)
	} else {
		answer, err = x.stream(msg)
	}
	switch {
	case parent.Err() != nil:
		return nil, context.Cause(parent)
	case ctx.Err() != nil:
		err = os.ErrDeadlineExceeded
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s by %s: %w", up, network, err)
	}
	return answer, nil
}

// exchange is one question to one resolver.
type exchange struct {
	net.Conn
	q  *query
	id uint16
	// until is when it must be over, by the wall clock as deadlines of connections are, and within how long that was.
	until  time.Time
	within time.Duration
}

// datagrams asks by UDP, twice where nothing comes. What is no answer to the question is left lying: anybody
// may send datagrams.
func (x exchange) datagrams(msg []byte) ([]byte, error) {
	again := x.until.Add(-x.within / 2)
	if _, err := x.Write(msg); err != nil {
		return nil, err
	}
	if err := x.SetReadDeadline(again); err != nil {
		return nil, err
	}
	buf := make([]byte, maxDatagram+1)
	for {
		n, err := x.Read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && !again.IsZero():
			again = time.Time{}
			if err := x.SetReadDeadline(x.until); err != nil {
				return nil, err
			}
			if _, err := x.Write(msg); err != nil {
				return nil, err
			}
			continue
		case err != nil:
			return nil, err
		case !x.q.asksFor(x.id, buf[:n]):
			continue
		}
		if n > maxDatagram {
			buf[2] |= truncated
		}
		return buf[:n], nil
	}
}

// stream asks by TCP.
func (x exchange) stream(msg []byte) ([]byte, error) {
	if err := x.SetDeadline(x.until); err != nil {
		return nil, err
	}
	if _, err := x.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(x, size[:]); err != nil {
		return nil, err
	}
	answer := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(x, answer); err != nil {
		return nil, err
	}
	if !x.q.asksFor(x.id, answer) {
		return nil, errors.New("it answered another question")
	}
	return answer, nil
}
