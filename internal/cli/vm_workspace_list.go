package cli

import (
	"context"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
)

type vmWorkspaceListOptions struct {
	name   string
	output *choice
}

func newVMWorkspaceList(a *App) *cobra.Command {
	o := &vmWorkspaceListOptions{}
	cmd := &cobra.Command{
		Use:     "list VM",
		Aliases: []string{"ls"},
		Short:   "List the directories of this host that a VM has copies of",
		Example: `  banger vm workspace list testbox
  banger vm workspace ls testbox -o json`,
		Args:              args(1, 1, "the name of one VM"),
		ValidArgsFunction: a.completeVMs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return runVMWorkspaceList(cmd.Context(), a, o)
		},
	}
	o.output = outputFlag(cmd)
	return cmd
}

func runVMWorkspaceList(ctx context.Context, a *App, o *vmWorkspaceListOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	copies, err := c.Workspaces(ctx, o.name)
	if err != nil {
		return err
	}
	if o.output.value == formatTable && len(copies) == 0 {
		a.say("vm %q has no copies; make one: banger vm workspace prepare %s PATH", o.name, o.name)
	}
	now := a.Now()
	return list[api.WorkspaceCopy]{
		header: []string{"GUEST", "HOST", "GIT", "BRANCH", "COPIED"},
		row: func(w api.WorkspaceCopy) []string {
			git, copied := "no", age(now.Sub(w.CopiedAt))
			if w.Git {
				git = "yes"
			}
			if w.Copying {
				copied = "not whole"
			}
			return []string{w.GuestPath, w.Path, git, w.Branch, copied}
		},
		name: func(w api.WorkspaceCopy) string { return w.GuestPath },
	}.write(a.Out, o.output.value, copies)
}
