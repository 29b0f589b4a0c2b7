package cli

import (
	"context"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// attachTail is how much of what a session printed before is shown, in bytes.
const attachTail = 16 << 10

type vmSessionAttachOptions struct {
	vm, name string
	noStdin  bool
	all      bool // all that was printed before
}

func newVMSessionAttach(a *App) *cobra.Command {
	o := &vmSessionAttachOptions{}
	cmd := &cobra.Command{
		Use:   "attach VM NAME",
		Short: "Attach to a session",
		Long: `Attach to a session: the end of what it printed is shown, then what it prints, and what is typed is its stdin. It
ends with the session's exit status. Any number may read a session, one writes.

Ctrl-\ detaches (detach_key in the configuration names another key), and so does the end of this command;
the session goes on. The end of stdin is not passed on: banger vm session send --eof does that.`,
		Example: `  banger vm session attach testbox planner
  banger vm session attach --no-stdin testbox planner`,
		Args:              args(2, 2, sessionArg),
		ValidArgsFunction: a.completeSessions(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.vm, o.name = args[0], args[1]
			return inRun(runVMSessionAttach(cmd.Context(), a, o))
		},
	}
	cmd.Flags().BoolVar(&o.noStdin, "no-stdin", false, "only read")
	return cmd
}

func runVMSessionAttach(ctx context.Context, a *App, o *vmSessionAttachOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := c.Session(ctx, o.vm, o.name)
	if err != nil {
		return err
	}
	if s.State == api.SessionEnded && s.Status == nil {
		return api.Errorf(api.KindConflict, "session %q of vm %q has ended: %s", s.Name, s.VM, s.Reason).
			WithHint("what it printed: banger vm session logs %s %s", s.VM, s.Name)
	}
	key, err := detachKey(ctx, c)
	if err != nil {
		return err
	}
	write := !o.noStdin && s.Stdin != wire.SessionNone && s.State != api.SessionEnded
	r := remote{vm: s.VM, stdin: write, session: &attachment{name: s.Name, write: write, tail: attachTail, keepOpen: true, key: key}}
	if o.all {
		r.session.tail = wire.TailAll
	}
	r.start.PTY = s.Stdin == wire.SessionPTY && write && a.Terminal.In && a.Terminal.Out
	if r.start.PTY && key != "" {
		a.say("attached to session %q; detach: %s", s.Name, key)
	}
	return a.attach(ctx, c, r)
}
