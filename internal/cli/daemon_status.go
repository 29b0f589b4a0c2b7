package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

type daemonStatusOptions struct{ output *choice }

func newDaemonStatus(a *App) *cobra.Command {
	o := &daemonStatusOptions{}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the daemon; exit status 3 where it does not run",
		Example: `  banger daemon status
  banger daemon status -o json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runDaemonStatus(cmd.Context(), a, o) },
	}
	o.output = outputFlag(cmd, formatTable, formatJSON)
	return cmd
}

func runDaemonStatus(ctx context.Context, a *App, o *daemonStatusOptions) error {
	c, err := a.connectOnly()
	if err != nil {
		return err
	}
	defer c.Close()
	st, err := c.Daemon(ctx)
	if errors.Is(err, client.ErrNoDaemon) {
		return noDaemonError{err}
	}
	if err != nil {
		return err
	}
	if o.output.value == formatJSON {
		return writeJSON(a.Out, st)
	}
	if st.WebWarning != "" {
		a.say("%s", st.WebWarning)
	}
	return writeFields(a.Out, daemonFields(st))
}

// noDaemonError says in a few words what is no failure of the one who asks.
type noDaemonError struct{ err error }

func (e noDaemonError) Error() string { return "the daemon does not run" }
func (e noDaemonError) Unwrap() error { return e.err }

func daemonFields(st api.DaemonStatus) []field {
	return []field{
		{"pid", strconv.Itoa(st.PID)},
		{"version", st.Version},
		{"api version", strconv.Itoa(st.APIVersion)},
		{"uptime", time.Duration(st.UptimeSeconds * float64(time.Second)).Truncate(time.Second).String()},
		{"socket", st.Socket},
		{"state", st.StateDir},
		{"log", st.LogFile},
		{"web", st.WebURL()},
		{"engine", st.Engine},
		{"engine chosen", st.EngineReason},
		{"vms", fmt.Sprintf("%d, %d running", st.VMs, st.RunningVMs)},
	}
}
