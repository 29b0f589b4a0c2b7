package cli

import (
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/config"
)

type configShowOptions struct{ output *choice }

func newConfigShow(a *App) *cobra.Command {
	o := &configShowOptions{}
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the configuration: what the file says and the defaults of the rest",
		Example: `  banger config show
  banger config show -o json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(*cobra.Command, []string) error { return runConfigShow(a, o) },
	}
	o.output = outputFlag(cmd, formatTable, formatJSON)
	return cmd
}

// runConfigShow reads the file itself: the daemon need not run, and a wrong file can be looked at.
func runConfigShow(a *App, o *configShowOptions) error {
	p, err := a.paths()
	if err != nil {
		return err
	}
	cfg, exists, err := config.Load(p.ConfigFile())
	if err != nil {
		return err
	}
	view := api.ConfigView{Path: p.ConfigFile(), Exists: exists, Values: cfg.View()}
	if o.output.value == formatJSON {
		return writeJSON(a.Out, view)
	}
	state := "from " + view.Path
	if !exists {
		state = "defaults; there is no " + view.Path
	}
	a.say("%s", state)
	var fields []field
	for _, key := range slices.Sorted(maps.Keys(view.Values)) {
		value := fmt.Sprint(view.Values[key])
		if key == "default_cpus" && cfg.DefaultCPUs == 0 {
			value += fmt.Sprintf(" (%d under emulation)", cfg.CPUs(true))
		}
		fields = append(fields, field{key, value})
	}
	return writeFields(a.Out, fields)
}
