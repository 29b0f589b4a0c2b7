package supervise

import (
	"io"
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// buffers are what streams are copied through. A supervisor of an idle VM holds none.
var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// halfCloser is a connection that can end one direction; both unix sockets and the channel's streams can.
type halfCloser interface{ CloseWrite() error }

// pipe copies between a and b until both directions have ended, or one of them failed; then it closes both.
func pipe(a, b net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() { copyHalf(a, b) })
	wg.Go(func() { copyHalf(b, a) })
	wg.Wait()
	a.Close()
	b.Close()
}

// copyHalf copies from src to dst. An end of src becomes an end for dst; an error is the end of both, and so is that src,
// which has ended, is closed: what comes from dst then has no reader, and might never come.
func copyHalf(dst, src net.Conn) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	// The wrappers hide ReadFrom and WriteTo, which would bring buffers of their own.
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, *buf)
	if h, ok := dst.(halfCloser); ok && err == nil && h.CloseWrite() == nil {
		go func() {
			if hungUp(src) {
				dst.Close()
				src.Close()
			}
		}()
		return
	}
	dst.Close()
	src.Close()
}

// hungUp waits until the peer of a unix socket has closed it, not just its sending half; false where conn is closed
// here first, or is of another kind.
func hungUp(conn net.Conn) bool {
	c, ok := conn.(*net.UnixConn)
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
