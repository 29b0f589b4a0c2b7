package cli

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// kernelFlag adds --kernel, which --kernel-ref is another word for.
func kernelFlag(a *App, cmd *cobra.Command, to *string, usage string) {
	cmd.Flags().StringVar(to, "kernel", "", usage)
	cmd.Flags().SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "kernel-ref" {
			name = "kernel"
		}
		return pflag.NormalizedName(name)
	})
	_ = cmd.RegisterFlagCompletionFunc("kernel", a.completeKernels(0, false)) // fails only for an unknown flag
}
