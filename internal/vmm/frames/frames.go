// Package frames carries a VM's Ethernet frames over a pair of unix datagram sockets: a datagram is a
// frame, so whoever holds an end can die in the middle of anything and the next holder still finds whole frames.
// QEMU takes one end as `-netdev socket,fd=`, bangerd reads and writes the other.
//
// frames.go is the pair and its ends. carry.go carries frames between an end, or a TAP, and a stream: where the guest has its TAP itself, the agent
// and the supervisor each hold an end of that stream.
package frames

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// sendBuffer is asked for on both ends, in bytes. The kernel gives what net.core.wmem_max allows; its default is
// enough for three of the longest frames under way, and it holds back at ten of any length (net.unix.max_dgram_qlen).
const sendBuffer = 4 << 20

// Pair returns the two ends.
func Pair() (host, vm *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair for frames: %w", err)
	}
	for _, fd := range fds {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer) // less is slower, no worse
		}
	}
	return os.NewFile(uintptr(fds[0]), "frames-host"), os.NewFile(uintptr(fds[1]), "frames-vm"), nil
}

// Link is one end; it implements vmm.Link.
type Link struct {
	f      *os.File
	rc     syscall.RawConn
	closed func()
}

// NewLink takes over an end; closed, which may be nil, is called by Close.
func NewLink(f *os.File, closed func()) (*Link, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("use a socket for frames: %w", err)
	}
	return &Link{f: f, rc: rc, closed: closed}, nil
}

// ReadFrame implements vmm.Link.
func (l *Link) ReadFrame(p []byte) (int, error) {
	n := 0
	for n == 0 { // an empty datagram is no frame
		var rerr error
		err := l.rc.Read(func(fd uintptr) bool {
			n, rerr = unix.Read(int(fd), p)
			return !errors.Is(rerr, unix.EAGAIN)
		})
		switch {
		case err != nil:
			return 0, errClosed("read")
		case rerr != nil && !errors.Is(rerr, unix.EINTR):
			return 0, fmt.Errorf("read a frame: %w", rerr)
		}
		n = max(n, 0)
	}
	return n, nil
}

// WriteFrame implements vmm.Link. A frame for which the kernel has no room at all is lost, as on a wire.
func (l *Link) WriteFrame(pieces [][]byte) error {
	for {
		var werr error
		err := l.rc.Write(func(fd uintptr) bool {
			_, werr = unix.SendmsgBuffers(int(fd), pieces, nil, nil, unix.MSG_NOSIGNAL)
			return !errors.Is(werr, unix.EAGAIN)
		})
		switch {
		case err != nil, gone(werr):
			return errClosed("write")
		case werr == nil, lost(werr):
			return nil
		case !errors.Is(werr, unix.EINTR):
			return fmt.Errorf("write a frame: %w", werr)
		}
	}
}

// gone tells the errors of writing where nobody holds the other end.
func gone(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ECONNRESET)
}

// lost tells the errors of writing a frame for which the kernel has no room at all.
func lost(err error) bool {
	return errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EMSGSIZE)
}

// Close implements vmm.Link. It may be called more than once.
func (l *Link) Close() error {
	err := l.f.Close()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	if l.closed != nil {
		l.closed()
	}
	return err
}

// errClosed is the end of a link: the poller has no other error where no deadline is set.
func errClosed(op string) error { return fmt.Errorf("%s a frame: %w", op, net.ErrClosed) }

// Discard reads one datagram and throws it away.
func Discard(f *os.File) error {
	var b [1]byte // the rest of a datagram goes with it
	_, err := f.Read(b[:])
	if errors.Is(err, io.EOF) { // it was empty: the end of such a socket reads as nothing to read
		return nil
	}
	return err
}
