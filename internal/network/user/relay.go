package user

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// relay carries the bytes of one TCP connection between the guest's end, in the stack, and the host's socket. It holds no
// buffer while nothing moves: each direction waits until its source can be read, and then has the stack read from or write
// to the socket itself.
type relay struct {
	port *Port
	ep   tcpip.Endpoint
	wq   *waiter.Queue
	conn *net.TCPConn
	raw  syscall.RawConn

	ends atomic.Int32 // directions that have ended orderly
	// outside and forget are done once each.
	outside, forget sync.Once

	watch waiter.Entry // tells of a reset by the guest
	read  waiter.Entry
	write waiter.Entry
	// readable and writable have a token where the guest's end may have become that.
	readable, writable chan struct{}
}

// readChunk is how many bytes of the host's socket go to the stack at once, at most.
const readChunk = 256 << 10

func newRelay(p *Port, ep tcpip.Endpoint, wq *waiter.Queue, conn *net.TCPConn) (*relay, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	l := &relay{port: p, ep: ep, wq: wq, conn: conn, raw: raw}
	l.read, l.readable = waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	l.write, l.writable = waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	l.watch = waiter.NewFunctionEntry(waiter.EventHUp|waiter.EventErr, func(waiter.EventMask) {
		if tcp.EndpointState(ep.State()) == tcp.StateError {
			go l.abort() // not here: the stack holds locks
		}
	})
	l.wq.EventRegister(&l.watch)
	l.wq.EventRegister(&l.read)
	l.wq.EventRegister(&l.write)
	return l, nil
}

// start relays in both directions, in goroutines of their own.
func (l *relay) start() {
	go l.fromGuest()
	go l.toGuest()
}

// abort resets both connections.
func (l *relay) abort() {
	l.closeOutside(true)
	l.ep.Abort()
	l.release()
}

// end says that one direction has ended orderly; with both the connection has. What the guest has not acknowledged yet is
// kept for it, and the connection counts as the guest's until it has.
func (l *relay) end() {
	if l.ends.Add(1) < 2 {
		return
	}
	l.closeOutside(false)
	l.ep.Close()
	wait := time.Millisecond
	for {
		switch tcp.EndpointState(l.ep.State()) {
		case tcp.StateTimeWait, tcp.StateClose, tcp.StateError:
			l.release()
			return
		}
		select {
		case <-l.writable:
		case <-time.After(wait): // not every change of state is told
			wait = min(2*wait, time.Second)
		case <-l.port.ctx.Done():
			l.abort()
			return
		}
	}
}

// closeOutside closes the host's socket, once.
func (l *relay) closeOutside(reset bool) {
	l.outside.Do(func() {
		if reset {
			_ = l.conn.SetLinger(0)
		}
		_ = l.conn.Close() // it was reset, or both sides have said their last
		l.port.net.sockets.give()
	})
}

// release forgets the connection, once.
func (l *relay) release() {
	l.forget.Do(func() {
		l.wq.EventUnregister(&l.watch)
		l.wq.EventUnregister(&l.read)
		l.wq.EventUnregister(&l.write)
		l.port.removeFlow(l)
	})
}

// errFull says that a socket takes no more now.
var errFull = errors.New("socket is full")

// fdWriter writes to a socket without waiting.
type fdWriter struct{ fd int }

func (w fdWriter) Write(b []byte) (int, error) {
	n, err := ignoreEINTR(func() (int, error) { return unix.SendmsgN(w.fd, b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL) })
	switch {
	case errors.Is(err, unix.EAGAIN):
		return 0, errFull
	case err != nil:
		return 0, err
	case n < len(b):
		return n, errFull
	}
	return n, nil
}

// fromGuest carries what the guest sends until it has sent its last.
func (l *relay) fromGuest() {
	for {
		n, full, terr := l.drain()
		switch terr.(type) {
		case nil:
			if n > 0 {
				l.moderate(n)
			}
			if full && !l.waitWritable() {
				l.abort()
				return
			}
		case *tcpip.ErrWouldBlock:
			<-l.readable
		case *tcpip.ErrClosedForReceive:
			if l.conn.CloseWrite() != nil {
				l.abort()
				return
			}
			l.end()
			return
		default:
			l.abort()
			return
		}
	}
}

