package cli

import (
	"context"
	"path/filepath"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

type imageRegisterOptions struct{ req api.RegisterImage }

func newImageRegister(a *App) *cobra.Command {
	o := &imageRegisterOptions{}
	cmd := &cobra.Command{
		Use:   "register --name NAME --rootfs FILE",
		Short: "Make an image of a root file system of your own",
		Long: `Make an image of a file: an ext4 file system that is not mounted, or a tar, also compressed by gzip, zstd or xz. The file is
copied, by reflink where the file system can; what becomes of it later changes nothing.`,
		Example: `  banger image register --name base --rootfs ./rootfs.ext4
  banger image register --name base --rootfs ./rootfs.tar.gz --kernel-ref generic-6.12`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runImageRegister(cmd.Context(), a, o) },
	}
	cmd.Flags().StringVar(&o.req.Name, "name", "", "`name` of the image")
	cmd.Flags().StringVar(&o.req.Rootfs, "rootfs", "", "`file` with the root file system")
	kernelFlag(a, cmd, &o.req.Kernel, "`kernel` its VMs get (default: the default one)")
	return cmd
}

func runImageRegister(ctx context.Context, a *App, o *imageRegisterOptions) error {
	req := o.req
	switch {
	case req.Name == "":
		return usagef("banger image register --name NAME --rootfs FILE", "the image needs a --name")
	case req.Rootfs == "":
		return usagef("banger image register --name NAME --rootfs FILE", "--rootfs says which file to make an image of")
	}
	var err error
	if req.Rootfs, err = filepath.Abs(req.Rootfs); err != nil {
		return err
	}
	return a.newImage(ctx, func(ctx context.Context, c *client.Client) (api.Operation, error) { return c.RegisterImage(ctx, req) })
}
