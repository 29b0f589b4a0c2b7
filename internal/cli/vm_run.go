package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/hostproc"
)

// releaseWithin bounds the wait for a VM to be deleted at the end of a --rm run.
const releaseWithin = time.Minute

type vmRunOptions struct {
	vm         vmFlags
	remote     remoteFlags
	workspace  workspaceFlags
	wait       *choice
	rm, detach bool
	force      bool   // delete without a question
	path       string // empty for none
	session    string // empty for none
	command    []string
}

func newVMRun(a *App) *cobra.Command {
	o := &vmRunOptions{}
	cmd := &cobra.Command{
		Use:   "run [PATH] [-- COMMAND [ARG...]]",
		Short: "Make a VM and run a command or a shell in it",
		Long: `Make a VM, start it and run a command in it, or a login shell. With PATH, a git work tree or another
directory, that is copied to /root/<its name> and is where the command runs. With --branch the VM works on
a new branch of it; what it commits is brought back by banger vm workspace pull.

stdin, stdout and stderr are passed through and the exit status is the command's: 128+n where signal
n ended it, 126 where it cannot be executed, 127 where there is no such command. banger's own
failures are 125. The VM stays afterwards, unless --rm is given; with --rm on a terminal you are asked
before commits go with it that were not pulled.`,
		Example: `  banger vm run
  banger vm run ./repo
  banger vm run ./repo -- make test
  banger vm run ./repo --branch try-it --from origin/main -- make test
  banger vm run --rm -- sh -c 'exit 7'
  banger vm run --name web --cpus 2 --memory 1GiB --disk 30GiB --image debian-bookworm -e KEY=VALUE --detach
  banger vm run -p 8080:80 -p 127.0.0.1:5353:53/udp ./repo -- make serve
  banger vm run --host-port 5432 ./repo -- make test
  banger vm run --session work ./repo
  banger vm run --rm --kernel mine -- uname -r`,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 0 && cmd.ArgsLenAtDash() < 0 {
				return nil, cobra.ShellCompDirectiveFilterDirs
			}
			return nil, cobra.ShellCompDirectiveDefault
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.parse(cmd.ArgsLenAtDash(), args); err != nil {
				return err
			}
			return inRun(runVMRun(cmd.Context(), a, o))
		},
	}
	o.vm.register(a, cmd)
	o.remote.register(cmd)
	o.workspace.register(cmd)
	cmd.Flags().BoolVar(&o.rm, "rm", false, "delete the VM when the command has ended; with --detach, when the VM stops")
	cmd.Flags().BoolVarP(&o.detach, "detach", "d", false, "leave the VM, and the command, running; print the VM's name")
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "with --rm: also with commits that were not pulled, without a question")
	sessionFlag(cmd, &o.session)
	o.wait = waitFlag(cmd)
	return cmd
}

// parse takes the arguments; dash is how many of them stand before --, negative where there is none.
func (o *vmRunOptions) parse(dash int, args []string) error {
	paths := args
	if dash >= 0 {
		paths, o.command = args[:dash], args[dash:]
	}
	switch {
	case dash >= 0 && len(o.command) == 0:
		return usagef("leave out --", "there is no command behind --")
	case o.session != "" && o.rm && !o.detach:
		return usagef("leave out --rm, or give --detach as well: the VM then goes when it stops",
			"--rm deletes the VM when its command has ended, and with --session that goes on after you left")
	case len(paths) > 1:
		fixed := append([]string{"banger", "vm", "run", "--"}, paths...)
		if isDir(paths[0]) {
			fixed = append([]string{"banger", "vm", "run", paths[0], "--"}, paths[1:]...)
		}
		return usagef(quoted(append(fixed, o.command...)...), "vm run takes one PATH, and the command behind --")
	case len(paths) == 1:
		o.path = paths[0]
		return o.looksLikeCommand(dash)
	}
	return nil
}

// looksLikeCommand refuses a PATH that is none but is a command of the host: the -- was forgotten.
func (o *vmRunOptions) looksLikeCommand(dash int) error {
	if dash >= 0 || isDir(o.path) {
		return nil
	}
	if _, err := (hostexec.Runner{}).LookPath(o.path); err != nil {
		return nil
	}
	return usagef(quoted("banger", "vm", "run", "--", o.path), "%q is a command, not a directory: commands stand behind --", o.path)
}

