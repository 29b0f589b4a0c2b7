package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/channel"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

const (
	// portDeadline is how long the agent's port may take to appear.
	portDeadline = 20 * time.Second
	// How long to wait where the port says that nobody is at its other end: at first, and at last.
	hostAbsentMin, hostAbsentMax = 2 * time.Millisecond, 100 * time.Millisecond
	// acceptAgain is how long after an error a vsock port is listened to again.
	acceptAgain = 100 * time.Millisecond
)

// serveLinks hands every link to the host to use, one after another, until ctx ends.
func serveLinks(ctx context.Context, transport string, use func(link)) error {
	switch transport {
	case wire.TransportVsock:
		l, err := newVsockLink()
		if err != nil {
			return err
		}
		use(l)
		return nil
	case wire.TransportSerial:
		dev, err := findPort("/sys", wire.PortName)
		if err != nil {
			return err
		}
		port, err := os.OpenFile(dev, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		a := channel.Guest(&patientPort{File: port})
		for {
			s, err := a.Accept(ctx)
			if err != nil {
				return err
			}
			use(s)
		}
	}
	return fmt.Errorf("transport %q is not known to this agent", transport)
}

// findPort waits for the device of the virtio-serial port with a name.
func findPort(sys, name string) (string, error) {
	for end := time.Now().Add(portDeadline); ; <-time.After(time.Millisecond) {
		files, err := filepath.Glob(filepath.Join(sys, "class/virtio-ports/*/name"))
		if err != nil {
			return "", err
		}
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(b)) == name {
				return "/dev/" + path.Base(path.Dir(f)), nil
			}
		}
		if time.Now().After(end) {
			return "", fmt.Errorf("find virtio-serial port %q: none after %v", name, portDeadline)
		}
	}
}

// patientPort is a virtio-serial port whose Read waits for the host. The kernel answers a read
// with nothing as long as it has not heard that the host has opened its side, which may be after data came.
type patientPort struct {
	*os.File
}

// Read implements io.Reader.
func (p *patientPort) Read(b []byte) (int, error) {
	for wait := hostAbsentMin; ; wait = min(2*wait, hostAbsentMax) {
		n, err := p.File.Read(b)
		if n > 0 || err != nil && !errors.Is(err, io.EOF) {
			return n, err
		}
		<-time.After(wait)
	}
}

// vsockLink is the host by vsock. It lasts as long as the guest.
type vsockLink struct {
	listeners []*vsock.Listener
	done      chan struct{}
}

// ports are those the agent serves.
var ports = []uint32{wire.PortAPI, wire.PortExec, wire.PortDial, wire.PortSSH}

// newVsockLink listens at once, so that the host finds the ports when the call has come.
func newVsockLink() (*vsockLink, error) {
	l := &vsockLink{done: make(chan struct{})}
	for _, port := range ports {
		li, err := vsock.ListenContextID(vsockAny, port, nil)
		if err != nil {
			return nil, fmt.Errorf("listen on vsock port %d: %w", port, err)
		}
		l.listeners = append(l.listeners, li)
	}
	return l, nil
}

// vsockAny is VMADDR_CID_ANY: a restored guest may have another CID.
const vsockAny = 0xffffffff

// Dial implements link.
func (l *vsockLink) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	conn, err := vsock.DialContext(ctx, vsock.Host, port, nil)
	if err != nil {
		return nil, err
	}
	if port == wire.PortNet {
		widen(conn)
	}
	return conn, nil
}

// netWindow is how much of what the host sends on the way to the guest's network may wait in the guest, in bytes. The kernel's own
// default of 256 KiB is four of the longest frames.
const netWindow = 2 << 20

// Socket options of level AF_VSOCK (linux/vm_sockets.h).
const (
	bufferSize    = 0 // SO_VM_SOCKETS_BUFFER_SIZE
	bufferMaxSize = 2 // SO_VM_SOCKETS_BUFFER_MAX_SIZE
)

// widen gives a stream a larger window; where the kernel does not, it works as well, slower.
func widen(conn *vsock.Conn) {
	rc, err := conn.SyscallConn()
	if err != nil {
		return
	}
	_ = rc.Control(func(fd uintptr) {
		for _, option := range []int{bufferMaxSize, bufferSize} {
			_ = unix.SetsockoptUint64(int(fd), unix.AF_VSOCK, option, netWindow)
		}
	})
}

// Done implements link: a vsock does not end.
func (l *vsockLink) Done() <-chan struct{} { return l.done }

// Serve implements link. Only the host is served: a process of the guest could connect as well.
func (l *vsockLink) Serve(handler func(port uint32, conn net.Conn) bool) error {
	var wg sync.WaitGroup
	errs := make([]error, len(l.listeners))
	for i, li := range l.listeners {
		wg.Go(func() {
			for {
				conn, err := li.Accept()
				if errors.Is(err, net.ErrClosed) {
					errs[i] = err
					return
				}
				if err != nil { // out of descriptors or memory, which passes: the host has no other way in
					<-time.After(acceptAgain)
					continue
				}
				port := li.Addr().(*vsock.Addr).Port
				from, ok := conn.RemoteAddr().(*vsock.Addr)
				go func() {
					if !ok || from.ContextID != vsock.Host || !handler(port, conn) {
						conn.Close()
					}
				}()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
