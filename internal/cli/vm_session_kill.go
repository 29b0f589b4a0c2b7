package cli

import (
	"github.com/spf13/cobra"
)

func newVMSessionKill(a *App) *cobra.Command {
	o := &vmSessionStopOptions{signal: "KILL"}
	return &cobra.Command{
		Use:               "kill VM NAME",
		Short:             "End a session at once, with SIGKILL",
		Example:           `  banger vm session kill testbox planner`,
		Args:              args(2, 2, sessionArg),
		ValidArgsFunction: a.completeSessions(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.vm, o.name = args[0], args[1]
			return runVMSessionStop(cmd.Context(), a, o)
		},
	}
}
