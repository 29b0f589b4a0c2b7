package cli

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
)

type vmSessionLogsOptions struct {
	vm, name    string
	follow, raw bool
	stream      *choice
	since       time.Duration
	tail        int
}

func newVMSessionLogs(a *App) *cobra.Command {
	o := &vmSessionLogsOptions{}
	cmd := &cobra.Command{
		Use:   "logs VM NAME",
		Short: "Print what a session printed",
		Long: `Print what a session printed, whether it runs or has ended, and also where the VM does not run. The log is bounded
(session_log_size and session_log_files in the configuration): where older output was dropped a line says how much.
On a terminal control characters are escaped.`,
		Example: `  banger vm session logs testbox planner
  banger vm session logs testbox planner -f --stream stderr
  banger vm session logs testbox planner --since 10m --tail 100`,
		Args:              args(2, 2, sessionArg),
		ValidArgsFunction: a.completeSessions(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.vm, o.name = args[0], args[1]
			return runVMSessionLogs(cmd.Context(), a, o)
		},
	}
	fl := cmd.Flags()
	fl.BoolVarP(&o.follow, "follow", "f", false, "go on until the session ends")
	fl.BoolVar(&o.raw, "raw", false, "escape nothing on a terminal")
	fl.DurationVar(&o.since, "since", 0, "only what was printed within this `duration`, such as 10m")
	fl.IntVarP(&o.tail, "tail", "n", -1, "only the last `lines`, this many")
	o.stream = choiceFlag(cmd, "stream", "", "", "`stream`: stdout, stderr (default: both)", "stdout", "stderr")
	for _, name := range []string{"since", "tail"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions) // fails only for an unknown flag
	}
	return cmd
}

func runVMSessionLogs(ctx context.Context, a *App, o *vmSessionLogsOptions) error {
	if o.since < 0 {
		return usagef("--since 10m", "--since is %s, in the future", o.since)
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	log, err := c.SessionLogs(ctx, o.vm, o.name, api.SessionLogs{Stream: o.stream.value, Since: o.since, Tail: o.tail, Follow: o.follow})
	if err != nil {
		return err
	}
	defer log.Close()
	w := io.Writer(a.Out)
	if a.Terminal.Out && !o.raw {
		safe := newSafeWriter(w)
		defer safe.flush()
		w = safe
	}
	_, err = io.Copy(w, log)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
