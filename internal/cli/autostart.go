package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// How long a daemon may take until it answers, and how often it is asked.
const (
	daemonStartsWithin = 10 * time.Second
	askAgainFirst      = 5 * time.Millisecond
	askAgainAtMost     = 100 * time.Millisecond
	// otherAnswersWithin is how long one that was first may take before another is started.
	otherAnswersWithin = 500 * time.Millisecond
)

// daemonProgram is the name of the daemon's executable.
const daemonProgram = "bangerd"

// startDaemon starts bangerd and waits until a daemon answers. When several do it at once, the
// daemons settle who stays: the others exit with status 0, and everyone waits for the one.
func (a *App) startDaemon(ctx context.Context) error {
	p, err := a.paths()
	if err != nil {
		return err
	}
	bin, err := a.findDaemon()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(p.State, 0o700); err != nil {
		return fmt.Errorf("%w: make its directory: %w", client.ErrNoDaemon, err)
	}
	log, err := os.OpenFile(p.DaemonLog(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("%w: open its log: %w", client.ErrNoDaemon, err)
	}
	defer log.Close()
	from, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("%w: read its log: %w", client.ErrNoDaemon, err)
	}
	ctx, cancel := context.WithTimeout(ctx, daemonStartsWithin)
	defer cancel()
	for err = errYielded; errors.Is(err, errYielded); {
		proc, serr := hostexec.Runner{}.StartDaemon(hostexec.Daemon{Argv: []string{bin}, Dir: "/", Log: log})
		if serr != nil {
			return fmt.Errorf("%w: %w", client.ErrNoDaemon, serr)
		}
		exited := make(chan *os.ProcessState, 1)
		go func() {
			if st, err := proc.Wait(); err == nil {
				exited <- st
			}
		}()
		err = a.awaitDaemon(ctx, exited)
	}
	if err != nil {
		return startError(err, p.DaemonLog(), from)
	}
	return nil
}

// errYielded says that the daemon which was started left the field to another, and that one does not answer: it was
// about to end, most likely.
var errYielded = errors.New("another daemon was there, and does not answer")

// awaitDaemon asks until a daemon answers; exited tells of the one that was started here.
func (a *App) awaitDaemon(ctx context.Context, exited <-chan *os.ProcessState) error {
	c, err := a.connectOnly()
	if err != nil {
		return err
	}
	defer c.Close()
	wait := askAgainFirst
	var yielded <-chan time.Time
	for {
		_, err := c.Daemon(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil && !errors.Is(err, client.ErrNoDaemon) {
			return nil // it answers; what it says is for the request that comes
		}
		t := time.NewTimer(wait)
		select {
		case st := <-exited:
			t.Stop()
			if !st.Success() {
				return fmt.Errorf("%s ended with %s", daemonProgram, st)
			}
			exited, yielded = nil, time.After(otherAnswersWithin) // another one was first
		case <-yielded:
			t.Stop()
			return errYielded
		case <-ctx.Done():
			t.Stop()
			if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
				return fmt.Errorf("it did not answer within %s", daemonStartsWithin)
			}
			return context.Cause(ctx)
		case <-t.C:
		}
		wait = min(2*wait, askAgainAtMost)
	}
}

// startError says why the daemon did not start, with what it wrote to its log since offset from.
func startError(err error, log string, from int64) error {
	if _, ok := errors.AsType[signalError](err); ok {
		return err
	}
	e := api.Errorf(api.KindUnavailable, "%w: %w", client.ErrNoDaemon, err)
	if tail := logSince(log, from); tail != "" {
		e = api.Errorf(api.KindUnavailable, "%w: %w; its last words:\n%s", client.ErrNoDaemon, err, tail)
	}
	return &startFailure{e.WithHint("the whole log is in %s", log)}
}

// startFailure keeps ErrNoDaemon in the chain, of which api.Errorf keeps one error only.
type startFailure struct{ err *api.Error }

func (e *startFailure) Error() string   { return e.err.Error() }
func (e *startFailure) Unwrap() []error { return []error{e.err, client.ErrNoDaemon} }

// logSince returns the last lines, ten at most, that were written to a log since offset from.
func logSince(path string, from int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	if end < from {
		from = 0 // rotated in between
	}
	from = max(from, end-16<<10)
	data := make([]byte, end-from)
	n, _ := f.ReadAt(data, from)
	lines := bytes.Split(bytes.TrimSpace(data[:n]), []byte("\n"))
	lines = lines[max(0, len(lines)-10):]
	return strings.TrimSpace("  " + string(bytes.Join(lines, []byte("\n  "))))
}

// findDaemon finds bangerd: beside this program, in PATH, or in the installation's lib directory.
func (a *App) findDaemon() (string, error) {
	var dir string
	if exe, err := a.Executable(); err == nil {
		dir = filepath.Dir(exe)
		if p := filepath.Join(dir, daemonProgram); executable(p) {
			return p, nil
		}
	}
	if p, err := (hostexec.Runner{}).LookPath(daemonProgram); err == nil {
		if p, err = filepath.Abs(p); err == nil {
			return p, nil
		}
	}
	if dir != "" {
		if p := filepath.Join(dir, "..", "lib", "banger", daemonProgram); executable(p) {
			return p, nil
		}
	}
	e := api.Errorf(api.KindUnavailable, "start the daemon: %s is neither beside banger nor in PATH", daemonProgram)
	return "", &startFailure{e.WithHint("install both: make install")}
}

func executable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0
}
