package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
)

type kernelShowOptions struct {
	name   string
	output *choice
}

func newKernelShow(a *App) *cobra.Command {
	o := &kernelShowOptions{}
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "Show one kernel",
		Example: `  banger kernel show generic-6.12
  banger kernel show generic-6.12 -o json`,
		Args:              args(1, 1, "the name of one kernel"),
		ValidArgsFunction: a.completeKernels(1, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return runKernelShow(cmd.Context(), a, o)
		},
	}
	o.output = outputFlag(cmd)
	return cmd
}

func runKernelShow(ctx context.Context, a *App, o *kernelShowOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	k, err := c.Kernel(ctx, o.name)
	if err != nil {
		return err
	}
	switch o.output.value {
	case formatJSON:
		return writeJSON(a.Out, k)
	case formatName:
		fmt.Fprintln(a.Out, safeText(k.Name))
		return nil
	}
	return writeFields(a.Out, kernelFields(k))
}

func kernelFields(k api.Kernel) []field {
	return []field{
		{"name", k.Name},
		{"digest", k.Digest},
		{"description", k.Description},
		{"release", k.Release},
		{"package", k.Package},
		{"source", k.Source},
		{"architecture", k.Arch},
		{"local", yesNo(k.Local)},
		{"default", yesNo(k.Default)},
		{"size", sizeOrDash(k.SizeBytes)},
		{"created", timeText(k.CreatedAt)},
		{"vms", strings.Join(k.VMs, " ")},
	}
}
