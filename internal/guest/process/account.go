package process

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// account is who a process runs as.
type account struct {
	name     string
	uid, gid uint32
	groups   []uint32 // supplementary, without gid
	home     string
	shell    string
}

// loginShell is the user's shell, /bin/sh where that is not there.
func (a account) loginShell() string {
	if _, err := os.Stat(a.shell); err != nil || !filepath.IsAbs(a.shell) {
		return "/bin/sh"
	}
	return a.shell
}

// Account is a user of the guest.
type Account struct {
	Name     string
	UID, GID uint32
	Groups   []uint32 // supplementary, without GID
	Home     string
	Shell    string // a file that is there
}

// Account returns the user with exactly that name; a number is none. Root needs no entry. The error is a *wire.ExecError.
func (m *Manager) Account(name string) (Account, error) {
	entry, found, err := passwdEntry(filepath.Join(m.cfg.EtcDir, "passwd"), name)
	switch {
	case err != nil:
		return Account{}, wire.ExecErrorf(wire.ExecBadUser, "look up user %q: %v", name, err)
	case found && entry.name != name, !found && name != "root", strings.ContainsRune(name, ':'):
		return Account{}, wire.ExecErrorf(wire.ExecBadUser, "no user %q in the guest", name)
	}
	a, xerr := lookupAccount(m.cfg.EtcDir, name)
	if xerr != nil {
		return Account{}, xerr
	}
	return Account{Name: a.name, UID: a.uid, GID: a.gid, Groups: a.groups, Home: a.home, Shell: a.loginShell()}, nil
}

// lookupAccount finds a user of the guest by name or uid, with an optional ":group"; empty is the user the
// agent runs as. A uid without an entry is fine, a name is not. Root needs no entry at all.
func lookupAccount(etc, spec string) (account, *wire.ExecError) {
	user, group, hasGroup := strings.Cut(spec, ":")
	if user == "" {
		user = strconv.Itoa(os.Geteuid())
	}
	a, found, err := passwdEntry(filepath.Join(etc, "passwd"), user)
	if err != nil {
		return account{}, wire.ExecErrorf(wire.ExecBadUser, "look up user %q: %v", user, err)
	}
	if !found {
		uid, err := strconv.ParseUint(user, 10, 32)
		switch {
		case err == nil:
			a = account{name: user, uid: uint32(uid), gid: uint32(uid), home: "/", shell: "/bin/sh"}
			if uid == 0 {
				a.name, a.home = "root", "/root"
			}
		case user == "root":
			a = account{name: user, home: "/root", shell: "/bin/sh"}
		default:
			return account{}, wire.ExecErrorf(wire.ExecBadUser, "no user %q in the guest", user)
		}
	}
	gid, groups, err := groupEntries(filepath.Join(etc, "group"), a.name, group)
	if err != nil {
		return account{}, wire.ExecErrorf(wire.ExecBadUser, "look up the groups of user %q: %v", user, err)
	}
	if hasGroup {
		if gid < 0 {
			return account{}, wire.ExecErrorf(wire.ExecBadUser, "no group %q in the guest", group)
		}
		a.gid = uint32(gid)
	}
	a.groups = slices.DeleteFunc(groups, func(g uint32) bool { return g == a.gid })
	return a, nil
}

// passwdEntry finds a user by name, else by uid. A missing file has no entries.
func passwdEntry(file, user string) (account, bool, error) {
	var byUID account
	found := false
	err := eachEntry(file, 7, func(f []string) bool {
		if f[0] != user && (f[2] != user || found) {
			return true
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 != nil || err2 != nil {
			return true
		}
		found = true
		byUID = account{name: f[0], uid: uint32(uid), gid: uint32(gid), home: f[5], shell: f[6]}
		return f[0] != user
	})
	if byUID.home == "" {
		byUID.home = "/"
	}
	if byUID.shell == "" {
		byUID.shell = "/bin/sh"
	}
	return byUID, found, err
}

// groupEntries returns the gid of a group given by name or number, -1 where it is neither, and the groups a user is in.
func groupEntries(file, user, group string) (gid int64, groups []uint32, err error) {
	gid = -1
	if n, err := strconv.ParseUint(group, 10, 32); err == nil {
		gid = int64(n)
	}
	err = eachEntry(file, 4, func(f []string) bool {
		n, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil {
			return true
		}
		if f[0] == group {
			gid = int64(n)
		}
		if slices.Contains(strings.Split(f[3], ","), user) && !slices.Contains(groups, uint32(n)) {
			groups = append(groups, uint32(n))
		}
		return true
	})
	return gid, groups, err
}

// eachEntry calls f with the fields of each line that has n of them, until f returns false.
func eachEntry(file string, n int, f func(fields []string) bool) error {
	in, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer in.Close()
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if fields := strings.Split(lines.Text(), ":"); len(fields) == n && fields[0] != "" && !f(fields) {
			return nil
		}
	}
	return lines.Err()
}
