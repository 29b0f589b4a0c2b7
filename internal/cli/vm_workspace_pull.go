package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
	"git.thaloco.com/thaloco/banger/internal/disk"
)

// toStdout is the name of --patch for stdout.
const toStdout = "-"

type vmWorkspacePullOptions struct {
	name, patch, maxSize string
	req                  api.PullWorkspace
	output               *choice
}

func newVMWorkspacePull(a *App) *cobra.Command {
	o := &vmWorkspacePullOptions{}
	cmd := &cobra.Command{
		Use:        "pull VM",
		SuggestFor: []string{"fetch", "get"},
		Short:      "Bring the commits of a VM into the repository here",
		Long: `Bring the commits of a running VM's copy into the repository it is a copy of, as refs/banger/VM/BRANCH, from where you merge
them. Your branches, index and files stay as they are. A branch that the VM has rewritten is taken as it
is now; what was pulled of it before is kept as refs/banger/VM/@/kept/COMMIT.

--patch also writes all that the VM has changed since the copy, committed or not, to a file, or to stdout for -.
--apply also makes these changes in the directory here; where they do not fit nothing is changed.`,
		Example: `  banger vm workspace pull testbox
  banger vm workspace pull testbox --patch out.patch
  banger vm workspace pull testbox --guest-path /root/repo --apply`,
		Args:              args(1, 1, "the name of one VM"),
		ValidArgsFunction: a.completeVMs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return runVMWorkspacePull(cmd.Context(), a, o)
		},
	}
	guestPathFlag(a, cmd, &o.req.GuestPath)
	cmd.Flags().StringVar(&o.patch, "patch", "", "also write a patch to this `file`, - for stdout")
	cmd.Flags().BoolVar(&o.req.Apply, "apply", false, "also change the files here")
	cmd.Flags().StringVar(&o.maxSize, "max-size", "", "take no more than this `size` from the VM (default: 4GiB)")
	cmd.MarkFlagsMutuallyExclusive("patch", "apply")
	_ = cmd.RegisterFlagCompletionFunc("max-size", cobra.NoFileCompletions) // fails only for an unknown flag
	o.output = outputFlag(cmd, formatTable, formatJSON)
	return cmd
}

func runVMWorkspacePull(ctx context.Context, a *App, o *vmWorkspacePullOptions) error {
	req, err := o.request()
	if err != nil {
		return err
	}
	var p *patchFile
	if o.patch == toStdout {
		if p, err = newPatchFile(); err != nil {
			return err
		}
		defer p.remove()
		req.Patch = p.path
	}
	pull, err := a.pullWorkspace(ctx, o.name, req)
	if err != nil {
		return err
	}
	a.sayNotTaken(pull)
	if o.output.value == formatJSON {
		return writeJSON(a.Out, pull)
	}
	text := o.pulledText(pull, req.Patch)
	if p != nil {
		if !a.quiet {
			_, _ = io.WriteString(a.Err, text) // it is what the patch came with, and no reason to lose that
		}
		return p.print(a)
	}
	if _, err := io.WriteString(a.Out, text); err != nil {
		return err
	}
	if pull.Uncommitted > 0 && o.patch == "" && !req.Apply {
		a.say("%s in the VM: not committed, so not pulled; --patch FILE or --apply brings that, too", plural(pull.Uncommitted, "changed file"))
	}
	if pull.UncommittedUnknown {
		a.say("the VM may have changes that are not committed; to look: %s", aboutCopy("status", o.name, pull.WorkspaceCopy))
	}
	return nil
}

// request is what the flags ask for.
func (o *vmWorkspacePullOptions) request() (api.PullWorkspace, error) {
	req := o.req
	var err error
	if o.maxSize != "" {
		if req.MaxBytes, err = disk.ParseSize(o.maxSize); err != nil {
			e := api.AsError(err)
			return req, usagef(e.Hint, "--max-size: %s", e.Message)
		}
	}
	switch {
	case o.patch == toStdout && o.output.value == formatJSON:
		return req, usagef("--patch FILE", "stdout takes the patch or JSON, not both")
	case o.patch != "" && o.patch != toStdout:
		req.Patch, err = filepath.Abs(o.patch)
	}
	return req, err
}

func (a *App) pullWorkspace(ctx context.Context, vm string, req api.PullWorkspace) (api.Pull, error) {
	return workspaceWork[api.Pull](ctx, a, vm, func(ctx context.Context, c *client.Client) (api.Operation, error) {
		return c.PullWorkspace(ctx, vm, req)
	})
}

// sayNotTaken says what a pull has left in the VM.
func (a *App) sayNotTaken(p api.Pull) {
	for _, line := range p.Skipped {
		a.say("not taken: %s", line)
	}
}

// pulledText is what a pull has done, for people; patch is the file it has written. Most of it comes from the guest.
func (o *vmWorkspacePullOptions) pulledText(p api.Pull, patch string) string {
	var b strings.Builder
	for _, r := range p.Refs {
		fmt.Fprintf(&b, "%s  %s\n", safeText(r.Ref), pulledRefText(r))
		if r.Rewritten {
			fmt.Fprintf(&b, "  rewritten in the VM; what it was: git show %s\n", safeText(shortCommit(r.Old)))
		}
	}
	if len(p.Refs) == 0 && p.Git {
		fmt.Fprintf(&b, "no new commits in %s\n", safeText(inVM(o.name, p.GuestPath)))
	}
	if ref := mergeable(p); ref != "" {
		fmt.Fprintf(&b, "look:  %s\n", safeText(gitIn(p.Path, "log", "HEAD.."+ref)))
		fmt.Fprintf(&b, "merge: %s\n", safeText(gitIn(p.Path, "merge", ref)))
	}
	switch {
	case o.patch != "" && p.Patched == 0:
		fmt.Fprint(&b, "the patch is empty: no file has changed in the VM since the copy\n")
	case o.patch == toStdout:
		fmt.Fprintf(&b, "the patch changes %s\n", plural(p.Patched, "file"))
	case o.patch != "":
		fmt.Fprintf(&b, "%s changes %s; apply it: %s\n", safeText(o.patch), plural(p.Patched, "file"), safeText(quoted("git", "-C", p.Path, "apply", patch)))
	case o.req.Apply && len(p.Applied) == 0:
		fmt.Fprint(&b, "nothing to apply: no file has changed in the VM since the copy\n")
	case o.req.Apply:
		fmt.Fprintf(&b, "applied to %s:\n", safeText(p.Path))
		for _, c := range p.Applied {
			fmt.Fprintf(&b, "  %s\n", changeLine(c))
		}
	}
	return b.String()
}

// pulledRefText is what has become of a ref.
func pulledRefText(r api.PulledRef) string {
	text := plural(r.Commits, "commit")
	if r.Old == "" {
		return "new, " + text
	}
	return text
}

// gitIn is a command of git's for a directory, as the user would type it here.
func gitIn(dir string, args ...string) string {
	command := quoted(append([]string{"git"}, args...)...)
	if here, err := os.Getwd(); err == nil {
		if here, err = filepath.EvalSymlinks(here); err == nil && strings.HasPrefix(here+"/", dir+"/") {
			return command
		}
	}
	return quoted("cd", dir) + " && " + command
}

// mergeable is the ref to merge: what the VM has checked out, else the only one that has moved; empty for none.
func mergeable(p api.Pull) string {
	if p.Current == "" && len(p.Refs) == 1 {
		return p.Refs[0].Ref
	}
	return p.Current
}
