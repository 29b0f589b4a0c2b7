package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/buildinfo"
	"git.thaloco.com/thaloco/banger/internal/doctor"
)

type doctorOptions struct {
	output *choice
	online bool
}

func newDoctor(a *App) *cobra.Command {
	o := &doctorOptions{}
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Tell what is wrong with this host and what to do about it",
		Long: `Looks whether this host has what banger needs: KVM or an emulator, programs, room, directories, the daemon,
the network. Each check is ok, a warning, or a failure, with what to do. Nothing is changed, and the daemon is
not started; only what was remembered as failed, such as an engine that ended at its start, is forgotten once it
is shown, so that the next VM tries it again. The exit status is 1 where a check failed.`,
		Example: `  banger doctor
  banger doctor --online
  banger doctor -o json`,
		GroupID:           groupDaemon,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runDoctor(cmd.Context(), a, o) },
	}
	o.output = outputFlag(cmd, formatTable, formatJSON)
	cmd.Flags().BoolVar(&o.online, "online", false, "ask Debian's mirror, too, whether it answers")
	return cmd
}

func runDoctor(ctx context.Context, a *App, o *doctorOptions) error {
	p, err := a.paths()
	if err != nil {
		return err
	}
	checks := doctor.Examine(doctor.Observe(ctx, doctor.Sources{
		Paths: p, Getenv: a.Getenv, Version: buildinfo.Version, Online: o.online,
		FindDaemon: a.findDaemon,
		AskDaemon: func(ctx context.Context) (api.DaemonStatus, error) {
			c, err := a.connectOnly()
			if err != nil {
				return api.DaemonStatus{}, err
			}
			defer c.Close()
			return c.Daemon(ctx)
		},
	}))
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if o.output.value == formatJSON {
		err = writeJSON(a.Out, checks)
	} else {
		err = a.writeChecks(checks)
	}
	if err == nil {
		err = doctor.Forget(p)
	}
	if err == nil && doctor.Failed(checks) {
		return statusError{exitFailure}
	}
	return err
}

// marks are what stands before a check: a sign, or a word where the locale has no such sign; and its colour (ECMA-48 SGR).
var marks = map[doctor.Status]struct{ sign, word, colour string }{
	doctor.OK:   {"✓", "ok  ", "32"},
	doctor.Warn: {"!", "warn", "33"},
	doctor.Fail: {"✗", "FAIL", "31"},
}

// leastDetail is how many columns a check's detail is given at least; a terminal that has fewer breaks lines itself.
const leastDetail = 24

// writeChecks prints a check per line, its hint below it, and how many there were. On a terminal details are wrapped; hints are
// not, for they are there to be copied.
func (a *App) writeChecks(checks []doctor.Check) error {
	var (
		b     strings.Builder
		width int
		count = map[doctor.Status]int{}
	)
	for _, c := range checks {
		width = max(width, len(c.Name))
		count[c.Status]++
	}
	utf8, colour := a.utf8(), a.colours()
	columns := 0
	if a.Terminal.Out {
		_, columns = a.Terminal.Size()
	}
	for _, c := range checks {
		m := marks[c.Status]
		mark := m.word
		if utf8 {
			mark = m.sign
		}
		indent := strings.Repeat(" ", len([]rune(mark))+width+3)
		if colour {
			mark = "\x1b[" + m.colour + "m" + mark + "\x1b[0m"
		}
		detail := safeLines(c.Detail)
		if room := columns - len(indent); room >= leastDetail {
			detail = wrap(detail, room)
		}
		detail = strings.ReplaceAll(detail, "\n", "\n"+indent)
		fmt.Fprintf(&b, "%s %-*s  %s\n", mark, width, c.Name, detail)
		if c.Hint != "" {
			fmt.Fprintf(&b, "%shint: %s\n", indent, strings.ReplaceAll(safeLines(c.Hint), "\n", "\n"+indent+"      "))
		}
	}
	fmt.Fprintf(&b, "\n%d ok, %s, %s\n", count[doctor.OK], plural(count[doctor.Warn], "warning"), plural(count[doctor.Fail], "failure"))
	_, err := a.Out.Write([]byte(b.String()))
	return err
}

// plural is a number of things: "1 warning", "2 warnings".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// utf8 reports whether the locale's characters are UTF-8's.
func (a *App) utf8() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToLower(a.Getenv(name)); v != "" {
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}

// colours reports whether stdout shows colours and nobody minds them (no-color.org).
func (a *App) colours() bool {
	return a.Terminal.Out && a.Getenv("NO_COLOR") == "" && a.Getenv("TERM") != "dumb" && a.Getenv("TERM") != ""
}