func isDir(p string) bool {
	st, err := os.Stat(p)
	return err == nil && st.IsDir()
}

// run is one vm run.
type run struct {
	app    *App
	client *client.Client
	opts   *vmRunOptions
	req    api.CreateVM
	path   string // absolute, empty for none
	tty    bool
	vm     api.VM // once it is made
	dir    string // in the guest, where the command runs
	// asks: a question may follow the command.
	asks bool
}

func runVMRun(ctx context.Context, a *App, o *vmRunOptions) error {
	r, err := newRun(a, o) // all that can be wrong here is found before anything is made
	if err != nil {
		return err
	}
	defer r.client.Close()
	if r.path != "" {
		if err := r.client.CheckWorkspace(ctx, r.workspace()); err != nil {
			return err
		}
	}
	if err := r.create(ctx); err != nil {
		return err
	}
	if err := r.prepare(ctx); err != nil {
		return r.abandon(ctx, err)
	}
	if o.detach {
		return r.leave(ctx)
	}
	return r.finish(ctx, r.run(ctx))
}

// run runs the command.
func (r *run) run(ctx context.Context) error {
	rem := r.remote()
	if r.opts.session != "" {
		return r.app.runInSession(ctx, r.client, rem, r.opts.session)
	}
	if r.asks {
		in, err := takeSeat(r.app.In)
		if err != nil {
			return err
		}
		defer in.leave()
		rem.in = in
	}
	return r.app.runRemote(ctx, r.client, rem)
}

// workspace is what is copied.
func (r *run) workspace() api.PrepareWorkspace {
	req := r.opts.workspace.request(r.path)
	req.Force = true // the VM is new: what is at that path came with its image
	return req
}

func newRun(a *App, o *vmRunOptions) (*run, error) {
	r := &run{app: a, opts: o, dir: o.remote.workDir}
	if o.force && !o.rm {
		return nil, usagef("banger vm delete --force NAME", "--force is about what --rm deletes, and there is no --rm")
	}
	err := o.workspace.check(o.path, "banger", "vm", "run")
	if err != nil {
		return nil, err
	}
	if r.path, err = checkPath(o.path); err != nil {
		return nil, err
	}
	if r.req, err = o.vm.request(a); err != nil {
		return nil, err
	}
	if !o.detach {
		if r.tty, err = o.remote.terminal(a, len(o.command) == 0); err != nil {
			return nil, err
		}
	}
	r.req.Start, r.req.Wait, r.req.RemoveOnExit = true, api.Mark(o.wait.value), o.rm
	if r.path != "" {
		r.req.Wait = api.MarkAgent // the copy starts there; prepare waits for the rest
	}
	if o.rm && !o.detach {
		r.asks = !o.force && a.Terminal.In && a.Terminal.Err
		if r.req.Owner, err = self(); err != nil {
			return nil, err
		}
	}
	r.client, err = a.connect()
	return r, err
}

// checkPath makes path absolute, and refuses what is not a directory one can read.
func checkPath(p string) (string, error) {
	if p == "" {
		return "", nil
	}
	abs, err := filepath.Abs(p)
	if err != nil {
		return "", fmt.Errorf("copy %q: %w", p, err)
	}
	st, err := os.Stat(abs)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", api.Errorf(api.KindInvalid, "copy %q: there is no such directory", p)
	case err != nil:
		return "", api.Errorf(api.KindInvalid, "copy %q: %w", p, cause(err))
	case !st.IsDir():
		return "", api.Errorf(api.KindInvalid, "copy %q: it is not a directory", p).
			WithHint("give the directory it is in")
	}
	f, err := os.Open(abs)
	if err == nil {
		_, err = f.Readdirnames(1)
		f.Close()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return "", api.Errorf(api.KindInvalid, "copy %q: it cannot be read: %w", p, cause(err))
	}
	return abs, nil
}

// cause is err without the path that the message around it names already.
func cause(err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return pe.Err
	}
	return err
}

