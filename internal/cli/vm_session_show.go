package cli

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
)

type vmSessionShowOptions struct {
	vm, name string
	output   *choice
}

func newVMSessionShow(a *App) *cobra.Command {
	o := &vmSessionShowOptions{}
	cmd := &cobra.Command{
		Use:   "show VM NAME",
		Short: "Show one session",
		Long: `Show one session. Its socket, while it runs, is a unix socket of this host: what is written there is the session's
stdin, what is read its stdout. The first who connects writes, others read; who ends its half of the connection ends stdin, who closes
it leaves.`,
		Example: `  banger vm session show testbox planner
  banger vm session show testbox planner -o json`,
		Args:              args(2, 2, sessionArg),
		ValidArgsFunction: a.completeSessions(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.vm, o.name = args[0], args[1]
			return runVMSessionShow(cmd.Context(), a, o)
		},
	}
	o.output = outputFlag(cmd)
	return cmd
}

func runVMSessionShow(ctx context.Context, a *App, o *vmSessionShowOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := c.Session(ctx, o.vm, o.name)
	if err != nil {
		return err
	}
	switch o.output.value {
	case formatJSON:
		return writeJSON(a.Out, s)
	case formatName:
		fmt.Fprintln(a.Out, safeText(s.Name))
		return nil
	}
	return writeFields(a.Out, sessionFields(s))
}

func sessionFields(s api.Session) []field {
	return []field{
		{"name", s.Name},
		{"vm", s.VM},
		{"state", string(s.State)},
		{"status", sessionStatus(s)},
		{"reason", s.Reason},
		{"command", sessionCommand(s)},
		{"directory", s.Dir},
		{"user", s.User},
		{"stdin", s.Stdin},
		{"pid", numberOrDash(s.PID)},
		{"socket", s.Socket},
		{"writer", yesNo(s.Writer)},
		{"readers", strconv.Itoa(s.Readers)},
		{"output", size(int64(s.StdoutBytes)) + " stdout, " + size(int64(s.StderrBytes)) + " stderr, " + size(int64(s.DroppedBytes)) + " of it not in the log any more"},
		{"created", timeText(&s.CreatedAt)},
		{"ended", timeText(s.EndedAt)},
	}
}
