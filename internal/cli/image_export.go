package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
)

type imageExportOptions struct {
	name string
	req  api.ExportImage
}

func newImageExport(a *App) *cobra.Command {
	o := &imageExportOptions{}
	cmd := &cobra.Command{
		Use:               "export NAME -o FILE",
		Short:             "Write an image to a bundle: one file, to take elsewhere",
		Example:           `  banger image export debian-bookworm -o bookworm.tar.zst`,
		Args:              args(1, 1, "the name of one image"),
		ValidArgsFunction: a.completeImages(1, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return runImageExport(cmd.Context(), a, o)
		},
	}
	cmd.Flags().StringVarP(&o.req.Path, "output", "o", "", "`file` to write")
	cmd.Flags().BoolVarP(&o.req.Replace, "force", "f", false, "replace a file that is there")
	return cmd
}

func runImageExport(ctx context.Context, a *App, o *imageExportOptions) error {
	if o.req.Path == "" {
		return usagef(quoted("banger", "image", "export", o.name, "-o", "FILE.tar.zst"), "-o says which file to write")
	}
	req := o.req
	var err error
	if req.Path, err = filepath.Abs(req.Path); err != nil {
		return err
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := a.operate(ctx, c, job{post: func(ctx context.Context) (api.Operation, error) {
		return c.ExportImage(ctx, o.name, req)
	}}); err != nil {
		return err
	}
	size := int64(0)
	if st, err := os.Stat(req.Path); err == nil {
		size = st.Size()
	}
	fmt.Fprintf(a.Out, "%s %s\n", safeText(o.req.Path), sizeOrDash(size))
	return nil
}
