package fakefc

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// The host's side of Firecracker's vsock device (src/vmm/src/devices/virtio/vsock/unix/muxer.rs, csm/connection.rs).
const (
	maxStreams = 1023
	// minConnect bytes are read at once, then one by one up to maxConnect.
	minConnect = 10
	maxConnect = 32
	// firstPort is the host's port of the first stream; bit 30 is always set, bit 31 never.
	firstPort = 1 << 30
)

// gate is what the guest's CPUs stand still behind.
type gate struct {
	mu   sync.Mutex // guards open
	open chan struct{}
}

// newGate is an open one.
func newGate() *gate {
	open := make(chan struct{})
	close(open)
	return &gate{open: open}
}

// wait returns when the CPUs run.
func (g *gate) wait() {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	<-open
}

// isOpen is called with mu held.
func (g *gate) isOpen() bool {
	select {
	case <-g.open:
		return true
	default:
		return false
	}
}

func (g *gate) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isOpen() {
		g.open = make(chan struct{})
	}
}

func (g *gate) cont() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.isOpen() {
		close(g.open)
	}
}

// device is a vsock device.
type device struct {
	path string
	ln   *net.UnixListener
	gate *gate
	// accept is who answers in the guest; false where nobody listens. It is there when active is closed: before, what connects is left
	// waiting.
	accept func(port uint32, conn net.Conn) bool
	active chan struct{}

	vmm sync.Mutex // Firecracker has one thread for all this

	mu      sync.Mutex // guards what follows
	streams map[*stream]struct{}
	next    uint32
}

// newDevice binds path, which must not exist.
func newDevice(path string, gate *gate) (*device, error) {
	ln, err := listen(path)
	if err != nil {
		return nil, err
	}
	d := &device{path: path, ln: ln, gate: gate, active: make(chan struct{}), streams: map[*stream]struct{}{}, next: firstPort}
	go d.serve()
	return d, nil
}

// listen binds a socket that is left behind.
func listen(path string) (*net.UnixListener, error) {
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	return ln, nil
}

// start makes the guest's driver take the device.
func (d *device) start(accept func(port uint32, conn net.Conn) bool) {
	d.accept = accept
	close(d.active)
}

func (d *device) close() { d.ln.Close() }

func (d *device) serve() {
	for {
		// Nothing is accepted before; what connects waits in the kernel.
		<-d.active
		d.gate.wait()
		conn, err := d.ln.AcceptUnix()
		if err != nil {
			return
		}
		d.mu.Lock()
		full := len(d.streams) >= maxStreams
		d.mu.Unlock()
		if full {
			conn.Close()
			continue
		}
		go func() {
			if err := d.connect(conn); err != nil { // no word of it to the host
				conn.Close()
			}
		}()
	}
}

// connect serves one client of the host up to its OK.
func (d *device) connect(host *net.UnixConn) error {
	port, err := d.readConnect(host)
	if err != nil {
		return err
	}
	d.vmm.Lock()
	defer d.vmm.Unlock()
	guest, mux, err := pair()
	if err != nil {
		return err
	}
	s := &stream{dev: d, host: host, mux: mux, gone: make(chan struct{})}
	if !d.accept(port, &guestConn{UnixConn: guest, stream: s}) {
		guest.Close()
		mux.Close()
		return unix.ECONNRESET
	}
	if _, err := fmt.Fprintf(host, "OK %d\n", d.add(s)); err != nil {
		guest.Close()
		mux.Close()
		d.remove(s)
		return err
	}
	s.run()
	return nil
}

// readConnect reads the line of a client as Firecracker does: what is not there at once is not read.
func (d *device) readConnect(host *net.UnixConn) (port uint32, err error) {
	raw, err := host.SyscallConn()
	if err != nil {
		return 0, err
	}
	var line []byte
	var lerr error
	err = raw.Read(func(fd uintptr) bool {
		d.gate.wait() // the thread is not there to read while it is closed
		line, lerr = connectLine(int(fd))
		return len(line) > 0 || !errors.Is(lerr, unix.EAGAIN)
	})
	if err == nil {
		err = lerr
	}
	if err != nil {
		return 0, err
	}
	return parseConnect(line)
}

// connectLine reads a line from a non-blocking descriptor; what was read before an error comes with it.
func connectLine(fd int) (line []byte, err error) {
	buf := make([]byte, maxConnect)
	got := 0
	for want := minConnect; got < maxConnect; want = got + 1 {
		for got < want {
			n, err := unix.Read(fd, buf[got:want])
			if err == nil && n == 0 {
				err = io.EOF
			}
			if err != nil {
				return buf[:got], err
			}
			got += n
		}
		if buf[got-1] == '\n' {
			break
		}
	}
	return buf[:got], nil
}

