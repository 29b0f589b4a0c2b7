package cli

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
)

type kernelListOptions struct{ output *choice }

func newKernelList(a *App) *cobra.Command {
	o := &kernelListOptions{}
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List kernels, local ones and those of the catalog",
		Example: `  banger kernel list
  banger kernel list -o json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runKernelList(cmd.Context(), a, o) },
	}
	o.output = outputFlag(cmd)
	return cmd
}

func runKernelList(ctx context.Context, a *App, o *kernelListOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	kernels, err := c.Kernels(ctx)
	if err != nil {
		return err
	}
	now := a.Now()
	return list[api.Kernel]{
		header: []string{"NAME", "LOCAL", "DEFAULT", "RELEASE", "SIZE", "VMS", "AGE", "PACKAGE"},
		row: func(k api.Kernel) []string {
			return []string{k.Name, yesNo(k.Local), yesNo(k.Default), k.Release, sizeOrDash(k.SizeBytes),
				strconv.Itoa(len(k.VMs)), ageSince(now, k.CreatedAt), k.Package}
		},
		name: func(k api.Kernel) string { return k.Name },
	}.write(a.Out, o.output.value, kernels)
}
