package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/client"
)

type kernelDeleteOptions struct{ names []string }

func newKernelDelete(a *App) *cobra.Command {
	o := &kernelDeleteOptions{}
	return &cobra.Command{
		Use:               "delete NAME...",
		Aliases:           []string{"rm"},
		Short:             "Delete local kernels that no VM uses",
		Example:           `  banger kernel delete generic-6.12`,
		Args:              args(1, -1, "the name of a kernel"),
		ValidArgsFunction: a.completeKernels(0, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.names = args
			return runKernelDelete(cmd.Context(), a, o)
		},
	}
}

func runKernelDelete(ctx context.Context, a *App, o *kernelDeleteOptions) error {
	return a.eachDeleted(ctx, o.names, (*client.Client).DeleteKernel)
}

// eachDeleted deletes what has these names, one after the other, and prints the name of each that went well.
func (a *App) eachDeleted(ctx context.Context, names []string, del func(*client.Client, context.Context, string) error) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	var outs []outcome
	for _, name := range unique(names) {
		outs = append(outs, outcome{name: name, err: del(c, ctx, name)})
		if ctx.Err() != nil {
			break
		}
	}
	return a.report(outs, func(o outcome) error {
		fmt.Fprintln(a.Out, o.name)
		return nil
	})
}
