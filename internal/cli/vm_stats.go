package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

// statsEvery is how often vm stats --watch looks.
const statsEvery = 2 * time.Second

type vmStatsOptions struct {
	name   string
	watch  bool
	output *choice
}

func newVMStats(a *App) *cobra.Command {
	o := &vmStatsOptions{}
	cmd := &cobra.Command{
		Use:        "stats NAME",
		SuggestFor: []string{"top", "usage"},
		Short:      "Show what a running VM uses",
		Long: `Show what a running VM uses: what its guest says of itself, what it takes of this host, and what its network
device has moved. The guest's part is missing where the guest does not answer.`,
		Example: `  banger vm stats testbox
  banger vm stats testbox --watch
  banger vm stats testbox -o json`,
		Args:              args(1, 1, "the name of one VM"),
		ValidArgsFunction: a.completeVMs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return runVMStats(cmd.Context(), a, o)
		},
	}
	cmd.Flags().BoolVarP(&o.watch, "watch", "w", false, "show it again every 2 s, until Ctrl-C or until the VM ends")
	o.output = outputFlag(cmd, formatTable, formatJSON)
	return cmd
}

func runVMStats(ctx context.Context, a *App, o *vmStatsOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	if !o.watch {
		return showVMStats(ctx, a, c, o)
	}
	tick := time.NewTicker(statsEvery)
	defer tick.Stop()
	for first := true; ; first = false {
		switch {
		case a.Terminal.Out && o.output.value == formatTable:
			fmt.Fprint(a.Out, "\x1b[H\x1b[J") // where the last one was
		case !first && o.output.value == formatTable:
			fmt.Fprintln(a.Out)
		}
		if err := showVMStats(ctx, a, c, o); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func showVMStats(ctx context.Context, a *App, c *client.Client, o *vmStatsOptions) error {
	st, err := c.VMStats(ctx, o.name)
	if err != nil {
		return err
	}
	if o.output.value == formatJSON {
		return writeJSON(a.Out, st)
	}
	return writeFields(a.Out, statsFields(st, a.Now()))
}

func statsFields(st api.VMStats, now time.Time) []field {
	out := []field{{"name", st.Name}, {"id", st.ID}}
	if g := st.Guest; g != nil {
		out = append(out,
			field{"guest uptime", age(seconds(g.UptimeSeconds))},
			field{"guest load", fmt.Sprintf("%.2f %.2f %.2f", g.Load[0], g.Load[1], g.Load[2])},
			field{"guest cpu", fmt.Sprintf("%.1fs busy, %d CPUs", g.BusySeconds, g.CPUs)},
			field{"guest memory", size(g.MemoryTotalBytes-g.MemoryAvailableBytes) + " used of " + size(g.MemoryTotalBytes)},
			field{"guest disk", size(g.DiskTotalBytes-g.DiskFreeBytes) + " used of " + size(g.DiskTotalBytes)})
	} else {
		out = append(out, field{"guest", "does not answer"})
	}
	out = append(out,
		field{"host cpu", fmt.Sprintf("%.1fs", st.Host.CPUSeconds)},
		field{"host memory", size(st.Host.MemoryBytes)},
		field{"host disk", size(st.Host.DiskUsedBytes)})
	n := st.Network
	if n == nil {
		return append(out, field{"network", "none"})
	}
	mode := n.Mode
	if !n.Since.IsZero() {
		mode += ", counted for " + age(now.Sub(n.Since))
	}
	out = append(out,
		field{"network", mode},
		field{"sent", moved(n.SentBytes, n.SentPackets)},
		field{"received", moved(n.ReceivedBytes, n.ReceivedPackets)},
		field{"dropped", fmt.Sprintf("%s not valid, %d not taken in time", counted(n.Dropped), n.Overrun)},
		field{"flows", fmt.Sprintf("%s let out, %s refused", counted(n.Flows), counted(n.Refused))},
		field{"open", fmt.Sprintf("%s TCP, %s UDP", counted(n.OpenTCP), counted(n.OpenUDP))})
	return out
}

// counted is a number, "-" for one that is not counted.
func counted[N uint64 | int](n *N) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprint(*n)
}

// seconds is s as a duration; what a guest says of times may be nonsense.
func seconds(s float64) time.Duration {
	if !(s > 0 && s < 1e9) {
		return 0
	}
	return time.Duration(s * float64(time.Second))
}

// moved is so many bytes in so many packets.
func moved(bytes, packets uint64) string {
	return size(int64(min(bytes, 1<<62))) + " in " + strconv.FormatUint(packets, 10) + " packets"
}
