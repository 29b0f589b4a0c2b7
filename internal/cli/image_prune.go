package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

type imagePruneOptions struct {
	dryRun, force bool
	olderThan     time.Duration
	output        *choice
}

func newImagePrune(a *App) *cobra.Command {
	o := &imagePruneOptions{}
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove images that no VM uses, and what was fetched for images",
		Long: `Remove the images that no VM uses, but for the default one, and the cache of what was fetched for images. Nothing outside of banger's
own directories is touched. On a terminal it asks before.`,
		Example: `  banger image prune --dry-run
  banger image prune --force --older-than 720h`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runImagePrune(cmd.Context(), a, o) },
	}
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "say what would be removed, and remove nothing")
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "do not ask")
	cmd.Flags().DurationVar(&o.olderThan, "older-than", 0, "only what was made, or for the cache used, longer ago than this `duration`, as 720h")
	o.output = outputFlag(cmd)
	return cmd
}

func runImagePrune(ctx context.Context, a *App, o *imagePruneOptions) error {
	if o.olderThan < 0 {
		return usagef("banger image prune --older-than 720h", "--older-than %s makes no sense", o.olderThan)
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	req := api.Prune{DryRun: true, OlderThanSeconds: int64(o.olderThan / time.Second)}
	if !o.dryRun && !o.force && a.Terminal.In && a.Terminal.Err {
		would, err := a.prune(ctx, c, req)
		if err != nil {
			return err
		}
		if would.Bytes == 0 && len(would.Images) == 0 {
			fmt.Fprintln(a.Out, "nothing to remove")
			return nil
		}
		yes, err := a.confirm(ctx, fmt.Sprintf("Remove %s, %s in all?", pruned(would), size(would.Bytes)))
		if err != nil || !yes {
			return err
		}
	}
	req.DryRun = o.dryRun
	out, err := a.prune(ctx, c, req)
	if err != nil {
		return err
	}
	return printPruned(a, o, out)
}

func (a *App) prune(ctx context.Context, c *client.Client, req api.Prune) (api.Pruned, error) {
	op, err := a.operate(ctx, c, job{post: func(ctx context.Context) (api.Operation, error) { return c.PruneImages(ctx, req) }})
	if err != nil {
		return api.Pruned{}, err
	}
	return client.Result[api.Pruned](op)
}

// pruned says what is removed.
func pruned(p api.Pruned) string {
	what := "what was fetched for images"
	switch n := len(p.Images); {
	case n == 1:
		what = fmt.Sprintf("image %q and %s", p.Images[0].Name, what)
	case n > 1:
		what = fmt.Sprintf("%d images and %s", n, what)
	}
	return what
}

func printPruned(a *App, o *imagePruneOptions, p api.Pruned) error {
	switch o.output.value {
	case formatJSON:
		return writeJSON(a.Out, p)
	case formatName:
		for _, im := range p.Images {
			fmt.Fprintln(a.Out, safeText(im.Name))
		}
		return nil
	}
	for _, im := range p.Images {
		fmt.Fprintf(a.Out, "%s %s\n", safeText(im.Name), size(im.DiskBytes))
	}
	verb := "removed"
	if o.dryRun {
		verb = "would be removed"
	}
	fmt.Fprintf(a.Out, "%s %s: images %s, cache %s\n", size(p.Bytes), verb, size(p.Bytes-p.CacheBytes), size(p.CacheBytes))
	if p.Busy {
		a.say("the cache was left alone: an image is being pulled")
	}
	return nil
}
