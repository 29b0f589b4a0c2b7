package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/internal/config"
	"git.thaloco.com/thaloco/banger/internal/network/bridge"
)

type netStatusOptions struct {
	owner  string
	output *choice
}

func newNetStatus(a *App) *cobra.Command {
	o := &netStatusOptions{}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show whether this host has what bridge mode needs",
		Long: `Show what of "banger net setup" is there, and what to do where something is missing; the exit status is 1 then. The rules of the
firewall are seen by root only. Where no systemd-resolved runs it prints what to tell this host's resolver about the names of VMs.`,
		Example: `  banger net status
  sudo banger net status -o json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runNetStatus(cmd.Context(), a, o) },
	}
	cmd.Flags().StringVar(&o.owner, "owner", "", "the user whose configuration says how it is to be (default: who calls sudo, or this one)")
	_ = cmd.RegisterFlagCompletionFunc("owner", cobra.NoFileCompletions)
	o.output = outputFlag(cmd, formatTable, formatJSON)
	return cmd
}

func runNetStatus(ctx context.Context, a *App, o *netStatusOptions) error {
	host, err := a.hostNetwork()
	if err != nil {
		return err
	}
	owner, err := a.netOwner(o.owner)
	if err != nil {
		return err
	}
	report, err := host.Status(ctx, owner.config.Bridge(owner.uid))
	if err != nil {
		return err
	}
	if o.output.value == formatJSON {
		err = writeJSON(a.Out, report)
	} else {
		err = a.writeReport(report)
		if owner.config.Network != config.NetworkBridge {
			a.say("VMs do not use it: network is %q in %s", owner.config.Network, owner.file)
		}
	}
	if err == nil && report.Failed() {
		return statusError{exitFailure}
	}
	return err
}

// writeReport prints a line for each thing, with what to do below it.
func (a *App) writeReport(r bridge.Report) error {
	width := 0
	for _, c := range r.Checks {
		width = max(width, len(c.Name))
	}
	const state = len(bridge.Missing)
	indent := strings.Repeat(" ", width+state+4)
	var b strings.Builder
	for _, c := range r.Checks {
		fmt.Fprintf(&b, "%-*s  %-*s  %s\n", width, c.Name, state, c.State, safeLines(c.Detail))
		if c.Hint != "" {
			fmt.Fprintf(&b, "%shint: %s\n", indent, strings.ReplaceAll(safeLines(c.Hint), "\n", "\n"+indent+"      "))
		}
	}
	_, err := a.Out.Write([]byte(b.String()))
	return err
}
