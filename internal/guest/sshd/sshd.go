// Package sshd is the ssh server of the agent: the thin front end that lets every ssh tool work with a guest in which
// nothing is installed. What it runs is a process of package process, what it copies is copied by
// an sftp server that runs as the user who has logged in.
//
// Rules:
//
//   - Public keys only, those of Config.AuthorizedKeys, for any user the guest's passwd names: who holds such a key may be root
//     there anyway. A user that does not exist is refused like a wrong key.
//   - A command runs in its user's login shell, in the home directory, and is hung up when its channel or connection
//     ends. Its output is complete before its exit status is sent.
//   - What is done for a user in the file system (sockets) is done with that user's rights.
//   - Everything a client can have is bounded by Limits, and ends with its connection.
//
// sshd.go is the server, conn.go a connection, session.go its commands, forward.go, remote.go and authagent.go what it
// forwards, message.go the payloads of requests, sftp.go the file server, port.go who has the port of an image with an ssh server.
package sshd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"git.thaloco.com/thaloco/banger/internal/guest/process"
)

// Config is what a Server needs.
type Config struct {
	// Processes runs the commands. Required.
	Processes *process.Manager
	// HostKey is an OpenSSH private key in PEM. Required.
	HostKey string
	// AuthorizedKeys are lines of authorized_keys, without options. Those that are not are left out with a warning.
	AuthorizedKeys []string
	// SFTP is the command of the sftp server, which calls ServeSFTP; nil for no sftp.
	SFTP []string
	// Version is banger's, for the greeting.
	Version string
	// Log receives what nobody else is told; nil for none.
	Log *slog.Logger
	// Limits bound what clients can have; zero fields have defaults.
	Limits Limits
}

// Limits bound what clients of a Server can have.
type Limits struct {
	// Handshake is how long a client may take to log in; 0 for 30 s.
	Handshake time.Duration
	// Handshaking is how many clients of a listener may be about to log in; 0 for 10.
	Handshaking int
	// Connections is how many there may be in all; 0 for 128.
	Connections int
	// Channels and Forwards are how many channels and listeners a connection may have open; 0 for 128 and 64.
	Channels, Forwards int
}

// maxAuthTries is how many keys a client may offer: as many as an agent full of them has.
const maxAuthTries = 20

// errTooMany refuses a connection beyond Limits.Connections.
var errTooMany = errors.New("too many ssh connections")

// Server serves ssh connections. Its methods may be called from several goroutines.
type Server struct {
	cfg    Config
	log    *slog.Logger
	ssh    atomic.Pointer[ssh.ServerConfig]
	slots  chan struct{} // one for each connection
	logins chan struct{} // one for each client of a listener that is about to log in
}

// New returns a Server. The error says that the host key is none.
func New(cfg Config) (*Server, error) {
	l := &cfg.Limits
	l.Handshake = cmp.Or(l.Handshake, 30*time.Second)
	l.Handshaking = cmp.Or(l.Handshaking, 10)
	l.Connections = cmp.Or(l.Connections, 128)
	l.Channels = cmp.Or(l.Channels, 128)
	l.Forwards = cmp.Or(l.Forwards, 64)
	s := &Server{cfg: cfg, log: cfg.Log,
		slots: make(chan struct{}, l.Connections), logins: make(chan struct{}, l.Handshaking)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.SetKeys(cfg.HostKey, cfg.AuthorizedKeys); err != nil {
		return nil, err
	}
	return s, nil
}

// SetKeys makes both keys those of Config for every connection from now on. The error says that the host key is none.
func (s *Server) SetKeys(hostKey string, authorized []string) error {
	host, err := ssh.ParsePrivateKey([]byte(hostKey))
	if err != nil {
		return fmt.Errorf("read the ssh host key: %w", err)
	}
	keys := map[string]bool{} // by their wire format
	for _, line := range authorized {
		key, _, options, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err == nil && len(options) > 0 {
			err = errors.New("options are not known here")
		}
		if err != nil {
			s.log.Warn("an authorized ssh key is left out", "error", err)
			continue
		}
		keys[string(key.Marshal())] = true
	}
	conf := &ssh.ServerConfig{
		ServerVersion: greeting(s.cfg.Version), MaxAuthTries: maxAuthTries,
		PublicKeyCallback: func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if !keys[string(key.Marshal())] {
				return nil, errors.New("the key is not authorized")
			}
			user, err := s.cfg.Processes.Account(meta.User())
			if err != nil {
				return nil, err
			}
			return &ssh.Permissions{ExtraData: map[any]any{userKey{}: user}}, nil
		},
	}
	conf.AddHostKey(host)
	s.ssh.Store(conf)
	return nil
}

// greeting is the version string of the protocol. Only to servers whose name begins with OpenSSH does its client say that
// nobody reads its output any more (eow@openssh.com), without which "ssh guest yes | head" would not end. The
// software's version may hold no space and no hyphen.
func greeting(version string) string {
	clean := func(r rune) rune {
		if r <= ' ' || r > '~' || r == '-' {
			return '_'
		}
		return r
	}
	version = strings.Map(clean, version)
	return "SSH-2.0-OpenSSH_compatible_banger_" + version[:min(len(version), 64)]
}

// userKey is where Permissions keep the process.Account that logged in.
type userKey struct{}

// Serve serves one connection until it ends, or ctx does, and closes it. All it had is gone when Serve returns. The error
// says why a client could not log in.
func (s *Server) Serve(ctx context.Context, conn net.Conn) error {
	return s.serve(ctx, conn, func() {})
}

// ServeListener serves the connections of l until it is closed, or ctx ends, which closes it. Connections end with ctx, not with l.
func (s *Server) ServeListener(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	return acceptAll(ctx, l, func(conn net.Conn) {
		select {
		case s.logins <- struct{}{}:
		default:
			_ = conn.Close()
			return
		}
		loggedIn := sync.OnceFunc(func() { <-s.logins })
		go func() {
			defer loggedIn()
			if err := s.serve(ctx, conn, loggedIn); err != nil {
				s.log.Debug("an ssh client did not log in", "error", err)
			}
		}()
	})
}

// acceptAll calls use with each connection of l until l is closed, whatever may be wrong for a while.
func acceptAll(ctx context.Context, l net.Listener, use func(net.Conn)) error {
	const again = 50 * time.Millisecond
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			use(conn)
		case errors.Is(err, net.ErrClosed):
			return ctx.Err()
		default:
			select {
			case <-time.After(again):
			case <-ctx.Done():
			}
		}
	}
}

// serve is Serve; loggedIn is called once the client has logged in.
func (s *Server) serve(ctx context.Context, nc net.Conn, loggedIn func()) error {
	defer nc.Close()
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return errTooMany
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	defer stop()

	_ = nc.SetDeadline(time.Now().Add(s.cfg.Limits.Handshake))
	sc, channels, requests, err := ssh.NewServerConn(nc, s.ssh.Load())
	if err != nil {
		return err
	}
	_ = nc.SetDeadline(time.Time{})
	loggedIn()
	user, ok := sc.Permissions.ExtraData[userKey{}].(process.Account)
	if !ok {
		return errors.New("nobody has logged in")
	}
	c := newConnection(ctx, s, sc, user)
	c.wg.Go(func() { c.serveRequests(requests) })
	for ch := range channels {
		c.openChannel(ch)
	}
	cancel()
	c.end()
	return nil
}
