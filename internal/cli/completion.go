package cli

import (
	"bytes"
	_ "embed"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// bashAlone is what the script for bash takes from the bash-completion package, for shells that do not have it.
//
//go:embed completion.bash
var bashAlone string

// newCompletion is the group of commands that print a script for a shell. They are one thing for three shells, and one file.
func newCompletion() *cobra.Command {
	cmd := group(groupDaemon, "completion", "Print the script that lets a shell complete commands, names and values",
		completionScript("bash", "~/.bashrc", "source <(banger completion bash)", completeBash),
		completionScript("zsh", "~/.zshrc, after compinit,", "source <(banger completion zsh)",
			func(root *cobra.Command, w io.Writer) error { return root.GenZshCompletion(w) }),
		completionScript("fish", "~/.config/fish/config.fish", "banger completion fish | source",
			func(root *cobra.Command, w io.Writer) error { return root.GenFishCompletion(w, true) }))
	cmd.Long = `Print the script that lets a shell complete banger's commands and flags, the names of VMs, images and
kernels, and the values of flags.

  bash   in ~/.bashrc: source <(banger completion bash)
  zsh    in ~/.zshrc, after compinit: source <(banger completion zsh)
  fish   in ~/.config/fish/config.fish: banger completion fish | source`
	return cmd
}

// completionScript makes the command for one shell; line is what its file in place has to hold.
func completionScript(shell, place, line string, write func(root *cobra.Command, w io.Writer) error) *cobra.Command {
	return &cobra.Command{
		Use:   shell,
		Short: "Print the script for " + shell,
		Long: "Print the script that completes banger's command lines in " + shell + ". For every shell that starts from now on,\n" +
			"put into " + place + " the line\n\n  " + line,
		Example:           "  banger completion " + shell,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return write(cmd.Root(), cmd.OutOrStdout()) },
	}
}

// forBash changes cobra's script for bash: what it takes from the bash-completion package comes from completion.bash, which asks
// for the package, and USER@NAME is one word.
var forBash = strings.NewReplacer(
	"_filedir", "__banger_filedir",
	"_init_completion -n =:", "_init_completion -n =:@",
	`__banger_handle_special_char "$cur" =`, `__banger_handle_special_char "$cur" =`+"\n"+`    __banger_handle_special_char "$cur" @`,
)

// completeBash writes the script for bash, which works with and without the bash-completion package.
func completeBash(root *cobra.Command, w io.Writer) error {
	var script bytes.Buffer
	if err := root.GenBashCompletionV2(&script, true); err != nil {
		return err
	}
	_, err := io.WriteString(w, forBash.Replace(script.String())+bashAlone)
	return err
}
