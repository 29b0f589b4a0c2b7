package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/store"
)

// socketLooks is how often a client that ended its half of a connection is looked at: whether it is still there.
const socketLooks = 500 * time.Millisecond

// sessionSockets are the sockets of the host that lead to sessions.
type sessionSockets struct {
	mu   sync.Mutex                   // guards what follows
	open map[[2]string]*sessionSocket // by VM and session
}

// sessionSocket is one.
type sessionSocket struct {
	listener *net.UnixListener
	path     string
	cancel   context.CancelFunc
	done     sync.WaitGroup // its connections
}

// path is where the socket of a session is; empty where there is none.
func (s *sessionSockets) path(vm, session string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.open[[2]string{vm, session}]; o != nil {
		return o.path
	}
	return ""
}

// close removes the socket of a session. Clients have what there is for them first, for a moment.
func (s *sessionSockets) close(vm, session string) {
	key := [2]string{vm, session}
	s.mu.Lock()
	o := s.open[key]
	delete(s.open, key)
	s.mu.Unlock()
	if o != nil {
		_ = o.listener.Close()
		_ = os.Remove(o.path)
	}
}

// closeAll removes the sockets of a VM and ends what goes through them.
func (s *sessionSockets) closeAll(vm string) {
	s.mu.Lock()
	var gone []*sessionSocket
	for key, o := range s.open {
		if key[0] == vm {
			gone = append(gone, o)
			delete(s.open, key)
		}
	}
	s.mu.Unlock()
	for _, o := range gone {
		_ = o.listener.Close()
		_ = os.Remove(o.path)
		o.cancel()
		o.done.Wait()
	}
}

// openSocket makes the socket of a running session, where it is not there. A session is fine without one.
func (s *Service) openSocket(l *live, rec store.VM, v store.Session) {
	if !s.bindSocket(l, rec, v) {
		return
	}
	// It may have ended meanwhile: whoever records that closes its socket afterwards, which may have been before this.
	now, err := s.cfg.Records.Session(context.WithoutCancel(s.ctx), rec.ID, v.Name)
	if api.KindOf(err) == api.KindNotFound || err == nil && (now.ID != v.ID || now.State == api.SessionEnded) {
		s.sockets.close(rec.ID, v.Name)
	}
}

// bindSocket does so, and tells whether it is new.
func (s *Service) bindSocket(l *live, rec store.VM, v store.Session) bool {
	key := [2]string{rec.ID, v.Name}
	s.sockets.mu.Lock()
	defer s.sockets.mu.Unlock()
	if s.sockets.open[key] != nil {
		return false
	}
	select {
	case <-l.ending:
		return false
	case <-s.ctx.Done():
		return false
	default:
	}
	path := s.cfg.Paths.SessionSocket(rec.ID, v.Name)
	ln, err := listenPrivate(path)
	if err != nil {
		s.cfg.Log.Warn("open the socket of a session", "vm", rec.Name, "session", v.Name, "err", err)
		return false
	}
	ctx, cancel := context.WithCancel(s.ctx)
	o := &sessionSocket{listener: ln, path: path, cancel: cancel}
	s.sockets.open[key] = o
	s.tasks.Go(func() {
		defer cancel()
		defer o.done.Wait()
		for {
			conn, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			if !ownUser(conn) {
				_ = conn.Close()
				continue
			}
			o.done.Go(func() { s.bridgeSession(ctx, l, v, conn) })
		}
	})
	return true
}

// listenPrivate binds a unix socket that only its user can connect to. Whatever its path, its name is bound from within its directory.
func listenPrivate(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false) // by that name it would be another file later
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return ln, nil
}

// ownUser tells whether the other end of a connection is this user's, or root's.
func ownUser(conn *net.UnixConn) bool {
	own := false
	control(conn, func(fd int) {
		cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		own = err == nil && (int(cred.Uid) == os.Getuid() || cred.Uid == 0)
	})
	return own
}

// control calls f with the descriptor of a connection.
func control(conn syscall.Conn, f func(fd int)) {
	if rc, err := conn.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { f(int(fd)) })
	}
}

// bridgeSession joins a client of a session's socket with the session, until either ends.
func (s *Service) bridgeSession(ctx context.Context, l *live, v store.Session, conn *net.UnixConn) {
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	left := make(chan struct{})
	defer close(left)
	in := &socketInput{conn: conn, gone: cancel, left: left}
	_, err := exec.Run(ctx, exec.Options{
		Dial:    func(ctx context.Context) (net.Conn, error) { return l.machine.Dial(ctx, wire.PortExec) },
		Session: &exec.Session{Name: v.Name, Write: true, Tail: wire.TailUnread, KeepOpen: v.Stdin == wire.SessionPTY},
		Stdin:   in, Stdout: conn,
	})
	if err != nil && ctx.Err() == nil {
		s.cfg.Log.Debug("the client of a session's socket left", "session", v.Name, "err", err)
	}
}

// socketInput reads what a client writes. A client that closed its connection has left; one that ended its half only has no
// more to say, and may still listen.
type socketInput struct {
	conn *net.UnixConn
	gone context.CancelFunc
	left <-chan struct{} // closed when the session was left
}

// Read implements io.Reader.
func (r *socketInput) Read(p []byte) (int, error) {
	n, err := r.conn.Read(p)
	if n > 0 {
		return n, nil
	}
	if !errors.Is(err, io.EOF) || hungUp(r.conn) {
		r.gone()
		<-r.left // so that this is not the end of the session's stdin
		return 0, net.ErrClosed
	}
	go r.watch()
	return 0, io.EOF
}

// watch waits until a client that ended its half is gone.
func (r *socketInput) watch() {
	tick := time.NewTicker(socketLooks)
	defer tick.Stop()
	for !hungUp(r.conn) {
		select {
		case <-tick.C:
		case <-r.left:
			return
		}
	}
	r.gone()
}

// hungUp tells whether the other end of a connection is closed in both directions.
func hungUp(conn *net.UnixConn) bool {
	up := false
	control(conn, func(fd int) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p, 0)
		up = err == nil && n > 0 && p[0].Revents&unix.POLLHUP != 0
	})
	return up
}
