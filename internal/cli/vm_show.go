package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
)

type vmShowOptions struct {
	name   string
	output *choice
}

func newVMShow(a *App) *cobra.Command {
	o := &vmShowOptions{}
	cmd := &cobra.Command{
		Use:        "show NAME",
		SuggestFor: []string{"inspect", "status"},
		Short:      "Show one VM",
		Example: `  banger vm show testbox
  banger vm show testbox -o json`,
		Args:              args(1, 1, "the name of one VM"),
		ValidArgsFunction: a.completeVMs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return runVMShow(cmd.Context(), a, o)
		},
	}
	o.output = outputFlag(cmd)
	return cmd
}

func runVMShow(ctx context.Context, a *App, o *vmShowOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	vm, err := c.VM(ctx, o.name)
	if err != nil {
		return err
	}
	switch o.output.value {
	case formatJSON:
		return writeJSON(a.Out, vm)
	case formatName:
		fmt.Fprintln(a.Out, safeText(vm.Name))
		return nil
	}
	return writeFields(a.Out, vmFields(vm))
}

// addressText is a VM's address; empty before its first start.
func addressText(vm api.VM) string {
	if !vm.Address.IsValid() {
		return ""
	}
	return vm.Address.String()
}

func vmFields(vm api.VM) []field {
	return []field{
		{"name", vm.Name},
		{"id", vm.ID},
		{"state", stateText(vm)},
		{"address", addressText(vm)},
		{"forwards", forwardLines(vm)},
		{"host ports", hostPortsText(vm)},
		{"boot", string(vm.Mark)},
		{"engine", strings.TrimRight(vm.Engine+"/"+vm.Accel, "/")},
		{"image", vm.Image},
		{"image digest", vm.ImageDigest},
		{"kernel", vm.Kernel},
		{"kernel digest", vm.KernelDigest},
		{"cpus", numberOrDash(vm.CPUs)},
		{"memory", size(vm.MemoryBytes)},
		{"disk", size(vm.DiskUsedBytes) + " used of " + size(vm.DiskBytes)},
		{"environment", strings.Join(vm.Env, " ")},
		{"removed on exit", yesNo(vm.RemoveOnExit)},
		{"created", timeText(&vm.CreatedAt)},
		{"started", timeText(vm.StartedAt)},
		{"restarts", strconv.Itoa(vm.Restarts)},
		{"vmm pid", numberOrDash(vm.VMMPID)},
		{"supervisor pid", numberOrDash(vm.SupervisorPID)},
	}
}

// hostPortsText is the ports of the host that a VM was let through to.
func hostPortsText(vm api.VM) string {
	var out []string
	for _, p := range vm.HostPorts {
		out = append(out, strconv.Itoa(int(p)))
	}
	return strings.Join(out, " ")
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// timeText is t in local time, empty where there is none.
func timeText(t *time.Time) string {
	if t == nil || t.IsZero() {
		return ""
	}
	return t.Local().Format(time.DateTime)
}

// numberOrDash is n, empty (shown as "-") where it is 0.
func numberOrDash(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}
