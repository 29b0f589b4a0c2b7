package cli

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

type kernelRegisterOptions struct{ name, vmlinux, modules string }

func newKernelRegister(a *App) *cobra.Command {
	o := &kernelRegisterOptions{}
	cmd := &cobra.Command{
		Use:        "register --name NAME --vmlinux FILE [--modules DIR]",
		SuggestFor: []string{"add", "import"},
		Short:      "Make a kernel of your own known, for VMs to boot",
		Long: `Copy a kernel you built, and its modules, to where VMs boot it from by its name. What you do with
your files afterwards changes nothing.

FILE is vmlinux at the top of the kernel's build, or arch/x86/boot/bzImage. DIR is what
make modules_install INSTALL_MOD_PATH=... makes as lib/modules/RELEASE; without it the kernel must have
built in what guests need. A kernel that lacks some of that is refused, and the error says what:
the drivers virtio_mmio, virtio_blk, virtio_net, virtio_console, ext4, overlay, vsock and
vmw_vsock_virtio_transport, CONFIG_PVH, and what every distribution's kernel has.`,
		Example: `  banger kernel register --name mine --vmlinux ./vmlinux --modules ./lib/modules/6.12.0
  banger kernel register --name small --vmlinux arch/x86/boot/bzImage`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runKernelRegister(cmd.Context(), a, o)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&o.name, "name", "", "`name` it gets")
	fl.StringVar(&o.vmlinux, "vmlinux", "", "`file` with the kernel: vmlinux or a bzImage")
	fl.StringVar(&o.modules, "modules", "", "`directory` of its modules, lib/modules/RELEASE")
	_ = cmd.RegisterFlagCompletionFunc("name", cobra.NoFileCompletions) // these fail only for an unknown flag
	_ = cmd.RegisterFlagCompletionFunc("vmlinux", func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveDefault
	})
	_ = cmd.MarkFlagDirname("modules")
	return cmd
}

func runKernelRegister(ctx context.Context, a *App, o *kernelRegisterOptions) error {
	if o.name == "" || o.vmlinux == "" {
		return usagef("banger kernel register --name NAME --vmlinux FILE", "kernel register needs --name and --vmlinux")
	}
	req := api.RegisterKernel{Name: o.name}
	var err error
	if req.Vmlinux, err = filepath.Abs(o.vmlinux); err != nil {
		return fmt.Errorf("register kernel %q: %w", o.name, err)
	}
	if o.modules != "" {
		if req.Modules, err = filepath.Abs(o.modules); err != nil {
			return fmt.Errorf("register kernel %q: %w", o.name, err)
		}
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	op, err := a.operate(ctx, c, job{post: func(ctx context.Context) (api.Operation, error) {
		return c.RegisterKernel(ctx, req)
	}})
	if err != nil {
		return err
	}
	return a.printKernel(op)
}

// printKernel prints the kernel an operation made.
func (a *App) printKernel(op api.Operation) error {
	k, err := client.Result[api.Kernel](op)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Out, "%s %s %s\n", safeText(k.Name), orDash(k.Release), safeText(k.Digest))
	return nil
}