// drain writes what the guest's end holds to the socket. full says that the socket took no more.
func (l *relay) drain() (n int, full bool, terr tcpip.Error) {
	err := l.raw.Write(func(fd uintptr) bool {
		var w countingWriter
		w.to = fdWriter{int(fd)}
		_, terr = l.ep.Read(&w, tcpip.ReadOptions{})
		n, full = w.n, errors.Is(w.err, errFull)
		if w.err != nil && !full {
			terr = &tcpip.ErrConnectionReset{}
		} else if full {
			terr = nil
		}
		return true
	})
	if err != nil {
		terr = &tcpip.ErrConnectionReset{}
	}
	return n, full, terr
}

// countingWriter remembers how much was written and how it ended.
type countingWriter struct {
	to  fdWriter
	n   int
	err error
}

func (w *countingWriter) Write(b []byte) (int, error) {
	n, err := w.to.Write(b)
	w.n += n
	w.err = err
	return n, err
}

// moderate lets the stack grow its receive buffer to what is read from it.
func (l *relay) moderate(n int) {
	if m, ok := l.ep.(interface{ ModerateRecvBuf(int) }); ok {
		m.ModerateRecvBuf(n)
	}
}

// waitWritable waits until the socket takes bytes; false where it was closed.
func (l *relay) waitWritable() bool {
	err := l.raw.Write(func(fd uintptr) bool { return ready(int(fd), unix.POLLOUT) })
	return err == nil
}

// ready says whether a file is in a state of events, or has failed.
func ready(fd int, events int16) bool {
	list := []unix.PollFd{{Fd: int32(fd), Events: events}}
	n, err := ignoreEINTR(func() (int, error) { return unix.Poll(list, 0) })
	return err != nil || n > 0
}

// toGuest carries what the socket holds until it has ended.
func (l *relay) toGuest() {
	for {
		var got arrival
		err := l.raw.Read(func(fd uintptr) bool {
			got = l.fill(int(fd))
			return got != nothing
		})
		if err != nil {
			got = failed
		}
		switch got {
		case some:
		case guestFull:
			<-l.writable
		case ended:
			if l.ep.Shutdown(tcpip.ShutdownWrite) != nil {
				l.abort()
				return
			}
			l.end()
			l.linger()
			return
		default:
			l.abort()
			return
		}
	}
}

// arrival is what an attempt to read from the socket came to.
type arrival int

const (
	nothing   arrival = iota // wait for the socket
	some                     // bytes went to the guest
	guestFull                // wait for the guest
	ended                    // the socket has ended orderly
	failed
)

// fill has the stack read from the socket as much as both can.
func (l *relay) fill(fd int) arrival {
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return failed
	}
	if n == 0 {
		var b [1]byte
		n, err = ignoreEINTR(func() (int, error) {
			n, _, err := unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			return n, err
		})
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nothing
		case err != nil:
			return failed
		case n == 0:
			return ended
		}
	}
	src := fdPayload{fd: fd, left: min(n, readChunk)}
	_, terr := l.ep.Write(&src, tcpip.WriteOptions{})
	switch terr.(type) {
	case nil:
		return some
	case *tcpip.ErrWouldBlock:
		return guestFull
	}
	return failed
}

// fdPayload is so many bytes that wait in a socket.
type fdPayload struct {
	fd, left int
}

// Len implements tcpip.Payloader.
func (s *fdPayload) Len() int { return s.left }

func (s *fdPayload) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, err := ignoreEINTR(func() (int, error) { return unix.Read(s.fd, b) })
	switch {
	case err != nil:
		return 0, err
	case n <= 0:
		return 0, io.ErrUnexpectedEOF
	}
	s.left -= n
	return n, nil
}

// linger waits, after the outside has sent its last, for the guest's direction to end; a reset from outside resets the
// guest's connection too.
func (l *relay) linger() {
	err := l.raw.Read(func(fd uintptr) bool {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		return err != nil || code != 0
	})
	if err == nil || !errors.Is(err, net.ErrClosed) {
		l.abort()
	}
}

func ignoreEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