func parseConnect(line []byte) (uint32, error) {
	words := strings.Fields(string(line))
	if len(words) < 2 || !strings.EqualFold(words[0], "connect") {
		return 0, errors.New("not CONNECT and a port")
	}
	port, err := strconv.ParseUint(words[1], 10, 32)
	return uint32(port), err
}

// add gives a stream its port on the host.
func (d *device) add(s *stream) uint32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.streams[s] = struct{}{}
	port := d.next
	d.next = (d.next+1)&^(1<<31) | firstPort
	return port
}

func (d *device) remove(s *stream) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.streams, s)
}

// dial is the guest's connect to a port of the host.
func (d *device) dial(port uint32) (*guestConn, error) {
	d.gate.wait()
	d.vmm.Lock()
	defer d.vmm.Unlock()
	host, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("%s_%d", d.path, port)})
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "vsock", Err: os.NewSyscallError("connect", unix.ECONNRESET)}
	}
	guest, mux, err := pair()
	if err != nil {
		host.Close()
		return nil, err
	}
	s := &stream{dev: d, host: host, mux: mux, gone: make(chan struct{})}
	d.add(s)
	s.run()
	return &guestConn{UnixConn: guest, stream: s}, nil
}

// reset is what a snapshot does to the streams of the guest that goes on after it: the guest's driver ends them all and tells nobody.
func (d *device) reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for s := range d.streams {
		s.mu.Lock()
		s.reset = true
		s.mu.Unlock()
		s.mux.Close()
		s.over()
	}
}

// stream joins a connection of the host with one of the guest.
type stream struct {
	dev  *device
	host *net.UnixConn
	mux  *net.UnixConn // the other end of the guest's
	gone chan struct{} // closed by over, when the guest knows that it has lost the host
	once sync.Once

	mu      sync.Mutex // guards what follows
	dropped bool       // the host's end has ended: what comes from the guest is thrown away
	reset   bool       // the guest's end was taken away by a snapshot
}

func (s *stream) over() { s.once.Do(func() { close(s.gone) }) }

func (s *stream) run() {
	go s.toGuest()
	go s.toHost()
}

func (s *stream) isReset() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reset
}

// toGuest carries the host's bytes. The end of those, be it of one direction or of both, is the end of the stream.
func (s *stream) toGuest() {
	defer s.over()
	buf := make([]byte, 64<<10)
	for {
		n, err := s.host.Read(buf)
		s.dev.gate.wait()
		if n > 0 {
			if _, werr := s.mux.Write(buf[:n]); werr != nil && s.isReset() {
				s.host.Close() // the guest answers with a reset only now
				s.dev.remove(s)
				return
			}
		}
		if err != nil {
			break
		}
	}
	s.mu.Lock()
	s.dropped = true
	s.mu.Unlock()
	// Both directions end for the guest (OP_SHUTDOWN with RCV and SEND): it can still read what came before.
	_ = s.mux.CloseWrite()
	_ = s.mux.CloseRead()
}

// toHost carries the guest's bytes, until it closes its connection. The end of one direction the host does not hear of.
func (s *stream) toHost() {
	buf := make([]byte, 64<<10)
	for {
		n, err := s.mux.Read(buf)
		s.dev.gate.wait()
		s.mu.Lock()
		drop := s.dropped
		s.mu.Unlock()
		if n > 0 && !drop {
			if _, werr := s.host.Write(buf[:n]); werr != nil {
				err = werr
			}
		}
		if err == nil {
			continue
		}
		if s.isReset() {
			return // the host does not hear of it
		}
		s.host.Close()
		if drop {
			<-s.gone // what came before its end the guest still reads
		}
		s.mux.Close()
		s.dev.remove(s)
		return
	}
}

// guestConn is the guest's end.
type guestConn struct {
	*net.UnixConn
	stream *stream
}

// CloseWrite does nothing, as that of the agent's streams on vsock: the host would not hear of it.
func (c *guestConn) CloseWrite() error { return errors.ErrUnsupported }

// CloseRead likewise.
func (c *guestConn) CloseRead() error { return errors.ErrUnsupported }

// pair is a connection within the fake.
func pair() (a, b *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "vsock")
		conn, cerr := net.FileConn(f)
		f.Close()
		u, ok := conn.(*net.UnixConn)
		if !ok {
			return nil, nil, errors.Join(err, cerr)
		}
		conns[i] = u
	}
	return conns[0], conns[1], nil
}
