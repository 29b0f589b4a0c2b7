package cli

import "github.com/spf13/cobra"

// kernelFlag adds --kernel, and --kernel-ref, which is another word for it.
func kernelFlag(a *App, cmd *cobra.Command, to *string, usage string) {
	cmd.Flags().StringVar(to, "kernel", "", usage)
	cmd.Flags().StringVar(to, "kernel-ref", "", "the same as --kernel")
	_ = cmd.Flags().MarkHidden("kernel-ref") // fails only for an unknown flag, as do these
	for _, name := range []string{"kernel", "kernel-ref"} {
		_ = cmd.RegisterFlagCompletionFunc(name, a.completeKernels(0, false))
	}
}
