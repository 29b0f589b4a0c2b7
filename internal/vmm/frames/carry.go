package frames

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

const (
	// prefix is the length of the length before each frame on a stream, in bytes.
	prefix = 2
	// minEthernet is the shortest frame, in bytes: a header.
	minEthernet = 14
	// batch is how much of a stream is read or written at once, in bytes: whole frames of any length fit, and many short ones. A carrier
	// holds two such buffers, of which the kernel backs what was used.
	batch = 2 * (prefix + wire.MaxEthernet)
)

// Carry carries frames between a stream and vm, both ways: as wire.PortNet says on the stream, a frame to a read or a write at vm,
// which is the VM's end of a Pair, or a TAP. It returns nil when the stream has ended, an error where it ended within a frame or
// broke the framing, and ctx's cause soon after ctx has ended. Then no goroutine of it is left, and vm can be carried for again;
// stream is good for nothing any more, and the caller's to close. The deadlines of both are Carry's; at first there are none.
//
// It waits where a side has no room: a frame is lost only where Link.WriteFrame would lose it, where the TAP is down, and where
// the stream breaks.
func Carry(ctx context.Context, stream net.Conn, vm *os.File) error {
	rc, err := vm.SyscallConn()
	if err != nil {
		return fmt.Errorf("carry frames: %w", err)
	}
	over, end := context.WithCancel(ctx)
	defer end()
	woken := make(chan struct{})
	context.AfterFunc(over, func() {
		defer close(woken)
		past := time.Unix(1, 0)
		_ = errors.Join(stream.SetDeadline(past), vm.SetDeadline(past)) // one that is closed wakes by itself
	})
	results := make(chan error, 2)
	for _, direction := range []func() error{
		func() error { return toStream(stream, rc) },
		func() error { return fromStream(rc, stream) },
	} {
		go func() {
			results <- direction()
			end()
		}()
	}
	first := <-results
	<-results
	<-woken
	_ = vm.SetDeadline(time.Time{})
	switch {
	case ctx.Err() != nil && errors.Is(first, os.ErrDeadlineExceeded):
		return context.Cause(ctx)
	case streamEnded(first):
		return nil
	default:
		return fmt.Errorf("carry frames: %w", first)
	}
}

// streamEnded tells the errors of a stream whose other side is gone. Who writes may see that before who reads.
func streamEnded(err error) bool {
	if _, ok := errors.AsType[*vmError](err); ok {
		return false
	}
	for _, end := range []error{io.EOF, io.ErrClosedPipe, net.ErrClosed, unix.EPIPE, unix.ECONNRESET} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

// vmError is an error of the VM's end.
type vmError struct{ error }

// Unwrap gives the cause.
func (e *vmError) Unwrap() error { return e.error }

// vmWait says why waiting for vm has ended.
func vmWait(op string, err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return &vmError{errClosed(op)}
}

// toStream carries frames from vm to the stream: all that are there with one write.
func toStream(stream io.Writer, vm syscall.RawConn) error {
	buf := make([]byte, batch)
	for {
		var n int
		var rerr error
		err := vm.Read(func(fd uintptr) bool {
			n, rerr = gather(int(fd), buf)
			return n > 0 || rerr != nil
		})
		switch {
		case err != nil:
			return vmWait("read", err)
		case rerr != nil:
			return &vmError{fmt.Errorf("read a frame: %w", rerr)}
		}
		if _, err := stream.Write(buf[:n]); err != nil {
			return err
		}
	}
}

// gather fills buf with the frames that are to be had from fd without waiting, each behind its length, and returns how many bytes that is.
func gather(fd int, buf []byte) (n int, err error) {
	for len(buf)-n >= prefix+wire.MaxEthernet {
		at := n + prefix
		k, err := unix.Read(fd, buf[at:at+wire.MaxEthernet])
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN) || err != nil && n > 0: // an error comes again
			return n, nil
		case err != nil:
			return 0, err
		case k >= minEthernet: // what is shorter is no frame
			binary.BigEndian.PutUint16(buf[n:], uint16(k))
			n = at + k
		}
	}
	return n, nil
}

// fromStream carries frames from the stream to vm.
func fromStream(vm syscall.RawConn, stream io.Reader) error {
	buf := make([]byte, batch)
	have := 0
	for {
		n, err := stream.Read(buf[have:])
		have += n
		used, werr := deliver(vm, buf[:have])
		if werr != nil {
			return werr
		}
		have = copy(buf, buf[used:have]) // less than a frame
		switch {
		case err == nil:
		case errors.Is(err, io.EOF) && have > 0:
			return io.ErrUnexpectedEOF
		default:
			return err
		}
	}
}

// deliver writes the whole frames that b begins with, and returns how many bytes they are.
func deliver(vm syscall.RawConn, b []byte) (used int, err error) {
	for len(b)-used >= prefix {
		n := int(binary.BigEndian.Uint16(b[used:]))
		if n < minEthernet || n > wire.MaxEthernet {
			return used, wire.Violation("frame of %d bytes", n)
		}
		end := used + prefix + n
		if end > len(b) {
			break
		}
		if err := put(vm, b[used+prefix:end]); err != nil {
			return used, err
		}
		used = end
	}
	return used, nil
}

// put writes a frame to vm, as soon as that has room.
func put(vm syscall.RawConn, frame []byte) error {
	for {
		var werr error
		err := vm.Write(func(fd uintptr) bool {
			_, werr = unix.Write(int(fd), frame)
			return !errors.Is(werr, unix.EAGAIN)
		})
		switch {
		case err != nil:
			return vmWait("write", err)
		case werr == nil, lost(werr), errors.Is(werr, unix.EIO): // EIO is of a TAP that is down
			return nil
		case gone(werr):
			return &vmError{errClosed("write")}
		case !errors.Is(werr, unix.EINTR):
			return &vmError{fmt.Errorf("write a frame: %w", werr)}
		}
	}
}
