package cli

import (
	"context"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

type vmKillOptions struct {
	names []string
	all   bool
}

func newVMKill(a *App) *cobra.Command {
	o := &vmKillOptions{}
	cmd := &cobra.Command{
		Use:   "kill NAME... | --all",
		Short: "End VMs at once, as pulling the plug would",
		Long:  "End VMs at once, as pulling the plug would: what their guests had not written to disk is lost.",
		Example: `  banger vm kill testbox
  banger vm kill web db`,
		ValidArgsFunction: a.completeVMs(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.names = args
			return runVMKill(cmd.Context(), a, o)
		},
	}
	cmd.Flags().BoolVar(&o.all, "all", false, "all VMs")
	return cmd
}

func runVMKill(ctx context.Context, a *App, o *vmKillOptions) error {
	return a.eachVM(ctx, "vm kill", o.names, o.all, func(ctx context.Context, c *client.Client, name string) (api.Operation, error) {
		return c.KillVM(ctx, name)
	})
}
