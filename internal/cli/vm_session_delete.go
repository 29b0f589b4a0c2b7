package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

type vmSessionDeleteOptions struct {
	vm    string
	names []string
	force bool
}

func newVMSessionDelete(a *App) *cobra.Command {
	o := &vmSessionDeleteOptions{}
	cmd := &cobra.Command{
		Use:     "delete VM NAME...",
		Aliases: []string{"rm"},
		Short:   "Delete sessions with what they printed",
		Long:    "Delete sessions with what they printed. One that runs is only deleted with --force, which kills it.",
		Example: `  banger vm session delete testbox planner
  banger vm session delete --force testbox planner builder`,
		Args:              args(2, -1, "the names of a VM and of its sessions"),
		ValidArgsFunction: a.completeSessions(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.vm, o.names = args[0], unique(args[1:])
			return runVMSessionDelete(cmd.Context(), a, o)
		},
	}
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "also one that runs")
	return cmd
}

func runVMSessionDelete(ctx context.Context, a *App, o *vmSessionDeleteOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	var errs []error
	for _, name := range o.names {
		if err := c.DeleteSession(ctx, o.vm, name, o.force); err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintln(a.Out, name)
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}
