package supervise

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/watch"
)

const (
	// askGrace is how much later than the supervisor's own time for an operation its answer may come.
	askGrace = 5 * time.Second
	// exitWait is how long after it hung up a supervisor may take to be gone.
	exitWait = 5 * time.Second
)

// machine is a VM as seen through its supervisor. One goroutine, follow, keeps its board up to date.
type machine struct {
	dir   string
	dirFD *dirFD
	rec   record // of the time of the attachment: its VMM may be another by now
	log   *slog.Logger
	board watch.Board

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	done   chan struct{} // follow has returned
	once   sync.Once
}

// newMachine takes over d.
func newMachine(dir string, d *dirFD, rec record, log *slog.Logger) *machine {
	m := &machine{dir: dir, dirFD: d, rec: rec, log: log, done: make(chan struct{})}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	go m.follow()
	return m
}

// first waits for the first status; a *vmm.GoneError where that is an end.
func (m *machine) first(ctx context.Context) error {
	st, err := m.board.Next(ctx, 0)
	if err != nil {
		return fmt.Errorf("attach to the VM in %q: %w", m.dir, err)
	}
	if st.Phase == vmm.PhaseEnded {
		end := *st.End
		return &vmm.GoneError{Dir: m.dir, End: &end}
	}
	return nil
}

// follow takes over the supervisor's statuses until the VM has ended or the machine is closed.
func (m *machine) follow() {
	defer close(m.done)
	for {
		err := m.watch()
		if m.board.Status().Phase == vmm.PhaseEnded || m.ctx.Err() != nil {
			return
		}
		// It hung up: most likely it is dead, or dying.
		ctx, cancel := context.WithTimeout(m.ctx, exitWait)
		alive := m.rec.Supervisor.Gone(ctx)
		cancel()
		if m.ctx.Err() != nil {
			return
		}
		if alive == nil {
			m.lost()
			return
		}
		m.log.Warn("the supervisor hung up", "dir", m.dir, "error", err)
	}
}

// watch opens a watch and reads it to its end.
func (m *machine) watch() error {
	conn, err := m.dial(m.ctx, paths.VMControl)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(m.ctx, func() { conn.Close() })
	defer stop()
	if err := writeMessage(conn, request{Version: ProtocolVersion, Op: opWatch}); err != nil {
		return err
	}
	r := bufio.NewReaderSize(conn, 1024)
	for {
		var rep reply
		if err := readMessage(r, maxReply, &rep); err != nil {
			return err
		}
		if rep.Error != nil {
			return rep.Error
		}
		if rep.Status == nil {
			return errors.New("a reply without a status")
		}
		if rep.Status.Phase == vmm.PhaseEnded && rep.Status.End == nil {
			return errors.New("an end without a cause")
		}
		m.board.Set(*rep.Status)
		if rep.Status.Phase == vmm.PhaseEnded {
			return nil
		}
	}
}

// lost notes the end of a VM whose supervisor is dead.
func (m *machine) lost() {
	rec := m.rec
	_ = readJSON(m.dir, paths.VMSupervisor, &rec) // newer, where the guest has rebooted since
	if rec.Supervisor != m.rec.Supervisor {
		rec = record{} // another VM runs here by now
	}
	endVMM(rec.VMM)
	sweep(m.dir)
	end := readEnd(m.dir)
	if end == nil {
		end = &vmm.End{Cause: vmm.EndLost, Detail: lostDetail, At: time.Now().UTC()}
	}
	m.board.Update(func(st *vmm.Status) {
		st.Phase, st.PauseReason, st.VMMPID, st.End = vmm.PhaseEnded, "", 0, end
	})
}

// dial connects to a socket in the VM's directory.
func (m *machine) dial(ctx context.Context, name string) (*net.UnixConn, error) {
	path, ok := m.dirFD.name(name)
	if !ok {
		return nil, net.ErrClosed
	}
	defer m.dirFD.release()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// Status implements vmm.Machine.
func (m *machine) Status() vmm.Status { return m.board.Status() }

// Next implements vmm.Machine.
func (m *machine) Next(ctx context.Context, after uint64) (vmm.Status, error) {
	ctx, cancel := m.bound(ctx)
	defer cancel()
	return m.board.Next(ctx, after)
}

// bound returns ctx, also ended by Close.
func (m *machine) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(m.ctx, func() { cancel(net.ErrClosed) })
	return ctx, func() { stop(); cancel(nil) }
}

