package cli

import (
	"context"
	"path/filepath"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

type imageImportOptions struct{ req api.ImportImage }

func newImageImport(a *App) *cobra.Command {
	o := &imageImportOptions{}
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Make the image of a bundle local",
		Example: `  banger image import bookworm.tar.zst
  banger image import bookworm.tar.zst --name elsewhere`,
		Args: args(1, 1, "one bundle"),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return []cobra.Completion{"zst"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Path = args[0]
			return runImageImport(cmd.Context(), a, o)
		},
	}
	cmd.Flags().StringVar(&o.req.Name, "name", "", "`name` it gets here (default: the one it was exported by)")
	return cmd
}

func runImageImport(ctx context.Context, a *App, o *imageImportOptions) error {
	req := o.req
	var err error
	if req.Path, err = filepath.Abs(req.Path); err != nil {
		return err
	}
	return a.newImage(ctx, func(ctx context.Context, c *client.Client) (api.Operation, error) { return c.ImportImage(ctx, req) })
}
