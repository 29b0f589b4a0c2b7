package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/sshkeys"
)

func newVMSSH(a *App) *cobra.Command {
	return &cobra.Command{
		Use:   "ssh [SSH-OPTIONS] [USER@]NAME [SSH-OPTIONS] [-- COMMAND [ARG...]]",
		Short: "Open a shell in a VM with OpenSSH, or run a command",
		Long: `Open a shell in a VM that runs, or run a command there, with the OpenSSH client of this host. Options
are ssh's own and stand before or behind the name: -A, -L, -R, -D, -J, -N, -f, -t, -v, -o … (see ssh(1)).
As with ssh, the arguments of a command are joined with blanks and read by a shell in the VM. The exit
status is ssh's: the command's own, 255 where the connection failed.

VM and host know each other's keys: nothing is asked. What else ssh is told stands in ~/.ssh/config as
usual. For ssh, scp, rsync, git and editors without banger in front: banger ssh-config --install`,
		Example: `  banger vm ssh testbox
  banger vm ssh testbox -- make -C repo test
  banger vm ssh -A -L 8080:localhost:80 testbox
  banger vm ssh -t testbox -- sudo -u nobody sh`,
		DisableFlagParsing: true,
		ValidArgsFunction:  a.completeSSH,
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := parseSSH(args)
			switch {
			case err != nil:
				return err
			case o.help:
				return cmd.Help()
			}
			return runVMSSH(cmd.Context(), a, o)
		},
	}
}

// sshOptions is a command line of vm ssh.
type sshOptions struct {
	// options are ssh's, as they were given; user is that of USER@NAME.
	options    []string
	user, name string
	command    []string
	help       bool
}

// sshTakeValue are ssh's options that take a value (ssh(1), OpenSSH 10).
const sshTakeValue = "BbcDEeFIiJLlmOoPpQRSWw"

// parseSSH reads arguments as ssh does: options before and behind the name; the first other argument behind it, or what
// stands behind --, is the command.
func parseSSH(args []string) (sshOptions, error) {
	var o sshOptions
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case arg == "--help" || arg == "-h":
			o.help = true
			return o, nil
		case arg == "--quiet":
			o.options = append(o.options, "-q")
		case arg == "--":
			if o.command = args[i+1:]; o.name == "" || len(o.command) == 0 {
				return o, usagef("banger vm ssh NAME -- COMMAND", "a name stands before --, a command behind it")
			}
			return o, nil
		case strings.HasPrefix(arg, "--"):
			return o, usagef("ssh's options have one letter, such as -v; a command and its options stand behind --", "unknown flag: %s", arg)
		case len(arg) > 1 && arg[0] == '-':
			o.options = append(o.options, arg)
			if !sshValueFollows(arg) {
				continue
			}
			if i++; i == len(args) {
				return o, usagef("banger vm ssh --help", "flag needs an argument: %s", arg)
			}
			o.options = append(o.options, args[i])
		case o.name == "":
			at := strings.LastIndexByte(arg, '@')
			o.user, o.name = arg[:max(at, 0)], vmOfHost(arg[at+1:])
			if o.name == "" || at == 0 {
				return o, usagef("banger vm list", "%q is not the name of a VM", arg)
			}
		default:
			o.command = args[i:]
			return o, nil
		}
	}
	if o.name == "" {
		return o, usagef("banger vm list", "vm ssh needs the name of a VM")
	}
	return o, nil
}

// sshValueFollows reports whether the next argument is the value of an option in arg, options of one letter such as -vo.
func sshValueFollows(arg string) bool {
	return len(arg) > 1 && arg[0] == '-' && strings.IndexAny(arg[1:], sshTakeValue) == len(arg)-2
}

// vmOfHost is the VM that a host name means: web.vm is web.
func vmOfHost(host string) string { return strings.TrimSuffix(host, sshkeys.Domain) }

// completeSSH completes [USER@]NAME.
func (a *App) completeSSH(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	o, _ := parseSSH(args) // an error is that there is no name yet, or that an option's value is what comes now
	switch {
	case o.name == "" && len(args) > 0 && sshValueFollows(args[len(args)-1]):
		return nil, cobra.ShellCompDirectiveDefault
	case o.name != "" || o.help || strings.HasPrefix(toComplete, "-"):
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	at := strings.LastIndexByte(toComplete, '@') + 1
	names, directive := a.completeVMs(0)(cmd, nil, toComplete[at:])
	for i := range names {
		names[i] = toComplete[:at] + names[i]
	}
	return names, directive
}

func runVMSSH(ctx context.Context, a *App, o sshOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := a.lookPath("ssh"); err != nil { // before a VM is started for it
		vm, verr := c.VM(ctx, o.name)
		if verr != nil {
			return verr
		}
		return api.Errorf(api.KindUnavailable, "run ssh: %w", err).
			WithHint("install OpenSSH's client (Debian, Ubuntu: apt install openssh-client; Fedora: dnf install openssh-clients), or use banger vm exec -it %s", vm.Name)
	}
	if err := a.offerStart(ctx, c, o.name); err != nil {
		return err
	}
	target, err := c.SSHTarget(ctx, o.name)
	if err != nil {
		return err
	}
	argv, err := a.sshCommand(target, o)
	if err != nil {
		return err
	}
	if a.Replace != nil {
		return a.Replace(argv)
	}
	return hostexec.Runner{}.Replace(argv)
}

// sshCommand is the ssh command line for a VM. Of settings that are given twice ssh takes the first: what makes the connection
// go to the VM, and safely, stands before the user's options, and what is only a default behind them.
func (a *App) sshCommand(t api.SSHTarget, o sshOptions) ([]string, error) {
	exe, err := a.selfPath()
	if err != nil {
		return nil, err
	}
	knownHosts, err := sshPath(t.KnownHosts)
	if err != nil {
		return nil, err
	}
	identity, err := sshPath(t.IdentityFile)
	if err != nil {
		return nil, err
	}
	host := t.Name + sshkeys.Domain
	proxy := sshPercent(quoted(exe, "ssh-proxy", "--fdpass", t.Name))
	argv := []string{"ssh"}
	for _, s := range append(sshSafety(knownHosts, proxy), sshSetting{"ProxyUseFdpass", "yes"},
		sshSetting{"HostKeyAlias", t.HostKeyAlias}, sshSetting{"HostName", host}) {
		argv = append(argv, "-o", s.key+"="+s.value)
	}
	argv = append(argv, o.options...)
	if o.user != "" {
		argv = append(argv, "-l", o.user)
	}
	for _, s := range sshDefaults(t.User, identity) {
		argv = append(argv, "-o", s.key+"="+s.value)
	}
	argv = append(argv, host)
	if len(o.command) > 0 {
		argv = append(append(argv, "--"), o.command...)
	}
	return argv, nil
}
