package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

type imagePullOptions struct {
	name  string
	build bool
}

func newImagePull(a *App) *cobra.Command {
	o := &imagePullOptions{}
	cmd := &cobra.Command{
		Use:   "pull NAME",
		Short: "Make an image local: fetch it or build it from its recipe",
		Example: `  banger image pull debian-bookworm
  banger image pull --build debian-bookworm`,
		Args:              args(1, 1, "the name of one image"),
		ValidArgsFunction: a.completeImages(1, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return runImagePull(cmd.Context(), a, o)
		},
	}
	cmd.Flags().BoolVar(&o.build, "build", false, "build it here, also where it is local already")
	return cmd
}

func runImagePull(ctx context.Context, a *App, o *imagePullOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	op, err := a.operate(ctx, c, job{post: func(ctx context.Context) (api.Operation, error) {
		return c.PullImage(ctx, api.PullImage{Name: o.name, Build: o.build})
	}})
	if err != nil {
		return err
	}
	im, err := client.Result[api.Image](op)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Out, "%s %s\n", safeText(im.Name), safeText(im.Digest))
	return nil
}
