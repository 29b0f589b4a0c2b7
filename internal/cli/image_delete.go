package cli

import (
	"context"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/client"
)

type imageDeleteOptions struct{ names []string }

func newImageDelete(a *App) *cobra.Command {
	o := &imageDeleteOptions{}
	return &cobra.Command{
		Use:               "delete NAME...",
		Aliases:           []string{"rm"},
		Short:             "Delete local images that no VM uses",
		Example:           `  banger image delete debian-bookworm`,
		Args:              args(1, -1, "the name of an image"),
		ValidArgsFunction: a.completeImages(0, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.names = args
			return runImageDelete(cmd.Context(), a, o)
		},
	}
}

func runImageDelete(ctx context.Context, a *App, o *imageDeleteOptions) error {
	return a.eachDeleted(ctx, o.names, (*client.Client).DeleteImage)
}
