package cli

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/bits"
	"time"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
)

type imageInspectOptions struct {
	show  imageShowOptions
	files bool
}

func newImageInspect(a *App) *cobra.Command {
	o := &imageInspectOptions{}
	cmd := &cobra.Command{
		Use:   "inspect NAME",
		Short: "Show one image, or with --files what is in it",
		Long: `Show one image. --files lists every file in it, as ls -l does; with -o json a line of JSON for each, with -o name its path. Nothing is
mounted for it.`,
		Example: `  banger image inspect debian-bookworm
  banger image inspect debian-bookworm --files
  banger image inspect debian-bookworm --files -o name`,
		Args:              args(1, 1, "the name of one image"),
		ValidArgsFunction: a.completeImages(1, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.show.name = args[0]
			if !o.files {
				return runImageShow(cmd.Context(), a, &o.show)
			}
			return runImageFiles(cmd.Context(), a, o)
		},
	}
	cmd.Flags().BoolVar(&o.files, "files", false, "list every file in it")
	o.show.output = outputFlag(cmd)
	return cmd
}

func runImageFiles(ctx context.Context, a *App, o *imageInspectOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	out := bufio.NewWriterSize(a.Out, 64<<10)
	enc := json.NewEncoder(out)
	err = c.ImageFiles(ctx, o.show.name, func(f api.ImageFile) error {
		switch o.show.output.value {
		case formatJSON:
			return enc.Encode(f)
		case formatName:
			_, err := fmt.Fprintln(out, safeText(f.Path))
			return err
		}
		_, err := fmt.Fprintln(out, fileLine(f))
		return err
	})
	if ferr := out.Flush(); err == nil {
		err = ferr
	}
	return err
}

// fileLine is a file as ls -ln shows it.
func fileLine(f api.ImageFile) string {
	line := fmt.Sprintf("%s %3d %5d %5d %10d %s %s", modeText(f), f.Links, f.UID, f.GID, f.Size, f.ModTime.Format(time.DateTime), safeText(f.Path))
	if f.Target != "" {
		line += " -> " + safeText(f.Target)
	}
	return line
}

// modeText is type and mode of a file as ls shows them.
func modeText(f api.ImageFile) string {
	letter := map[string]byte{"file": '-', "dir": 'd', "symlink": 'l', "char": 'c', "block": 'b', "fifo": 'p', "socket": 's'}[f.Type]
	out := []byte{cmp.Or(letter, '?')}
	for bit := uint32(0o400); bit > 0; bit >>= 1 {
		c := byte('-')
		if f.Mode&bit != 0 {
			c = "xwr"[bits.TrailingZeros32(bit)%3]
		}
		out = append(out, c)
	}
	for at, special := range map[int]struct {
		bit   uint32
		yes   byte // where it may be executed as well
		alone byte
	}{3: {0o4000, 's', 'S'}, 6: {0o2000, 's', 'S'}, 9: {0o1000, 't', 'T'}} {
		if f.Mode&special.bit != 0 {
			if out[at] == 'x' {
				out[at] = special.yes
			} else {
				out[at] = special.alone
			}
		}
	}
	return string(out)
}
