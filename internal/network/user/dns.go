package user

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"
)

const dnsPort = 53

// How long an answer may take, and how long a DNS connection may be idle.
const (
	dnsTimeout = 10 * time.Second
	dnsIdle    = 10 * time.Second
)

// answerUDP answers a question that came as a datagram; it must not wait. A guest that has too many open gets no answer.
func (p *Port) answerUDP(srcPort uint16, payload []byte) {
	select {
	case p.dns <- struct{}{}:
	default:
		p.c.refused.Add(1)
		return
	}
	msg := append([]byte(nil), payload...)
	go func() {
		defer func() { <-p.dns }()
		if answer := p.answer(true, msg); len(answer) > 0 && len(answer) <= maxDatagram {
			p.sendUDP(netip.AddrPortFrom(p.net.cfg.Gateway, dnsPort), srcPort, answer)
		}
	}()
}

func (p *Port) answer(udp bool, msg []byte) []byte {
	ctx, cancel := context.WithTimeout(p.ctx, dnsTimeout)
	defer cancel()
	return p.net.cfg.DNS.Answer(ctx, p.vm.ID, udp, msg)
}

// serveDNS answers the questions of a connection one after another, each preceded by its length in two bytes, until it is
// closed or idle.
func (p *Port) serveDNS(conn net.Conn) {
	stop := context.AfterFunc(p.ctx, func() { _ = conn.Close() })
	defer stop()
	defer func() { _ = conn.Close() }() // every answer was written
	for {
		_ = conn.SetReadDeadline(time.Now().Add(dnsIdle)) // fails only where the read does
		var length [2]byte
		if _, err := io.ReadFull(conn, length[:]); err != nil {
			return
		}
		msg := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(conn, msg); err != nil {
			return
		}
		answer := p.answer(false, msg)
		if len(answer) == 0 || len(answer) > 1<<16-1 {
			return
		}
		_ = conn.SetWriteDeadline(time.Now().Add(dnsIdle))
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// isClosed says whether a connection failed because it was closed on this side.
func isClosed(err error) bool { return errors.Is(err, net.ErrClosed) }
