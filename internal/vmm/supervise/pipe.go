package supervise

import (
	"io"
	"net"
	"sync"
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

// copyHalf copies from src to dst. An end of src becomes an end for dst; an error is the end of both.
func copyHalf(dst, src net.Conn) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	// The wrappers hide ReadFrom and WriteTo, which would bring buffers of their own.
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, *buf)
	if h, ok := dst.(halfCloser); ok && err == nil && h.CloseWrite() == nil {
		return
	}
	dst.Close()
	src.Close()
}
