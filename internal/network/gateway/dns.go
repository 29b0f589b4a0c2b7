package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"
)

// How long an answer may take, and how long a DNS connection may be idle.
const (
	dnsTimeout = 10 * time.Second
	dnsIdle    = 10 * time.Second
)

// maxUDPQuestion is the longest question that is read, in bytes: nobody sends longer ones by UDP.
const maxUDPQuestion = 4096

// serveUDP answers questions that come as datagrams.
func (g *Gateway) serveUDP() {
	buf := make([]byte, maxUDPQuestion+1)
	for {
		n, from, err := g.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		peer := from.Addr().Unmap()
		if err != nil || n > maxUDPQuestion || !g.questions.take(peer) {
			continue // an error is one of an answer that did not arrive
		}
		msg := append([]byte(nil), buf[:n]...)
		g.tasks.Go(func() {
			defer g.questions.give(peer)
			id, ok := g.peerID(peer) // takes its time: who asks much is not to take that of others
			if !ok {
				return
			}
			if answer := g.answer(id, true, msg); len(answer) > 0 {
				_, _ = g.udp.WriteToUDPAddrPort(answer, from) // lost, as datagrams are
			}
		})
	}
}

func (g *Gateway) answer(id string, udp bool, msg []byte) []byte {
	ctx, cancel := context.WithTimeout(g.ctx, dnsTimeout)
	defer cancel()
	return g.cfg.DNS.Answer(ctx, id, udp, msg)
}

// serveDNS answers the questions of a connection one after another, each preceded by its length in two bytes, until it is closed or idle.
func (g *Gateway) serveDNS(conn *net.TCPConn, peer netip.Addr) {
	id, ok := g.peerID(peer)
	if !ok {
		return
	}
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
		answer := g.answer(id, false, msg)
		if len(answer) == 0 || len(answer) > 1<<16-1 {
			return
		}
		_ = conn.SetWriteDeadline(time.Now().Add(dnsIdle))
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}
