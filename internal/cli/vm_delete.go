package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

type vmDeleteOptions struct {
	names      []string
	all, force bool
}

func newVMDelete(a *App) *cobra.Command {
	o := &vmDeleteOptions{}
	cmd := &cobra.Command{
		Use:        "delete NAME... | --all",
		Aliases:    []string{"rm"},
		SuggestFor: []string{"remove", "destroy"},
		Short:      "Delete VMs with everything in them",
		Long: `Delete VMs with everything in them. One that runs is only deleted with --force. Where a VM has commits that were not
pulled you are asked on a terminal; elsewhere it is refused.`,
		Example: `  banger vm delete testbox
  banger vm rm --force web db
  banger vm delete --all --force`,
		ValidArgsFunction: a.completeVMs(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.names = args
			return runVMDelete(cmd.Context(), a, o)
		},
	}
	cmd.Flags().BoolVar(&o.all, "all", false, "all VMs")
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "also one that runs, and with commits that were not pulled; asks nothing")
	return cmd
}

func runVMDelete(ctx context.Context, a *App, o *vmDeleteOptions) error {
	d := deletion{names: o.names, all: o.all}
	if !o.force && a.Terminal.In && a.Terminal.Err {
		if err := a.askDeletion(ctx, &d); err != nil {
			return err
		}
	}
	if len(d.names) > 0 || !d.asked {
		err := a.eachVM(ctx, "vm delete", d.names, d.all, func(ctx context.Context, c *client.Client, name string) (api.Operation, error) {
			return c.DeleteVM(ctx, name, api.DeleteVM{Force: o.force, Discard: d.discard[name]})
		})
		if err != nil {
			return err
		}
	}
	if d.kept {
		return statusError{exitFailure}
	}
	return nil
}

// deletion is which VMs are to be deleted.
type deletion struct {
	names []string
	all   bool
	// asked: names are those for which there was no question, or a yes; discard has the latter. kept: there was a no.
	asked, kept bool
	discard     map[string]bool
}

// askDeletion asks about VMs with commits that were not pulled. Of one that is refused anyway, as it runs, it only says what it has:
// what comes next may be --force.
func (a *App) askDeletion(ctx context.Context, d *deletion) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	names, err := vmNames(ctx, c, "vm delete", d.names, d.all)
	if err != nil {
		return err
	}
	d.names, d.all, d.asked, d.discard = nil, false, true, map[string]bool{}
	for _, name := range names {
		lost, runs, err := a.wouldLose(ctx, c, name)
		if err != nil {
			return err
		}
		if len(lost) > 0 {
			a.warnUnpulled(name, lost)
		}
		if len(lost) > 0 && !runs {
			yes, err := a.ask(ctx, deleteAnyway, false)
			if err != nil {
				return err
			}
			if d.kept = d.kept || !yes; !yes {
				continue
			}
			d.discard[name] = true
		}
		d.names = append(d.names, name)
	}
	return nil
}

// wouldLose is what would be lost with a VM, and whether it runs. What is wrong with the VM its deletion says.
func (a *App) wouldLose(ctx context.Context, c *client.Client, name string) (lost []api.Unpulled, runs bool, err error) {
	asking, cancel := context.WithTimeout(ctx, unpulledWithin)
	defer cancel()
	vm, err := c.VM(asking, name)
	if err == nil {
		lost, err = c.Unpulled(asking, name)
	}
	switch {
	case ctx.Err() != nil:
		return nil, false, context.Cause(ctx)
	case err != nil:
		return nil, false, nil
	}
	return lost, vm.State != api.StateStopped && vm.State != api.StateFailed, nil
}

// maxLost is how many refs of a copy are named before it is deleted.
const maxLost = 10

// warnUnpulled says what would be lost with a VM, whether notes are wanted or not.
func (a *App) warnUnpulled(vm string, lost []api.Unpulled) {
	fmt.Fprintf(a.Err, "banger: vm %q has commits that were not pulled:\n", vm)
	for _, u := range lost {
		refs := u.Refs[:min(len(u.Refs), maxLost)]
		more := ""
		if n := len(u.Refs) - len(refs); n > 0 {
			more = fmt.Sprintf(" and %d more", n)
		}
		fmt.Fprintf(a.Err, "  %s: %s%s\n", safeText(u.GuestPath), safeText(strings.Join(refs, ", ")), more)
	}
}
