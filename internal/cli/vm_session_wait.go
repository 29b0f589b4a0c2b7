package cli

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

// How long a daemon that is gone is waited for, and how often it is looked for.
const (
	waitForDaemon  = 30 * time.Second
	lookForDaemons = 100 * time.Millisecond
)

type vmSessionWaitOptions struct{ vm, name string }

func newVMSessionWait(a *App) *cobra.Command {
	o := &vmSessionWaitOptions{}
	return &cobra.Command{
		Use:               "wait VM NAME",
		Short:             "Wait for the end of a session, and end with its status",
		Example:           `  banger vm session wait testbox planner`,
		Args:              args(2, 2, sessionArg),
		ValidArgsFunction: a.completeSessions(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.vm, o.name = args[0], args[1]
			return inRun(runVMSessionWait(cmd.Context(), a, o))
		},
	}
}

func runVMSessionWait(ctx context.Context, a *App, o *vmSessionWaitOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := c.Session(ctx, o.vm, o.name)
	var lost time.Time // since when there is no daemon
	for err == nil && s.State != api.SessionEnded {
		var next api.Session
		next, err = c.Passive().WaitSession(ctx, o.vm, o.name)
		if !errors.Is(err, client.ErrNoDaemon) {
			s, lost = next, time.Time{}
			continue
		}
		if lost.IsZero() {
			lost = a.Now()
		}
		if a.Now().Sub(lost) > waitForDaemon {
			break
		}
		select {
		case <-time.After(lookForDaemons):
			err = nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	switch {
	case err != nil:
		return err
	case s.Status == nil:
		return api.Errorf(api.KindGuest, "session %q of vm %q has ended: %s", s.Name, s.VM, s.Reason)
	case *s.Status != 0:
		return statusError{*s.Status}
	}
	return nil
}
