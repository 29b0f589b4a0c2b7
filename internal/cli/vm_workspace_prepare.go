package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

type vmWorkspacePrepareOptions struct {
	name, path, guestPath string
	workspace             workspaceFlags
	force                 bool
	output                *choice
}

func newVMWorkspacePrepare(a *App) *cobra.Command {
	o := &vmWorkspacePrepareOptions{}
	cmd := &cobra.Command{
		Use:        "prepare VM PATH",
		SuggestFor: []string{"push", "sync", "update", "copy"},
		Short:      "Copy a directory into a running VM, or bring the copy there up to date",
		Long: `Copy a git work tree, or another directory, into a running VM, as vm run PATH does. Where the VM has a copy of it
already, only what has changed here since is sent, and what the VM has changed stays. Where both have
changed the same nothing is done and the files are listed; with --force this side's win.`,
		Example: `  banger vm workspace prepare testbox ./repo
  banger vm workspace prepare testbox ./other-repo --guest-path /root/repo
  banger vm workspace prepare testbox ./repo --branch try-it --from origin/main --depth 50 --no-tooling`,
		Args: args(2, 2, "the name of a VM and a PATH"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveFilterDirs
			}
			return a.completeVMs(1)(cmd, args, toComplete)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name, o.path = args[0], args[1]
			return runVMWorkspacePrepare(cmd.Context(), a, o)
		},
	}
	cmd.Flags().StringVar(&o.guestPath, "guest-path", "", "`path` in the VM (default: /root/<its name>)")
	_ = cmd.RegisterFlagCompletionFunc("guest-path", completeGuestPath(a)) // fails only for an unknown flag
	o.workspace.register(cmd)
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "where both sides have changed the same, this one's wins; and write over what is at the path in the VM")
	o.output = outputFlag(cmd, formatTable, formatJSON)
	return cmd
}

func runVMWorkspacePrepare(ctx context.Context, a *App, o *vmWorkspacePrepareOptions) error {
	if err := o.workspace.check(o.path, "banger", "vm", "workspace", "prepare", o.name); err != nil {
		return err
	}
	path, err := checkPath(o.path)
	if err != nil {
		return err
	}
	req := o.workspace.request(path)
	req.GuestPath, req.Force = o.guestPath, o.force
	ws, err := workspaceWork[api.Workspace](ctx, a, o.name, func(ctx context.Context, c *client.Client) (api.Operation, error) {
		return c.PrepareWorkspace(ctx, o.name, req)
	})
	if err != nil {
		return err
	}
	a.sayPrepared(o.name, ws)
	if o.output.value == formatJSON {
		return writeJSON(a.Out, ws)
	}
	_, err = fmt.Fprintln(a.Out, preparedText(o.name, ws))
	return err
}

// preparedText is what a copy has done, in a line.
func preparedText(vm string, ws api.Workspace) string {
	to, sent := safeText(inVM(vm, ws.GuestPath)), plural(ws.Files, "file")
	switch {
	case ws.Updated && ws.Files == 0 && ws.Removed == 0:
		return "nothing to copy: " + to + " has it all"
	case ws.Updated:
		return fmt.Sprintf("brought %s up to date: %s, %s, %d removed", to, sent, size(ws.Bytes), ws.Removed)
	case ws.Branch != "":
		return fmt.Sprintf("copied %s, %s to %s, on the new branch %s", sent, size(ws.Bytes), to, safeText(ws.Branch))
	}
	return fmt.Sprintf("copied %s, %s to %s", sent, size(ws.Bytes), to)
}
