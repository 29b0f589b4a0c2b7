package cli

import (
	"context"

	"github.com/spf13/cobra"
)

func newDaemonStart(a *App) *cobra.Command {
	return &cobra.Command{
		Use:               "start",
		Short:             "Start the daemon, unless it runs",
		Long:              "Start the daemon, unless it runs. Other commands do so by themselves.",
		Example:           `  banger daemon start`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runDaemonStart(cmd.Context(), a) },
	}
}

func runDaemonStart(ctx context.Context, a *App) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	st, err := c.Daemon(ctx)
	if err != nil {
		return err
	}
	a.say("the daemon runs, pid %d", st.PID)
	return nil
}
