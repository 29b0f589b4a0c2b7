package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
	"git.thaloco.com/thaloco/banger/internal/config"
	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// sayLostAfter is how long a connection may be broken before it is mentioned.
const sayLostAfter = 2 * time.Second

// interruptKey is what Ctrl-C sends where the terminal is raw.
const interruptKey = 0x03

// remoteFlags are the flags of vm run and vm exec about the command.
type remoteFlags struct {
	workDir, user string
	interactive   bool
	tty           bool
	ttyGiven      func() bool
}

func (f *remoteFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVarP(&f.workDir, "workdir", "w", "", "`directory` in the VM to run it in")
	fl.StringVarP(&f.user, "user", "u", "", "`user` in the VM to run it as, by name or as uid[:gid]")
	fl.BoolVarP(&f.interactive, "interactive", "i", true, "pass stdin on")
	fl.BoolVarP(&f.tty, "tty", "t", false, "give it a terminal (default: where stdin, stdout and stderr are one)")
	f.ttyGiven = func() bool { return fl.Changed("tty") }
	for _, name := range []string{"workdir", "user"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions) // fails only for an unknown flag
	}
}

// terminal decides whether the command, a login shell where shell is true, gets a terminal.
func (f *remoteFlags) terminal(a *App, shell bool) (bool, error) {
	t := a.Terminal
	switch {
	case f.ttyGiven() && f.tty && !t.In:
		return false, usagef("leave out -t", "-t needs a terminal, and stdin is none")
	case f.ttyGiven():
		return f.tty, nil
	case !f.interactive:
		return false, nil
	}
	return t.In && t.Out && (t.Err || shell), nil
}

// remote is a command to run in a guest, or one to attach to.
type remote struct {
	vm     string
	start  wire.ExecStart // ID is required
	attach string         // an id; empty to start
	stdin  bool           // pass stdin on
	in     io.Reader      // stdin; nil for this process's
	// session is attached to instead; nil for a command. start then only says whether it has this terminal.
	session *attachment
}

func (r remote) id() string {
	if r.attach != "" {
		return r.attach
	}
	return r.start.ID
}

// runRemote runs r to its end with this process's streams, and returns nil, a statusError with the
// command's status, or what went wrong. The terminal is as before when it returns.
func (a *App) runRemote(ctx context.Context, c *client.Client, r remote) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	in := a.In
	if r.in != nil {
		in = r.in
	}
	s := remoteSession{app: a, in: in, remote: r, cancel: cancel}
	opts := exec.Options{
		Dial: s.dialer(c), Start: r.start, AttachID: r.attach,
		Stdout: a.Out, Stderr: a.Err, OnState: s.state,
	}
	if r.session != nil {
		key, _ := config.DetachByte(r.session.key)
		s.detach = detachSearch(key)
		opts.Session, opts.OnReadOnly, opts.OnDropped = r.session.options(), s.onReadOnly, s.onDropped
		s.readOnly.Store(!r.session.write)
	}
	sigs, release := a.signals.take()
	defer release()
	names := make(chan string, 8)
	opts.Signals = names
	go s.forward(ctx, sigs, names)
	defer pipeErrors()()
	reset := func() {}
	if r.stdin && !a.Terminal.InBackground {
		opts.Stdin = in
	}
	if r.start.PTY {
		restore, err := a.Terminal.Raw()
		if err != nil {
			return fmt.Errorf("prepare the terminal: %w", err)
		}
		defer restore()
		s.raw.Store(true)
		opts.Start.Rows, opts.Start.Cols = a.size()
		sizes := make(chan exec.Size, 1)
		opts.Resize = sizes
		if r.attach != "" || r.session != nil {
			rows, cols := a.size()
			sizes <- exec.Size{Rows: rows, Cols: cols}
		}
		go a.passSizes(ctx, sizes)
		if opts.Stdin != nil {
			opts.Stdin = &s
		}
		if r.session != nil && a.Terminal.Out {
			screen := &screenWriter{w: a.Out}
			opts.Stdout = screen
			reset = screen.reset
		}
	}
	exit, err := exec.Run(ctx, opts)
	s.settle()
	reset()
	return a.remoteEnd(r, exit, err)
}

// pipeErrors makes a closed stdout an error of Write instead of this process's end, until undone.
func pipeErrors() (undo func()) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGPIPE)
	return func() { signal.Stop(ch) }
}

func (a *App) size() (rows, cols uint16) {
	r, c := a.Terminal.Size()
	return uint16(max(0, min(r, 1<<16-1))), uint16(max(0, min(c, 1<<16-1)))
}

