package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

type vmCreateOptions struct {
	vm      vmFlags
	noStart bool
	wait    *choice
}

func newVMCreate(a *App) *cobra.Command {
	o := &vmCreateOptions{}
	cmd := &cobra.Command{
		Use:        "create",
		SuggestFor: []string{"new"},
		Short:      "Make a VM and start it",
		Long:       "Make a VM and start it. Its name is printed.\n\nImage and kernel are fetched or built where they are not local yet.",
		Example: `  banger vm create --name testbox
  banger vm create --image debian-bookworm --name testbox --no-start
  banger vm create --name web --cpus 2 --memory 1GiB --disk 30GiB -e KEY=VALUE
  banger vm create --name web -p 8080:80 -p 0:3000
  banger vm create --name app --host-port 5432
  banger vm create --name app --kernel mine`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runVMCreate(cmd.Context(), a, o)
		},
	}
	o.vm.register(a, cmd)
	cmd.Flags().BoolVar(&o.noStart, "no-start", false, "only make it")
	o.wait = waitFlag(cmd)
	cmd.MarkFlagsMutuallyExclusive("no-start", "wait")
	return cmd
}

func runVMCreate(ctx context.Context, a *App, o *vmCreateOptions) error {
	req, err := o.vm.request(a)
	if err != nil {
		return err
	}
	if !o.noStart {
		req.Start, req.Wait = true, api.Mark(o.wait.value)
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	op, err := a.operate(ctx, c, job{post: func(ctx context.Context) (api.Operation, error) { return c.CreateVM(ctx, req) }})
	if err != nil {
		return err
	}
	vm, err := client.Result[api.VM](op)
	if err != nil {
		return err
	}
	a.sayEmulated(vm)
	fmt.Fprintln(a.Out, vm.Name)
	return nil
}
