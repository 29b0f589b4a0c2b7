// Package tunnel is what follows an open stream to wire.PortDial: both ends of one TCP connection, or of one UDP socket, in a guest.
//
// The stream carries frames: a length as 4 bytes big-endian, and that many bytes. Of TCP a frame has up to MaxChunk bytes of the
// connection; one of length 0 is the end of that direction, and a stream that ends without it is a reset. Of UDP a frame is a datagram of up to
// MaxDatagram bytes, an empty one included, and the end of the stream is the end. So nothing depends on a stream that can end one
// direction alone, which Firecracker's cannot.
//
// The host closes the stream. The guest does so first only where its connection was reset or its UDP socket is of no use any more: what it
// wrote last might not arrive otherwise.
//
// open.go and conn.go are the host's end, for which the guest is hostile; server.go, loopback.go and join.go the guest's. A tunnel on which nothing moves holds
// no buffer.
package tunnel

import (
	"encoding/binary"
	"errors"
	"sync"
)

// Bounds of a frame, in bytes.
const (
	MaxChunk = 64 << 10
	// MaxDatagram is what fits in a UDP datagram over IPv4.
	MaxDatagram = 65535 - 20 - 8

	headerLen = 4
)

// Networks that are tunnelled.
const (
	TCP = "tcp"
	UDP = "udp"
)

// ErrRefused says that nobody listens on a port of the guest.
var ErrRefused = errors.New("connection refused in the guest")

// frame is a buffer for the longest frame.
type frame [headerLen + MaxChunk]byte

// frames are the buffers of all tunnels.
var frames = sync.Pool{New: func() any { return new(frame) }}

// payload is where the bytes of a frame go.
func (f *frame) payload() []byte { return f[headerLen:] }

// sized is the frame with its header, for a payload of n bytes.
func (f *frame) sized(n int) []byte {
	binary.BigEndian.PutUint32(f[:], uint32(n))
	return f[:headerLen+n]
}

// longest is the longest payload of a frame of a network.
func longest(network string) int {
	if network == UDP {
		return MaxDatagram
	}
	return MaxChunk
}
