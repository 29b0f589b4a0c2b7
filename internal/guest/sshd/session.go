package sshd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"

	"golang.org/x/crypto/ssh"

	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// statusFailed is the exit status of a command that could not be started for a reason of ours.
const statusFailed = 255

// session is a channel in which one command runs.
type session struct {
	c       *connection
	ch      ssh.Channel
	ctx     context.Context // ends with the channel
	env     []string        // the client's
	pty     *terminal       // asked for, or nil
	agent   string          // the socket of the authentication agent, empty where nobody asked for it
	id      string          // of the process; empty until one is asked for
	resize  chan exec.Size
	signals chan string
	deaf    atomic.Bool // the client reads no more output
}

// maxSignals is how many signals wait to be sent to a process.
const maxSignals = 16

// session serves a session channel until it is closed.
func (c *connection) session(nch ssh.NewChannel) {
	ch, requests, err := nch.Accept()
	if err != nil {
		return
	}
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	s := &session{c: c, ch: ch, ctx: ctx, resize: make(chan exec.Size, 1), signals: make(chan string, maxSignals)}
	for req := range requests {
		then, err := s.request(req)
		if err != nil {
			c.s.log.Debug("a request of an ssh session was refused", "request", req.Type, "error", err)
		}
		_ = req.Reply(err == nil, nil)
		if then != nil {
			c.wg.Go(then)
		}
	}
	if s.id != "" {
		_ = c.s.cfg.Processes.Abandon(s.id) // it may have ended
	}
}

// errRequest refuses a request that is not known, or comes at the wrong time.
var errRequest = errors.New("not possible here")

// request does what a request asks; then is what follows once it has been answered. Requests for a
// command that cannot be started succeed: the command's status says why.
func (s *session) request(req *ssh.Request) (then func(), err error) {
	switch req.Type {
	case "window-change":
		size, err := parseSize(req.Payload)
		if err == nil {
			s.setSize(size)
		}
		return nil, err
	case "signal":
		return nil, s.signal(req.Payload)
	case "eow@openssh.com":
		s.deaf.Store(true)
		return nil, nil
	case "keepalive@openssh.com":
		return nil, nil
	}
	if s.id != "" {
		return nil, errRequest
	}
	switch req.Type {
	case "env":
		kv, err := parseEnv(req.Payload)
		if err == nil {
			s.env, err = addEnv(s.env, kv)
		}
		return nil, err
	case "pty-req":
		pty, err := parsePTY(req.Payload)
		if err == nil {
			s.pty = &pty
		}
		return nil, err
	case "auth-agent-req@openssh.com":
		s.agent, err = s.c.authAgent()
		return nil, err
	case "shell":
		return s.start(nil), nil
	case "exec":
		command, err := parseCommand(req.Payload)
		if err != nil {
			return nil, err
		}
		return s.start([]string{s.c.user.Shell, "-c", command}), nil
	case "subsystem":
		name, err := parseCommand(req.Payload)
		if err != nil || name != "sftp" || s.c.s.cfg.SFTP == nil {
			return nil, errRequest
		}
		return s.start(s.c.s.cfg.SFTP), nil
	}
	return nil, errRequest
}

// setSize keeps the newest size until it is taken.
func (s *session) setSize(size exec.Size) {
	select {
	case <-s.resize:
	default:
	}
	s.resize <- size // this goroutine is the only one that sends
}

func (s *session) signal(payload []byte) error {
	name, err := parseSignal(payload)
	if err != nil {
		return err
	}
	select {
	case s.signals <- name:
		return nil
	default:
		return errRequest
	}
}

// start starts argv, or a login shell, and returns what serves it.
func (s *session) start(argv []string) func() {
	s.id = exec.NewID()
	req := wire.ExecStart{
		Version: wire.Version, ID: s.id, Argv: argv, Dir: s.c.user.Home, User: s.c.user.Name,
		Env: append(s.c.env(), s.env...),
	}
	if s.pty != nil {
		req.PTY, req.Rows, req.Cols, req.Modes = true, s.pty.size.Rows, s.pty.size.Cols, s.pty.modes
		if s.pty.term != "" {
			req.Env = append(req.Env, "TERM="+s.pty.term)
		}
	}
	if s.agent != "" {
		req.Env = append(req.Env, "SSH_AUTH_SOCK="+s.agent)
	}
	_, err := s.c.s.cfg.Processes.Start(req)
	if x := (*wire.ExecError)(nil); errors.As(err, &x) && x.Code == wire.ExecBadDir {
		req.Dir = "/"
		_, err = s.c.s.cfg.Processes.Start(req)
	}
	if err != nil {
		return func() { s.refuse(err) }
	}
	return s.run
}

// run moves the streams of the process until it has ended, and says how.
func (s *session) run() {
	defer s.ch.Close()
	exit, err := exec.Run(s.ctx, exec.Options{
		Dial:     func(context.Context) (net.Conn, error) { return s.c.s.cfg.Processes.Connect(), nil },
		AttachID: s.id, Stdin: s.ch, Stdout: stdout{s}, Stderr: s.ch.Stderr(),
		Resize: s.resize, Signals: s.signals, ReconnectFor: -1,
	})
	if err != nil && !errors.As(err, new(*exec.OutputError)) {
		if s.ctx.Err() == nil {
			s.c.s.log.Debug("the command of an ssh session was left", "exec", s.id, "error", err)
		}
		return
	}
	s.end(exit)
}

// stdout is where the output of a session's command goes.
type stdout struct{ s *session }

// Write fails once the client has said that nobody reads it, so that the command hears of it.
func (w stdout) Write(b []byte) (int, error) {
	if w.s.deaf.Load() {
		return 0, io.ErrClosedPipe
	}
	return w.s.ch.Write(b)
}

// refuse says why a command could not be started.
func (s *session) refuse(err error) {
	defer s.ch.Close()
	status := 0
	if x := (*wire.ExecError)(nil); errors.As(err, &x) {
		status = x.Status()
	}
	if status == 0 {
		status = statusFailed
	}
	_, _ = fmt.Fprintf(s.ch.Stderr(), "banger: %v\r\n", err)
	s.end(wire.ExecExit{Status: status})
}

func (s *session) end(exit wire.ExecExit) {
	name, payload := exitRequest(exit)
	_, _ = s.ch.SendRequest(name, false, payload)
	_ = s.ch.CloseWrite()
}
