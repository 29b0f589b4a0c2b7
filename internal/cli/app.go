package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
	"git.thaloco.com/thaloco/banger/internal/paths"
)

// App is what a command gets of its surroundings. All fields are required but those that may be nil.
type App struct {
	In       io.Reader
	Out, Err io.Writer
	Terminal Terminal

	Getenv    func(string) string
	LookupEnv func(string) (string, bool)
	Now       func() time.Time
	// Executable is the path of the running program; bangerd is looked for beside it.
	Executable func() (string, error)
	// Signals receives the signals that are to end the program.
	Signals <-chan os.Signal
	// Abort ends the program at once, as the signal would have; for one that comes again while the
	// first has no effect (a write that is blocked). Nil: signals only cancel.
	Abort func(os.Signal)
	// StartDaemon starts the daemon where it is not there; nil for the real thing.
	StartDaemon func(ctx context.Context) error
	// LookPath finds a program of the host, and Replace makes this process that program; nil for the real things.
	LookPath func(name string) (string, error)
	Replace  func(argv []string) error
	// AccountHome is the home directory of this user's account, which HOME need not be; nil for the real thing.
	AccountHome func() (string, error)
	// Network is this host's network, UID this user, and LookupUser finds others by name or uid; nil for the real things.
	Network    hostNetwork
	UID        func() int
	LookupUser func(wanted string) (*user.User, error)

	quiet   bool
	signals *dispatcher
	// startedDaemon: there was no daemon, and this process started it.
	startedDaemon atomic.Bool
}

// Terminal says what of the streams is a terminal and works it.
type Terminal struct {
	// In, Out and Err tell which streams are a terminal; In only where this process may read it.
	In, Out, Err bool
	// InBackground: stdin is a terminal that belongs to another process group; reading it would stop us.
	InBackground bool
	// Size is 0, 0 where it is not known.
	Size func() (rows, cols int)
	// Raw puts stdin's terminal in raw mode; restore may be called more than once.
	Raw func() (restore func(), err error)
	// Resized receives a value when the size has changed.
	Resized <-chan os.Signal
}

// foreground reports whether this process's group is the one its terminal listens to.
func foreground(fd int) bool {
	pgrp, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	return err != nil || pgrp == unix.Getpgrp()
}

// Run runs one command line, without the program's name, and returns the exit status.
func (a *App) Run(ctx context.Context, args []string) int {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a.signals = newDispatcher(func(s os.Signal) {
		if ctx.Err() != nil && a.Abort != nil {
			a.Abort(s)
		}
		cancel(signalError{s})
	})
	stop := a.signals.run(a.Signals)
	defer stop()
	a.Err = &lockedWriter{w: a.Err}
	root := newRoot(a)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil {
		err = asUsage(err)
		a.printError(err)
	}
	return exitCode(err)
}

// printError prints err and its hint, unless it is one that has nothing to say.
func (a *App) printError(err error) {
	var silent interface{ silent() bool }
	if errors.As(err, &silent) && silent.silent() {
		return
	}
	e := api.AsError(err)
	fmt.Fprintf(a.Err, "banger: %s\n", safeLines(e.Message))
	if e.Hint == "" && errors.Is(err, client.ErrNoDaemon) {
		e.Hint = "banger daemon start"
	}
	if e.Hint != "" {
		fmt.Fprintf(a.Err, "hint: %s\n", safeLines(e.Hint))
	}
}

// say prints a line for the person at the terminal, unless --quiet.
func (a *App) say(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.Err, "banger: %s\n", safeText(fmt.Sprintf(format, args...)))
	}
}

// lockedWriter lets notices of one goroutine and output of another share a stream.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// paths are banger's directories in this environment.
func (a *App) paths() (paths.Paths, error) { return paths.FromEnv(a.Getenv) }

// connect returns a client that starts the daemon where it is not there.
func (a *App) connect() (*client.Client, error) {
	cfg, err := client.FromEnv(a.Getenv)
	if err != nil {
		return nil, err
	}
	start := a.StartDaemon
	if start == nil {
		start = a.startDaemon
	}
	cfg.Start = func(ctx context.Context) error {
		a.startedDaemon.Store(true)
		return start(ctx)
	}
	return client.New(cfg), nil
}

// connectOnly returns a client that leaves a stopped daemon alone.
func (a *App) connectOnly() (*client.Client, error) {
	cfg, err := client.FromEnv(a.Getenv)
	if err != nil {
		return nil, err
	}
	return client.New(cfg), nil
}

// quoted joins an argument list as a shell would read it, for hints.
func quoted(args ...string) string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = a
		if a == "" || strings.ContainsFunc(a, func(r rune) bool { return !plainInShell(r) }) {
			out[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(out, " ")
}

func plainInShell(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./:=,@%+", r)
}
