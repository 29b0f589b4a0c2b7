package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

type vmRestartOptions struct {
	names   []string
	all     bool
	timeout time.Duration
	wait    *choice
}

func newVMRestart(a *App) *cobra.Command {
	o := &vmRestartOptions{}
	cmd := &cobra.Command{
		Use:   "restart NAME... | --all",
		Short: "Stop VMs and start them again",
		Example: `  banger vm restart testbox
  banger vm restart --timeout 5s --wait full testbox`,
		ValidArgsFunction: a.completeVMs(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.names = args
			return runVMRestart(cmd.Context(), a, o)
		},
	}
	cmd.Flags().BoolVar(&o.all, "all", false, "all VMs")
	timeoutFlag(cmd, &o.timeout)
	o.wait = waitFlag(cmd)
	return cmd
}

func runVMRestart(ctx context.Context, a *App, o *vmRestartOptions) error {
	seconds, err := wholeSeconds(o.timeout)
	if err != nil {
		return err
	}
	req := api.StopVM{TimeoutSeconds: seconds, Wait: api.Mark(o.wait.value)}
	return a.eachVM(ctx, "vm restart", o.names, o.all, func(ctx context.Context, c *client.Client, name string) (api.Operation, error) {
		return c.RestartVM(ctx, name, req)
	})
}
