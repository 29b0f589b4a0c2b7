package vhostvsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Requests of vhost-user (docs/interop/vhost-user.rst of QEMU). Those not named here belong to features that are not offered.
type request uint32

const (
	reqGetFeatures         request = 1
	reqSetFeatures         request = 2
	reqSetOwner            request = 3
	reqResetOwner          request = 4
	reqSetMemTable         request = 5
	reqSetVringNum         request = 8
	reqSetVringAddr        request = 9
	reqSetVringBase        request = 10
	reqGetVringBase        request = 11
	reqSetVringKick        request = 12
	reqSetVringCall        request = 13
	reqSetVringErr         request = 14
	reqGetProtocolFeatures request = 15
	reqSetProtocolFeatures request = 16
	reqSetVringEnable      request = 18
	reqGetConfig           request = 24
)

const (
	// headerLen is the length of a message's header: request, flags, and the length of the payload.
	headerLen  = 12
	maxPayload = 8 + maxRegions*regionLen
	// maxRegions is how many regions of memory a table may have, one descriptor each.
	maxRegions = 8
	regionLen  = 32

	flagVersion  = 1
	flagVersions = 3 // the bits of the version
	flagReply    = 1 << 2
	flagNeedsAck = 1 << 3

	// Features, of virtio and of vhost-user.
	featVersion1         = 1 << 32
	featProtocolFeatures = 1 << 30
	protoConfig          = 1 << 9

	// In the payload of the messages that carry a descriptor of a ring.
	vringIndexMask = 0xff
	vringNoFD      = 1 << 8
)

// message is one of QEMU's.
type message struct {
	request request
	flags   uint32
	payload []byte
	fds     []int // the receiver's; close what is not used
}

// closeFDs closes the descriptors nobody has taken.
func (m *message) closeFDs() {
	for _, fd := range m.fds {
		_ = unix.Close(fd)
	}
	m.fds = nil
}

// takeFD takes the only descriptor of a message.
func (m *message) takeFD() (int, error) {
	if len(m.fds) != 1 {
		return -1, fmt.Errorf("%d descriptors in place of one", len(m.fds))
	}
	fd := m.fds[0]
	m.fds = nil
	return fd, nil
}

// readMessage reads a message from a blocking socket; io.EOF where there are no more.
func readMessage(fd int) (m message, err error) {
	defer func() {
		if err != nil {
			m.closeFDs()
		}
	}()
	var header [headerLen]byte
	for got := 0; got < len(header); {
		n, fds, err := receive(fd, header[got:])
		m.fds = append(m.fds, fds...)
		if err == nil && n == 0 && got > 0 {
			err = io.ErrUnexpectedEOF
		} else if err == nil && n == 0 {
			err = io.EOF
		}
		if err != nil {
			return m, err
		}
		got += n
	}
	size, err := m.decode(header)
	if err != nil {
		return m, err
	}
	m.payload = make([]byte, size)
	for got := 0; got < len(m.payload); {
		n, fds, err := receive(fd, m.payload[got:])
		m.fds = append(m.fds, fds...)
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return m, err
		}
		got += n
	}
	if len(m.fds) > maxRegions {
		return m, fmt.Errorf("a message with %d descriptors", len(m.fds))
	}
	return m, nil
}

// decode takes in a header and returns the length of the payload.
func (m *message) decode(header [headerLen]byte) (size uint32, err error) {
	m.request = request(binary.NativeEndian.Uint32(header[0:]))
	m.flags = binary.NativeEndian.Uint32(header[4:])
	size = binary.NativeEndian.Uint32(header[8:])
	if m.flags&flagVersions != flagVersion || m.flags&flagReply != 0 {
		return 0, fmt.Errorf("a message with flags %#x", m.flags)
	}
	if size > maxPayload {
		return 0, fmt.Errorf("a message of %d bytes", size)
	}
	return size, nil
}

