package cli

import (
	"context"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
)

type imageCatalogOptions struct{ output *choice }

func newImageCatalog(a *App) *cobra.Command {
	o := &imageCatalogOptions{}
	cmd := &cobra.Command{
		Use:   "catalog",
		Short: "List the images that can be had by name, from where, and how big they are",
		Example: `  banger image catalog
  banger image catalog -o json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runImageCatalog(cmd.Context(), a, o) },
	}
	o.output = outputFlag(cmd)
	return cmd
}

func runImageCatalog(ctx context.Context, a *App, o *imageCatalogOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	images, err := c.ImageCatalog(ctx)
	if err != nil {
		return err
	}
	return list[api.Image]{
		header: []string{"NAME", "LOCAL", "DEFAULT", "DOWNLOAD", "SIZE", "KERNEL", "SOURCE", "DESCRIPTION"},
		row: func(im api.Image) []string {
			return []string{im.Name, yesNo(im.Local), yesNo(im.Default), sizeOrDash(im.DownloadBytes), sizeOrDash(im.SizeBytes), im.Kernel, im.Source, im.Description}
		},
		name: func(im api.Image) string { return im.Name },
	}.write(a.Out, o.output.value, images)
}
