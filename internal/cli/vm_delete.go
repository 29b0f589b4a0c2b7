package cli

import (
	"context"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

type vmDeleteOptions struct {
	names      []string
	all, force bool
}

func newVMDelete(a *App) *cobra.Command {
	o := &vmDeleteOptions{}
	cmd := &cobra.Command{
		Use:        "delete NAME... | --all",
		Aliases:    []string{"rm"},
		SuggestFor: []string{"remove", "destroy"},
		Short:      "Delete VMs with everything in them",
		Long:       "Delete VMs with everything in them. One that runs is only deleted with --force.",
		Example: `  banger vm delete testbox
  banger vm rm --force web db
  banger vm delete --all --force`,
		ValidArgsFunction: a.completeVMs(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.names = args
			return runVMDelete(cmd.Context(), a, o)
		},
	}
	cmd.Flags().BoolVar(&o.all, "all", false, "all VMs")
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "also one that runs")
	return cmd
}

func runVMDelete(ctx context.Context, a *App, o *vmDeleteOptions) error {
	return a.eachVM(ctx, "vm delete", o.names, o.all, func(ctx context.Context, c *client.Client, name string) (api.Operation, error) {
		return c.DeleteVM(ctx, name, api.DeleteVM{Force: o.force})
	})
}
