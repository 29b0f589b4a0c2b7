package process

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// defaultPath is PATH where nothing else sets it.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// command is a request resolved against the guest: what execve needs to know.
type command struct {
	files []string // candidates, absolute, in order
	argv  []string
	env   []string
	dir   string
	user  account
}

// start runs a request's process.
func (m *Manager) start(req *wire.ExecStart) (*proc, error) {
	if err := validate(req); err != nil {
		return nil, err
	}
	p := newProc(m, req)
	if err := m.reserve(p); err != nil {
		return nil, err
	}
	defer close(p.ready)
	if err := m.launch(p, req); err != nil {
		m.unreserve(p)
		return nil, err
	}
	return p, nil
}

func (m *Manager) launch(p *proc, req *wire.ExecStart) *wire.ExecError {
	cmd, err := m.resolve(req)
	if err != nil {
		return err
	}
	io, ioErr := openStdio(req, cmd.user)
	if ioErr != nil {
		return wire.ExecErrorf(wire.ExecFailed, "start %q: %v", cmd.argv[0], ioErr)
	}
	pid, err := cmd.spawn(io)
	io.closeChild()
	if err != nil {
		io.closeParent()
		return err
	}
	if m.cfg.Started != nil {
		m.cfg.Started(pid)
	}
	p.run(pid, io)
	return nil
}

// validate checks what does not depend on the guest.
func validate(req *wire.ExecStart) *wire.ExecError {
	if req.Version != wire.Version {
		return wire.ExecErrorf(wire.ExecInvalid, "the host speaks version %d of the guest protocol, the agent version %d", req.Version, wire.Version)
	}
	if !validID(req.ID) {
		return wire.ExecErrorf(wire.ExecInvalid, "process id %q is not 32 hex digits", req.ID)
	}
	if len(req.Argv) > 0 && req.Argv[0] == "" {
		return wire.ExecErrorf(wire.ExecInvalid, "the command is empty")
	}
	if len(req.Modes) > wire.MaxModes {
		return wire.ExecErrorf(wire.ExecInvalid, "terminal modes of %d bytes", len(req.Modes))
	}
	for _, s := range slices.Concat(req.Argv, req.Env, []string{req.Dir}) {
		if strings.ContainsRune(s, 0) {
			return wire.ExecErrorf(wire.ExecInvalid, "%q contains a NUL", s)
		}
	}
	for _, e := range req.Env {
		if strings.IndexByte(e, '=') < 1 {
			return wire.ExecErrorf(wire.ExecInvalid, "environment %q is not KEY=VALUE", e)
		}
	}
	return nil
}

func validID(id string) bool {
	return len(id) == 32 && strings.Trim(id, "0123456789abcdef") == ""
}

// resolve looks up user, environment, directory and command.
func (m *Manager) resolve(req *wire.ExecStart) (*command, *wire.ExecError) {
	var def Defaults
	if m.cfg.Defaults != nil {
		def = m.cfg.Defaults()
	}
	user, err := lookupAccount(m.cfg.EtcDir, cmp.Or(req.User, def.User))
	if err != nil {
		return nil, err
	}
	env := baseEnv(user, req.PTY)
	for _, e := range def.Env {
		// The VM's environment describes the VM's user: it must not make another one believe to be that one.
		if k, _, ok := strings.Cut(e, "="); !ok || (req.User != "" && slices.Contains([]string{"HOME", "USER", "LOGNAME", "SHELL"}, k)) {
			continue
		}
		env.set(e)
	}
	if home := env.get("HOME"); path.IsAbs(home) {
		user.home = home
	}
	dir, err := workDir(req.Dir, def.WorkDir, user)
	if err != nil {
		return nil, err
	}
	env.set("PWD=" + dir)
	for _, e := range req.Env {
		env.set(e)
	}
	cmd := &command{argv: req.Argv, env: env, dir: dir, user: user}
	if len(req.Argv) == 0 {
		cmd.loginShell()
		if _, err := os.Stat(cmd.files[0]); err == nil || len(def.Cmd) == 0 || def.Cmd[0] == "" {
			return cmd, nil
		}
		cmd.argv = def.Cmd
	}
	return cmd, cmd.search(env.get("PATH"))
}

