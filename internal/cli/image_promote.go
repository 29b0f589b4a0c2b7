package cli

import (
	"context"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

type imagePromoteOptions struct{ req api.PromoteImage }

func newImagePromote(a *App) *cobra.Command {
	o := &imagePromoteOptions{}
	cmd := &cobra.Command{
		Use:   "promote VM --name NAME",
		Short: "Make an image of what a running VM's root holds",
		Long: `Make an image of the root file system of a running VM. What makes the VM this VM is left out: its hostname, machine-id, ssh host keys and
resolv.conf; and so are /tmp, /var/tmp and the stores of containers. --clean has /root and /home as the VM's image has them, without what was put
there since. Programs that write meanwhile are best stopped before.`,
		Example: `  banger image promote testbox --name tools
  banger image promote testbox --name tools --clean`,
		Args:              args(1, 1, "the name of one VM"),
		ValidArgsFunction: a.completeVMs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.VM = args[0]
			return runImagePromote(cmd.Context(), a, o)
		},
	}
	cmd.Flags().StringVar(&o.req.Name, "name", "", "`name` of the image")
	cmd.Flags().BoolVar(&o.req.Clean, "clean", false, "without what was put into /root and /home")
	return cmd
}

func runImagePromote(ctx context.Context, a *App, o *imagePromoteOptions) error {
	if o.req.Name == "" {
		return usagef(quoted("banger", "image", "promote", o.req.VM, "--name", "NAME"), "the image needs a --name")
	}
	return a.newImage(ctx, func(ctx context.Context, c *client.Client) (api.Operation, error) { return c.PromoteImage(ctx, o.req) })
}
