package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

type vmWorkspaceStatusOptions struct {
	name   string
	which  api.AskWorkspace
	output *choice
}

func newVMWorkspaceStatus(a *App) *cobra.Command {
	o := &vmWorkspaceStatusOptions{}
	cmd := &cobra.Command{
		Use:   "status VM",
		Short: "Compare the copy in a VM with the directory here",
		Long: `Compare the copy of a directory in a running VM with the directory on this host: the commits each has that the other lacks, what
the VM has changed since the copy, committed or not (with ! before what has changed here, too), and commits that were not
pulled. Nothing is changed on either side.`,
		Example: `  banger vm workspace status testbox
  banger vm workspace status testbox --guest-path /root/repo -o json`,
		Args:              args(1, 1, "the name of one VM"),
		ValidArgsFunction: a.completeVMs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return runVMWorkspaceStatus(cmd.Context(), a, o)
		},
	}
	guestPathFlag(a, cmd, &o.which.GuestPath)
	o.output = outputFlag(cmd, formatTable, formatJSON)
	return cmd
}

func runVMWorkspaceStatus(ctx context.Context, a *App, o *vmWorkspaceStatusOptions) error {
	st, err := a.workspaceStatus(ctx, o.name, o.which)
	if err != nil {
		return err
	}
	if o.output.value == formatJSON {
		return writeJSON(a.Out, st)
	}
	_, err = io.WriteString(a.Out, workspaceStatusText(o.name, st, a.Now()))
	return err
}

func (a *App) workspaceStatus(ctx context.Context, vm string, which api.AskWorkspace) (api.WorkspaceStatus, error) {
	return workspaceWork[api.WorkspaceStatus](ctx, a, vm, func(ctx context.Context, c *client.Client) (api.Operation, error) {
		return c.WorkspaceStatus(ctx, vm, which)
	})
}

// workspaceStatusText is a status for people, much as git's is. Most of it comes from the guest.
func workspaceStatusText(vm string, st api.WorkspaceStatus, now time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is a copy of %s, %s old\n", safeText(inVM(vm, st.GuestPath)), safeText(st.Path), age(now.Sub(st.CopiedAt)))
	if st.Git {
		fmt.Fprintln(&b, headText(st))
		fmt.Fprintf(&b, "Not committed in the VM: %d modified, %d untracked\n", st.Modified, st.Untracked)
	}
	if len(st.Changes) == 0 {
		fmt.Fprint(&b, "\nNo file has changed in the VM since the copy.\n")
	} else {
		fmt.Fprint(&b, "\nChanged in the VM since the copy:\n")
		for _, c := range st.Changes {
			mark := ' '
			if c.Here {
				mark = '!'
			}
			fmt.Fprintf(&b, "  %c %s\n", mark, changeLine(c))
		}
		if st.More > 0 {
			fmt.Fprintf(&b, "    and %d more\n", st.More)
		}
		fmt.Fprintf(&b, "  (see how: %s)\n", aboutCopy("diff", vm, st.WorkspaceCopy))
	}
	if st.ChangedHere > 0 {
		fmt.Fprintf(&b, "\n%s changed here since the copy.\n", have(st.ChangedHere))
		fmt.Fprintf(&b, "  (bring that in: %s)\n", quoted("banger", "vm", "workspace", "prepare", vm, st.Path, "--guest-path", st.GuestPath))
	}
	if len(st.Unpulled) > 0 {
		fmt.Fprint(&b, "\nWith commits that were not pulled:\n")
		for _, ref := range st.Unpulled {
			fmt.Fprintf(&b, "    %s\n", safeText(ref))
		}
		fmt.Fprintf(&b, "  (get them: %s)\n", aboutCopy("pull", vm, st.WorkspaceCopy))
	}
	return b.String()
}

// headText is what the VM has checked out, against what this host has.
func headText(st api.WorkspaceStatus) string {
	var head string
	switch {
	case st.GuestBranch != "" && st.GuestCommit == "":
		return fmt.Sprintf("On branch %s, without a commit", safeText(st.GuestBranch))
	case st.GuestBranch != "":
		head = "On branch " + safeText(st.GuestBranch)
	case st.GuestCommit != "":
		head = "On commit " + safeText(shortCommit(st.GuestCommit))
	default:
		return "On no branch and no commit"
	}
	against := safeText(st.Against)
	if against == "HEAD" {
		against = "this side's HEAD"
	}
	switch {
	case against == "":
		return head
	case st.Ahead == 0 && st.Behind == 0:
		return head + ", even with " + against
	case st.Behind == 0:
		return fmt.Sprintf("%s, %s ahead of %s", head, plural(st.Ahead, "commit"), against)
	case st.Ahead == 0:
		return fmt.Sprintf("%s, %s behind %s", head, plural(st.Behind, "commit"), against)
	}
	return fmt.Sprintf("%s, %s ahead of and %d behind %s", head, plural(st.Ahead, "commit"), st.Behind, against)
}

// shortCommit is the beginning of a commit's name.
func shortCommit(name string) string { return name[:min(len(name), 12)] }

// have is a number of files as a subject: "1 file has", "2 files have".
func have(n int) string {
	if n == 1 {
		return "1 file has"
	}
	return fmt.Sprintf("%d files have", n)
}
