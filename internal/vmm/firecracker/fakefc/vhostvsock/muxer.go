package vhostvsock

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	maxConns = 1023
	// maxResets is how many resets wait for the guest before it is not listened to any more.
	maxResets = 256
	backlog   = 128
	// connectPatience is for how long at a time a full backlog of the host is waited for.
	connectPatience = 100 * time.Millisecond

	minConnect, maxConnect = 10, 32 // bytes of "CONNECT <port>\n"
	firstPort              = 1 << 30
)

// muxer is the host's side: its sockets, and who they belong to.
type muxer struct {
	cid  uint64
	path string
	log  *slog.Logger
	// interrupted reports whether what waits is to give up.
	interrupted func() bool

	poll     *poller // of the host's sockets
	listener int

	conns  map[key]*conn
	turns  []turn  // have something for the guest, the longest first
	resets int     // how many of them are of no connection
	dirty  []*conn // the poller may have to wait for something else
	dying  []*conn // were given a timeout, the first first
	asking map[uint64]int
	port   uint32 // the last of the host's

	data [][]byte
}

// turn is one to say something to the guest.
type turn struct {
	conn  *conn // nil for nobody: then the guest is told that there is no connection
	reset key
}

// newMuxer binds the host's socket.
func newMuxer(cfg Config) (*muxer, error) {
	poll, err := newPoller()
	if err != nil {
		return nil, err
	}
	m := &muxer{
		cid: cfg.CID, path: cfg.UDSPath, log: cfg.Log, interrupted: func() bool { return false }, poll: poll,
		conns: map[key]*conn{}, asking: map[uint64]int{}, port: firstPort - 1,
	}
	if m.listener, err = listen(cfg.UDSPath); err != nil {
		poll.close()
		return nil, fmt.Errorf("bind %q: %w", cfg.UDSPath, err)
	}
	if _, err := poll.add(m.listener, unix.EPOLLIN, func(uint32) error { return m.accept() }); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func listen(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(fd, backlog); err != nil {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("listen", err)
	}
	return fd, nil
}

func (m *muxer) close() {
	m.reset()
	for _, fd := range m.asking {
		_ = unix.Close(fd)
	}
	clear(m.asking)
	_ = unix.Close(m.listener)
	m.poll.close()
}

// reset forgets all connections, of which the guest knows nothing any more.
func (m *muxer) reset() {
	for _, c := range m.conns {
		m.forget(c)
	}
	m.turns, m.resets, m.dying = nil, 0, nil
}

// accept takes a client of the host.
func (m *muxer) accept() error {
	fd, _, err := unix.Accept4(m.listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err != nil {
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ECONNABORTED) {
			return fmt.Errorf("accept a client of %q: %w", m.path, err)
		}
		return nil
	}
	if len(m.conns) >= maxConns {
		m.log.Warn("a client was turned away: there are too many connections")
		_ = unix.Close(fd)
		return nil
	}
	var id uint64
	id, err = m.poll.add(fd, unix.EPOLLIN, func(uint32) error {
		m.poll.remove(fd, id)
		delete(m.asking, id)
		m.asked(fd)
		return nil
	})
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	m.asking[id] = fd
	return nil
}

// asked reads which port a client wants, and asks the guest for it. A client that does not say so in one piece has no answer.
func (m *muxer) asked(fd int) {
	port, err := readConnect(func(b []byte) (int, error) { return again(func() (int, error) { return unix.Read(fd, b) }) })
	if err == nil {
		m.port = m.freePort()
		err = m.add(&conn{key: key{m.port, port}, fd: fd, state: hostAsks, todo: doRequest})
	}
	if err != nil {
		m.log.Info("a client was dropped", "error", err)
		_ = unix.Close(fd)
	}
}

// freePort returns the next port of the host that no connection has.
func (m *muxer) freePort() uint32 {
	used := make(map[uint32]bool, len(m.conns))
	for k := range m.conns {
		used[k.host] = true
	}
	port := m.port
	for {
		if port = (port+1)&^(1<<31) | firstPort; !used[port] {
			return port
		}
	}
}

// readConnect reads "CONNECT <port>\n" from a socket that does not block: the first ten bytes, then one after another.
func readConnect(read func([]byte) (int, error)) (port uint32, err error) {
	var buf [maxConnect]byte
	got := 0
	for want := minConnect; got < want; {
		n, err := read(buf[got:want])
		if err != nil {
			return 0, fmt.Errorf("read a port: %w", err)
		}
		if n == 0 {
			return 0, errors.New("read a port: the client has gone")
		}
		if got += n; got == want && buf[got-1] != '\n' && want < len(buf) {
			want++
		}
	}
	return parseConnect(buf[:got])
}

// parseConnect finds the port in a line.
func parseConnect(line []byte) (uint32, error) {
	words := strings.Fields(string(line))
	if !utf8.Valid(line) || len(words) < 2 || !strings.EqualFold(words[0], "connect") {
		return 0, fmt.Errorf("not CONNECT and a port: %q", line)
	}
	port, err := strconv.ParseUint(strings.TrimPrefix(words[1], "+"), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("not CONNECT and a port: %q", line)
	}
	return uint32(port), nil
}

// add begins with a connection. The descriptor is its own, but after an error.
func (m *muxer) add(c *conn) error {
	m.sweep(time.Now())
	if len(m.conns) >= maxConns {
		return errors.New("there are too many connections")
	}
	c.cid = m.cid
	m.conns[c.key] = c
	m.touch(c)
	return nil
}

// sweep resets the connections whose time is over.
func (m *muxer) sweep(now time.Time) {
	keep := m.dying[:0]
	for _, c := range m.dying {
		switch {
		case c.gone || c.expires.IsZero():
		case c.expires.After(now):
			keep = append(keep, c)
		default:
			c.kill()
			m.touch(c)
		}
	}
	clear(m.dying[len(keep):])
	m.dying = keep
}

// touch sees to a connection that has changed.
func (m *muxer) touch(c *conn) {
	if c.todo != 0 && !c.queued {
		c.queued = true
		m.turns = append(m.turns, turn{conn: c})
	}
	if !c.dirty {
		c.dirty = true
		m.dirty = append(m.dirty, c)
	}
}

// forget ends a connection.
func (m *muxer) forget(c *conn) {
	delete(m.conns, c.key)
	if c.watching != 0 {
		m.poll.remove(c.fd, c.id)
	}
	_ = unix.Close(c.fd)
	c.gone, c.buf, c.todo = true, nil, 0
}

// settle makes the poller wait for what the changed connections want.
func (m *muxer) settle() error {
	for _, c := range m.dirty {
		c.dirty = false
		if c.gone {
			continue
		}
		if err := m.watch(c); err != nil {
			return err
		}
	}
	clear(m.dirty)
	m.dirty = m.dirty[:0]
	return nil
}

// watch makes the poller wait for what c wants. For nothing it must not know c at all: it would tell of a
// socket whose other end has gone again and again.
func (m *muxer) watch(c *conn) (err error) {
	want := c.wants()
	switch {
	case want == c.watching:
		return nil
	case want == 0:
		m.poll.remove(c.fd, c.id)
	case c.watching == 0:
		c.id, err = m.poll.add(c.fd, want, func(events uint32) error {
			c.ready(events)
			m.touch(c)
			return nil
		})
	default:
		err = m.poll.modify(c.fd, c.id, want)
	}
	c.watching = want
	return err
}

// full reports whether the guest owes it to fetch answers before it is listened to again.
func (m *muxer) full() bool { return m.resets >= maxResets }

// pending reports whether there may be something for the guest.
func (m *muxer) pending() bool { return len(m.turns) > 0 }

// toGuest writes the next packet for the guest to room and returns its length; 0 where there is none.
func (m *muxer) toGuest(room [][]byte) int {
	for len(m.turns) > 0 {
		c, k := m.turns[0].conn, m.turns[0].reset
		m.turns[0] = turn{}
		m.turns = m.turns[1:]
		var p packet
		if c == nil {
			m.resets--
			p = packet{srcCID: hostCID, dstCID: m.cid, srcPort: k.host, dstPort: k.guest, kind: typeStream, op: opReset}
			return put(&p, room)
		}
		c.queued = false
		if c.gone {
			continue
		}
		expires := c.expires
		ok := c.next(&p, room, &m.data)
		if !c.expires.Equal(expires) && !c.expires.IsZero() {
			m.dying = append(m.dying, c)
		}
		m.touch(c)
		if !ok {
			continue
		}
		if p.op == opReset {
			m.forget(c)
		}
		return put(&p, room)
	}
	return 0
}

// put writes the header of a packet whose data are there, and returns the length of both.
func put(p *packet, room [][]byte) int {
	var header [packetLen]byte
	p.encode(&header)
	scatter(room, header[:])
	return packetLen + int(p.size)
}

// fromGuest takes in a packet of the guest.
func (m *muxer) fromGuest(p *packet, data [][]byte) {
	k := key{host: p.dstPort, guest: p.srcPort}
	switch {
	case p.dstCID != hostCID || p.srcCID != m.cid:
		m.log.Info("a packet of the guest was dropped", "from_cid", p.srcCID, "to_cid", p.dstCID)
		return
	case p.kind != typeStream:
		m.refuse(k, p.op)
		return
	}
	c := m.conns[k]
	switch {
	case c == nil && p.op == opRequest:
		m.requested(k, p)
	case c == nil:
		m.refuse(k, p.op)
	case p.op == opReset:
		m.forget(c)
	default:
		expires := c.expires
		c.heard(p, data)
		if !c.expires.Equal(expires) && !c.expires.IsZero() {
			m.dying = append(m.dying, c)
		}
		m.touch(c)
	}
}

// refuse resets a connection there is not. A reset is not answered.
func (m *muxer) refuse(k key, o op) {
	if o != opReset {
		m.resets++
		m.turns = append(m.turns, turn{reset: k})
	}
}

// requested connects the guest to the socket of a port of the host.
func (m *muxer) requested(k key, p *packet) {
	fd, err := m.connect(m.path + "_" + strconv.FormatUint(uint64(k.host), 10))
	if err == nil {
		err = m.add(&conn{key: k, fd: fd, state: guestAsks, todo: doResponse, peerAlloc: p.alloc, peerForwarded: p.forwarded})
		if err != nil {
			_ = unix.Close(fd)
		}
	}
	if err != nil {
		m.log.Debug("the guest was refused", "port", k.host, "error", err)
		m.refuse(k, p.op)
	}
}

// connect connects to a socket of the host. While that one's backlog is full everything waits, as in Firecracker.
func (m *muxer) connect(path string) (int, error) {
	for {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return -1, os.NewSyscallError("socket", err)
		}
		tv := unix.NsecToTimeval(int64(connectPatience))
		if err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv); err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		}
		if err == nil {
			err = unix.SetNonblock(fd, true)
		}
		if err == nil {
			return fd, nil
		}
		_ = unix.Close(fd)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) || m.interrupted() {
			return -1, os.NewSyscallError("connect", err)
		}
	}
}

// acknowledge tells the host's client that the guest has accepted.
func (c *conn) acknowledge() {
	line := fmt.Appendf(nil, "OK %d\n", c.host)
	if n, err := again(func() (int, error) { return unix.Write(c.fd, line) }); err != nil || n < len(line) {
		c.kill()
	}
}
