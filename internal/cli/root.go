package cli

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/internal/buildinfo"
)

// Groups of the help text.
const (
	groupMain   = "main"
	groupStore  = "store"
	groupDaemon = "daemon"
)

// suggestWithin is how many edits a mistyped command may be away from one that is suggested.
const suggestWithin = 2

// newRoot builds the whole command tree: this is the list of banger's commands.
func newRoot(a *App) *cobra.Command {
	root := &cobra.Command{
		Use:   "banger",
		Short: "A Linux machine of your own in one command",
		Long: `banger gives you a full Linux machine in one command and throws it away in another.

  banger vm run                          a bare sandbox: a shell in it
  banger vm run ./repo                   the repository at /root/repo, a shell there
  banger vm run ./repo -- make test      the same, runs the command, exits with its status
  banger vm run --rm ./repo -- ./ci.sh   deleted when it ends`,
		Version:       buildinfo.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE:          runGroup,
	}
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	root.PersistentFlags().BoolVarP(&a.quiet, "quiet", "q", false, "no progress and no notes, errors only")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		hint := cmd.CommandPath() + " --help"
		if strings.Contains(cmd.Use, "COMMAND") {
			hint += "; a command and its options stand behind --"
		}
		return usagef(hint, "%s", err)
	})
	root.AddGroup(&cobra.Group{ID: groupMain, Title: "Machines:"},
		&cobra.Group{ID: groupStore, Title: "Images and kernels:"},
		&cobra.Group{ID: groupDaemon, Title: "banger itself:"})
	root.SetHelpCommandGroupID(groupDaemon)
	root.CompletionOptions.DisableDefaultCmd = true // completion.go has one for the shells banger knows
	root.AddCommand(
		group(groupMain, "vm", "Make, run and look after VMs",
			newVMRun(a), newVMCreate(a), newVMStart(a), newVMStop(a), newVMRestart(a), newVMKill(a),
			newVMDelete(a), newVMList(a), newVMShow(a), newVMExec(a), newVMSSH(a), newVMCp(a), newVMForward(a), newVMPorts(a), newVMStats(a), newVMLogs(a),
			group("", "workspace", "Keep a copy of a directory in a VM, and bring its work back",
				newVMWorkspacePrepare(a), newVMWorkspaceList(a), newVMWorkspaceStatus(a), newVMWorkspaceDiff(a), newVMWorkspacePull(a)),
			newVMSession(a), newVMACP(a)),
		group(groupStore, "image", "Get and look after images",
			newImageList(a), newImageCatalog(a), newImageShow(a), newImageInspect(a), newImagePull(a), newImageRegister(a), newImagePromote(a),
			newImageExport(a), newImageImport(a), newImageTag(a), newImageDelete(a), newImagePrune(a)),
		group(groupStore, "kernel", "Get and look after kernels",
			newKernelList(a), newKernelShow(a), newKernelPull(a), newKernelRegister(a), newKernelDelete(a)),
		group(groupDaemon, "daemon", "Work the daemon, which other commands start by themselves",
			newDaemonStart(a), newDaemonStop(a), newDaemonStatus(a), newDaemonLogs(a)),
		group(groupDaemon, "config", "Look at the configuration",
			newConfigShow(a), newConfigPath(a)),
		group(groupDaemon, "net", "Work what bridge mode needs of this host",
			newNetSetup(a), newNetTeardown(a), newNetStatus(a)),
		newUI(a),
		newSSHConfig(a), newSSHProxy(a),
		newDoctor(a),
		newCompletion(),
		newVersion(a),
	)
	return root
}

// group makes a command that only holds others.
func group(id, name, short string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, GroupID: id, Args: cobra.ArbitraryArgs, RunE: runGroup}
	cmd.AddCommand(children...)
	return cmd
}

// runGroup prints the help of a command that only holds others, and refuses what it does not hold.
func runGroup(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	hint := cmd.CommandPath() + " --help"
	if near := nearCommands(cmd, args[0]); len(near) > 0 {
		hint = "did you mean " + strings.Join(near, ", ") + "?"
	}
	if cmd.HasParent() {
		return usagef(hint, "unknown command %q of %q", args[0], cmd.CommandPath())
	}
	return usagef(hint, "unknown command %q", args[0])
}

// nearCommands are the commands that may have been meant by a word cmd does not hold: those of that
// name one level deeper ("banger run"), else those of cmd whose name is near.
func nearCommands(cmd *cobra.Command, word string) []string {
	var out []string
	for _, holder := range cmd.Commands() {
		for _, c := range holder.Commands() {
			if c.IsAvailableCommand() && (c.Name() == word || c.HasAlias(word) || slices.Contains(c.SuggestFor, word)) {
				out = append(out, c.CommandPath())
			}
		}
	}
	if len(out) > 0 {
		return out
	}
	cmd.SuggestionsMinimumDistance = min(suggestWithin, (len(word)+1)/2)
	for _, name := range cmd.SuggestionsFor(word) {
		out = append(out, cmd.CommandPath()+" "+name)
	}
	return out
}

// args makes a check of the positional arguments a usage error. max < 0 is any number.
func args(min, max int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, got []string) error {
		hint := cmd.CommandPath() + " --help"
		if len(got) >= min && (max < 0 || len(got) <= max) {
			if slices.Contains(got, "") { // a variable that is not set, say: it must not stand for a default
				return usagef(hint, "%s needs %s, and what was given is empty", commandName(cmd), what)
			}
			return nil
		}
		if max >= 0 && len(got) > max {
			return usagef(hint, "%s takes %s, not also %q", commandName(cmd), what, got[max])
		}
		return usagef(hint, "%s needs %s", commandName(cmd), what)
	}
}

// noArgs refuses positional arguments.
func noArgs(cmd *cobra.Command, got []string) error {
	if len(got) == 0 {
		return nil
	}
	return usagef(cmd.CommandPath()+" --help", "%s takes no arguments, not %q", commandName(cmd), got[0])
}

// commandName is the command as error messages, which start with "banger:", call it: "vm show".
func commandName(cmd *cobra.Command) string {
	return strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
}
