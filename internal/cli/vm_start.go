package cli

import (
	"context"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

type vmStartOptions struct {
	names []string
	all   bool
	wait  *choice
}

func newVMStart(a *App) *cobra.Command {
	o := &vmStartOptions{}
	cmd := &cobra.Command{
		Use:   "start NAME... | --all",
		Short: "Start VMs",
		Long:  "Start VMs and wait until their guests are ready. One that runs already is only waited for.",
		Example: `  banger vm start testbox
  banger vm start --wait agent web db`,
		ValidArgsFunction: a.completeVMs(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.names = args
			return runVMStart(cmd.Context(), a, o)
		},
	}
	cmd.Flags().BoolVar(&o.all, "all", false, "all VMs")
	o.wait = waitFlag(cmd)
	return cmd
}

func runVMStart(ctx context.Context, a *App, o *vmStartOptions) error {
	req := api.StartVM{Wait: api.Mark(o.wait.value)}
	return a.eachVM(ctx, "vm start", o.names, o.all, func(ctx context.Context, c *client.Client, name string) (api.Operation, error) {
		return c.StartVM(ctx, name, req)
	})
}