func (a *App) passSizes(ctx context.Context, sizes chan<- exec.Size) {
	for {
		select {
		case <-a.Terminal.Resized:
		case <-ctx.Done():
			return
		}
		rows, cols := a.size()
		select {
		case sizes <- exec.Size{Rows: rows, Cols: cols}:
		case <-ctx.Done():
			return
		}
	}
}

// remoteSession is what goes on beside exec.Run.
type remoteSession struct {
	app    *App
	in     io.Reader
	remote remote
	cancel context.CancelCauseFunc
	raw    atomic.Bool
	lost   atomic.Pointer[time.Timer] // set while the connection is broken
	said   atomic.Bool                // that it is
	// detach finds in what a raw terminal sends the key that leaves a session; nil for none. readOnly tells that somebody else writes to it.
	detach   func(typed []byte) int
	left     bool // the key was pressed; belongs to Read
	readOnly atomic.Bool
	keys     repeats // belongs to Read
}

// dialer dials the first time with a client that starts the daemon, then with one that does not: a
// daemon that was stopped on purpose is not to come back because a command waits for it.
func (s *remoteSession) dialer(c *client.Client) func(context.Context) (net.Conn, error) {
	s.keys.now = s.app.Now
	owned := s.remote.id()
	if s.remote.start.PTY || s.remote.start.Detach || s.remote.attach != "" || s.remote.session != nil {
		owned = "" // it outlives this process
	}
	passive := c.Passive()
	first := true
	return func(ctx context.Context) (net.Conn, error) {
		if first {
			first = false
			return c.Exec(ctx, s.remote.vm, owned)
		}
		return passive.Exec(ctx, s.remote.vm, owned)
	}
}

