package fakefc

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// options is Firecracker's command line (main.rs).
type options struct {
	id, apiSock, configFile, logPath, level, describe string
	noAPI, showLevel                                  bool
	version, snapshotVersion, help                    bool
	maxPayload                                        int
}

// flags are all of Firecracker's; true for those with a value.
var flags = map[string]bool{
	"--api-sock": true, "--id": true, "--seccomp-filter": true, "--no-seccomp": false, "--start-time-us": true,
	"--start-time-cpu-us": true, "--parent-cpu-time-us": true, "--config-file": true, "--metadata": true, "--no-api": false,
	"--log-path": true, "--level": true, "--module": true, "--show-level": false, "--show-log-origin": false,
	"--metrics-path": true, "--boot-timer": false, "--version": false, "--snapshot-version": false, "--describe-snapshot": true,
	"--http-api-max-payload-size": true, "--mmds-size-limit": true, "--enable-pci": false, "--help": false,
}

// badArg is an error of the command line.
func badArg(variant, arg, format string, args ...any) error {
	return &mainError{
		"Arguments parsing error: " + fmt.Sprintf(format, args...) + "\n\nFor more information try --help.",
		fmt.Sprintf("ParseArguments(%s(%q))", variant, arg),
	}
}

func parseArgs(args []string) (options, error) {
	o := options{id: "anonymous-instance", apiSock: "/run/firecracker.socket", level: "Info", maxPayload: 51200}
	given := map[string]string{}
	for i := 0; i < len(args); i++ {
		flag := args[i]
		takes, known := flags[flag]
		if !known {
			return o, badArg("UnexpectedArgument", flag, "Found argument '%s' which wasn't expected, or isn't valid in this context.", flag)
		}
		name := strings.TrimPrefix(flag, "--")
		if _, twice := given[name]; twice {
			return o, badArg("DuplicateArgument", name, "The argument '%s' was provided more than once.", name)
		}
		given[name] = ""
		if !takes {
			continue
		}
		if i++; i >= len(args) || strings.HasPrefix(args[i], "--") {
			return o, badArg("MissingValue", name, "The argument '%s' requires a value, but none was supplied.", name)
		}
		given[name] = args[i]
	}
	return o, o.set(given)
}

// set takes what was given over the defaults.
func (o *options) set(given map[string]string) error {
	for name, to := range map[string]*string{"id": &o.id, "api-sock": &o.apiSock, "config-file": &o.configFile, "log-path": &o.logPath,
		"level": &o.level, "describe-snapshot": &o.describe} {
		if v, ok := given[name]; ok {
			*to = v
		}
	}
	for name, to := range map[string]*bool{"no-api": &o.noAPI, "show-level": &o.showLevel, "version": &o.version,
		"snapshot-version": &o.snapshotVersion, "help": &o.help} {
		_, *to = given[name]
	}
	if o.version || o.help {
		return nil
	}
	_, filter := given["seccomp-filter"]
	if _, none := given["no-seccomp"]; filter && none {
		return badArg("ForbiddenArgument", "no-seccomp", "Argument 'no-seccomp' cannot be used together with argument 'seccomp-filter'.")
	}
	if o.noAPI && o.configFile == "" {
		return badArg("MissingArgument", "config-file", "Argument 'config-file' required, but not found.")
	}
	for _, name := range []string{"http-api-max-payload-size", "mmds-size-limit", "start-time-us", "start-time-cpu-us", "parent-cpu-time-us"} {
		v, ok := given[name]
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(v, 10, 63)
		if err != nil {
			return badArg("InvalidValue", name, "'%s' isn't a valid value for '%s'.", v, name)
		}
		if name == "http-api-max-payload-size" {
			o.maxPayload = int(n)
		}
	}
	return nil
}

// levels of the log, by their names in lower case.
var levels = map[string]int{"off": 0, "error": 1, "warn": 2, "warning": 2, "info": 3, "debug": 4, "trace": 5}

// checkID is the rule for --id.
func checkID(id string) error {
	if n := len(id); n < 1 || n > 64 {
		return fmt.Errorf("InvalidLength(%d, 1, 64)", n)
	}
	for i, r := range []rune(id) {
		if r != '-' && !unicode.IsLetter(r) && !unicode.IsNumber(r) {
			return fmt.Errorf("InvalidChar(%q, %d)", r, i)
		}
	}
	return nil
}

// checkResourceID is the rule for the names of drives.
func checkResourceID(id string) error {
	if id == "" {
		return faultf("The ID cannot be empty.")
	}
	if slices.ContainsFunc([]rune(id), func(r rune) bool { return r != '_' && !unicode.IsLetter(r) && !unicode.IsNumber(r) }) {
		return faultf("API Resource IDs can only contain alphanumeric characters and underscores.")
	}
	return nil
}
