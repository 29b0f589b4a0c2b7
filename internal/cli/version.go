package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
	"git.thaloco.com/thaloco/banger/internal/buildinfo"
)

// daemonTellsVersionWithin bounds the wait for a daemon that does not answer.
const daemonTellsVersionWithin = 2 * time.Second

type versionOptions struct{ output *choice }

func newVersion(a *App) *cobra.Command {
	o := &versionOptions{}
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the versions of banger and of the daemon where it runs",
		Example: `  banger version
  banger version -o json`,
		GroupID:           groupDaemon,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runVersion(cmd.Context(), a, o) },
	}
	o.output = outputFlag(cmd, formatTable, formatJSON)
	return cmd
}

// component is the version of one program of banger.
type component struct {
	Version    string `json:"version"`
	APIVersion int    `json:"api_version"`
}

// versions is what version -o json prints; Daemon is null where it does not run.
type versions struct {
	Client component  `json:"client"`
	Daemon *component `json:"daemon"`
}

func runVersion(ctx context.Context, a *App, o *versionOptions) error {
	v := versions{Client: component{buildinfo.Version, api.Version}}
	c, err := a.connectOnly()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, daemonTellsVersionWithin)
	defer cancel()
	st, err := c.Daemon(ctx)
	switch {
	case err == nil:
		v.Daemon = &component{st.Version, st.APIVersion}
	case !errors.Is(err, client.ErrNoDaemon):
		a.say("ask the daemon: %s", err)
	}
	if o.output.value == formatJSON {
		return writeJSON(a.Out, v)
	}
	daemon := "not running"
	if v.Daemon != nil {
		daemon = fmt.Sprintf("%s (API %d)", v.Daemon.Version, v.Daemon.APIVersion)
	}
	return writeFields(a.Out, []field{
		{"banger", fmt.Sprintf("%s (API %d)", v.Client.Version, v.Client.APIVersion)},
		{"bangerd", daemon},
	})
}
