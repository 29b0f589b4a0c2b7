package vhostvsock

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// bufferSize is how much of the guest's a connection holds for the host, in bytes: what the guest is told it may send.
	bufferSize = 64 << 10
	// creditThreshold: where the guest knows of less room than this, it is told of more.
	creditThreshold = 4 << 10
	// requestTimeout is how long the guest may take to answer, closeTimeout to end a connection the host has ended. What took
	// longer is reset when the next connection is made.
	requestTimeout = 2 * time.Second
	closeTimeout   = 2 * time.Second
)

// state is where a connection is.
type state int

const (
	hostAsks    state = iota // the guest has not answered yet
	guestAsks                // nor has it been answered
	established              // may be ended by the guest in part: noRecv, noSend
	hostClosed               // the host's socket is at its end; what the guest still sends is dropped
	killed                   // all that is left is to tell the guest
)

// todo is what the guest is to be told, the most urgent first.
type todo uint8

const (
	doReset todo = 1 << iota
	doResponse
	doRequest
	doData // the host's socket has something to read
	doCredit
)

// key tells connections apart.
type key struct{ host, guest uint32 } // ports

// conn is one connection between a socket of the host and one of the guest.
type conn struct {
	key
	cid uint64 // the guest's
	fd  int    // the host's socket; it does not block
	id  uint64 // of the poller, where watching is not 0

	state          state
	noRecv, noSend bool // the guest will not receive, or send, any more
	todo           todo
	expires        time.Time // when a timeout ends; zero for never

	// Of the guest for the host: buf waits for the host's socket.
	buf             []byte
	forwarded, told uint32 // bytes that went to the host; what of it the guest knows
	// Of the host for the guest.
	sent, peerAlloc, peerForwarded uint32

	watching uint32 // events the poller waits for
	queued   bool   // in muxer.turns
	dirty    bool   // in muxer.dirty
	gone     bool
}

// do adds what the guest is to be told.
func (c *conn) do(t todo) { c.todo |= t }

// take takes off one thing the guest is to be told.
func (c *conn) take(t todo) bool {
	had := c.todo&t != 0
	c.todo &^= t
	return had
}

// kill ends a connection at once.
func (c *conn) kill() {
	c.state = killed
	c.buf = nil
	c.do(doReset)
}

// open reports whether data of the host may go to the guest.
func (c *conn) open() bool { return c.state == established && !c.noRecv }

// credit is how much the guest has room for, in bytes.
func (c *conn) credit() int {
	flying := c.sent - c.peerForwarded
	return int(c.peerAlloc) - int(min(flying, c.peerAlloc))
}

// packet is a packet to the guest.
func (c *conn) packet(o op) packet {
	c.told = c.forwarded
	return packet{
		srcCID: hostCID, dstCID: c.cid, srcPort: c.host, dstPort: c.guest,
		kind: typeStream, op: o, alloc: bufferSize, forwarded: c.forwarded,
	}
}

// next writes the next packet for the guest, with its data behind the header in room; false where there is none.
func (c *conn) next(p *packet, room [][]byte, scratch *[][]byte) bool {
	switch {
	case c.take(doReset):
		*p = c.packet(opReset)
		return true
	case c.take(doResponse):
		c.state = established
		*p = c.packet(opResponse)
		return true
	case c.take(doRequest):
		c.expires = time.Now().Add(requestTimeout)
		*p = c.packet(opRequest)
		return true
	case c.take(doData):
		if c.read(p, room, scratch) {
			return true
		}
	}
	if c.take(doCredit) {
		*p = c.packet(opCreditUpdate)
		return true
	}
	return false
}

