package vhostvsock

import (
	"encoding/binary"
	"fmt"
)

const (
	packetLen = 44
	// maxData is how much a packet may carry, in bytes (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE).
	maxData = 64 << 10
	hostCID = 2

	typeStream = 1

	// Flags of opShutdown.
	shutRecv = 1 // its sender will take no more
	shutSend = 2 // its sender will send no more
)

// op is what a packet is for.
type op uint16

const (
	opRequest       op = 1
	opResponse      op = 2
	opReset         op = 3
	opShutdown      op = 4
	opData          op = 5
	opCreditUpdate  op = 6
	opCreditRequest op = 7
)

// packet is the header of a vsock packet (virtio 1.2, 5.10.6).
type packet struct {
	srcCID, dstCID   uint64
	srcPort, dstPort uint32
	size             uint32 // of the data behind it, in bytes
	kind             uint16
	op               op
	flags            uint32
	alloc, forwarded uint32 // the sender's buffer, in bytes, and how much has gone through it, modulo 2^32
}

func (p *packet) decode(b *[packetLen]byte) {
	e := binary.LittleEndian
	*p = packet{
		srcCID: e.Uint64(b[0:]), dstCID: e.Uint64(b[8:]), srcPort: e.Uint32(b[16:]), dstPort: e.Uint32(b[20:]),
		size: e.Uint32(b[24:]), kind: e.Uint16(b[28:]), op: op(e.Uint16(b[30:])), flags: e.Uint32(b[32:]),
		alloc: e.Uint32(b[36:]), forwarded: e.Uint32(b[40:]),
	}
}

func (p *packet) encode(b *[packetLen]byte) {
	e := binary.LittleEndian
	e.PutUint64(b[0:], p.srcCID)
	e.PutUint64(b[8:], p.dstCID)
	e.PutUint32(b[16:], p.srcPort)
	e.PutUint32(b[20:], p.dstPort)
	e.PutUint32(b[24:], p.size)
	e.PutUint16(b[28:], p.kind)
	e.PutUint16(b[30:], uint16(p.op))
	e.PutUint32(b[32:], p.flags)
	e.PutUint32(b[36:], p.alloc)
	e.PutUint32(b[40:], p.forwarded)
}

// readPacket reads a packet of the guest, and returns its data, which still lies in the guest's memory. data has room for pieces.
func readPacket(p *packet, pieces, data [][]byte) ([][]byte, error) {
	var header [packetLen]byte
	if n := gather(header[:], pieces); n < packetLen {
		return nil, fmt.Errorf("a packet of %d bytes", n)
	}
	p.decode(&header)
	if p.size > maxData {
		return nil, fmt.Errorf("a packet with %d bytes of data", p.size)
	}
	data = slice(data, pieces, packetLen, int(p.size))
	if n := total(data); n < int(p.size) {
		return nil, fmt.Errorf("a packet with %d bytes of data, of which there are %d", p.size, n)
	}
	return data, nil
}

// gather copies the beginning of pieces to b and returns how much.
func gather(b []byte, pieces [][]byte) (n int) {
	for _, p := range pieces {
		n += copy(b[n:], p)
	}
	return n
}

// scatter copies b to the beginning of pieces and returns how much.
func scatter(pieces [][]byte, b []byte) (n int) {
	for _, p := range pieces {
		n += copy(p, b[n:])
	}
	return n
}

// slice appends to to[:0] what pieces hold from skip on, at most n bytes.
func slice(to, pieces [][]byte, skip, n int) [][]byte {
	to = to[:0]
	for _, p := range pieces {
		cut := min(skip, len(p))
		skip -= cut
		p = p[cut:]
		p = p[:min(n, len(p))]
		n -= len(p)
		if len(p) > 0 {
			to = append(to, p)
		}
	}
	return to
}

func total(pieces [][]byte) (n int) {
	for _, p := range pieces {
		n += len(p)
	}
	return n
}
