package cli

import (
	"context"
	"math"
	"time"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

type vmStopOptions struct {
	names   []string
	all     bool
	timeout time.Duration
}

func newVMStop(a *App) *cobra.Command {
	o := &vmStopOptions{}
	cmd := &cobra.Command{
		Use:   "stop NAME... | --all",
		Short: "Stop VMs",
		Long: `Stop VMs: the guest's init is asked to power off. After --timeout the agent writes everything
to disk and ends the guest, and where that does not help either the VM is killed.`,
		Example: `  banger vm stop testbox
  banger vm stop --timeout 5s web db
  banger vm stop --all`,
		ValidArgsFunction: a.completeVMs(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.names = args
			return runVMStop(cmd.Context(), a, o)
		},
	}
	cmd.Flags().BoolVar(&o.all, "all", false, "all VMs")
	timeoutFlag(cmd, &o.timeout)
	return cmd
}

func runVMStop(ctx context.Context, a *App, o *vmStopOptions) error {
	seconds, err := wholeSeconds(o.timeout)
	if err != nil {
		return err
	}
	return a.eachVM(ctx, "vm stop", o.names, o.all, func(ctx context.Context, c *client.Client, name string) (api.Operation, error) {
		return c.StopVM(ctx, name, api.StopVM{TimeoutSeconds: seconds})
	})
}

func timeoutFlag(cmd *cobra.Command, p *time.Duration) {
	cmd.Flags().DurationVar(p, "timeout", 0, "how long the guest's init may take, a `duration` such as 10s (default: 30s)")
	_ = cmd.RegisterFlagCompletionFunc("timeout", cobra.NoFileCompletions) // fails only for an unknown flag
}

// wholeSeconds rounds d up; 0 stands for the daemon's default.
func wholeSeconds(d time.Duration) (int, error) {
	if d < 0 || d > 24*time.Hour {
		return 0, usagef("--timeout 30s", "--timeout is %s, not between 1s and 24h", d)
	}
	return int(math.Ceil(d.Seconds())), nil
}
