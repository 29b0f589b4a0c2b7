package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
)

type imageShowOptions struct {
	name   string
	output *choice
}

func newImageShow(a *App) *cobra.Command {
	o := &imageShowOptions{}
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "Show one image",
		Example: `  banger image show debian-bookworm
  banger image show debian-bookworm -o json`,
		Args:              args(1, 1, "the name of one image"),
		ValidArgsFunction: a.completeImages(1, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return runImageShow(cmd.Context(), a, o)
		},
	}
	o.output = outputFlag(cmd)
	return cmd
}

func runImageShow(ctx context.Context, a *App, o *imageShowOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	im, err := c.Image(ctx, o.name)
	if err != nil {
		return err
	}
	switch o.output.value {
	case formatJSON:
		return writeJSON(a.Out, im)
	case formatName:
		fmt.Fprintln(a.Out, safeText(im.Name))
		return nil
	}
	return writeFields(a.Out, imageFields(im))
}

func imageFields(im api.Image) []field {
	return []field{
		{"name", im.Name},
		{"digest", im.Digest},
		{"description", im.Description},
		{"source", im.Source},
		{"architecture", im.Arch},
		{"local", yesNo(im.Local)},
		{"default", yesNo(im.Default)},
		{"size", sizeOrDash(im.SizeBytes)},
		{"on disk", sizeOrDash(im.DiskBytes)},
		{"kernel", im.Kernel},
		{"environment", strings.Join(im.Env, " ")},
		{"work directory", im.WorkDir},
		{"user", im.User},
		{"entrypoint", quoted(im.Entry...)},
		{"command", quoted(im.Cmd...)},
		{"created", timeText(im.CreatedAt)},
		{"vms", strings.Join(im.VMs, " ")},
	}
}
