package vhostvsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"golang.org/x/sys/unix"
)

const (
	rxRing = 0 // host → guest
	txRing = 1 // guest → host
	rings  = 2 // the third, of events, is QEMU's own

	// burst is how many packets are moved one way before QEMU and the other way are looked after.
	burst = 256
	// messageTimeout is how long QEMU may take for a message it has begun, in seconds.
	messageTimeout = 10

	features = featVersion1 | featProtocolFeatures
)

// backend is one vsock device and the QEMU it belongs to.
type backend struct {
	cid uint64
	log *slog.Logger
	ctl int // QEMU's connection; it blocks
	mux *muxer

	poll  *poller
	muxID uint64 // of the muxer's own poller; 0 while the device stands still

	mem   *memory
	rings [rings]ring

	chain chain
	data  [][]byte
	more  bool // there is more to move
}

// newBackend returns a device that speaks with QEMU over ctl until stopped can be read.
func newBackend(cfg Config, ctl, stopped int, mux *muxer) (*backend, error) {
	if err := unix.SetNonblock(ctl, false); err != nil {
		return nil, fmt.Errorf("make qemu's connection block: %w", err)
	}
	tv := unix.Timeval{Sec: messageTimeout}
	for _, opt := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(ctl, unix.SOL_SOCKET, opt, &tv); err != nil {
			return nil, fmt.Errorf("set a timeout: %w", err)
		}
	}
	poll, err := newPoller()
	if err != nil {
		return nil, err
	}
	b := &backend{cid: cfg.CID, log: cfg.Log, ctl: ctl, mux: mux, poll: poll, mem: &memory{}}
	for i := range b.rings {
		b.rings[i].addr.index = uint32(i)
		b.rings[i].kick, b.rings[i].call = -1, -1
	}
	mux.interrupted = func() bool { return interrupted(stopped, ctl) }
	if _, err := poll.add(stopped, unix.EPOLLIN, func(uint32) error { return errStopped }); err != nil {
		poll.close()
		return nil, err
	}
	if _, err := poll.add(ctl, unix.EPOLLIN, func(uint32) error { return b.message() }); err != nil {
		poll.close()
		return nil, err
	}
	return b, nil
}

