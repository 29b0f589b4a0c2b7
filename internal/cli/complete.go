package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/client"
)

// completeWithin bounds the wait for the daemon when the user presses the tab key.
const completeWithin = time.Second

// completion completes arguments or a flag's value.
type completion = func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective)

// names completes the names that fetch returns, without those already given; max is how many
// arguments there may be, 0 for any number. The daemon is not started for it.
func (a *App) names(max int, fetch func(context.Context, *client.Client) ([]string, error)) completion {
	return func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if max > 0 && len(args) >= max {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c, err := a.connectOnly()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completeWithin)
		defer cancel()
		all, err := fetch(ctx, c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		out := slices.DeleteFunc(all, func(n string) bool {
			return slices.Contains(args, n) || !strings.HasPrefix(n, toComplete)
		})
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeVMs completes names of VMs.
func (a *App) completeVMs(max int) completion {
	return a.names(max, func(ctx context.Context, c *client.Client) ([]string, error) {
		vms, err := c.VMs(ctx)
		out := make([]string, len(vms))
		for i, vm := range vms {
			out[i] = vm.Name
		}
		return out, err
	})
}

// completeImages completes names of images; local leaves out those only the catalog has.
func (a *App) completeImages(max int, local bool) completion {
	return a.names(max, func(ctx context.Context, c *client.Client) ([]string, error) {
		images, err := c.Images(ctx)
		var out []string
		for _, im := range images {
			if im.Local || !local {
				out = append(out, im.Name)
			}
		}
		return out, err
	})
}

// completeKernels completes names of kernels; local leaves out those only the catalog has.
func (a *App) completeKernels(max int, local bool) completion {
	return a.names(max, func(ctx context.Context, c *client.Client) ([]string, error) {
		kernels, err := c.Kernels(ctx)
		var out []string
		for _, k := range kernels {
			if k.Local || !local {
				out = append(out, k.Name)
			}
		}
		return out, err
	})
}