// create makes and starts the VM. Where it fails the daemon has cleaned up; where it succeeds in
// spite of an interrupt that is done here.
func (r *run) create(ctx context.Context) error {
	op, err := r.app.operate(ctx, r.client, job{post: func(ctx context.Context) (api.Operation, error) {
		return r.client.CreateVM(ctx, r.req)
	}})
	if op.State == api.OperationDone {
		vm, rerr := client.Result[api.VM](op)
		if rerr != nil {
			return rerr
		}
		r.vm = vm
		if err != nil {
			return r.abandon(ctx, err)
		}
		r.app.sayEmulated(vm)
	}
	return err
}

// prepare copies the directory and waits until the guest has come as far as --wait says.
func (r *run) prepare(ctx context.Context) error {
	if r.path == "" {
		return nil
	}
	op, err := r.app.operate(ctx, r.client, job{post: func(ctx context.Context) (api.Operation, error) {
		return r.client.PrepareWorkspace(ctx, r.vm.ID, r.workspace())
	}})
	if err != nil {
		return err
	}
	ws, err := client.Result[api.Workspace](op)
	if err != nil {
		return err
	}
	r.app.sayPrepared(r.vm.Name, ws)
	if r.dir = ws.GuestPath; r.opts.remote.workDir != "" {
		r.dir = r.opts.remote.workDir
		if !path.IsAbs(r.dir) {
			r.dir = path.Join(ws.GuestPath, r.dir)
		}
	}
	want := api.Mark(r.opts.wait.value)
	if want == api.MarkAgent {
		return nil
	}
	_, err = r.app.operate(ctx, r.client, job{post: func(ctx context.Context) (api.Operation, error) {
		return r.client.StartVM(ctx, r.vm.ID, api.StartVM{Wait: want})
	}})
	return err
}

// abandon removes the VM of a run that did not get as far as its command. A VM whose guest failed
// stays, as its logs tell why.
func (r *run) abandon(ctx context.Context, err error) error {
	if e := api.AsError(err); e.Kind == api.KindGuest {
		return e.WithHint("the VM was kept: banger vm logs %s, then banger vm delete --force %s", r.vm.Name, r.vm.Name)
	}
	r.remove(ctx, func(ctx context.Context) (api.Operation, error) {
		return r.client.DeleteVM(ctx, r.vm.ID, api.DeleteVM{Force: true})
	})
	return err
}

// remove runs the operation that deletes the VM, whatever has become of ctx.
func (r *run) remove(ctx context.Context, post func(context.Context) (api.Operation, error)) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseWithin)
	defer cancel()
	_, err := r.app.operate(ctx, r.client.Passive(), job{post: post, keep: true})
	if err != nil {
		fmt.Fprintf(r.app.Err, "banger: vm %q is not removed yet: %s\n", r.vm.Name, safeText(err.Error()))
		fmt.Fprintf(r.app.Err, "hint: banger vm delete --force %s\n", r.vm.Name)
	}
}

// remote is the command of the run.
func (r *run) remote() remote {
	out := remote{vm: r.vm.Name, stdin: r.opts.remote.interactive, start: wire.ExecStart{
		ID: exec.NewID(), Argv: r.opts.command, Dir: r.dir, User: r.opts.remote.user, PTY: r.tty,
	}}
	if r.tty {
		out.start.Env = r.app.terminalEnv()
	}
	return out
}

// leave starts the command, if there is one, and leaves it and the VM running.
func (r *run) leave(ctx context.Context) error {
	if rem := r.remote(); r.opts.session != "" {
		req := api.StartSession{Name: r.opts.session, Command: rem.start.Argv, Dir: rem.start.Dir, User: rem.start.User, Stdin: wire.SessionNone}
		if len(req.Command) == 0 {
			req.Stdin = wire.SessionPTY // for a shell that somebody comes to
		}
		if _, err := startSession(ctx, r.client, r.vm.Name, req); err != nil {
			return r.abandon(ctx, err)
		}
	} else if len(r.opts.command) > 0 {
		rem.start.Detach, rem.start.NoStdin, rem.stdin = true, true, false
		if err := r.app.runRemote(ctx, r.client, rem); err != nil {
			return r.abandon(ctx, err)
		}
	}
	fmt.Fprintln(r.app.Out, r.vm.Name)
	return nil
}

// self is this process as the owner of a VM.
func self() (*api.Owner, error) {
	p, err := hostproc.Identify(os.Getpid())
	if err != nil {
		return nil, err
	}
	o := api.Owner(p)
	return &o, nil
}
