// Package hostexec runs programs of the host. It is the only package that
// imports os/exec; the agent in the guest and the CLI's hand-over to ssh are
// the exceptions.
package hostexec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Cmd is a program to run: no shell, no quoting.
type Cmd struct {
	Argv []string
	Dir  string
	// Env is the whole environment; nil for the caller's.
	Env    []string
	Stdin  io.Reader
	Stdout io.Writer
	// Stderr receives stderr as well as the error's text; may be nil.
	Stderr io.Writer
	// Grace is how long after SIGTERM (context ended) the process group is killed; 0 for 5 s.
	Grace time.Duration
	// Umask is the program's, octal digits such as "022"; empty for the caller's.
	Umask string
	// UserNS, where it is not nil, makes the program root of a user namespace of its own and nobody
	// outside; the caller must be root.
	UserNS *UserNS
}

// UserNS are the users and the groups of the host that 0 to Count-1 of a user namespace stand for.
type UserNS struct{ FirstUID, FirstGID, Count int }

// Runner runs programs. The zero value is ready.
type Runner struct{}

// ErrNotInstalled says that a program is not in PATH.
var ErrNotInstalled = errors.New("not installed")

// ExitError is a program that ran and failed.
type ExitError struct {
	Argv   []string
	Status int // -1 where a signal ended it
	Signal syscall.Signal
	// Stderr is the end of what it wrote there, at most 4 KiB.
	Stderr string
}

// Error names the program, how it ended, and the end of its stderr.
func (e *ExitError) Error() string {
	how := fmt.Sprintf("exit status %d", e.Status)
	if e.Status < 0 {
		how = "ended by signal " + e.Signal.String()
	}
	if e.Stderr == "" {
		return fmt.Sprintf("%s: %s", e.Argv[0], how)
	}
	return fmt.Sprintf("%s: %s: %s", e.Argv[0], how, e.Stderr)
}

// LookPath finds a program in PATH, also in the sbin directories that an ordinary user's PATH
// leaves out; the error is ErrNotInstalled.
func (Runner) LookPath(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	for _, dir := range []string{"/usr/local/sbin/", "/usr/sbin/", "/sbin/"} {
		if p, err := exec.LookPath(dir + name); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, ErrNotInstalled)
}

// Run runs c to its end. When ctx ends its process group gets SIGTERM, then SIGKILL.
func (r Runner) Run(ctx context.Context, c Cmd) error {
	cmd, tail, err := r.command(ctx, c)
	if err != nil {
		return err
	}
	err = cmd.Run()
	if ctx.Err() != nil && cmd.Process != nil {
		// WaitDelay ends the program only; this ends what it left in its group.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	return wrap(ctx, c, err, tail)
}

// Output runs c and returns its stdout.
func (r Runner) Output(ctx context.Context, c Cmd) ([]byte, error) {
	var out bytes.Buffer
	c.Stdout = &out
	err := r.Run(ctx, c)
	return out.Bytes(), err
}

func (r Runner) command(ctx context.Context, c Cmd) (*exec.Cmd, *tailWriter, error) {
	path, err := r.LookPath(c.Argv[0])
	if err != nil {
		return nil, nil, err
	}
	argv := append([]string{path}, c.Argv[1:]...)
	if c.Umask != "" { // SysProcAttr cannot, and Go's own umask is the whole process's
		argv = append([]string{"/bin/sh", "-c", `umask "$0" && exec "$@"`, c.Umask}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdin, cmd.Stdout = c.Dir, c.Env, c.Stdin, c.Stdout
	tail := &tailWriter{also: c.Stderr}
	cmd.Stderr = tail
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if ns := c.UserNS; ns != nil {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: ns.FirstUID, Size: ns.Count}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: ns.FirstGID, Size: ns.Count}}
		cmd.SysProcAttr.GidMappingsEnableSetgroups = true
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 0, Gid: 0}
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = c.Grace
	if cmd.WaitDelay == 0 {
		cmd.WaitDelay = 5 * time.Second
	}
	return cmd, tail, nil
}

func wrap(ctx context.Context, c Cmd, err error, tail *tailWriter) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", c.Argv[0], context.Cause(ctx))
	}
	var ee *exec.ExitError
	if !errors.As(err, &ee) {
		return fmt.Errorf("%s: %w", c.Argv[0], err)
	}
	out := &ExitError{Argv: c.Argv, Status: ee.ExitCode(), Stderr: strings.TrimSpace(string(tail.buf))}
	if ws, ok := ee.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		out.Signal = ws.Signal()
	}
	return out
}

// Replace makes this process the program: its own code ends here, and the program has its pid, streams, environment and
// terminal. It returns only where that failed.
func (r Runner) Replace(argv []string) error {
	path, err := r.LookPath(argv[0])
	if err != nil {
		return err
	}
	if err := syscall.Exec(path, argv, os.Environ()); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}

// Daemon describes a program that is to outlive the caller.
type Daemon struct {
	Argv []string
	Dir  string
	Env  []string
	// Log receives stdout and stderr.
	Log *os.File
	// Files become descriptors 3, 4, …
	Files []*os.File
}

// StartDaemon starts d in a session of its own, with stdin /dev/null, and returns it started. The
// caller should Wait in the background, so that no zombie stays while it lives.
func (r Runner) StartDaemon(d Daemon) (*os.Process, error) {
	path, err := r.LookPath(d.Argv[0])
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, d.Argv[1:]...)
	cmd.Dir, cmd.Env, cmd.ExtraFiles = d.Dir, d.Env, d.Files
	if d.Log != nil {
		cmd.Stdout, cmd.Stderr = d.Log, d.Log
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	keepDescriptors()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", d.Argv[0], err)
	}
	return cmd.Process, nil
}

// keepDescriptors keeps this process's descriptors to itself: what it inherited (a lock of the script that runs it, a
// pipe somebody waits on) must not live on in a program that outlives it. Go's own are so already. Linux before 5.11
// cannot do it at once, and then it is not done.
func keepDescriptors() {
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
}

// Child is a running program whose life the caller owns.
type Child struct{ cmd *exec.Cmd }

// StartChild starts a program that the kernel kills when the calling thread dies: call it from a
// goroutine locked to a thread that lives as long as the program may. stdin is /dev/null.
func (r Runner) StartChild(argv []string, dir string, env []string, stdout, stderr *os.File, files ...*os.File) (*Child, error) {
	path, err := r.LookPath(argv[0])
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, argv[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = dir, env, stdout, stderr, files
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	keepDescriptors()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	return &Child{cmd}, nil
}

// PID is the child's process id.
func (c *Child) PID() int { return c.cmd.Process.Pid }

// Kill sends SIGKILL.
func (c *Child) Kill() { _ = c.cmd.Process.Kill() }

// Wait waits for the child's end: its exit status, or -1 and the signal.
func (c *Child) Wait() (status int, sig syscall.Signal, err error) {
	err = c.cmd.Wait()
	var ee *exec.ExitError
	if err == nil || errors.As(err, &ee) {
		if ws, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return -1, ws.Signal(), nil
		}
		return c.cmd.ProcessState.ExitCode(), 0, nil
	}
	return -1, 0, fmt.Errorf("wait for %s: %w", c.cmd.Path, err)
}

// tailWriter keeps the last 4 KiB of what goes through it.
type tailWriter struct {
	buf  []byte
	also io.Writer
}

func (t *tailWriter) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - 4096; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	if t.also != nil {
		return t.also.Write(p)
	}
	return len(p), nil
}
