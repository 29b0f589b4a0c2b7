// Package cli is the banger command: it turns arguments into calls of package
// client and what comes back into text, tables, progress and an exit status. It
// decides nothing about VMs.
//
// One leaf command is one file, named after it: vm_create.go holds its options,
// its constructor newVMCreate and runVMCreate. root.go lists the commands, app.go
// holds what a command gets of its surroundings. Of the rest, operate.go and
// progress.go follow daemon work, remote.go runs a command in a guest, autostart.go
// starts the daemon, signals.go, output.go, text.go, complete.go and exitcode.go do
// what their names say.
package cli

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/term"
)

// Main runs the banger command with the process's own arguments and streams and returns its exit status.
func Main() int {
	sigs := make(chan os.Signal, 8)
	signal.Notify(sigs, syscall.SIGINT, syscall.SIGTERM)
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGQUIT} {
		if !signal.Ignored(s) { // nohup means it, and so does a shell that starts a job in the background
			signal.Notify(sigs, s)
		}
	}
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	app := &App{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		Terminal:   hostTerminal(os.Stdin, os.Stdout, os.Stderr, resized),
		Getenv:     os.Getenv,
		LookupEnv:  os.LookupEnv,
		Now:        time.Now,
		Executable: os.Executable,
		Signals:    sigs,
		Abort: func(s os.Signal) {
			signal.Reset(s)
			_ = syscall.Kill(os.Getpid(), s.(syscall.Signal)) // only syscall.Signals were asked for
		},
	}
	return app.Run(context.Background(), os.Args[1:])
}

// hostTerminal is the terminal of this process's streams.
func hostTerminal(in, out, errs *os.File, resized <-chan os.Signal) Terminal {
	fds := []int{int(out.Fd()), int(errs.Fd()), int(in.Fd())}
	stdin := int(in.Fd())
	t := Terminal{
		In:      term.IsTerminal(stdin) && foreground(stdin),
		Out:     term.IsTerminal(fds[0]),
		Err:     term.IsTerminal(fds[1]),
		Resized: resized,
		Size: func() (rows, cols int) {
			for _, fd := range fds {
				if w, h, err := term.GetSize(fd); err == nil {
					return h, w
				}
			}
			return 0, 0
		},
		Raw: func() (func(), error) {
			old, err := term.MakeRaw(stdin)
			if err != nil {
				return nil, err
			}
			return func() { _ = term.Restore(stdin, old) }, nil
		},
	}
	t.InBackground = term.IsTerminal(stdin) && !t.In
	return t
}
