package cli

import (
	"context"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

type vmExecOptions struct {
	name     string
	command  []string
	env      []string
	envFiles []string
	attach   string
	session  string
	remote   remoteFlags
}

func newVMExec(a *App) *cobra.Command {
	o := &vmExecOptions{}
	cmd := &cobra.Command{
		Use:        "exec NAME [-- COMMAND [ARG...]]",
		SuggestFor: []string{"shell", "attach"},
		Short:      "Run a command in a VM that runs",
		Long: `Run a command in a VM that runs, or a login shell. stdin, stdout and stderr are passed through and
the exit status is the command's: 128+n where signal n ended it, 126 where it cannot be executed, 127
where there is no such command. banger's own failures are 125.`,
		Example: `  banger vm exec testbox -- make test
  banger vm exec testbox -w /root/repo -e K=V -- ./ci.sh
  banger vm exec -it testbox -- bash
  banger vm exec -it --session work testbox -- bash
  banger vm exec --attach 4f0c2a9be1d85c3372d06d4ce6a1b7f0 testbox`,
		ValidArgsFunction: a.completeVMs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.parse(cmd.ArgsLenAtDash(), args); err != nil {
				return err
			}
			return inRun(runVMExec(cmd.Context(), a, o))
		},
	}
	cmd.Flags().StringArrayVarP(&o.env, "env", "e", nil, "environment of the command, as `KEY=VALUE`; KEY alone takes the value of this environment")
	cmd.Flags().StringArrayVar(&o.envFiles, "env-file", nil, "`file` of such lines; # starts a comment")
	cmd.Flags().StringVar(&o.attach, "attach", "", "attach to the command with this `id` instead of starting one")
	_ = cmd.RegisterFlagCompletionFunc("env", cobra.NoFileCompletions)    // fails only for an unknown flag
	_ = cmd.RegisterFlagCompletionFunc("attach", cobra.NoFileCompletions) // likewise
	sessionFlag(cmd, &o.session)
	o.remote.register(cmd)
	return cmd
}

// sessionFlag registers --session.
func sessionFlag(cmd *cobra.Command, p *string) {
	cmd.Flags().StringVar(p, "session", "", "run it as the session of this `name`, which can be left and come back to")
	_ = cmd.RegisterFlagCompletionFunc("session", cobra.NoFileCompletions) // fails only for an unknown flag
}

// execID is the form of a command's id.
var execID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// parse takes the arguments; dash is how many of them stand before --, negative where there is none.
func (o *vmExecOptions) parse(dash int, args []string) error {
	names := args
	if dash >= 0 {
		names, o.command = args[:dash], args[dash:]
	}
	switch {
	case len(names) == 0:
		return usagef("banger vm exec NAME -- COMMAND", "vm exec needs the name of a VM")
	case len(names) > 1:
		return usagef(quoted(append([]string{"banger", "vm", "exec", names[0], "--"}, append(names[1:], o.command...)...)...),
			"the command to run stands behind --")
	case dash >= 0 && len(o.command) == 0:
		return usagef("banger vm exec "+quoted(names[0]), "there is no command behind --")
	case o.attach != "" && len(o.command) > 0:
		return usagef("", "--attach and a command exclude each other")
	case o.attach != "" && o.session != "":
		return usagef("banger vm session attach "+quoted(names[0], o.session), "--attach and --session exclude each other")
	case o.attach != "" && !execID.MatchString(o.attach):
		return usagef("", "--attach is %q, not the id of a command: 32 hex digits", o.attach)
	}
	o.name = names[0]
	return nil
}

func runVMExec(ctx context.Context, a *App, o *vmExecOptions) error {
	env, err := environment(a, o.env, o.envFiles)
	if err != nil {
		return err
	}
	tty, err := o.remote.terminal(a, len(o.command) == 0)
	if err != nil {
		return err
	}
	if o.attach != "" && !o.remote.ttyGiven() {
		tty = false // it has one only if it was started with one, and who comes back says so
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	if o.attach == "" {
		if err := a.offerStart(ctx, c, o.name); err != nil {
			return err
		}
	}
	r := remote{vm: o.name, attach: o.attach, stdin: o.remote.interactive, start: wire.ExecStart{
		ID: exec.NewID(), Argv: o.command, Dir: o.remote.workDir, User: o.remote.user, PTY: tty, Env: env,
	}}
	if tty {
		r.start.Env = append(a.terminalEnv(), env...)
	}
	if o.session != "" {
		return a.runInSession(ctx, c, r, o.session)
	}
	return a.runRemote(ctx, c, r)
}

// terminalVariables are what a command with a terminal must know of it and of who sits there: its kind and the locale,
// as ssh passes them on (locale(7) has the list).
var terminalVariables = strings.Fields(`TERM COLORTERM LANG LANGUAGE LC_ALL LC_ADDRESS LC_COLLATE LC_CTYPE LC_IDENTIFICATION
	LC_MEASUREMENT LC_MESSAGES LC_MONETARY LC_NAME LC_NUMERIC LC_PAPER LC_TELEPHONE LC_TIME`)

// terminalEnv is the values of terminalVariables.
func (a *App) terminalEnv() []string {
	var out []string
	for _, key := range terminalVariables {
		if v := a.Getenv(key); v != "" {
			out = append(out, key+"="+v)
		}
	}
	return out
}
