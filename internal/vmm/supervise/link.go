package supervise

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/frames"
)

// cable is the pair of sockets that carries the VM's Ethernet frames. It is as old as the supervisor: a guest that
// reboots and a daemon that restarts find the same one. Whoever holds the lease reads and writes the host's end;
// while nobody does, the frames of the guest are thrown away, so that its device never stands still.
type cable struct {
	host, vm *os.File

	mu    sync.Mutex // guards what follows
	lease *net.UnixConn
	free  *sync.Cond // lease is nil, or closed
	over  bool

	carrier sync.Mutex         // held by who carries frames between vm and a stream of the guest
	unplug  context.CancelFunc // ends the carrier of the moment; guarded by mu
}

// plug makes the caller the one who carries the guest's frames, as soon as the one before has ended. The context ends when the next
// one comes.
func (c *cable) plug(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	c.mu.Lock()
	if c.unplug != nil {
		c.unplug()
	}
	c.unplug = cancel
	c.mu.Unlock()
	c.carrier.Lock()
	return ctx, func() {
		cancel()
		c.carrier.Unlock()
	}
}

func newCable() (*cable, error) {
	host, vm, err := frames.Pair()
	if err != nil {
		return nil, err
	}
	c := &cable{host: host, vm: vm}
	c.free = sync.NewCond(&c.mu)
	go c.drain()
	return c, nil
}

// drain throws frames away while nobody has the lease.
func (c *cable) drain() {
	for {
		c.mu.Lock()
		for c.lease != nil && !c.over {
			c.free.Wait()
		}
		if c.over {
			c.mu.Unlock()
			return
		}
		_ = c.host.SetReadDeadline(time.Time{})
		c.mu.Unlock()
		if err := frames.Discard(c.host); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
	}
}

// take gives the lease to conn, and hangs up on who had it.
func (c *cable) take(conn *net.UnixConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lease != nil {
		_ = c.lease.Close()
	}
	c.lease = conn
	_ = c.host.SetReadDeadline(time.Unix(1, 0)) // wakes drain
}

// giveBack ends the lease of conn, unless somebody else has it by now.
func (c *cable) giveBack(conn *net.UnixConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lease == conn {
		c.lease = nil
		c.free.Signal()
	}
}

// close ends the cable and the lease.
func (c *cable) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.lease != nil {
		_ = c.lease.Close()
	}
	c.free.Signal()
	_ = c.host.Close()
	_ = c.vm.Close()
}

// lend answers an opLink: with the descriptor of the host's end, which is good for as long as the connection lasts.
func (c *controlServer) lend(conn *net.UnixConn) {
	cable := c.s.cable
	st := c.s.board.Status()
	if cable == nil && c.s.spec.TAP != "" {
		c.answer(conn, reply{Version: ProtocolVersion, Status: &st,
			Error: api.Errorf(api.KindConflict, "the frames of VM %q go by TAP %q of the host", c.s.spec.Name, c.s.spec.TAP)})
		return
	}
	if cable == nil {
		c.answer(conn, reply{Version: ProtocolVersion, Status: &st,
			Error: api.Errorf(api.KindConflict, "VM %q was started without a network", c.s.spec.Name).
				WithHint("banger vm restart %s   # gives it one", c.s.spec.Name)})
		return
	}
	cable.take(conn)
	defer cable.giveBack(conn)
	if !c.answer(conn, reply{Version: ProtocolVersion, Status: &st}) {
		return
	}
	err := withFD(cable.host, func(fd int) error {
		_, _, err := conn.WriteMsgUnix([]byte{'\n'}, unix.UnixRights(fd), nil)
		return err
	})
	if err != nil {
		return
	}
	_ = conn.SetDeadline(time.Time{})
	_, _ = conn.Read(make([]byte, 1)) // its end
}

// withFD calls f with the descriptor of file, which stays in the poller.
func withFD(file *os.File, f func(fd int) error) error {
	rc, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	err = rc.Control(func(fd uintptr) { ferr = f(int(fd)) })
	return errors.Join(err, ferr)
}

// OpenLink implements vmm.Machine.
func (m *machine) OpenLink(ctx context.Context) (vmm.Link, error) {
	conn, err := m.dial(ctx, paths.VMControl)
	if err != nil {
		return nil, m.explain(ctx, "open the network", err)
	}
	_ = conn.SetDeadline(time.Now().Add(requestTimeout))
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	link, err := m.borrow(conn)
	if !stop() && err == nil {
		_ = link.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		if e, ok := errors.AsType[*api.Error](err); ok {
			return nil, e
		}
		return nil, m.explain(ctx, "open the network", err)
	}
	_ = conn.SetDeadline(time.Time{})
	go func() {
		// The supervisor hangs up when the VM has ended or somebody else has opened the link.
		_, _ = conn.Read(make([]byte, 1))
		_ = link.Close()
	}()
	return link, nil
}

// borrow asks for the host's end of the cable over conn, which the link closes.
func (m *machine) borrow(conn *net.UnixConn) (*frames.Link, error) {
	if err := writeMessage(conn, request{Version: ProtocolVersion, Op: opLink}); err != nil {
		return nil, err
	}
	// A byte at a time: what follows the line comes with a descriptor.
	var rep reply
	if err := readMessage(bufio.NewReaderSize(&oneByte{conn}, 16), maxReply, &rep); err != nil {
		return nil, err
	}
	if rep.Error != nil {
		return nil, rep.Error
	}
	f, err := receiveFile(conn)
	if err != nil {
		return nil, err
	}
	link, err := frames.NewLink(f, func() { _ = conn.Close() })
	if err != nil {
		f.Close()
		return nil, err
	}
	return link, nil
}

// oneByte reads single bytes.
type oneByte struct{ conn *net.UnixConn }

// Read implements io.Reader.
func (o *oneByte) Read(p []byte) (int, error) { return o.conn.Read(p[:1]) }

// receiveFile receives a byte and the one descriptor that comes with it.
func receiveFile(conn *net.UnixConn) (*os.File, error) {
	var b [1]byte
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(b[:], oob)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("the supervisor sent no descriptor: %w", errors.Join(err, net.ErrClosed))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("the supervisor sent no descriptor: %w", errors.Join(err, net.ErrClosed))
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "frames"), nil
}
