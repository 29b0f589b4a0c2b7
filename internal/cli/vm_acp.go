package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// acpCommand is the agent that vm acp runs where none is named.
var acpCommand = []string{"opencode", "acp"}

type vmACPOptions struct {
	vm, dir, user string
	env           []string
	command       []string
}

func newVMACP(a *App) *cobra.Command {
	o := &vmACPOptions{}
	cmd := &cobra.Command{
		Use:        "acp VM [-- COMMAND [ARG...]]",
		SuggestFor: []string{"agent", "opencode"},
		Short:      "Connect stdin and stdout with a coding agent in a VM",
		Long: `Connect stdin and stdout with a coding agent in a VM that speaks the Agent Client Protocol: opencode acp, or
the command behind --. For editors that start their agent as a command. Bytes pass unchanged, nothing else is
printed on stdout, and the exit status is the agent's.`,
		Example: `  banger vm acp testbox --cwd /root/repo
  banger vm acp testbox -- other-agent --acp`,
		ValidArgsFunction: a.completeVMs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if o.vm, o.command, err = parseSession("banger vm acp", cmd.ArgsLenAtDash(), args); err != nil {
				return err
			}
			return inRun(runVMACP(cmd.Context(), a, o))
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&o.dir, "cwd", "", "`directory` in the VM to run it in")
	fl.StringVarP(&o.user, "user", "u", "", "`user` in the VM to run it as, by name or as uid[:gid]")
	fl.StringArrayVarP(&o.env, "env", "e", nil, "environment of the agent, as `KEY=VALUE`; KEY alone takes the value of this environment")
	for _, name := range []string{"cwd", "user", "env"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions) // fails only for an unknown flag
	}
	return cmd
}

func runVMACP(ctx context.Context, a *App, o *vmACPOptions) error {
	env, err := environment(a, o.env, nil)
	if err != nil {
		return err
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	command := o.command
	if len(command) == 0 {
		command = acpCommand
	}
	err = a.runRemote(ctx, c, remote{vm: o.vm, stdin: true,
		start: wire.ExecStart{ID: exec.NewID(), Argv: command, Dir: o.dir, User: o.user, Env: env}})
	if run, ok := errors.AsType[*runError](err); ok && run.status == exitNotFound && len(o.command) == 0 {
		return &runError{status: exitNotFound, err: api.AsError(run.err).WithHint("install opencode in the VM, or name another agent: banger vm acp %s -- AGENT", quoted(o.vm))}
	}
	return err
}
