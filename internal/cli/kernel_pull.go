package cli

import (
	"context"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
)

type kernelPullOptions struct{ name string }

func newKernelPull(a *App) *cobra.Command {
	o := &kernelPullOptions{}
	return &cobra.Command{
		Use:               "pull NAME",
		Short:             "Make a kernel local, or look for a newer one of its name",
		Example:           `  banger kernel pull generic-6.12`,
		Args:              args(1, 1, "the name of one kernel"),
		ValidArgsFunction: a.completeKernels(1, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return runKernelPull(cmd.Context(), a, o)
		},
	}
}

func runKernelPull(ctx context.Context, a *App, o *kernelPullOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	op, err := a.operate(ctx, c, job{post: func(ctx context.Context) (api.Operation, error) {
		return c.PullKernel(ctx, api.PullKernel{Name: o.name})
	}})
	if err != nil {
		return err
	}
	return a.printKernel(op)
}
