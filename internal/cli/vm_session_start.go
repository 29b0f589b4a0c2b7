package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

type vmSessionStartOptions struct {
	vm, name, dir, user string
	stdin               *choice
	env, envFiles       []string
	command             []string
	attach              bool
}

func newVMSessionStart(a *App) *cobra.Command {
	o := &vmSessionStartOptions{}
	cmd := &cobra.Command{
		Use:   "start VM [-- COMMAND [ARG...]]",
		Short: "Start a session",
		Long: `Start a command in a VM, or a login shell, that goes on without any client, and print the session's name. It may
have no stdin, a pipe, or a terminal (pty), which then is where its output goes as well.`,
		Example: `  banger vm session start testbox --name planner --cwd /root/repo --stdin-mode pipe -- pi --mode rpc
  banger vm session start testbox --stdin-mode pty --attach -- vim
  banger vm session start testbox -- make test`,
		ValidArgsFunction: a.completeVMs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if o.vm, o.command, err = parseSession("banger vm session start", cmd.ArgsLenAtDash(), args); err != nil {
				return err
			}
			return runVMSessionStart(cmd.Context(), a, o)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&o.name, "name", "", "`name` of the session (default: one made of the command's)")
	fl.StringVar(&o.dir, "cwd", "", "`directory` in the VM to run it in")
	fl.StringVarP(&o.user, "user", "u", "", "`user` in the VM to run it as, by name or as uid[:gid]")
	fl.StringArrayVarP(&o.env, "env", "e", nil, "environment of the command, as `KEY=VALUE`; KEY alone takes the value of this environment")
	fl.StringArrayVar(&o.envFiles, "env-file", nil, "`file` of such lines; # starts a comment")
	fl.BoolVarP(&o.attach, "attach", "a", false, "attach to it at once")
	o.stdin = choiceFlag(cmd, "stdin-mode", "", wire.SessionNone, "`kind` of its stdin: none, pipe, pty", wire.SessionNone, wire.SessionPipe, wire.SessionPTY)
	for _, name := range []string{"name", "cwd", "user", "env"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions) // fails only for an unknown flag
	}
	return cmd
}

func runVMSessionStart(ctx context.Context, a *App, o *vmSessionStartOptions) error {
	env, err := environment(a, o.env, o.envFiles)
	if err != nil {
		return err
	}
	req := api.StartSession{Name: o.name, Command: o.command, Dir: o.dir, User: o.user, Env: env, Stdin: o.stdin.value}
	if req.Stdin == wire.SessionPTY {
		req.Env = append(a.terminalEnv(), env...)
		if a.Terminal.Out {
			req.Rows, req.Cols = a.size()
		}
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := a.offerStart(ctx, c, o.vm); err != nil {
		return err
	}
	s, err := startSession(ctx, c, o.vm, req)
	if err != nil {
		return err
	}
	if !o.attach {
		fmt.Fprintln(a.Out, safeText(s.Name))
		return nil
	}
	return runVMSessionAttach(ctx, a, &vmSessionAttachOptions{vm: s.VM, name: s.Name, all: true})
}
