package cli

import (
	"os"
	"path/filepath"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// sshSetting is a keyword of ssh_config(5) with its value, quoted as it must be there.
type sshSetting struct{ key, value string }

// sshSafety are the settings that connect ssh to a VM and to no other host. knownHosts is an sshPath, proxy a command for a shell.
func sshSafety(knownHosts, proxy string) []sshSetting {
	return []sshSetting{
		{"ProxyCommand", proxy},
		{"UserKnownHostsFile", knownHosts},
		{"GlobalKnownHostsFile", "/dev/null"},
		{"StrictHostKeyChecking", "yes"},
		{"VerifyHostKeyDNS", "no"},
		{"UpdateHostKeys", "no"},
		{"CanonicalizeHostname", "no"},
	}
}

// sshDefaults are settings without which the user's own for other hosts, such as those of "Host *", would be in the way, or
// hand a guest the user's keys and screen: those are forwarded to a VM only where the command line says so (-A, -X).
func sshDefaults(user, identity string) []sshSetting {
	return []sshSetting{
		{"User", user},
		{"Port", "22"},
		{"IdentityFile", identity},
		{"IdentitiesOnly", "yes"},
		{"PubkeyAuthentication", "yes"},
		{"PreferredAuthentications", "publickey"},
		{"HostKeyAlgorithms", "ssh-ed25519"},
		{"RemoteCommand", "none"},
		{"ForwardAgent", "no"},
		{"ForwardX11", "no"},
	}
}

// sshPath is a path as a value of ssh_config(5). There is no way to write some characters there.
func sshPath(path string) (string, error) {
	if strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == '"' || r == '\\' }) || strings.Contains(path, "${") {
		return "", api.Errorf(api.KindInvalid, "path %q has characters that the configuration of ssh cannot hold", path).
			WithHint("move it (XDG_CONFIG_HOME, XDG_STATE_HOME, ssh_key_path) to a path without quotes, backslashes and ${")
	}
	return `"` + sshPercent(path) + `"`, nil
}

// sshPercent keeps ssh from taking a % for the beginning of a token.
func sshPercent(s string) string { return strings.ReplaceAll(s, "%", "%%") }

// lookPath finds a program of the host.
func (a *App) lookPath(name string) (string, error) {
	if a.LookPath != nil {
		return a.LookPath(name)
	}
	return hostexec.Runner{}.LookPath(name)
}

// selfPath is the absolute path of this program: the one in PATH where that is the same file, for it outlives an upgrade
// that changes the path of the file.
func (a *App) selfPath() (string, error) {
	exe, err := a.Executable()
	if err != nil {
		return "", err
	}
	inPath, err := a.lookPath(filepath.Base(exe))
	if err != nil {
		return exe, nil //nolint:nilerr // it is not in PATH
	}
	if inPath, err = filepath.Abs(inPath); err != nil {
		return exe, nil //nolint:nilerr // the working directory is gone
	}
	one, err1 := os.Stat(inPath)
	other, err2 := os.Stat(exe)
	if err1 == nil && err2 == nil && os.SameFile(one, other) {
		return inPath, nil
	}
	return exe, nil
}
