package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

type vmSessionSendOptions struct {
	vm, name string
	eof      bool
}

func newVMSessionSend(a *App) *cobra.Command {
	o := &vmSessionSendOptions{}
	cmd := &cobra.Command{
		Use:   "send VM NAME",
		Short: "Send stdin to a session",
		Long: `Send stdin to a session, to its end, and leave. The session's stdin stays open, unless --eof is given. It is refused
where somebody else is attached who writes.`,
		Example: `  banger vm session send testbox planner
  banger vm session send --eof testbox planner`,
		Args:              args(2, 2, sessionArg),
		ValidArgsFunction: a.completeSessions(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.vm, o.name = args[0], args[1]
			return runVMSessionSend(cmd.Context(), a, o)
		},
	}
	cmd.Flags().BoolVar(&o.eof, "eof", false, "end the session's stdin behind it")
	return cmd
}

func runVMSessionSend(ctx context.Context, a *App, o *vmSessionSendOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := c.Session(ctx, o.vm, o.name)
	if err != nil {
		return err
	}
	if s.State == api.SessionEnded {
		return api.Errorf(api.KindConflict, "session %q of vm %q has ended", s.Name, s.VM)
	}
	if s.Stdin == wire.SessionNone {
		return api.Errorf(api.KindConflict, "session %q of vm %q has no stdin", s.Name, s.VM).WithHint("start it with --stdin-mode pipe or pty")
	}
	err = a.runRemote(ctx, c, remote{vm: s.VM, stdin: true, session: &attachment{name: s.Name, write: true, sendOnly: true, keepOpen: !o.eof}})
	var x *wire.ExecError
	switch {
	case errors.As(err, new(statusError)): // it took everything, and has ended
		return nil
	case errors.Is(err, exec.ErrInputLeft):
		return api.Errorf(api.KindConflict, "session %q of vm %q ended before it had taken all input", s.Name, s.VM).
			WithHint("how it ended: banger vm session show %s %s", s.VM, s.Name)
	case !errors.As(err, &x):
		return err
	case x.Code == wire.ExecTakenOver:
		return api.Errorf(api.KindConflict, "somebody else writes to session %q of vm %q", s.Name, s.VM).WithHint("who is attached: banger vm session show %s %s", s.VM, s.Name)
	case x.Code == wire.ExecInvalid:
		return api.Errorf(api.KindConflict, "session %q of vm %q takes no more input: its stdin was closed", s.Name, s.VM)
	}
	return err
}
