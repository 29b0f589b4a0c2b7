package cli

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
	"git.thaloco.com/thaloco/banger/internal/forward"
)

// Verbs of vm forward.
const (
	forwardAdd    = "add"
	forwardRemove = "remove"
	forwardList   = "list"
)

type vmForwardOptions struct {
	name, verb string
	specs      []string
	output     *choice
}

func newVMForward(a *App) *cobra.Command {
	o := &vmForwardOptions{}
	cmd := &cobra.Command{
		Use:        "forward NAME [add|remove|list] [SPEC...]",
		SuggestFor: []string{"port", "publish", "expose"},
		Short:      "Let ports of the host lead to ports of a VM",
		Long: `Let ports of the host lead to ports of a VM, and see which do. A SPEC is [HOSTIP:]HOST:GUEST[/udp]: what
connects to HOST on this host reaches what listens on GUEST in the VM, on its 127.0.0.1 too. A HOST of 0
is a port that is free, which is printed; PORT alone is the same on both sides. Without HOSTIP only this
host gets there, 0.0.0.0 lets everybody in who reaches this host.

A forward is the VM's until it is removed: its port is open while the VM runs, and again after a restart
of the VM or of the daemon. To remove one its HOST port is enough.`,
		Example: `  banger vm forward web
  banger vm forward web add 8080:80
  banger vm forward web add 0:3000 127.0.0.1:5353:53/udp
  banger vm forward web remove 8080`,
		Args: args(1, -1, "the name of a VM"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return a.completeForward(cmd, args, toComplete)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.parse(args); err != nil {
				return err
			}
			return runVMForward(cmd.Context(), a, o)
		},
	}
	o.output = outputFlag(cmd)
	return cmd
}

func isForwardVerb(s string) bool { return s == forwardAdd || s == forwardRemove || s == forwardList }

func (o *vmForwardOptions) parse(args []string) error {
	o.name, o.verb = args[0], forwardList
	if len(args) > 1 {
		o.verb, o.specs = args[1], args[2:]
	}
	quoted := func(parts ...string) string {
		return strings.Join(append([]string{"banger vm forward"}, parts...), " ")
	}
	switch {
	case !isForwardVerb(o.verb) && isForwardVerb(o.name):
		return usagef(quoted(append([]string{o.verb, o.name}, o.specs...)...), "the VM's name comes before %s", o.name)
	case !isForwardVerb(o.verb):
		return usagef(quoted(append([]string{o.name, forwardAdd}, args[1:]...)...), "vm forward adds, removes or lists, it cannot %q", o.verb)
	case o.verb == forwardList && len(o.specs) > 0:
		return usagef(quoted(o.name), "vm forward NAME list takes nothing more, not %q", o.specs[0])
	case o.verb != forwardList && len(o.specs) == 0:
		return usagef(quoted(o.name, o.verb, "8080:80"), "vm forward NAME %s needs a SPEC", o.verb)
	}
	return nil
}

