package cli

import (
	"context"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/forward"
)

type vmPortsOptions struct {
	name   string
	output *choice
}

func newVMPorts(a *App) *cobra.Command {
	o := &vmPortsOptions{}
	cmd := &cobra.Command{
		Use:        "ports NAME",
		SuggestFor: []string{"port", "listeners", "urls"},
		Short:      "Show what listens in a VM, and how to reach it",
		Long: `Show what listens in a VM, and how to reach it from this host: the URL of a TCP port for a browser, and the
ports of this host that lead there. What listens on the VM's own 127.0.0.1 is reached as well.`,
		Example: `  banger vm ports testbox
  banger vm ports testbox -o json`,
		Args:              args(1, 1, "the name of one VM"),
		ValidArgsFunction: a.completeVMs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return runVMPorts(cmd.Context(), a, o)
		},
	}
	o.output = outputFlag(cmd, formatTable, formatJSON)
	return cmd
}

func runVMPorts(ctx context.Context, a *App, o *vmPortsOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	ports, err := c.VMPorts(ctx, o.name)
	if err != nil {
		return err
	}
	if o.output.value == formatTable && len(ports) == 0 {
		a.say("nothing listens in vm %q yet", o.name)
	}
	return portList.write(a.Out, o.output.value, ports)
}

var portList = list[api.GuestPort]{
	header: []string{"PROTOCOL", "PORT", "ADDRESS", "PROCESS", "URL", "FORWARDED"},
	row: func(p api.GuestPort) []string {
		process := p.Process
		if p.Agent {
			process = "banger's ssh"
		}
		var leads []string
		for _, f := range p.Forwards {
			leads = append(leads, forward.Short(f))
		}
		return []string{p.Protocol, strconv.Itoa(int(p.Port)), p.Address.String(), safeText(process), safeText(p.URL), strings.Join(leads, " ")}
	},
}
