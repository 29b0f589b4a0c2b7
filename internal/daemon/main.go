package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"git.thaloco.com/thaloco/banger/internal/buildinfo"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/vmm/supervise"
)

const usage = `usage: bangerd            run the daemon (the banger command starts it by itself)
       bangerd --version  print the version
`

// Main runs bangerd and returns its exit status: 0 also where another daemon was faster, 2 for bad arguments.
func Main(args []string) int {
	switch {
	case len(args) > 0 && args[0] == "vm-supervise":
		return supervise.Main(args[1:])
	case len(args) == 1 && args[0] == "--version":
		_, _ = fmt.Fprintln(os.Stdout, "bangerd", buildinfo.Version)
		return 0
	case len(args) == 1 && args[0] == "--help":
		_, _ = fmt.Fprint(os.Stdout, usage)
		return 0
	case len(args) > 0:
		_, _ = fmt.Fprint(os.Stderr, usage)
		return 2
	}
	if err := run(); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "bangerd:", err)
		return 1
	}
	return 0
}

func run() error {
	signal.Ignore(syscall.SIGHUP) // a terminal that closes is no reason to stop
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	p, err := paths.FromEnv(os.Getenv)
	if err != nil {
		return err
	}
	exe, err := Exe()
	if err != nil {
		return err
	}
	err = Run(ctx, Config{Paths: p, Exe: exe, Getenv: os.Getenv})
	if errors.Is(err, ErrRunning) {
		return nil
	}
	return err
}