// interrupted reports whether the device is to end, while something waits.
func interrupted(stopped, ctl int) bool {
	fds := []unix.PollFd{{Fd: int32(stopped), Events: unix.POLLIN}, {Fd: int32(ctl), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(fds, 0)
	return n > 0 && err == nil
}

func (b *backend) close() {
	for i := range b.rings {
		r := &b.rings[i]
		r.stop()
		b.setKick(r, -1)
		setFD(&r.call, -1)
	}
	b.mem.close()
	b.poll.close()
}

// run is the life of the device. It always ends with an error.
func (b *backend) run() error {
	for {
		timeout := -1
		if b.more {
			timeout = 0
		}
		if err := b.poll.wait(timeout); err != nil {
			return err
		}
		if err := b.move(); err != nil {
			return err
		}
	}
}

// move moves packets both ways, as many as there are and fit into a burst.
func (b *backend) move() error {
	b.more = false
	if b.muxID == 0 {
		return nil
	}
	toHost, err := b.toHost()
	if err != nil {
		return err
	}
	stalled := b.mux.full()
	toGuest, err := b.toGuest()
	if err != nil {
		return err
	}
	b.more = toHost || toGuest || stalled && !b.mux.full()
	if err := b.mux.settle(); err != nil {
		return err
	}
	for i := range b.rings {
		if err := b.rings[i].signal(); err != nil {
			return err
		}
	}
	return nil
}

// toHost takes what the guest has sent; it reports whether there is more. Where the guest does not fetch what it is
// answered it is not listened to.
func (b *backend) toHost() (more bool, err error) {
	r := &b.rings[txRing]
	for range burst {
		if b.mux.full() {
			return false, nil
		}
		ok, err := r.pop(b.mem, &b.chain)
		if !ok || err != nil {
			return false, err
		}
		if len(b.chain.write) > 0 {
			return false, errors.New("a packet of the guest that is to be written to")
		}
		var p packet
		if b.data, err = readPacket(&p, b.chain.read, b.data); err != nil {
			return false, err
		}
		b.mux.fromGuest(&p, b.data)
		r.push(b.chain.head, 0)
	}
	return true, nil
}

// toGuest fills what the guest has made room for; it reports whether there is more.
func (b *backend) toGuest() (more bool, err error) {
	r := &b.rings[rxRing]
	for range burst {
		if !b.mux.pending() {
			return false, nil
		}
		ok, err := r.pop(b.mem, &b.chain)
		if !ok || err != nil {
			return false, err
		}
		if len(b.chain.read) > 0 || total(b.chain.write) <= packetLen {
			return false, errors.New("a buffer of the guest that does not hold a packet")
		}
		n := b.mux.toGuest(b.chain.write)
		if n == 0 {
			r.unpop()
			continue
		}
		r.push(b.chain.head, uint32(n))
	}
	return true, nil
}

// message reads one message of QEMU's and does what it says.
func (b *backend) message() error {
	m, err := readMessage(b.ctl)
	if errors.Is(err, io.EOF) {
		return errHangup
	}
	if err != nil {
		return fmt.Errorf("read a message of qemu: %w", err)
	}
	defer m.closeFDs()
	answered, err := b.obey(&m)
	if err != nil {
		if errors.Is(err, errHangup) {
			return err
		}
		return fmt.Errorf("qemu's request %d: %w", m.request, err)
	}
	if !answered && m.flags&flagNeedsAck != 0 {
		return reply(b.ctl, m, make([]byte, 8))
	}
	return nil
}

// obey does what a message says, and reports whether that has an answer of its own.
func (b *backend) obey(m *message) (answered bool, err error) {
	switch m.request {
	case reqGetFeatures:
		return true, reply(b.ctl, *m, binary.NativeEndian.AppendUint64(nil, features))
	case reqGetProtocolFeatures:
		return true, reply(b.ctl, *m, binary.NativeEndian.AppendUint64(nil, protoConfig))
	case reqGetConfig:
		return true, b.getConfig(m)
	case reqGetVringBase:
		return true, b.getVringBase(m)
	case reqSetOwner, reqResetOwner:
		return false, nil
	case reqSetFeatures:
		return false, b.setFeatures(m)
	case reqSetProtocolFeatures:
		v, err := m.u64()
		if err == nil && v&^uint64(protoConfig) != 0 {
			err = fmt.Errorf("protocol features %#x", v)
		}
		return false, err
	case reqSetMemTable:
		return false, b.setMemTable(m)
	case reqSetVringKick, reqSetVringCall, reqSetVringErr:
		return false, b.setVringFD(m)
	case reqSetVringNum, reqSetVringBase, reqSetVringEnable, reqSetVringAddr:
		return false, b.setVring(m)
	}
	return false, errors.New("it is of a feature that was not offered")
}

func (b *backend) setFeatures(m *message) error {
	v, err := m.u64()
	if err != nil {
		return err
	}
	if v&^uint64(features) != 0 {
		return fmt.Errorf("features %#x", v)
	}
	if v&featProtocolFeatures == 0 { // then there is nothing to enable a ring with
		for i := range b.rings {
			b.rings[i].enabled = true
		}
	}
	return b.settle()
}

// getConfig answers with the device's configuration, which is the guest's CID.
func (b *backend) getConfig(m *message) error {
	const head = 12 // offset, size, flags
	if len(m.payload) < head {
		return fmt.Errorf("a payload of %d bytes", len(m.payload))
	}
	offset, size := binary.NativeEndian.Uint32(m.payload), binary.NativeEndian.Uint32(m.payload[4:])
	config := binary.LittleEndian.AppendUint64(nil, b.cid)
	if int(size) != len(m.payload)-head || uint64(offset)+uint64(size) > uint64(len(config)) {
		return fmt.Errorf("%d bytes of the configuration from %d on", size, offset)
	}
	return reply(b.ctl, *m, append(m.payload[:head:head], config[offset:offset+size]...))
}

// setMemTable replaces the guest's memory.
func (b *backend) setMemTable(m *message) error {
	table, err := m.memTable()
	if err != nil {
		return err
	}
	mem, err := mapMemory(table, m.fds)
	if err != nil {
		return err
	}
	for i := range b.rings {
		b.rings[i].stop()
	}
	b.mem.close()
	b.mem = mem
	return b.settle()
}

func (b *backend) ring(index uint32) (*ring, error) {
	if index >= rings {
		return nil, fmt.Errorf("ring %d", index)
	}
	return &b.rings[index], nil
}

// setVring sets a property of a ring.
func (b *backend) setVring(m *message) error {
	if m.request == reqSetVringAddr {
		a, err := m.vringAddr()
		if err != nil {
			return err
		}
		r, err := b.ring(a.index)
		if err != nil {
			return err
		}
		if a.flags != 0 {
			return fmt.Errorf("flags %#x", a.flags)
		}
		r.stop()
		r.addr, r.placed = a, true
		return b.settle()
	}
	index, n, err := m.vringState()
	if err != nil {
		return err
	}
	r, err := b.ring(index)
	if err != nil {
		return err
	}
	switch m.request {
	case reqSetVringNum:
		r.stop()
		if err := r.setSize(n); err != nil {
			return err
		}
	case reqSetVringBase:
		if n > 0xffff {
			return fmt.Errorf("base %d", n)
		}
		// Where a ring does not go on where it stood, another driver has taken the device: its streams are none of the old one's.
		if uint16(n) != r.next {
			b.mux.reset()
		}
		r.next = uint16(n)
	case reqSetVringEnable:
		if n > 1 {
			return fmt.Errorf("enable %d", n)
		}
		r.enabled = n == 1
	}
	return b.settle()
}

// getVringBase stops a ring and tells where it stands.
func (b *backend) getVringBase(m *message) error {
	index, _, err := m.vringState()
	if err != nil {
		return err
	}
	r, err := b.ring(index)
	if err != nil {
		return err
	}
	b.setKick(r, -1)
	if err := b.settle(); err != nil {
		return err
	}
	state := binary.NativeEndian.AppendUint32(nil, index)
	return reply(b.ctl, *m, binary.NativeEndian.AppendUint32(state, uint32(r.next)))
}

// setVringFD takes one of a ring's descriptors.
func (b *backend) setVringFD(m *message) error {
	v, err := m.u64()
	if err != nil {
		return err
	}
	r, err := b.ring(uint32(v & vringIndexMask))
	if err != nil {
		return err
	}
	fd := -1
	if v&vringNoFD == 0 {
		if fd, err = m.takeFD(); err != nil {
			return err
		}
	}
	switch m.request {
	case reqSetVringKick:
		if fd < 0 {
			return errors.New("a ring without a kick, which would have to be looked at all the time")
		}
		if err := b.setKick(r, fd); err != nil {
			return err
		}
	case reqSetVringCall:
		setFD(&r.call, fd)
	case reqSetVringErr: // nobody is told of errors: the device ends
		setFD(&fd, -1)
	}
	return b.settle()
}

// setFD replaces a descriptor.
func setFD(at *int, fd int) {
	if *at >= 0 {
		_ = unix.Close(*at)
	}
	*at = fd
}

// setKick replaces the descriptor by which the guest says that there is something in a ring; -1 for none.
func (b *backend) setKick(r *ring, fd int) (err error) {
	if r.kick >= 0 {
		b.poll.remove(r.kick, r.kickID)
	}
	setFD(&r.kick, fd)
	if fd < 0 {
		return nil
	}
	r.kickID, err = b.poll.add(fd, unix.EPOLLIN, func(uint32) error {
		var n [8]byte
		if _, err := unix.Read(fd, n[:]); err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("read a kick: %w", err)
		}
		return nil // move looks at the rings in any case
	})
	return err
}

// settle starts and stops the rings as they are to be by now. The host's sockets are looked after while both run, as on
// Firecracker while the driver of the guest is active and the VM is not paused.
func (b *backend) settle() error {
	run := true
	for i := range b.rings {
		r := &b.rings[i]
		want := r.placed && r.enabled && r.kick >= 0
		switch {
		case want && !r.running():
			if err := r.start(b.mem); err != nil {
				return err
			}
		case !want && r.running():
			if err := r.signal(); err != nil {
				return err
			}
			r.stop()
		}
		run = run && want
	}
	switch {
	case run && b.muxID == 0:
		id, err := b.poll.add(b.mux.poll.fd, unix.EPOLLIN, func(uint32) error { return b.mux.poll.wait(0) })
		if err != nil {
			return err
		}
		b.muxID = id
		b.log.Debug("the device runs")
	case !run && b.muxID != 0:
		b.poll.remove(b.mux.poll.fd, b.muxID)
		b.muxID = 0
		b.log.Debug("the device stands still")
	}
	return nil
}