// read reads from the host's socket to the guest's memory; false where there was nothing.
func (c *conn) read(p *packet, room [][]byte, scratch *[][]byte) bool {
	if !c.open() {
		*p = c.packet(opReset)
		return true
	}
	credit := c.credit()
	if credit == 0 {
		*p = c.packet(opCreditRequest)
		return true
	}
	*scratch = slice(*scratch, room, packetLen, min(credit, maxData))
	n, err := again(func() (int, error) { return unix.Readv(c.fd, *scratch) })
	switch {
	case errors.Is(err, unix.EAGAIN):
		return false
	case err != nil:
		*p = c.packet(opReset)
	case n == 0:
		c.state = hostClosed
		c.expires = time.Now().Add(closeTimeout)
		*p = c.packet(opShutdown)
		p.flags = shutRecv | shutSend
	default:
		c.do(doData) // there may be more
		c.sent += uint32(n)
		*p = c.packet(opData)
		p.size = uint32(n)
	}
	return true
}

// heard takes in a packet of the guest.
func (c *conn) heard(p *packet, data [][]byte) {
	c.peerAlloc, c.peerForwarded = p.alloc, p.forwarded
	talking := c.state == established
	switch {
	case p.op == opData && talking && !c.noSend:
		if p.size > 0 {
			c.write(data)
		}
	case p.op == opResponse && c.state == hostAsks:
		c.expires = time.Time{}
		c.state = established
		c.acknowledge()
	case p.op == opShutdown && talking:
		first := !c.noRecv && !c.noSend
		c.noRecv = c.noRecv || p.flags&shutRecv != 0
		c.noSend = c.noSend || p.flags&shutSend != 0
		c.maybeEnd()
		if first && c.noRecv && c.noSend && len(c.buf) > 0 {
			c.expires = time.Now().Add(closeTimeout)
		}
	case p.op == opCreditRequest && (c.state == guestAsks || talking && !c.noSend):
		c.do(doCredit)
	}
}

// maybeEnd resets a connection that the guest has closed, once the host has all of its data.
func (c *conn) maybeEnd() {
	if c.noRecv && c.noSend && len(c.buf) == 0 {
		c.do(doReset)
	}
}

// write gives data of the guest to the host's socket, and keeps what that does not take.
func (c *conn) write(data [][]byte) {
	n := 0
	if len(c.buf) == 0 {
		var err error
		n, err = again(func() (int, error) { return unix.Writev(c.fd, data) })
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			c.kill()
			return
		}
		n = max(n, 0)
		c.forwarded += uint32(n)
	}
	for _, b := range data {
		cut := min(n, len(b))
		n -= cut
		b = b[cut:]
		if len(c.buf)+len(b) > bufferSize { // more than it was told it may send
			c.kill()
			return
		}
		c.buf = append(c.buf, b...)
	}
	c.maybeCredit()
}

// flush gives the host's socket what was kept for it.
func (c *conn) flush() {
	n, err := again(func() (int, error) { return unix.Write(c.fd, c.buf) })
	if errors.Is(err, unix.EAGAIN) {
		return
	}
	if err != nil {
		c.kill()
		return
	}
	c.forwarded += uint32(n)
	if c.buf = c.buf[n:]; len(c.buf) == 0 {
		c.buf = nil
	}
	c.maybeEnd()
	c.maybeCredit()
}

// maybeCredit tells the guest of the room there is, where it knows of little.
func (c *conn) maybeCredit() {
	if c.forwarded-c.told > bufferSize-creditThreshold {
		c.do(doCredit)
	}
}

// wants are the events of the host's socket that matter now.
func (c *conn) wants() (events uint32) {
	if len(c.buf) > 0 {
		events |= unix.EPOLLOUT
	}
	receiving := c.state == guestAsks || c.state == hostAsks || c.open()
	if receiving && c.credit() > 0 && c.todo&doData == 0 {
		events |= unix.EPOLLIN
	}
	return events
}

// ready takes in events of the host's socket.
func (c *conn) ready(events uint32) {
	const ended = unix.EPOLLHUP | unix.EPOLLERR
	if c.watching&unix.EPOLLIN != 0 && events&(unix.EPOLLIN|ended) != 0 {
		c.do(doData)
	}
	if len(c.buf) > 0 && events&(unix.EPOLLOUT|ended) != 0 {
		c.flush()
	}
}

// again calls f until no signal interrupts it.
func again(f func() (int, error)) (int, error) {
	for {
		if n, err := f(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
