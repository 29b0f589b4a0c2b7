package workspace

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// effective are the settings that travel with the value in force on the host, wherever it comes from, because
// what git shows depends on them (or, user.*, because commits made in the guest are the user's).
var effective = []string{
	"core.filemode", "core.symlinks", "core.ignorecase", "core.autocrlf", "core.eol", "core.safecrlf", "core.quotepath",
	"core.precomposeunicode", "core.abbrev", "core.whitespace", "core.bigfilethreshold", "core.notesref",
	"core.sparsecheckout", "core.sparsecheckoutcone", "core.commentchar",
	"status.showuntrackedfiles", "status.renames", "status.relativepaths", "diff.renames", "diff.renamelimit", "diff.ignoresubmodules",
	"user.name", "user.email",
}

// local are the settings of the repository itself that travel, by section and name, with any subsection. Never on it:
// trustctime and checkstat, which would let git take files for unchanged by their times.
var local = map[string][]string{
	"remote":    {"url", "pushurl", "fetch", "push", "tagopt", "prune", "promisor", "partialclonefilter", "skipdefaultupdate"},
	"branch":    {"remote", "merge", "rebase", "pushremote"},
	"submodule": {"url", "active", "ignore", "branch"},
}

// setting is one line of a configuration. hasValue is false for a name without "=", which means true.
type setting struct {
	key, value string
	hasValue   bool
}

func parseSettings(out []byte) []setting {
	var list []setting
	for _, e := range split(out, "\x00") {
		key, value, ok := strings.Cut(e, "\n")
		list = append(list, setting{key, value, ok})
	}
	return list
}

// readConfig makes the guest's .git/config.
func (r *repo) readConfig(ctx context.Context) error {
	out, err := r.out(ctx, "config", "--list", "-z")
	if err != nil {
		return fmt.Errorf("read the configuration of %q: %w", r.root, err)
	}
	all := parseSettings(out)
	out, err = r.out(ctx, "config", "--local", "--no-includes", "--list", "-z")
	if err != nil {
		return fmt.Errorf("read the configuration of %q: %w", r.root, err)
	}
	own := parseSettings(out)
	r.partial = slices.ContainsFunc(own, func(s setting) bool {
		return s.key == "extensions.partialclone" || strings.HasPrefix(s.key, "remote.") && strings.HasSuffix(s.key, ".promisor")
	})
	r.files["config"] = []byte(guestConfig(all, own))
	return nil
}

// guestConfig is the configuration of the guest's repository, given all settings in force and those of the repository.
func guestConfig(all, own []setting) string {
	keep := []setting{{"core.bare", "false", true}, {"core.logallrefupdates", "true", true}}
	format := "0"
	for _, s := range own {
		if s.key == "extensions.objectformat" || s.key == "extensions.partialclone" {
			keep, format = append(keep, s), "1"
		}
	}
	keep = append(keep, setting{"core.repositoryformatversion", format, true})
	last := map[string]setting{}
	for _, s := range all {
		last[s.key] = s
	}
	for _, key := range effective {
		if s, ok := last[key]; ok {
			keep = append(keep, s)
		}
	}
	for _, s := range own {
		section, rest, _ := strings.Cut(s.key, ".")
		name := rest[strings.LastIndexByte(rest, '.')+1:]
		if !slices.Contains(local[section], name) {
			continue
		}
		if name == "url" || name == "pushurl" || name == "remote" || name == "pushremote" {
			s.value = withoutCredentials(s.value)
		}
		keep = append(keep, s)
	}
	var b strings.Builder
	for _, s := range keep {
		writeSetting(&b, s)
	}
	return b.String()
}

// writeSetting writes a setting under a header of its own, which git reads like any other order.
func writeSetting(b *strings.Builder, s setting) {
	section, rest, ok := strings.Cut(s.key, ".")
	if !ok {
		return
	}
	name := rest
	if i := strings.LastIndexByte(rest, '.'); i >= 0 {
		escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
		fmt.Fprintf(b, "[%s \"%s\"]\n", section, escape.Replace(rest[:i]))
		name = rest[i+1:]
	} else {
		fmt.Fprintf(b, "[%s]\n", section)
	}
	if !s.hasValue {
		fmt.Fprintf(b, "\t%s\n", name)
		return
	}
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\t", `\t`, "\b", `\b`)
	fmt.Fprintf(b, "\t%s = \"%s\"\n", name, escape.Replace(s.value))
}

var (
	withUser  = regexp.MustCompile(`^((?:[a-z0-9-]+::)*)([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)@(.*)$`)
	withQuery = regexp.MustCompile(`^((?:[a-z0-9-]+::)*https?://[^?#]*)[?#].*$`)
)

// withoutCredentials is a URL without what could be a secret: user and password, of ssh the password only, and the query
// of an http URL. Paths of the host and git@host:path are left as they are.
func withoutCredentials(url string) string {
	url = strings.ReplaceAll(url, "\n", "")
	if m := withUser.FindStringSubmatch(url); m != nil {
		user, _, _ := strings.Cut(m[3], ":")
		switch strings.ToLower(m[2]) {
		case "ssh", "git+ssh", "ssh+git":
			url = m[1] + m[2] + "://" + user + "@" + m[4]
		default:
			url = m[1] + m[2] + "://" + m[4]
		}
	}
	return withQuery.ReplaceAllString(url, "$1")
}
