package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

type imagePullOptions struct {
	req api.PullImage
}

func newImagePull(a *App) *cobra.Command {
	o := &imagePullOptions{}
	cmd := &cobra.Command{
		Use:   "pull NAME|REFERENCE",
		Short: "Make an image local: of the catalog, or of a registry",
		Long: `Make an image local. A name is one of the catalog (banger image catalog), which is fetched or built here. A reference, which has a
registry, a path, a tag or a digest in it, is an image of a registry; without a registry it is one of Docker's. Credentials are those of docker
login. It is called by its reference, as docker writes it, unless --name says otherwise. A tag that has moved since is fetched again, and VMs
that were made before stay as they are.`,
		Example: `  banger image pull debian-bookworm
  banger image pull --build debian-bookworm
  banger image pull docker.io/library/alpine:3.20
  banger image pull --name alpine --kernel-ref generic-6.12 docker.io/library/alpine:3.20`,
		Args:              args(1, 1, "the name of one image"),
		ValidArgsFunction: a.completeImages(1, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Name = args[0]
			return runImagePull(cmd.Context(), a, o)
		},
	}
	cmd.Flags().BoolVar(&o.req.Build, "build", false, "build it here, also where it is local already")
	cmd.Flags().StringVar(&o.req.As, "name", "", "`name` it gets here; for an image of a registry")
	cmd.Flags().StringVar(&o.req.Platform, "platform", "", "`OS/ARCH` to choose of a registry's image (default linux/amd64)")
	kernelFlag(a, cmd, &o.req.Kernel, "`kernel` its VMs get; for an image of a registry")
	return cmd
}

func runImagePull(ctx context.Context, a *App, o *imagePullOptions) error {
	return a.newImage(ctx, func(ctx context.Context, c *client.Client) (api.Operation, error) { return c.PullImage(ctx, o.req) })
}

// newImage runs the operation that makes an image, and prints its name and digest.
func (a *App) newImage(ctx context.Context, post func(context.Context, *client.Client) (api.Operation, error)) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	op, err := a.operate(ctx, c, job{post: func(ctx context.Context) (api.Operation, error) { return post(ctx, c) }})
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
