package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"
)

type vmLogsOptions struct {
	name        string
	follow, raw bool
	source      *choice
}

func newVMLogs(a *App) *cobra.Command {
	o := &vmLogsOptions{}
	cmd := &cobra.Command{
		Use:   "logs NAME",
		Short: "Print a log of a VM",
		Long: `Print a log of a VM: what its guest wrote to the console, what the agent in it says, or the
messages of the VMM and its supervisor. On a terminal control characters are escaped.`,
		Example: `  banger vm logs testbox
  banger vm logs testbox -f --source agent`,
		Args:              args(1, 1, "the name of one VM"),
		ValidArgsFunction: a.completeVMs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return runVMLogs(cmd.Context(), a, o)
		},
	}
	o.source = choiceFlag(cmd, "source", "s", "console", "`log`: console, agent, vmm", "console", "agent", "vmm")
	cmd.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on until the VM ends")
	cmd.Flags().BoolVar(&o.raw, "raw", false, "escape nothing on a terminal")
	return cmd
}

func runVMLogs(ctx context.Context, a *App, o *vmLogsOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	log, err := c.Logs(ctx, o.name, o.source.value, o.follow)
	if err != nil {
		return err
	}
	defer log.Close()
	w := io.Writer(a.Out)
	if a.Terminal.Out && !o.raw {
		safe := newSafeWriter(w)
		defer safe.flush()
		w = safe
	}
	_, err = io.Copy(w, log)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
