// Package fakeguest is a guest without a VM, for fakes of a VMM: the agent's
// processes run on the host as the current user, in a directory of their own,
// and it calls its supervisor as the agent does. It is part of the tests.
//
// Its processes find the programs poweroff, reboot and halt in their PATH, which do to the guest what their
// names say, and others that tests need: panic (a reset nobody announced) and what Config.Verbs adds.
package fakeguest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/process"
	"git.thaloco.com/thaloco/banger/internal/guest/session"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// Version is the build version the fake agent gives.
const Version = "fake"

// VerbPanic is the end of a guest nobody announced.
const VerbPanic = "panic"

// Config is what New needs.
type Config struct {
	// Dir is the guest's own directory, made where it is not there.
	Dir      string
	Identity wire.Identity
	Log      *slog.Logger
	// OnVerb is called with poweroff, reboot, halt, panic or one of Verbs when the guest does that; from
	// one goroutine.
	OnVerb func(verb string)
	// Verbs are further programs that only call OnVerb.
	Verbs []string
	// SFTP is the command of the ssh server's sftp server; nil for none.
	SFTP []string
}

// Guest is a fake guest.
type Guest struct {
	cfg   Config
	procs *process.Manager
	// sessions are kept in Config.Dir, so that a guest that starts again there has those of its earlier boots.
	sessions *session.Sessions
	api      *apiServer
	ssh      *sshServer // nil where the guest was given no host key
	dials    *dialServer
	fifo     *os.File
	done     sync.WaitGroup
}

// New starts a guest.
func New(cfg Config) (*Guest, error) {
	// Absolute, or the guest's processes would look up the host's own poweroff.
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("start the fake guest: %w", err)
	}
	cfg.Dir = dir
	g := &Guest{cfg: cfg}
	home := filepath.Join(cfg.Dir, "root")
	for _, dir := range []string{home, filepath.Join(cfg.Dir, "bin")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("start the fake guest: %w", err)
		}
	}
	if err := g.makeVerbs(); err != nil {
		return nil, fmt.Errorf("start the fake guest: %w", err)
	}
	env := append([]string{
		"PATH=" + filepath.Join(cfg.Dir, "bin") + ":" + os.Getenv("PATH"),
		"HOME=" + home,
	}, cfg.Identity.Env...)
	g.procs = process.NewManager(process.Config{
		Log:      cfg.Log,
		Defaults: func() process.Defaults { return process.Defaults{Env: env, WorkDir: home} },
		Session: func(ctx context.Context, req wire.ExecAttach, conn net.Conn, fr *wire.FrameReader) error {
			return g.sessions.Serve(ctx, req, conn, fr)
		},
	})
	if g.sessions, err = openSessions(cfg, g.procs); err != nil {
		_ = g.procs.Close()
		_ = g.fifo.Close()
		return nil, fmt.Errorf("start the fake guest: %w", err)
	}
	if cfg.Identity.SSHHostKey != "" {
		if g.ssh, err = newSSHServer(cfg, g.procs); err != nil {
			_ = g.procs.Close()
			_ = g.fifo.Close()
			return nil, fmt.Errorf("start the fake guest: %w", err)
		}
	}
	g.dials = newDialServer()
	g.api = newAPIServer(g)
	g.done.Go(g.readVerbs)
	return g, nil
}

func openSessions(cfg Config, procs *process.Manager) (*session.Sessions, error) {
	path := filepath.Join(cfg.Dir, "sessions")
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	dir, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	s, err := session.New(session.Config{Dir: dir, Processes: procs, Log: cfg.Log})
	if err != nil {
		_ = dir.Close()
	}
	return s, err
}

// makeVerbs writes the programs that end the guest, and the pipe they write to.
func (g *Guest) makeVerbs() error {
	fifo := filepath.Join(g.cfg.Dir, "verb")
	_ = os.Remove(fifo)
	err := unix.Mkfifo(fifo, 0o600)
	if err != nil {
		return err
	}
	// Open for both, so that it does not end when a writer closes it.
	if g.fifo, err = os.OpenFile(fifo, os.O_RDWR|unix.O_NONBLOCK, 0); err != nil {
		return err
	}
	for _, verb := range append([]string{"poweroff", "reboot", "halt", VerbPanic}, g.cfg.Verbs...) {
		script := fmt.Sprintf("#!/bin/sh\necho %s >'%s'\n", verb, strings.ReplaceAll(fifo, "'", `'\''`))
		if err := os.WriteFile(filepath.Join(g.cfg.Dir, "bin", verb), []byte(script), 0o700); err != nil {
			return err
		}
	}
	return nil
}

func (g *Guest) readVerbs() {
	sc := bufio.NewScanner(g.fifo)
	for sc.Scan() {
		g.cfg.OnVerb(sc.Text())
	}
}

// Accept serves a stream the host opened to a port of the guest; false where nobody listens there.
func (g *Guest) Accept(port uint32, conn net.Conn) bool {
	switch port {
	case wire.PortExec:
		go func() { _ = g.procs.Serve(context.Background(), conn) }()
		return true
	case wire.PortAPI:
		return g.api.accept(conn)
	case wire.PortSSH:
		return g.ssh != nil && g.ssh.accept(conn)
	case wire.PortDial:
		return g.dials.accept(conn)
	default:
		return false
	}
}

// Close kills the guest's processes.
func (g *Guest) Close() {
	g.api.close()
	if g.ssh != nil {
		g.ssh.close()
	}
	g.dials.close()
	_ = g.procs.Close()
	_ = g.sessions.Close()
	_ = g.fifo.Close()
	g.done.Wait()
}

// ErrRefused is a hello the supervisor did not accept.
var ErrRefused = errors.New("the supervisor refused the call")

// Call is the agent's call.
type Call struct {
	conn  net.Conn
	r     *wire.LineReader
	Token string
}

// Dial calls the supervisor through a stream to its PortCall, with hello; it owns conn.
func Dial(conn net.Conn, hello wire.Call) (*Call, error) {
	c := &Call{conn: conn, r: wire.NewLineReader(conn)}
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	hello.Type, hello.Agent = wire.CallHello, Version
	rep, err := c.ask(hello)
	if err == nil && rep.Type != wire.ReplyWelcome {
		err = fmt.Errorf("%w: %s", ErrRefused, rep.Reason)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	c.Token = rep.Token
	return c, nil
}

func (c *Call) ask(m wire.Call) (rep wire.CallReply, err error) {
	if err := wire.WriteLine(c.conn, m); err != nil {
		return rep, err
	}
	err = c.r.Read(&rep)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return rep, err
}

// Mark tells how far the guest is.
func (c *Call) Mark(mark string) error {
	return wire.WriteLine(c.conn, wire.Call{Type: wire.CallMark, Mark: mark})
}

// Logf sends a line of the agent's log.
func (c *Call) Logf(format string, args ...any) error {
	return wire.WriteLine(c.conn, wire.Call{Type: wire.CallLog, Text: fmt.Sprintf(format, args...)})
}

// Ending announces an end and waits until it was heard.
func (c *Call) Ending(verb string) error {
	rep, err := c.ask(wire.Call{Type: wire.CallEnding, Verb: verb})
	if err == nil && rep.Type != wire.ReplyAck {
		err = fmt.Errorf("the supervisor answered %q", rep.Type)
	}
	return err
}

// Close hangs up.
func (c *Call) Close() { c.conn.Close() }
