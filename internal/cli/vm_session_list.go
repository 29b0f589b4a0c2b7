package cli

import (
	"context"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
)

type vmSessionListOptions struct {
	vm     string
	output *choice
}

func newVMSessionList(a *App) *cobra.Command {
	o := &vmSessionListOptions{}
	cmd := &cobra.Command{
		Use:     "list VM",
		Aliases: []string{"ls"},
		Short:   "List the sessions of a VM",
		Example: `  banger vm session list testbox
  banger vm session list testbox -o json`,
		Args:              args(1, 1, "the name of one VM"),
		ValidArgsFunction: a.completeVMs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.vm = args[0]
			return runVMSessionList(cmd.Context(), a, o)
		},
	}
	o.output = outputFlag(cmd)
	return cmd
}

func runVMSessionList(ctx context.Context, a *App, o *vmSessionListOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	all, err := c.Sessions(ctx, o.vm)
	if err != nil {
		return err
	}
	return list[api.Session]{
		header: []string{"NAME", "STATE", "STATUS", "STDIN", "AGE", "COMMAND", "REASON"},
		row: func(s api.Session) []string {
			return []string{s.Name, string(s.State), sessionStatus(s), s.Stdin, a.sessionAge(s), clip(sessionCommand(s), 40), s.Reason}
		},
		name: func(s api.Session) string { return s.Name },
	}.write(a.Out, o.output.value, all)
}
