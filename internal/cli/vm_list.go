package cli

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
)

type vmListOptions struct{ output *choice }

func newVMList(a *App) *cobra.Command {
	o := &vmListOptions{}
	cmd := &cobra.Command{
		Use:        "list",
		Aliases:    []string{"ls"},
		SuggestFor: []string{"ps"},
		Short:      "List VMs",
		Example: `  banger vm list
  banger vm list -o json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runVMList(cmd.Context(), a, o) },
	}
	o.output = outputFlag(cmd)
	return cmd
}

func runVMList(ctx context.Context, a *App, o *vmListOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	vms, err := c.VMs(ctx)
	if err != nil {
		return err
	}
	now := a.Now()
	header := []string{"NAME", "STATE", "IMAGE", "ADDRESS", "CPUS", "MEMORY", "DISK", "AGE"}
	forwarded := slices.ContainsFunc(vms, func(vm api.VM) bool { return len(vm.Forwards) > 0 })
	if forwarded {
		header = append(header, "FORWARDS")
	}
	return list[api.VM]{
		header: header,
		row: func(vm api.VM) []string {
			row := []string{vm.Name, stateText(vm), vm.Image, addressText(vm), numberOrDash(vm.CPUs), size(vm.MemoryBytes),
				size(vm.DiskUsedBytes) + "/" + size(vm.DiskBytes), age(now.Sub(vm.CreatedAt))}
			if forwarded {
				row = append(row, forwardsText(vm))
			}
			return row
		},
		name: func(vm api.VM) string { return vm.Name },
	}.write(a.Out, o.output.value, vms)
}

// stateText is a VM's state with what else there is to say about it.
func stateText(vm api.VM) string {
	switch {
	case vm.Reason != "":
		return string(vm.State) + " (" + vm.Reason + ")"
	case vm.State == api.StateRunning && !vm.Mark.Reached(api.MarkReady):
		return string(vm.State) + " (booting)"
	}
	return string(vm.State)
}
