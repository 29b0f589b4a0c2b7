package cli

import (
	"context"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
)

type imageListOptions struct{ output *choice }

func newImageList(a *App) *cobra.Command {
	o := &imageListOptions{}
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List images, local ones and those of the catalog",
		Example: `  banger image list
  banger image list -o name`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runImageList(cmd.Context(), a, o) },
	}
	o.output = outputFlag(cmd)
	return cmd
}

func runImageList(ctx context.Context, a *App, o *imageListOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	images, err := c.Images(ctx)
	if err != nil {
		return err
	}
	now := a.Now()
	return list[api.Image]{
		header: []string{"NAME", "LOCAL", "DEFAULT", "SIZE", "ON DISK", "SHARED", "VMS", "AGE", "DESCRIPTION"},
		row: func(im api.Image) []string {
			return []string{im.Name, yesNo(im.Local), yesNo(im.Default), sizeOrDash(im.SizeBytes), sizeOrDash(im.DiskBytes), sizeOrDash(im.SharedBytes),
				strconv.Itoa(len(im.VMs)), ageSince(now, im.CreatedAt), im.Description}
		},
		name: func(im api.Image) string { return im.Name },
	}.write(a.Out, o.output.value, images)
}

// ageSince is the age of what was made at t, empty where that is not known.
func ageSince(now time.Time, t *time.Time) string {
	if t == nil {
		return ""
	}
	return age(now.Sub(*t))
}
