// Package relay joins two streams: what comes from one goes to the other, ends included.
package relay

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// buffers are what streams are copied through. A process whose streams are idle holds none.
var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// HalfCloser is a connection that may be able to end one direction and keep the other. Where it is not, CloseWrite
// returns errors.ErrUnsupported and does nothing: so do the streams of Firecracker's vsock, for which the end of one direction is that of both.
type HalfCloser interface{ CloseWrite() error }

// Join copies between a and b until both directions have ended, or one of them failed; then it closes both.
func Join(a, b net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() { copyHalf(a, b) })
	wg.Go(func() { copyHalf(b, a) })
	wg.Wait()
	a.Close()
	b.Close()
}

// copyHalf copies from src to dst. An end of src becomes an end for dst where dst can have one; an error is the end of both, and so
// is that src, which has ended, is closed: what comes from dst then has no reader, and might never come.
func copyHalf(dst, src net.Conn) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	// The wrappers hide ReadFrom and WriteTo, which would bring buffers of their own.
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, *buf)
	half, ok := dst.(HalfCloser)
	if err == nil && ok {
		err = half.CloseWrite()
	}
	if !ok || err != nil && !errors.Is(err, errors.ErrUnsupported) {
		dst.Close()
		src.Close()
		return
	}
	go func() {
		if hungUp(src) {
			dst.Close()
			src.Close()
		}
	}()
}

// hungUp waits until the peer of a socket has closed it, not just its sending half; false where conn is closed
// here first, or is no socket.
func hungUp(conn net.Conn) bool {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	hup := false
	err = raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd)}} // POLLHUP and POLLERR are always told
		n, _ := unix.Poll(fds, 0)
		hup = n > 0 && fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
		return hup
	})
	return err == nil && hup
}