// receive reads up to len(b) bytes, and the descriptors that come with them.
func receive(fd int, b []byte) (n int, fds []int, err error) {
	oob := make([]byte, unix.CmsgSpace(maxRegions*4))
	for {
		var oobn, flags int
		n, oobn, flags, _, err = unix.Recvmsg(fd, b, oob, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.ECONNRESET) { // QEMU died with something unread
			return 0, nil, nil
		}
		if err != nil {
			return 0, nil, os.NewSyscallError("recvmsg", err)
		}
		fds, err = parseFDs(oob[:oobn])
		if err == nil && flags&unix.MSG_CTRUNC != 0 {
			err = errors.New("a message with more descriptors than there may be")
		}
		return n, fds, err
	}
}

func parseFDs(oob []byte) ([]int, error) {
	controls, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, os.NewSyscallError("control message", err)
	}
	var all []int
	for _, c := range controls {
		fds, err := unix.ParseUnixRights(&c)
		if err != nil {
			continue // something else, which does not carry descriptors
		}
		all = append(all, fds...)
	}
	return all, nil
}

// reply answers m.
func reply(fd int, m message, payload []byte) error {
	b := binary.NativeEndian.AppendUint32(make([]byte, 0, headerLen+len(payload)), uint32(m.request))
	b = binary.NativeEndian.AppendUint32(b, flagVersion|flagReply)
	b = binary.NativeEndian.AppendUint32(b, uint32(len(payload)))
	b = append(b, payload...)
	for len(b) > 0 {
		n, err := unix.SendmsgN(fd, b, nil, nil, unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
			return errHangup
		}
		if err != nil {
			return os.NewSyscallError("sendmsg", err)
		}
		b = b[n:]
	}
	return nil
}

// u64 is the payload of m, which is a number.
func (m *message) u64() (uint64, error) {
	if len(m.payload) != 8 {
		return 0, fmt.Errorf("a payload of %d bytes in place of 8", len(m.payload))
	}
	return binary.NativeEndian.Uint64(m.payload), nil
}

// vringState is the payload of m, which is the index of a ring and a number.
func (m *message) vringState() (index, num uint32, err error) {
	if len(m.payload) != 8 {
		return 0, 0, fmt.Errorf("a payload of %d bytes in place of 8", len(m.payload))
	}
	return binary.NativeEndian.Uint32(m.payload), binary.NativeEndian.Uint32(m.payload[4:]), nil
}

// vringAddr are the addresses of a ring's parts, in QEMU's address space.
type vringAddr struct {
	index, flags      uint32
	desc, used, avail uint64
}

func (m *message) vringAddr() (a vringAddr, err error) {
	if len(m.payload) != 40 {
		return a, fmt.Errorf("a payload of %d bytes in place of 40", len(m.payload))
	}
	e := binary.NativeEndian
	return vringAddr{
		index: e.Uint32(m.payload), flags: e.Uint32(m.payload[4:]),
		desc: e.Uint64(m.payload[8:]), used: e.Uint64(m.payload[16:]), avail: e.Uint64(m.payload[24:]),
	}, nil
}

// memTable is the payload of m, which are regions of memory.
func (m *message) memTable() ([]regionInfo, error) {
	if len(m.payload) < 8 {
		return nil, fmt.Errorf("a payload of %d bytes in place of a table", len(m.payload))
	}
	e := binary.NativeEndian
	n := e.Uint32(m.payload)
	if n > maxRegions || len(m.payload) != 8+int(n)*regionLen || len(m.fds) != int(n) {
		return nil, fmt.Errorf("a table of %d regions with %d descriptors in %d bytes", n, len(m.fds), len(m.payload))
	}
	regions := make([]regionInfo, n)
	for i := range regions {
		b := m.payload[8+i*regionLen:]
		regions[i] = regionInfo{guest: e.Uint64(b), size: e.Uint64(b[8:]), user: e.Uint64(b[16:]), offset: e.Uint64(b[24:])}
	}
	return regions, nil
}