// forward hands signals on to the command. A second one soon after ends the run, and so does SIGHUP:
// the terminal is gone, the command may go on.
func (s *remoteSession) forward(ctx context.Context, sigs <-chan os.Signal, names chan<- string) {
	repeat := repeats{now: s.app.Now}
	for {
		select {
		case sig := <-sigs:
			if s.remote.session != nil && s.remote.session.sendOnly { // the signal is for the sending: the session goes on
				s.cancel(signalError{sig})
				return
			}
			if s.leaves(sig) {
				s.cancel(detachedError{})
				return
			}
			name, ok := signalNames[sig]
			if !ok || repeat.again() {
				s.cancel(signalError{sig})
				return
			}
			select {
			case names <- name:
			case <-ctx.Done():
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// signalNames are the signals that are handed on.
var signalNames = map[os.Signal]string{syscall.SIGINT: "INT", syscall.SIGTERM: "TERM", syscall.SIGQUIT: "QUIT"}

// Read reads stdin from a raw terminal. While the connection is broken nobody acts on Ctrl-C, so two
// of them end the run.
func (s *remoteSession) Read(p []byte) (int, error) {
	if s.left {
		s.cancel(detachedError{}) // what was typed in front of the key is on its way
		select {}                 // what is typed now is not for the session, and this is not the end of its stdin
	}
	n, err := s.in.Read(p)
	if s.detach != nil {
		if at := s.detach(p[:n]); at >= 0 {
			s.left = true
			time.AfterFunc(leaveWithin, func() { s.cancel(detachedError{}) }) // where there is no room for it nobody reads on
			return at, nil
		}
	}
	if s.lost.Load() != nil {
		for range bytes.Count(p[:n], []byte{interruptKey}) {
			if s.keys.again() {
				s.cancel(signalError{syscall.SIGINT})
			}
		}
	}
	return n, err
}

// leaves tells whether a signal leaves a session instead of going there: the quit key, the end of this process, and an interrupt of who
// does not write.
func (s *remoteSession) leaves(sig os.Signal) bool {
	if s.remote.session == nil {
		return false
	}
	return sig == syscall.SIGQUIT || sig == syscall.SIGTERM || sig == syscall.SIGINT && s.readOnly.Load()
}

// onReadOnly says that somebody else writes to a session.
func (s *remoteSession) onReadOnly() {
	s.readOnly.Store(true)
	if !s.remote.session.sendOnly {
		s.say(fmt.Sprintf("another client writes to session %q: this one only reads", s.remote.session.name))
	}
}

// onDropped says where output of a session is missing.
func (s *remoteSession) onDropped(_ int, n uint64) {
	text := wire.DroppedLine(n)
	if s.raw.Load() {
		text = "\r\n" + strings.TrimSuffix(text, "\n") + "\r\n"
	}
	_, _ = io.WriteString(s.app.Err, text)
}

// state follows the connection and mentions a break that lasts.
func (s *remoteSession) state(st exec.State, _ error) {
	switch st {
	case exec.StateReconnecting:
		if s.lost.Load() == nil {
			s.lost.Store(time.AfterFunc(sayLostAfter, func() {
				s.said.Store(true)
				s.say("lost the connection to the VM, trying again; interrupt twice to leave")
			}))
		}
	case exec.StateConnected:
		s.settle()
		if s.said.Swap(false) {
			s.say("connected again")
		}
	}
}

// settle ends the wait for a connection.
func (s *remoteSession) settle() {
	if t := s.lost.Swap(nil); t != nil {
		t.Stop()
	}
}

// say is App.say for a terminal that may be raw.
func (s *remoteSession) say(text string) {
	switch {
	case s.app.quiet:
	case s.raw.Load():
		fmt.Fprintf(s.app.Err, "\r\nbanger: %s\r\n", text)
	default:
		fmt.Fprintf(s.app.Err, "banger: %s\n", text)
	}
}

// remoteEnd turns the end of a command into what ends banger.
func (a *App) remoteEnd(r remote, exit wire.ExecExit, err error) error {
	var (
		start  *wire.ExecError
		lost   *exec.LostError
		output *exec.OutputError
	)
	switch {
	case err == nil:
		if exit.Dropped > 0 {
			a.say("%d bytes of output were lost: nobody had read them", exit.Dropped)
		}
		if exit.Status != 0 {
			return statusError{exit.Status}
		}
		return nil
	case errors.As(err, new(detachedError)):
		if before, after := "", "\n"; !a.quiet {
			if r.start.PTY { // which is still raw, and anywhere in a line
				before, after = "\r\n", "\r\n"
			}
			fmt.Fprintf(a.Err, "%sdetached; come back: %s%s", before, comeBackTo(r, ""), after)
		}
		return err
	case errors.As(err, &start) && r.session != nil && r.session.sendOnly:
		return start
	case errors.As(err, &start):
		return commandError(r, start)
	case errors.As(err, &lost):
		e := api.Errorf(api.KindUnavailable, "%w", lost)
		if lost.Started {
			e = e.WithHint("come back to it with: %s", comeBackTo(r, lost.ID))
		}
		return e
	case errors.As(err, &output):
		if errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe) {
			return statusError{exitSignal + int(syscall.SIGPIPE)}
		}
		return output
	case errors.Is(err, wire.ErrProtocol):
		return api.Errorf(api.KindGuest, "run a command in vm %q: %w", r.vm, err).
			WithHint("banger vm logs --source agent %s", r.vm)
	}
	return err
}

// comeBackTo is the command that attaches to a command which lost its connection.
func comeBackTo(r remote, id string) string {
	if r.session != nil {
		return quoted("banger", "vm", "session", "attach", r.vm, r.session.name)
	}
	args := []string{"banger", "vm", "exec", "--attach", id}
	if r.start.PTY {
		args = append(args, "-t")
	}
	return quoted(append(args, r.vm)...)
}

// commandError is why a command could not be started: with status 127 or 126 where that is the
// command's own fault, and with a hint where the host has what the guest lacks.
func commandError(r remote, start *wire.ExecError) error {
	e := api.Errorf(api.KindGuest, "run in vm %q: %s", r.vm, strings.TrimSpace(start.Message))
	status := start.Status()
	if status == 0 {
		status = exitBanger
	}
	if start.Code == wire.ExecNoProcess {
		e = e.WithHint("it has ended and its output was collected, or the VM was restarted since")
	}
	if len(r.start.Argv) > 0 && start.Status() != 0 {
		if hint := missingHint(r.start.Argv[0], start.Code); hint != "" {
			e = e.WithHint("%s", hint)
		}
	}
	return &runError{err: e, status: status}
}

// missingHint says what the host knows about a command that the guest cannot run.
func missingHint(command, code string) string {
	path, err := hostexec.Runner{}.LookPath(command)
	inPath := !strings.Contains(command, "/")
	switch {
	case code == wire.ExecNotExecutable && !inPath:
		return "run it with its interpreter, such as: -- " + quoted("sh", command) + "; or make it executable: " + quoted("chmod", "+x", command)
	case err != nil:
		return ""
	case inPath:
		return fmt.Sprintf("the host has it at %s, the VM's image does not: install it in the VM", path)
	}
	return "the host has this file, the VM does not: what git ignores is not copied, and paths on the host mean nothing in the VM"
}
