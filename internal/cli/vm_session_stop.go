package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
)

type vmSessionStopOptions struct {
	vm, name, signal string
	timeout          time.Duration
}

func newVMSessionStop(a *App) *cobra.Command {
	o := &vmSessionStopOptions{}
	cmd := &cobra.Command{
		Use:   "stop VM NAME",
		Short: "End a session",
		Long: `End a session: its processes get a signal, and after --timeout SIGKILL. What it printed stays until the session is
deleted.`,
		Example: `  banger vm session stop testbox planner
  banger vm session stop --signal INT --timeout 30s testbox planner`,
		Args:              args(2, 2, sessionArg),
		ValidArgsFunction: a.completeSessions(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.vm, o.name = args[0], args[1]
			return runVMSessionStop(cmd.Context(), a, o)
		},
	}
	cmd.Flags().StringVar(&o.signal, "signal", "TERM", "`signal` to send, by name")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 0, "how long it may take to end, a `duration` such as 30s (default: 10s)")
	_ = cmd.RegisterFlagCompletionFunc("signal", cobra.FixedCompletions([]string{"TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "KILL"}, cobra.ShellCompDirectiveNoFileComp)) // fails only for an unknown flag
	_ = cmd.RegisterFlagCompletionFunc("timeout", cobra.NoFileCompletions)                                                                                                   // likewise
	return cmd
}

func runVMSessionStop(ctx context.Context, a *App, o *vmSessionStopOptions) error {
	seconds, err := wholeSeconds(o.timeout)
	if err != nil {
		return err
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = a.operate(ctx, c, job{post: func(ctx context.Context) (api.Operation, error) {
		return c.StopSession(ctx, o.vm, o.name, api.StopSession{Signal: o.signal, TimeoutSeconds: seconds})
	}})
	if err != nil {
		return err
	}
	fmt.Fprintln(a.Out, o.name)
	return nil
}