// loginShell makes cmd the login shell of its user.
func (c *command) loginShell() {
	shell := c.user.loginShell()
	c.files, c.argv = []string{shell}, []string{"-" + path.Base(shell)}
}

// search finds the files argv[0] may mean, as execvp does, seen from c.dir.
func (c *command) search(pathVar string) *wire.ExecError {
	name := c.argv[0]
	if strings.Contains(name, "/") {
		c.files = []string{absolute(c.dir, name)}
		return nil
	}
	denied := false
	for dir := range strings.SplitSeq(pathVar, ":") {
		file := absolute(c.dir, path.Join(cmp.Or(dir, "."), name))
		st, err := os.Stat(file)
		switch {
		case err == nil && !st.IsDir() && st.Mode()&0o111 != 0:
			if c.files = append(c.files, file); c.user.uid == 0 {
				return nil // nothing keeps root from it, so no other is needed
			}
		case err == nil && !st.IsDir(), errors.Is(err, fs.ErrPermission):
			denied = true
		}
	}
	switch {
	case len(c.files) > 0:
		return nil
	case denied:
		return wire.ExecErrorf(wire.ExecNotExecutable, "%s: permission denied", name)
	}
	return wire.ExecErrorf(wire.ExecNotFound, "%s: command not found", name)
}

// workDir chooses the directory: asked for, absolute or relative to the home, it must be there; else the VM's, the home, or /.
func workDir(asked, def string, user account) (string, *wire.ExecError) {
	if asked != "" {
		dir := path.Clean(absolute(user.home, asked))
		st, err := os.Stat(dir)
		switch {
		case err != nil:
			return "", wire.ExecErrorf(wire.ExecBadDir, "directory %q: %v", dir, cause(err))
		case !st.IsDir():
			return "", wire.ExecErrorf(wire.ExecBadDir, "directory %q: not a directory", dir)
		case !searchable(dir, user):
			return "", wire.ExecErrorf(wire.ExecBadDir, "directory %q: permission denied for user %q", dir, user.name)
		}
		return dir, nil
	}
	for _, dir := range []string{def, user.home} {
		if st, err := os.Stat(dir); path.IsAbs(dir) && err == nil && st.IsDir() && searchable(dir, user) {
			return path.Clean(dir), nil
		}
	}
	return "/", nil
}

// searchable tells whether mode bits let user into dir, every part of which must be.
func searchable(dir string, user account) bool {
	if user.uid == 0 {
		return true
	}
	for ; ; dir = path.Dir(dir) {
		var st syscall.Stat_t
		if err := syscall.Stat(dir, &st); err != nil {
			return false
		}
		bit := uint32(0o001)
		switch {
		case st.Uid == user.uid:
			bit = 0o100
		case st.Gid == user.gid || slices.Contains(user.groups, st.Gid):
			bit = 0o010
		}
		if st.Mode&bit == 0 {
			return false
		}
		if dir == "/" || dir == "." {
			return true
		}
	}
}

func absolute(dir, name string) string {
	if path.IsAbs(name) {
		return name
	}
	return dir + "/" + name
}

// cause strips operation and path off a file system error.
func cause(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

// environ is an environment in which every name occurs once.
type environ []string

// baseEnv is what a process has without anyone asking.
func baseEnv(user account, pty bool) environ {
	env := environ{
		"PATH=" + defaultPath, "HOME=" + user.home, "USER=" + user.name,
		"LOGNAME=" + user.name, "SHELL=" + user.shell, "LANG=C.UTF-8",
	}
	if pty {
		env = append(env, "TERM=xterm-256color")
	}
	return env
}

// set adds KEY=VALUE, or replaces it where it is.
func (e *environ) set(kv string) {
	key, _, _ := strings.Cut(kv, "=")
	for i, have := range *e {
		if strings.HasPrefix(have, key) && have[len(key)] == '=' {
			(*e)[i] = kv
			return
		}
	}
	*e = append(*e, kv)
}

func (e *environ) get(key string) string {
	for _, have := range *e {
		if v, ok := strings.CutPrefix(have, key+"="); ok {
			return v
		}
	}
	return ""
}
