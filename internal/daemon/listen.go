package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/apiserver"
)

// socketCheck is how often the daemon looks whether its socket is still there; a logout may empty the runtime directory.
const socketCheck = 2 * time.Second

// maxSocketPath is the longest path of a unix socket, in bytes: sun_path has 108 with the closing NUL.
const maxSocketPath = 107

// listener accepts connections of the daemon's own user (and root) on a unix socket, and binds the socket again
// when its file vanished.
type listener struct {
	path string
	log  *slog.Logger

	mu     sync.Mutex // guards inner and closed
	inner  *net.UnixListener
	closed bool
	stop   context.CancelFunc
}

// listen binds the socket. The caller holds the lock, so a file that is there is stale.
func listen(path string, log *slog.Logger) (*listener, error) {
	l := &listener{path: path, log: log}
	if err := l.bind(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	go l.keep(ctx)
	return l, nil
}

func (l *listener) bind() error {
	if len(l.path) > maxSocketPath {
		return fmt.Errorf("bind %q: the path has %d bytes, a socket's may have %d: set XDG_RUNTIME_DIR to a shorter directory",
			l.path, len(l.path), maxSocketPath)
	}
	if err := os.MkdirAll(filepath.Dir(l.path), 0o700); err != nil {
		return fmt.Errorf("make the directory of the socket: %w", err)
	}
	if err := os.Remove(l.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the stale socket: %w", err)
	}
	inner, err := net.ListenUnix("unix", &net.UnixAddr{Name: l.path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("bind the socket: %w", err)
	}
	if err := os.Chmod(l.path, 0o600); err != nil {
		_ = inner.Close()
		return fmt.Errorf("protect the socket: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return inner.Close()
	}
	old := l.inner
	l.inner = inner
	if old != nil {
		old.SetUnlinkOnClose(false)
		_ = old.Close()
	}
	return nil
}

// keep binds the socket again whenever its file is gone.
func (l *listener) keep(ctx context.Context) {
	tick := time.NewTicker(socketCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := os.Lstat(l.path); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := l.bind(); err != nil {
			l.log.Error("bind the socket again", "socket", l.path, "err", err)
			continue
		}
		l.log.Warn("the socket had vanished and was bound again", "socket", l.path)
	}
}

func (l *listener) current() (inner *net.UnixListener, closed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.inner, l.closed
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		inner, closed := l.current()
		if closed {
			return nil, net.ErrClosed
		}
		conn, err := inner.AcceptUnix()
		if err != nil {
			if now, closed := l.current(); !closed && now != inner {
				continue // bound again meanwhile
			}
			return nil, err
		}
		peer, err := identify(conn)
		if err != nil {
			l.log.Warn("refused a connection", "err", err)
			_ = conn.Close()
			continue
		}
		return peer, nil
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return l.inner.Close()
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr {
	inner, _ := l.current()
	return inner.Addr()
}

// peerConn is a connection whose other end is known.
type peerConn struct {
	*net.UnixConn
	peer apiserver.Peer
}

// identify asks the kernel who connected, and refuses other users.
func identify(conn *net.UnixConn) (*peerConn, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	if credErr != nil {
		return nil, fmt.Errorf("read the peer's credentials: %w", credErr)
	}
	if int(cred.Uid) != os.Getuid() && cred.Uid != 0 {
		return nil, fmt.Errorf("uid %d is not the daemon's user: %w", cred.Uid, syscall.EPERM)
	}
	return &peerConn{UnixConn: conn, peer: apiserver.Peer{PID: int(cred.Pid)}}, nil
}
