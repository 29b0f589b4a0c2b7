package cli

import (
	"context"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/internal/config"
)

type netTeardownOptions struct {
	owner, bridge string
	force         bool
}

func newNetTeardown(a *App) *cobra.Command {
	o := &netTeardownOptions{}
	cmd := &cobra.Command{
		Use:   "teardown [BRIDGE]",
		Short: "Take away all that net setup made (root)",
		Long: `Take away a bridge that "banger net setup" made, with its TAPs, its firewall rules, its unit of systemd's, and forwarding if
that was off before and nothing else is seen to need it. Without BRIDGE it is bridge_name of the user who calls sudo. Where VMs are on it, it is
refused; with --force they go on without a network.`,
		Example: `  sudo banger net teardown
  sudo banger net teardown bngr0 --force`,
		Args:              args(0, 1, "the name of one bridge"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.bridge = args[0]
			}
			return runNetTeardown(cmd.Context(), a, o)
		},
	}
	cmd.Flags().StringVar(&o.owner, "owner", "", "the user whose configuration names the bridge (default: who calls sudo)")
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "although VMs are on it")
	_ = cmd.RegisterFlagCompletionFunc("owner", cobra.NoFileCompletions)
	return cmd
}

func runNetTeardown(ctx context.Context, a *App, o *netTeardownOptions) error {
	host, err := a.hostNetwork()
	if err != nil {
		return err
	}
	owner, err := a.netOwner(o.owner)
	if o.bridge == "" {
		if err != nil {
			return err // the configuration would say which
		}
		o.bridge = owner.config.BridgeName
	}
	done, terr := host.Teardown(ctx, o.bridge, o.force)
	if derr := a.did(done); derr != nil && terr == nil {
		return derr
	}
	if terr != nil {
		return a.netError(terr, "teardown")
	}
	if len(done) == 0 {
		a.say("there is no bridge %s of banger's", o.bridge)
		return nil
	}
	if err == nil && owner.config.Network == config.NetworkBridge && owner.config.BridgeName == o.bridge {
		a.say("VMs cannot be started until network = %q is taken out of %s, then: banger daemon stop", config.NetworkBridge, owner.file)
	}
	return nil
}
