package process

import (
	"cmp"
	"path"
	"strings"
)

// User is whose files and commands those are that name nobody else.
type User struct {
	UID, GID int
	// Home is an absolute path.
	Home string
}

// User returns the VM's user as the guest's account files know it now.
func (m *Manager) User() (User, error) {
	var def Defaults
	if m.cfg.Defaults != nil {
		def = m.cfg.Defaults()
	}
	a, err := lookupAccount(cmp.Or(m.cfg.EtcDir, "/etc"), def.User)
	if err != nil {
		return User{}, err
	}
	u := User{UID: int(a.uid), GID: int(a.gid), Home: a.home}
	for _, e := range def.Env {
		if k, v, _ := strings.Cut(e, "="); k == "HOME" && path.IsAbs(v) {
			u.Home = v
		}
	}
	return u, nil
}