func runVMForward(ctx context.Context, a *App, o *vmForwardOptions) error {
	var add []api.Forward
	var remove []api.RemoveForward
	var err error
	switch o.verb { // all that can be wrong here is found before anything is done
	case forwardAdd:
		add, err = parseForwards(o.specs, forward.Parse)
	case forwardRemove:
		remove, err = parseForwards(o.specs, forward.ParseRemoval)
	}
	if err != nil {
		return err
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	switch o.verb {
	case forwardAdd:
		return addForwards(ctx, a, c, o, add)
	case forwardRemove:
		return removeForwards(ctx, a, c, o, remove)
	}
	list, err := c.Forwards(ctx, o.name)
	if err != nil {
		return err
	}
	return forwardTable.write(a.Out, o.output.value, list)
}

// parseForwards reads SPECs; one that is wrong is a usage error.
func parseForwards[T any](specs []string, parse func(string) (T, error)) ([]T, error) {
	out := make([]T, 0, len(specs))
	for _, spec := range specs {
		v, err := parse(spec)
		if err != nil {
			e := api.AsError(err)
			return nil, usagef(e.Hint, "%s", e.Message)
		}
		out = append(out, v)
	}
	return out, nil
}

var forwardTable = list[api.ForwardStatus]{
	header: []string{"HOST", "GUEST", "PROTOCOL", "CONNECTIONS", "STATE"},
	row: func(f api.ForwardStatus) []string {
		return []string{netip.AddrPortFrom(f.HostAddress, f.HostPort).String(), strconv.Itoa(int(f.GuestPort)), f.Protocol, numberOrDash(f.Connections), forwardState(f)}
	},
	name: func(f api.ForwardStatus) string { return forward.Short(f.Forward) },
}

func forwardState(f api.ForwardStatus) string {
	switch {
	case f.Listening:
		return "listening"
	case f.Error != "":
		return f.Error
	}
	return "closed" // the VM does not run
}

// addForwards adds one after the other; where one fails those before it stay, and are printed.
func addForwards(ctx context.Context, a *App, c *client.Client, o *vmForwardOptions, specs []api.Forward) error {
	var added []api.ForwardStatus
	var plain []api.Forward
	var failed error
	for _, f := range specs {
		st, err := c.AddForward(ctx, o.name, f)
		if failed = err; err != nil {
			break
		}
		added, plain = append(added, st), append(plain, st.Forward)
	}
	if failed == nil || len(added) > 0 {
		if err := writeForwards(a, o, added, plain); err != nil {
			return err
		}
	}
	if w := forward.Exposed(plain); w != "" {
		a.say("%s", w)
	}
	if slices.ContainsFunc(added, func(st api.ForwardStatus) bool { return !st.Listening }) {
		a.say("vm %q does not run: its forwards open when it starts", o.name)
	}
	return failed
}

func removeForwards(ctx context.Context, a *App, c *client.Client, o *vmForwardOptions, specs []api.RemoveForward) error {
	var removed []api.Forward
	var failed error
	for _, which := range specs {
		f, err := c.RemoveForward(ctx, o.name, which)
		if failed = err; err != nil {
			break
		}
		removed = append(removed, f)
	}
	if failed == nil || len(removed) > 0 {
		if err := writeForwards(a, o, removed, removed); err != nil {
			return err
		}
	}
	return failed
}

// writeForwards prints what was done to forwards: of JSON what the API answered, else a line for each.
func writeForwards[T any](a *App, o *vmForwardOptions, answered []T, list []api.Forward) error {
	if o.output.value == formatJSON {
		return writeJSON(a.Out, answered)
	}
	for _, f := range list {
		line := forward.Line(f, o.name)
		if o.output.value == formatName {
			line = forward.Short(f)
		}
		fmt.Fprintln(a.Out, safeText(line))
	}
	return nil
}

// completeForward completes names of VMs, verbs, and the forwards there are to be removed.
func (a *App) completeForward(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	switch {
	case len(args) == 0:
		return a.completeVMs(1)(cmd, args, toComplete)
	case len(args) == 1:
		return []cobra.Completion{forwardAdd, forwardList, forwardRemove}, cobra.ShellCompDirectiveNoFileComp
	case args[1] != forwardRemove:
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.names(0, func(ctx context.Context, c *client.Client) ([]string, error) {
		list, err := c.Forwards(ctx, args[0])
		out := make([]string, len(list))
		for i, f := range list {
			out[i] = forward.Short(f.Forward)
		}
		return out, err
	})(cmd, args, toComplete)
}

// forwardsText is a VM's forwards in short, as vm list shows them.
func forwardsText(vm api.VM) string {
	texts := make([]string, len(vm.Forwards))
	for i, f := range vm.Forwards {
		texts[i] = forward.Short(f)
	}
	return strings.Join(texts, " ")
}

// forwardLines is a VM's forwards as vm show has them.
func forwardLines(vm api.VM) string {
	texts := make([]string, len(vm.Forwards))
	for i, f := range vm.Forwards {
		texts[i] = forward.Line(f, vm.Name)
	}
	return strings.Join(texts, ", ")
}
