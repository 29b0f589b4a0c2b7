package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
)

type vmWorkspaceDiffOptions struct {
	name     string
	which    api.AskWorkspace
	nameOnly bool
}

func newVMWorkspaceDiff(a *App) *cobra.Command {
	o := &vmWorkspaceDiffOptions{}
	cmd := &cobra.Command{
		Use:   "diff VM",
		Short: "Print what a VM has changed in its copy",
		Long: `Print what a VM has changed in its copy of a directory since the copy, committed or not, as a patch that git apply
takes. On a terminal it is coloured, and control characters are escaped. Where nothing has changed nothing is printed.`,
		Example: `  banger vm workspace diff testbox
  banger vm workspace diff testbox --name-only
  banger vm workspace diff testbox --guest-path /root/repo`,
		Args:              args(1, 1, "the name of one VM"),
		ValidArgsFunction: a.completeVMs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return runVMWorkspaceDiff(cmd.Context(), a, o)
		},
	}
	guestPathFlag(a, cmd, &o.which.GuestPath)
	cmd.Flags().BoolVar(&o.nameOnly, "name-only", false, "only the names of the files")
	return cmd
}

func runVMWorkspaceDiff(ctx context.Context, a *App, o *vmWorkspaceDiffOptions) error {
	if o.nameOnly {
		return printChangedNames(ctx, a, o)
	}
	p, err := newPatchFile()
	if err != nil {
		return err
	}
	defer p.remove()
	pull, err := a.pullWorkspace(ctx, o.name, api.PullWorkspace{AskWorkspace: o.which, NoCommits: true, Patch: p.path})
	if err != nil {
		return err
	}
	a.sayNotTaken(pull)
	return p.print(a)
}

func printChangedNames(ctx context.Context, a *App, o *vmWorkspaceDiffOptions) error {
	st, err := a.workspaceStatus(ctx, o.name, o.which)
	if err != nil {
		return err
	}
	for _, c := range st.Changes {
		if _, err := fmt.Fprintln(a.Out, safeText(c.Path)); err != nil {
			return err
		}
	}
	if st.More > 0 {
		a.say("and %d more", st.More)
	}
	return nil
}
