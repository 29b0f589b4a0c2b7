package cli

import (
	"context"

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
	return list[api.VM]{
		header: []string{"NAME", "STATE", "IMAGE", "ADDRESS", "CPUS", "MEMORY", "DISK", "AGE"},
		row: func(vm api.VM) []string {
			return []string{vm.Name, stateText(vm), vm.Image, addressText(vm), numberOrDash(vm.CPUs), size(vm.MemoryBytes),
				size(vm.DiskUsedBytes) + "/" + size(vm.DiskBytes), age(now.Sub(vm.CreatedAt))}
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
