package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

// workspaceFlags are the flags of vm run and vm workspace prepare about what is copied.
type workspaceFlags struct {
	branch, from string
	depth        int
	noTooling    bool
	changed      func(flag string) bool
}

func (f *workspaceFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.branch, "branch", "", "make this `branch` in the VM and check it out; the repository here does not get it")
	fl.StringVar(&f.from, "from", "", "the `commit`, branch or tag that --branch begins at, with the files it has (default: the work tree as it is)")
	fl.IntVar(&f.depth, "depth", 0, "copy no more than this `number` of commits of each branch (default: all)")
	fl.BoolVar(&f.noTooling, "no-tooling", false, "do not install the tools that the repository names")
	for _, name := range []string{"branch", "from", "depth"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions) // fails only for an unknown flag
	}
	f.changed = fl.Changed
}

// check finds what is wrong with the flags; path is what is copied, empty for nothing. command is the command without its flags.
func (f *workspaceFlags) check(path string, command ...string) error {
	given := f.args()
	switch {
	case path == "" && len(given) > 0:
		return usagef(quoted(slices.Concat(command, []string{"."}, given)...), "%s is about the directory that is copied, and there is no PATH", given[0])
	case f.given("branch") && f.branch == "":
		return usagef("--branch try-it", "--branch is empty")
	case f.given("from") && f.from == "":
		return usagef("--from origin/main", "--from is empty")
	case f.from != "" && f.branch == "":
		return usagef(quoted(slices.Concat(command, []string{path, "--branch", "try-it"}, given)...), "--from says where a new branch begins, and there is no --branch")
	case f.depth < 0:
		return usagef("leave it out for all", "--depth is %d, not a number of commits", f.depth)
	}
	return nil
}

// args are the flags that were given.
func (f *workspaceFlags) args() []string {
	var out []string
	if f.given("branch") {
		out = append(out, "--branch", f.branch)
	}
	if f.given("from") {
		out = append(out, "--from", f.from)
	}
	if f.given("depth") {
		out = append(out, "--depth", strconv.Itoa(f.depth))
	}
	if f.noTooling {
		out = append(out, "--no-tooling")
	}
	return out
}

func (f *workspaceFlags) given(name string) bool { return f.changed != nil && f.changed(name) }

// request is what the flags ask for, of a directory by its absolute path.
func (f *workspaceFlags) request(path string) api.PrepareWorkspace {
	return api.PrepareWorkspace{Path: path, Branch: f.branch, From: f.from, Depth: f.depth, NoTooling: f.noTooling}
}

// sayPrepared says what a copy has left behind, and that tools are being installed in the VM.
func (a *App) sayPrepared(vm string, ws api.Workspace) {
	for _, line := range ws.Skipped {
		a.say("not copied: %s", line)
	}
	if ws.ToolingLog != "" {
		a.say("the tools that %s names are being installed; watch it: %s", ws.GuestPath, quoted("banger", "vm", "exec", vm, "--", "tail", "-f", ws.ToolingLog))
	}
}

// guestPathFlag registers --guest-path of the commands about a copy that is there.
func guestPathFlag(a *App, cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "guest-path", "", "the copy at this `path` in the VM, where it has several")
	_ = cmd.RegisterFlagCompletionFunc("guest-path", completeGuestPath(a)) // fails only for an unknown flag
}

// completeGuestPath completes paths of copies in the VM that is the first argument.
func completeGuestPath(a *App) completion {
	return func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.names(0, func(ctx context.Context, c *client.Client) ([]string, error) {
			copies, err := c.Workspaces(ctx, args[0])
			out := make([]string, len(copies))
			for i, w := range copies {
				out[i] = w.GuestPath
			}
			return out, err
		})(cmd, nil, toComplete)
	}
}

// workspaceWork runs an operation on a VM, which is started where that is wanted, and returns its result.
func workspaceWork[T any](ctx context.Context, a *App, vm string, post func(context.Context, *client.Client) (api.Operation, error)) (T, error) {
	var none T
	c, err := a.connect()
	if err != nil {
		return none, err
	}
	defer c.Close()
	if err := a.offerStart(ctx, c, vm); err != nil {
		return none, err
	}
	op, err := a.operate(ctx, c, job{post: func(ctx context.Context) (api.Operation, error) { return post(ctx, c) }})
	if err != nil {
		return none, err
	}
	return client.Result[T](op)
}

// aboutCopy is the command of vm workspace about a copy.
func aboutCopy(verb, vm string, w api.WorkspaceCopy) string {
	return safeText(quoted("banger", "vm", "workspace", verb, vm, "--guest-path", w.GuestPath))
}

// inVM names a path in a VM as vm cp does.
func inVM(vm, path string) string { return vm + ":" + path }

// changeMarks are what git's short status has for changes.
var changeMarks = map[api.ChangeKind]string{api.ChangeAdded: "A", api.ChangeModified: "M", api.ChangeRemoved: "D"}

// changeLine is a change as a line for people.
func changeLine(c api.WorkspaceChange) string {
	mark, ok := changeMarks[c.Kind]
	if !ok {
		mark = "?"
	}
	return fmt.Sprintf("%s %s", mark, safeText(c.Path))
}
