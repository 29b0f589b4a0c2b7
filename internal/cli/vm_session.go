package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
	"git.thaloco.com/thaloco/banger/internal/config"
	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// newVMSession makes the command that holds those of sessions.
func newVMSession(a *App) *cobra.Command {
	cmd := group("", "session", "Run commands that go on without you",
		newVMSessionStart(a), newVMSessionList(a), newVMSessionShow(a), newVMSessionAttach(a), newVMSessionLogs(a),
		newVMSessionSend(a), newVMSessionStop(a), newVMSessionKill(a), newVMSessionWait(a), newVMSessionDelete(a))
	cmd.Aliases = []string{"sessions"}
	cmd.Long = `Run commands with a name in a VM that go on without you: through the end of this command, restarts of the daemon
and lost connections, until they end or the VM does. What they print is kept in a log of bounded size.`
	return cmd
}

// sessionArg is what the arguments of most commands here are.
const sessionArg = "the names of a VM and of a session"

// completeSessions completes the name of a VM, then names of its sessions, max of them; 0 is any number.
func (a *App) completeSessions(max int) completion {
	return func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return a.completeVMs(1)(cmd, args, toComplete)
		}
		total := 0
		if max > 0 {
			total = max + 1
		}
		return a.names(total, func(ctx context.Context, c *client.Client) ([]string, error) {
			all, err := c.Sessions(ctx, args[0])
			out := make([]string, len(all))
			for i, s := range all {
				out[i] = s.Name
			}
			return out, err
		})(cmd, args, toComplete)
	}
}

// attachment is how a session is attached to.
type attachment struct {
	name  string
	write bool
	tail  int64
	// keepOpen: the end of stdin is not passed on; sendOnly: stdin is sent, and that is all.
	keepOpen, sendOnly bool
	// key is what leaves it, as it is configured; empty for none.
	key string
}

// options are a for the exec client.
func (t *attachment) options() *exec.Session {
	return &exec.Session{Name: t.name, Write: t.write, Tail: t.tail, KeepOpen: t.keepOpen, SendOnly: t.sendOnly}
}

// detachedError ends an attachment to a session that goes on; what there is to say was said.
type detachedError struct{}

func (detachedError) Error() string { return "detached" }
func (detachedError) silent() bool  { return true }

// detachKey is the configured key that leaves a session; empty for none.
func detachKey(ctx context.Context, c *client.Client) (string, error) {
	view, err := c.ConfigInForce(ctx)
	if err != nil {
		return "", err
	}
	key, ok := view.Values["detach_key"].(string)
	if !ok {
		key = config.Default().DetachKey
	}
	if _, ok := config.DetachByte(key); !ok {
		return "", nil
	}
	return key, nil
}

// startSession starts a session; one whose command cannot be started is an error with a shell's status.
func startSession(ctx context.Context, c *client.Client, vm string, req api.StartSession) (api.Session, error) {
	s, err := c.StartSession(ctx, vm, req)
	if err != nil || s.State != api.SessionFailed {
		return s, err
	}
	code := wire.ExecNotExecutable
	if s.Status != nil && *s.Status == exitNotFound {
		code = wire.ExecNotFound
	}
	return s, commandError(remote{vm: vm, start: wire.ExecStart{Argv: req.Command}}, wire.ExecErrorf(code, "%s", s.Reason))
}

// runInSession starts r as a session of that name and attaches to it.
func (a *App) runInSession(ctx context.Context, c *client.Client, r remote, name string) error {
	key, err := detachKey(ctx, c)
	if err != nil {
		return err
	}
	stdin := wire.SessionNone
	switch {
	case r.start.PTY:
		stdin = wire.SessionPTY
	case r.stdin:
		stdin = wire.SessionPipe
	}
	req := api.StartSession{Name: name, Command: r.start.Argv, Dir: r.start.Dir, User: r.start.User, Env: r.start.Env, Stdin: stdin}
	if r.start.PTY {
		req.Rows, req.Cols = a.size()
	}
	if _, err := startSession(ctx, c, r.vm, req); err != nil {
		return err
	}
	r.session = &attachment{name: name, write: stdin != wire.SessionNone, tail: wire.TailAll, keepOpen: r.start.PTY, key: key}
	return a.attach(ctx, c, r)
}

// attach is runRemote for a session: its end with the VM is told as what it is.
func (a *App) attach(ctx context.Context, c *client.Client, r remote) error {
	err := a.runRemote(ctx, c, r)
	if err == nil || errors.As(err, new(statusError)) || errors.As(err, new(detachedError)) || errors.As(err, new(signalError)) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), completeWithin)
	defer cancel()
	if s, serr := c.Passive().Session(ctx, r.vm, r.session.name); serr == nil && s.State == api.SessionEnded && s.Reason != "" {
		return api.Errorf(api.KindGuest, "session %q of vm %q has ended: %s", s.Name, s.VM, s.Reason).
			WithHint("what it printed: banger vm session logs %s %s", s.VM, s.Name)
	}
	return err
}

// sessionStatus is how a session ended, for a table.
func sessionStatus(s api.Session) string {
	switch {
	case s.Status == nil:
		return ""
	case s.Signal != "":
		return fmt.Sprintf("%d (%s)", *s.Status, s.Signal)
	}
	return fmt.Sprint(*s.Status)
}

// sessionCommand is a session's command, for a table.
func sessionCommand(s api.Session) string {
	if len(s.Command) == 0 {
		return "(a login shell)"
	}
	return quoted(s.Command...)
}

// parseSession takes the arguments of a command that has a VM, and behind -- a command; dash is how many of them stand before --.
func parseSession(usage string, dash int, args []string) (vm string, command []string, err error) {
	names := args
	if dash >= 0 {
		names, command = args[:dash], args[dash:]
	}
	what := strings.TrimPrefix(usage, "banger ")
	switch {
	case len(names) == 0 || names[0] == "":
		return "", nil, usagef(usage+" NAME -- COMMAND", "%s needs the name of a VM", what)
	case len(names) > 1:
		return "", nil, usagef(usage+" "+quoted(names[0])+" -- "+quoted(append(names[1:], command...)...), "the command to run stands behind --")
	case dash >= 0 && len(command) == 0:
		return "", nil, usagef("leave out --", "there is no command behind --")
	}
	return names[0], command, nil
}

// sessionAge is how old a session is.
func (a *App) sessionAge(s api.Session) string {
	return age(a.Now().Sub(s.CreatedAt).Round(time.Second))
}
