package doctor

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
)

const (
	// lowSpace and noSpace are how many free bytes call for a warning and how many are too few to go on with.
	lowSpace, noSpace = 10 << 30, 1 << 30
	// scratchSpace is what putting an image together takes at most, in bytes.
	scratchSpace = 2 << 30
	// maxSocketPath is the longest path of a unix socket: sun_path has 108 bytes with the closing NUL.
	maxSocketPath = 107
)

func (o Observations) configuration() Check {
	const name = "configuration"
	switch {
	case o.ConfigErr != nil:
		e := api.AsError(o.ConfigErr)
		hint := e.Hint
		if hint == "" {
			hint = "correct it, then: banger config show"
		}
		return fail(name, "%s", e.Message).hint("%s", hint)
	case !o.ConfigExists:
		return ok(name, "defaults; there is no %s", o.ConfigPath)
	}
	return ok(name, "%s", o.ConfigPath)
}

// directories looks whether banger's directories are the user's own.
func (o Observations) directories() Check {
	const name = "directories"
	var wrong, open, hints []string
	for _, p := range o.Places {
		switch {
		case p.Err != nil:
			wrong = append(wrong, fmt.Sprintf("%s: %v", p.Use, p.Err))
		case p.Exists && p.Owner != o.UID:
			wrong = append(wrong, fmt.Sprintf("%s belongs to another user (uid %d)", p.Path, p.Owner))
			hints = append(hints, "sudo chown -R $(id -u):$(id -g) "+quoted(p.Path))
		case !p.Writable && p.Exists:
			wrong = append(wrong, p.Path+" cannot be written to")
			hints = append(hints, "chmod u+rwx "+quoted(p.Path))
		case !p.Writable:
			wrong = append(wrong, fmt.Sprintf("%s cannot be made: %s cannot be written to", p.Path, filepath.Dir(p.Path)))
		case p.Exists && p.Mode.Perm()&0o022 != 0:
			open = append(open, p.Path+" can be written to by others")
			hints = append(hints, "chmod go-rwx "+quoted(p.Path))
		}
	}
	hint := strings.Join(hints, "\n")
	switch {
	case len(wrong) > 0:
		return fail(name, "%s", strings.Join(append(wrong, open...), "; ")).hint("%s", hint)
	case len(open) > 0:
		return warn(name, "%s", strings.Join(open, "; ")).hint("%s", hint)
	}
	return ok(name, "writable, and this user's own")
}

// space looks for room where VMs and images are kept.
func (o Observations) space() Check {
	const name = "disk space"
	var seen []uint64
	var found []string
	least := int64(-1)
	var tight string
	for _, p := range o.Places {
		if p.Err != nil || p.Use != "state" && p.Use != "data" && p.Use != "cache" || slices.Contains(seen, p.Device) {
			continue
		}
		seen = append(seen, p.Device)
		found = append(found, fmt.Sprintf("%s free at %s", size(p.Free), p.Path))
		if least < 0 || p.Free < least {
			least, tight = p.Free, p.Path
		}
	}
	detail := strings.Join(found, ", ")
	hint := "banger vm list; banger image list   # delete what is not needed, or make room at " + tight
	switch {
	case least < 0:
		return warn(name, "not known")
	case least < noSpace:
		return fail(name, "%s", detail).hint("%s", hint)
	case least < lowSpace:
		return warn(name, "%s: little for images and the disks of VMs", detail).hint("%s", hint)
	}
	return ok(name, "%s", detail)
}

// daemon says whether one answers. One that does not run is no failure: the next command starts it.
func (o Observations) daemon() Check {
	const name = "daemon"
	switch r := o.Running; {
	case r == nil && o.Socket.Locked:
		return fail(name, "it runs and does not answer: %v", o.RunningErr).hint("banger daemon logs")
	case r == nil:
		return ok(name, "not running; the next command starts it")
	case r.Version != o.Version || r.APIVersion != api.Version:
		return warn(name, "version %s (API %d) runs, this is %s (API %d)", r.Version, r.APIVersion, o.Version, api.Version).
			hint("banger daemon stop   # VMs go on; the next command starts the new one")
	case r.StateDir != "" && !slices.ContainsFunc(o.Places, func(p Place) bool { return p.Use == "state" && p.Path == r.StateDir }):
		return warn(name, "it keeps its state in %s, which is not that of this environment", r.StateDir).
			hint("banger daemon stop   # then check XDG_STATE_HOME and HOME")
	default:
		return ok(name, "running, pid %d, version %s, VMs: %d", r.PID, r.Version, r.VMs)
	}
}

// socket looks at the place where commands find the daemon.
func (o Observations) socket() Check {
	const name = "socket"
	s := o.Socket
	switch {
	case len(s.Path) > maxSocketPath:
		return fail(name, "%s has %d bytes, the path of a socket may have %d", s.Path, len(s.Path), maxSocketPath).
			hint("export XDG_RUNTIME_DIR=/run/user/$(id -u)   # or another short directory of your own")
	case s.RuntimeErr != nil:
		return fail(name, "XDG_RUNTIME_DIR: %v", s.RuntimeErr).hint("unset XDG_RUNTIME_DIR   # or log in anew")
	case o.Running == nil && s.Exists && !s.Locked:
		return ok(name, "%s is left from a daemon that ended; the next one replaces it", s.Path)
	case s.Runtime == "":
		return ok(name, "%s; XDG_RUNTIME_DIR is not set", s.Path)
	}
	return ok(name, "%s", s.Path)
}

// quoted is a path as a shell reads it.
func quoted(path string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./:=,@%+", r)
	}
	if path != "" && !strings.ContainsFunc(path, func(r rune) bool { return !plain(r) }) {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