// ask runs one operation of the control protocol.
func (m *machine) ask(ctx context.Context, req request) error {
	ctx, cancel := context.WithTimeout(ctx, req.timeout()+askGrace)
	defer cancel()
	conn, err := m.dial(ctx, paths.VMControl)
	if err != nil {
		return m.explain(ctx, req.Op, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	req.Version = ProtocolVersion
	var rep reply
	if err = writeMessage(conn, req); err == nil {
		err = readMessage(bufio.NewReaderSize(conn, 1024), maxReply, &rep)
	}
	if err != nil {
		return m.explain(ctx, req.Op, err)
	}
	if rep.Status != nil {
		m.board.Set(*rep.Status)
	}
	if rep.Error != nil {
		return rep.Error
	}
	return nil
}

// explain turns a broken connection into what it means.
func (m *machine) explain(ctx context.Context, op string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", op, context.Cause(ctx))
	}
	if st := m.board.Status(); st.Phase == vmm.PhaseEnded || !m.rec.Supervisor.Alive() {
		return api.Errorf(api.KindConflict, "%s: the VM has ended", op)
	}
	return fmt.Errorf("%s: ask the supervisor: %w", op, err)
}

// Pause implements vmm.Machine.
func (m *machine) Pause(ctx context.Context) error { return m.ask(ctx, request{Op: opPause}) }

// Resume implements vmm.Machine.
func (m *machine) Resume(ctx context.Context) error { return m.ask(ctx, request{Op: opResume}) }

// ResizeDrive implements vmm.Machine.
func (m *machine) ResizeDrive(ctx context.Context, id string) error {
	return m.ask(ctx, request{Op: opResize, Drive: id})
}

// Kill implements vmm.Machine. A supervisor that does not answer is killed itself, and the VMM with it.
func (m *machine) Kill(ctx context.Context) error {
	asked, cancel := context.WithTimeout(ctx, undoTimeout)
	err := m.ask(asked, request{Op: opKill})
	cancel()
	if ctx.Err() != nil {
		return fmt.Errorf("kill the VM: %w", context.Cause(ctx))
	}
	if err != nil && m.board.Status().Phase != vmm.PhaseEnded {
		if err := m.rec.Supervisor.Signal(syscall.SIGKILL); err != nil {
			return fmt.Errorf("kill the VM: %w", err)
		}
	}
	// Its end is told when all it held is released: the directory can be used again.
	if err := m.rec.Supervisor.Gone(ctx); err != nil {
		return fmt.Errorf("kill the VM: %w", err)
	}
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("kill the VM: %w", context.Cause(ctx))
	}
}

// Dial implements vmm.Machine.
func (m *machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	conn, err := m.dialVsock(ctx)
	if err != nil {
		return nil, m.explain(ctx, fmt.Sprintf("dial port %d of the guest", port), err)
	}
	_ = conn.SetDeadline(time.Now().Add(connectTimeout + time.Second)) // the supervisor's own is connectTimeout
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err = connect(conn, port)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		_ = conn.SetDeadline(time.Time{})
		return m.stream(conn), nil
	}
	conn.Close()
	st := m.board.Status()
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, vmm.ErrRefused) && st.Mark == api.MarkNone:
		err = errNoAnswer // paused, or not there yet
	}
	if !errors.Is(err, vmm.ErrRefused) && !errors.Is(err, errNoAnswer) {
		return nil, fmt.Errorf("dial port %d of the guest: %w", port, err)
	}
	if st.Phase == vmm.PhaseEnded {
		return nil, api.Errorf(api.KindConflict, "dial port %d of the guest: the VM has ended", port)
	}
	return nil, fmt.Errorf("dial port %d: %w", port, err)
}

// dialVsock connects to vsock.sock. Firecracker's is not there between two boots.
func (m *machine) dialVsock(ctx context.Context) (*net.UnixConn, error) {
	for end := time.Now().Add(sessionWait); ; {
		conn, err := m.dial(ctx, paths.VMVsock)
		absent := errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT)
		if !absent || m.rec.Transport != wire.TransportVsock || m.board.Status().Phase == vmm.PhaseEnded || time.Now().After(end) {
			return conn, err
		}
		if !pause(ctx, 20*time.Millisecond) {
			return nil, context.Cause(ctx)
		}
	}
}

// stream is a connection to the guest as its transport can have it.
func (m *machine) stream(conn *net.UnixConn) net.Conn {
	if m.rec.Transport == wire.TransportVsock {
		return &wholeStream{conn}
	}
	return conn
}

// wholeStream is a stream through Firecracker, which takes the end of one direction for the end of both, and drops what the guest
// still sends (src/vmm/src/devices/virtio/vsock/csm/connection.rs of Firecracker, 2025).
type wholeStream struct{ *net.UnixConn }

// CloseWrite implements relay.HalfCloser.
func (s *wholeStream) CloseWrite() error { return errors.ErrUnsupported }

// errNoAnswer says that the guest neither accepted nor refused a stream in time, or has no agent that could.
var errNoAnswer = api.Errorf(api.KindGuest, "the guest does not answer")

// connect speaks the client's side of Firecracker's protocol. It reads not a byte more than its answer.
func connect(conn net.Conn, port uint32) error {
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", port); err != nil {
		return refusedBy(err)
	}
	var line []byte
	var b [1]byte
	for len(line) < maxConnectLine {
		if _, err := conn.Read(b[:]); err != nil {
			return refusedBy(err)
		}
		if b[0] == '\n' {
			switch {
			case strings.HasPrefix(string(line), "OK "):
				return nil
			case string(line) == noAnswer:
				return errNoAnswer
			}
			break
		}
		line = append(line, b[0])
	}
	return fmt.Errorf("the vsock socket answered %q", line)
}

// refusedBy: a connection that is closed instead of answered is one that is refused.
func refusedBy(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return vmm.ErrRefused
	}
	return err
}

// Close implements vmm.Machine.
func (m *machine) Close() error {
	m.once.Do(func() {
		m.cancel()
		<-m.done
		m.dirFD.release()
	})
	return nil
}
