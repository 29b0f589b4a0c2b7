package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// FileSync is a file or directory of the host that every new VM gets a copy of.
type FileSync struct {
	// Host is absolute.
	Host string
	// Guest is absolute, below /root.
	Guest string
	// Mode is for a file; 0600 where the entry does not say.
	Mode fs.FileMode

	host, guest, mode string // as written
}

var fileSyncKeys = []string{"host", "guest", "mode"}

// guestHome is where ~/ is in a guest.
const guestHome = "/root"

func setFileSync(r *reader, v any) error {
	list, ok := v.([]any)
	if !ok {
		return fmt.Errorf("expected entries that begin with [[file_sync]], found %s", describe(v))
	}
	for i, e := range list {
		at := fmt.Sprintf("file_sync[%d]", i)
		entry, ok := e.(map[string]any)
		if !ok {
			r.mistake(at, "%s: expected host = …, guest = …, found %s", at, describe(e))
			continue
		}
		r.config.FileSync = append(r.config.FileSync, r.fileSync(at, entry))
	}
	return nil
}

// fileSync reads the entry at a place such as "file_sync[0]".
func (r *reader) fileSync(at string, entry map[string]any) FileSync {
	var f FileSync
	f.host = r.entryString(at, entry, "host", true)
	f.guest = r.entryString(at, entry, "guest", true)
	f.mode = r.entryString(at, entry, "mode", false)
	var err error
	if f.host != "" {
		if f.Host, err = syncHost(f.host, r.home); err != nil {
			r.mistake(at+".host", "%s.host: %v", at, err)
		}
	}
	if f.guest != "" {
		if f.Guest, err = syncGuest(f.guest); err != nil {
			r.mistake(at+".guest", "%s.guest: %v", at, err)
		}
	}
	if f.Mode, err = syncMode(f.mode); err != nil {
		r.mistake(at+".mode", "%s.mode: %v", at, err)
	}
	for _, name := range slices.Sorted(maps.Keys(entry)) {
		if !slices.Contains(fileSyncKeys, name) {
			r.mistake(at+"."+name, "%s: %s", at, unknownKey(name, fileSyncKeys))
		}
	}
	return f
}

// entryString is a string of an entry; empty, with the mistake noted, where it is not one.
func (r *reader) entryString(at string, entry map[string]any, name string, required bool) string {
	v, ok := entry[name]
	if !ok {
		if required {
			r.mistake(at, "%s: %s is missing", at, name)
		}
		return ""
	}
	s, err := asString(v)
	if err == nil && s == "" {
		err = errors.New("it is empty")
	}
	if err != nil {
		r.mistake(at+"."+name, "%s.%s: %v", at, name, err)
		return ""
	}
	return s
}

func syncHost(s string, home func() (string, error)) (string, error) {
	if slices.Contains(strings.Split(s, "/"), "..") {
		return "", fmt.Errorf("%q has a .. in it", s)
	}
	return hostPath(s, home)
}

func syncGuest(s string) (string, error) {
	if slices.Contains(strings.Split(s, "/"), "..") {
		return "", fmt.Errorf("%q has a .. in it", s)
	}
	full := s
	if rest, ok := strings.CutPrefix(s, "~/"); ok {
		full = guestHome + "/" + rest
	}
	full = path.Clean(full)
	if !strings.HasPrefix(full, guestHome+"/") {
		return "", fmt.Errorf("%q is not below ~/ (which is /root)", s)
	}
	return full, nil
}

var octalMode = regexp.MustCompile(`^0?[0-7]{3}$`)

func syncMode(s string) (fs.FileMode, error) {
	if s == "" {
		return 0o600, nil
	}
	if !octalMode.MatchString(s) {
		return 0, fmt.Errorf("%q is not an octal mode such as \"0600\"", s)
	}
	n, err := strconv.ParseUint(s, 8, 32)
	return fs.FileMode(n), err
}

func viewFileSync(c Config) any {
	out := []map[string]any{}
	for _, f := range c.FileSync {
		e := map[string]any{"host": f.host, "guest": f.guest}
		if f.mode != "" {
			e["mode"] = f.mode
		}
		out = append(out, e)
	}
	return out
}
