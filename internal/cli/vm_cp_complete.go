package cli

import (
	"bytes"
	"context"
	"io"
	"net"
	"path"
	"strings"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/client"
	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// completeListing is how many bytes of a guest's listing are looked at.
const completeListing = 256 << 10

// completeCopy completes NAME: of VMs and paths in a VM that runs, else files of the host.
func (a *App) completeCopy() completion {
	names := a.completeVMs(0)
	return func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
		end, err := parseCpEnd(toComplete)
		switch {
		case err == nil && end.vm != "":
			return a.guestPaths(cmd.Context(), end), cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
		case strings.ContainsAny(toComplete, ":/."):
			return nil, cobra.ShellCompDirectiveDefault
		}
		vms, _ := names(cmd, nil, toComplete)
		for i := range vms {
			vms[i] += ":"
		}
		if len(vms) == 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return vms, cobra.ShellCompDirectiveNoSpace
	}
}

// guestPaths are the paths in a VM that begin as end does, as NAME:PATH, directories with a slash behind. The guest's own ls is
// asked. Names that a shell would have to quote are left out: a guest could have made them up to be run.
func (a *App) guestPaths(ctx context.Context, end cpEnd) []cobra.Completion {
	c, err := a.connectOnly()
	if err != nil {
		return nil
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, completeWithin)
	defer cancel()
	dir, base := path.Split(end.path)
	var out []cobra.Completion
	for name := range strings.Lines(guestList(ctx, c, end.vm, dir)) {
		name, whole := strings.CutSuffix(name, "\n")
		hidden := strings.HasPrefix(name, ".") && base == ""
		if !whole || hidden || !strings.HasPrefix(name, base) || strings.ContainsFunc(name, func(r rune) bool { return !plainInShell(r) }) {
			continue
		}
		out = append(out, end.vm+":"+dir+name)
	}
	return out
}

// guestList is what ls prints about a directory of a guest, at most completeListing bytes of it; empty where that fails.
func guestList(ctx context.Context, c *client.Client, vm, dir string) string {
	if dir == "" {
		dir = "."
	}
	var list bytes.Buffer
	_, _ = exec.Run(ctx, exec.Options{ // completions are what is there; a directory that is not has none
		Dial:         func(ctx context.Context) (net.Conn, error) { return c.Exec(ctx, vm, "") },
		Start:        wire.ExecStart{Argv: []string{"ls", "-1Ap", "--", dir}, Dir: ".", NoStdin: true},
		Stdout:       &headWriter{w: &list, left: completeListing},
		ReconnectFor: -1,
	})
	return list.String()
}

// headWriter passes the first bytes on and drops the rest.
type headWriter struct {
	w    io.Writer
	left int
}

func (h *headWriter) Write(p []byte) (int, error) {
	n := min(len(p), h.left)
	h.left -= n
	if _, err := h.w.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}
