package cli

import (
	"cmp"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/internal/config"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/sshkeys"
)

type sshConfigOptions struct{ install, uninstall bool }

func newSSHConfig(a *App) *cobra.Command {
	o := &sshConfigOptions{}
	cmd := &cobra.Command{
		Use:   "ssh-config [--install | --uninstall]",
		Short: "Let ssh, scp, rsync, git and editors reach VMs as NAME.vm",
		Long: `Print what OpenSSH must be told so that ssh NAME.vm reaches the VM of that name; so do scp, sftp, rsync,
git, VS Code's Remote-SSH and DOCKER_HOST=ssh://NAME.vm. It holds for VMs that are made later too.

--install writes it to a file of banger's own and puts one Include of that at the top of ~/.ssh/config.
Do it again when banger, its directories or ssh_key_path have moved. --uninstall takes both away.`,
		Example: `  banger ssh-config
  banger ssh-config --install
  banger ssh-config --uninstall`,
		GroupID:           groupDaemon,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			return runSSHConfig(a, o)
		},
	}
	cmd.Flags().BoolVar(&o.install, "install", false, "have ~/.ssh/config include it")
	cmd.Flags().BoolVar(&o.uninstall, "uninstall", false, "undo --install")
	cmd.MarkFlagsMutuallyExclusive("install", "uninstall")
	return cmd
}

func runSSHConfig(a *App, o *sshConfigOptions) error {
	p, err := a.paths()
	if err != nil {
		return err
	}
	home, err := paths.Home(a.Getenv)
	if err != nil {
		return err
	}
	in := inclusion{user: filepath.Join(home, ".ssh", "config"), own: p.SSHConfig()}
	if o.uninstall {
		changed, err := in.remove()
		if err == nil && !changed {
			a.say("there was nothing of banger in %s", in.user)
		}
		return err
	}
	text, err := a.sshConfig(p)
	if err != nil {
		return err
	}
	if !o.install {
		fmt.Fprint(a.Out, text)
		return nil
	}
	if err := in.add(text); err != nil {
		return err
	}
	if account, err := a.accountHome(); err == nil && filepath.Clean(account) != filepath.Clean(home) {
		a.say("%s includes %s now", in.user, in.own)
		a.say("but ssh goes by the user's account and not by HOME, and reads %s: tell it %s", filepath.Join(account, ".ssh", "config"), quoted("ssh", "-F", in.user))
		return nil
	}
	a.say("%s includes %s now: ssh NAME.vm reaches the VM of that name", in.user, in.own)
	return nil
}

// accountHome is where ssh looks for its user's files (ssh takes pw_dir of getpwuid(3)).
func (a *App) accountHome() (string, error) {
	if a.AccountHome != nil {
		return a.AccountHome()
	}
	u, err := user.LookupId(strconv.Itoa(os.Getuid())) // user.Current would go by HOME
	if err != nil {
		return "", err
	}
	return u.HomeDir, nil
}

// sshConfig is the configuration of ssh for all VMs. Host names come from others too (a repository's submodules): before
// OpenSSH 9.6 ssh put anything into the ProxyCommand. In single quotes only a single quote could do harm, and a name with one is no VM's.
func (a *App) sshConfig(p paths.Paths) (string, error) {
	settings, _, err := config.Load(p.ConfigFile())
	if err != nil {
		return "", err
	}
	exe, err := a.selfPath()
	if err != nil {
		return "", err
	}
	knownHosts, err := sshPath(p.KnownHosts())
	if err != nil {
		return "", err
	}
	identity, err := sshPath(cmp.Or(settings.SSHKeyPath, p.SSHKey()))
	if err != nil {
		return "", err
	}
	proxy := sshPercent(quoted(append(a.proxyEnv(), exe, "ssh-proxy")...)) + " '%h'"
	var b strings.Builder
	b.WriteString("# VMs of banger as NAME.vm. banger ssh-config --install writes this file, --uninstall removes it.\n")
	fmt.Fprintf(&b, "Host *%s \"!*'*\"\n", sshkeys.Domain)
	for _, s := range append(append(sshSafety(knownHosts, proxy), sshSetting{"HostName", "%h"}), sshDefaults("root", identity)...) {
		fmt.Fprintf(&b, "    %s %s\n", s.key, s.value)
	}
	return b.String(), nil
}

// proxyEnv is the beginning of a command that gives the proxy the directories of this environment, wherever ssh is started from;
// nothing where they are the usual ones.
func (a *App) proxyEnv() []string {
	var env []string
	for _, key := range []string{"XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"} {
		if v := a.Getenv(key); filepath.IsAbs(v) { // any other counts as unset (paths.FromEnv)
			env = append(env, key+"="+filepath.Clean(v))
		}
	}
	if len(env) == 0 {
		return nil
	}
	return append([]string{"env"}, env...)
}
