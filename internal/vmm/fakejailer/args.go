package fakejailer

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// config is what the arguments say.
type config struct {
	id, execFile, base string
	uid, gid           uint32
	files              uint64 // limit of descriptors
	extra              []string
}

// Kinds of arguments: the real one knows them all, this one refuses by name what banger has no use for.
const (
	takesValue = iota + 1
	flag
	unused
)

func arguments() map[string]int {
	return map[string]int{
		"--id": takesValue, "--exec-file": takesValue, "--uid": takesValue, "--gid": takesValue, "--chroot-base-dir": takesValue,
		"--resource-limit": takesValue, "--version": flag, "--help": flag,
		"--netns": unused, "--cgroup": unused, "--cgroup-version": unused, "--parent-cgroup": unused,
		"--daemonize": unused, "--new-pid-ns": unused, "--landlock-restrict-fs": unused,
	}
}

// split takes arguments apart as Firecracker's parser does (src/utils/src/arg_parser.rs).
func split(args []string) (values map[string][]string, extra []string, err error) {
	values = map[string][]string{}
	known := arguments()
	for i := 0; i < len(args); i++ {
		name := args[i]
		if name == "--" {
			return values, args[i+1:], nil
		}
		kind := known[name]
		switch {
		case kind == 0:
			return nil, nil, said("Found argument '%s' which wasn't expected, or isn't valid in this context.", name)
		case kind == unused:
			return nil, nil, fmt.Errorf("fakejailer has no %s: banger does not use it", name)
		case values[name] != nil && name != "--resource-limit":
			return nil, nil, said("The argument '%s' was provided more than once.", name)
		case kind == flag:
			values[name] = []string{""}
			continue
		}
		if i++; i == len(args) || strings.HasPrefix(args[i], "--") {
			return nil, nil, said("The argument '%s' requires a value, but none was supplied.", name)
		}
		values[name] = append(values[name], args[i])
	}
	return values, nil, nil
}

// newConfig checks arguments as Env::new does (src/jailer/src/env.rs).
func newConfig(values map[string][]string, extra []string) (config, error) {
	for _, name := range []string{"--id", "--exec-file", "--uid", "--gid"} {
		if values[name] == nil {
			return config{}, said("The argument '%s' required, but not found.", name)
		}
	}
	c := config{id: values["--id"][0], extra: extra, files: 2048, base: "/srv/jailer"}
	if !regexp.MustCompile(`^[0-9A-Za-z-]{1,64}$`).MatchString(c.id) {
		return c, said("Invalid instance ID: %q", c.id)
	}
	for name, to := range map[string]*uint32{"--uid": &c.uid, "--gid": &c.gid} {
		n, err := strconv.ParseUint(values[name][0], 10, 32)
		if err != nil {
			return c, said("Failed to parse %s: invalid digit found in string", name[2:])
		}
		*to = uint32(n)
	}
	if v := values["--chroot-base-dir"]; v != nil {
		c.base = v[0]
	}
	var err error
	if c.execFile, err = canonical(values["--exec-file"][0], false); err != nil {
		return c, err
	}
	if c.base, err = canonical(c.base, true); err != nil {
		return c, err
	}
	for _, limit := range values["--resource-limit"] {
		name, value, _ := strings.Cut(limit, "=")
		n, err := strconv.ParseUint(value, 10, 64)
		if name != "no-file" || err != nil {
			return c, fmt.Errorf("fakejailer knows no limit %q", limit)
		}
		c.files = n
	}
	return c, nil
}

// canonical is path without symbolic links; it must be there, as what it is to be.
func canonical(path string, dir bool) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return "", failure("Failed to canonicalize path "+path, err)
	}
	st, err := os.Stat(real)
	switch {
	case err != nil:
		return "", failure("Failed to canonicalize path "+path, err)
	case dir && !st.IsDir():
		return "", fmt.Errorf("%s is not a directory", real)
	case !dir && !st.Mode().IsRegular():
		return "", fmt.Errorf("%s is not a file", real)
	}
	return real, nil
}
