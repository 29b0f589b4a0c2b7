package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/client"
)

// daemonStopsWithin is how long the daemon may take to end.
const daemonStopsWithin = 30 * time.Second

func newDaemonStop(a *App) *cobra.Command {
	return &cobra.Command{
		Use:               "stop",
		Short:             "Stop the daemon; VMs and the commands in them go on",
		Example:           `  banger daemon stop`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runDaemonStop(cmd.Context(), a) },
	}
}

// runDaemonStop stops the daemon and waits until nothing answers any more, or one with another pid.
func runDaemonStop(ctx context.Context, a *App) error {
	c, err := a.connectOnly()
	if err != nil {
		return err
	}
	defer c.Close()
	before, err := c.Daemon(ctx)
	if errors.Is(err, client.ErrNoDaemon) {
		a.say("the daemon does not run")
		return nil
	}
	if err != nil {
		return err
	}
	if err := c.StopDaemon(ctx); err != nil && !errors.Is(err, client.ErrNoDaemon) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, daemonStopsWithin)
	defer cancel()
	for wait := askAgainFirst; ; wait = min(2*wait, askAgainAtMost) {
		c.Close() // the question is whether a new connection is answered
		now, err := c.Daemon(ctx)
		if errors.Is(err, client.ErrNoDaemon) || err == nil && now.PID != before.PID {
			a.say("the daemon has stopped")
			return nil
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
				return fmt.Errorf("stop the daemon: pid %d still answers after %s", before.PID, daemonStopsWithin)
			}
			return context.Cause(ctx)
		}
	}
}
