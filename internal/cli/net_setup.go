package cli

import (
	"context"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/internal/config"
	"git.thaloco.com/thaloco/banger/internal/network/bridge"
)

type netSetupOptions struct {
	owner, boot string
	noBoot      bool
}

func newNetSetup(a *App) *cobra.Command {
	o := &netSetupOptions{}
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Make the bridge, the TAPs and the firewall rules of bridge mode (root)",
		Long: `Make what bridge mode needs of this host, by the configuration of the user who calls sudo: the bridge bridge_name with the
address bridge_ip in cidr, tap_pool_size TAPs that are that user's, forwarding, and firewall rules in tables of banger's own that
let VMs out, keep them to their own addresses, and keep them away from this host. What is there already stays; doing it twice does nothing the
second time. What is changed here is made again at each boot, by a unit of systemd's.

Then set network = "bridge" in config.toml: VMs are on the bridge from their next start on, and reached from this host by address,
and by name where systemd-resolved runs. The daemon stays without privileges.`,
		Example: `  sudo banger net setup
  sudo banger net setup --owner alice
  sudo banger net setup --no-boot`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runNetSetup(cmd.Context(), a, o) },
	}
	cmd.Flags().StringVar(&o.owner, "owner", "", "the user whose VMs are to be on it, and whose configuration says how it is to be (default: who calls sudo)")
	cmd.Flags().BoolVar(&o.noBoot, "no-boot", false, "not again at the next boot")
	cmd.Flags().StringVar(&o.boot, "boot", "", "make this bridge as it was set up before: what the unit does at boot")
	_ = cmd.Flags().MarkHidden("boot")
	_ = cmd.RegisterFlagCompletionFunc("owner", cobra.NoFileCompletions)
	cmd.MarkFlagsMutuallyExclusive("boot", "owner")
	cmd.MarkFlagsMutuallyExclusive("boot", "no-boot")
	return cmd
}

func runNetSetup(ctx context.Context, a *App, o *netSetupOptions) error {
	host, err := a.hostNetwork()
	if err != nil {
		return err
	}
	if o.boot != "" {
		cfg, err := host.Load(o.boot)
		if err != nil {
			return err
		}
		done, err := host.Setup(ctx, cfg)
		if err != nil {
			return err
		}
		return a.did(done)
	}
	owner, err := a.netOwner(o.owner)
	if err != nil {
		return err
	}
	setup := host.SetupAtBoot
	if o.noBoot {
		setup = host.Setup
	}
	cfg := owner.config.Bridge(owner.uid)
	done, err := setup(ctx, cfg)
	if err != nil {
		return a.netError(err, "setup")
	}
	if err := a.did(done); err != nil {
		return err
	}
	if len(done) == 0 {
		a.say("all of it is there already")
	}
	a.sayNext(owner, cfg)
	return nil
}

// sayNext tells what is left for the user to do.
func (a *App) sayNext(owner netOwner, cfg bridge.Config) {
	if owner.config.Network != config.NetworkBridge {
		a.say("now set network = %q in %s, then: banger daemon stop (VMs go on; each is on %s from its next start on)", config.NetworkBridge, owner.file, cfg.Name)
	}
}
