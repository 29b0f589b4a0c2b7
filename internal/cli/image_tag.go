package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
)

type imageTagOptions struct{ name, as string }

func newImageTag(a *App) *cobra.Command {
	o := &imageTagOptions{}
	return &cobra.Command{
		Use:               "tag NAME NEW",
		Short:             "Give an image another name as well",
		Example:           `  banger image tag alpine:3.20 alpine`,
		Args:              args(2, 2, "the name of an image, and another name"),
		ValidArgsFunction: a.completeImages(1, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name, o.as = args[0], args[1]
			return runImageTag(cmd.Context(), a, o)
		},
	}
}

func runImageTag(ctx context.Context, a *App, o *imageTagOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	im, err := c.TagImage(ctx, o.name, api.TagImage{As: o.as})
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Out, "%s %s\n", safeText(im.Name), safeText(im.Digest))
	return nil
}
