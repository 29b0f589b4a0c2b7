package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newConfigPath(a *App) *cobra.Command {
	return &cobra.Command{
		Use:               "path",
		Short:             "Print where the configuration file is, or would be",
		Example:           `  banger config path`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(*cobra.Command, []string) error { return runConfigPath(a) },
	}
}

func runConfigPath(a *App) error {
	p, err := a.paths()
	if err != nil {
		return err
	}
	fmt.Fprintln(a.Out, p.ConfigFile())
	return nil
}
