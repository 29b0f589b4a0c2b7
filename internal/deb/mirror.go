package deb

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
)

// Where Debian is served to everyone.
const (
	PublicMirror   = "http://ftp.debian.org/debian"
	PublicSecurity = "http://security.debian.org/debian-security"
)

// Mirrors are the addresses an archive is fetched from, without a slash at the end.
type Mirrors struct {
	// Main serves the suites themselves and their updates.
	Main string
	// Security serves the -security suites: the addresses to try, in this order; at least one.
	Security []string
}

// ChooseMirrors returns the configured mirror (configuration debian_mirror) where there is one, else that of
// the host's own apt where the host is Debian, else the public ones. host is the host's root directory. The
// security archive is the one in the host's apt, then that beside the main mirror, then the public one.
func ChooseMirrors(configured string, host fs.FS) Mirrors {
	if configured != "" {
		main := strings.TrimRight(configured, "/")
		return Mirrors{Main: main, Security: unique(beside(main), PublicSecurity)}
	}
	var main, security string
	if id, codename := osRelease(host); id == "debian" {
		main, security = hostMirrors(aptSources(host), codename)
	}
	if main == "" {
		main = PublicMirror
	}
	return Mirrors{Main: main, Security: unique(security, beside(main), PublicSecurity)}
}

// SecurityFor returns the first of the security archives that has a release, such as "bookworm". It is for programs that are given
// one address and verify what they find there themselves; nothing is verified here.
func (m Mirrors) SecurityFor(ctx context.Context, client *http.Client, codename string) (string, error) {
	var errs []error
	for _, mirror := range m.Security {
		addr := mirror + "/dists/" + codename + "-security/InRelease"
		req, err := http.NewRequestWithContext(ctx, http.MethodHead, addr, nil)
		if err != nil {
			return "", err
		}
		resp, err := client.Do(req)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return mirror, nil
			}
			err = &statusError{resp.StatusCode}
		}
		errs = append(errs, unreachable(ctx, addr, plain(err)))
		if ctx.Err() != nil {
			break
		}
	}
	return "", errors.Join(errs...)
}

// beside returns the security archive as mirrors of both lay it out; empty where main is not laid out so, and for
// the public mirror, whose security archive has a name of its own.
func beside(main string) string {
	if dir, ok := strings.CutSuffix(main, "/debian"); ok && main != PublicMirror {
		return dir + "/debian-security"
	}
	return ""
}

func unique(urls ...string) []string {
	var out []string
	for _, u := range urls {
		if u != "" && !slices.Contains(out, u) {
			out = append(out, u)
		}
	}
	return out
}

// hostMirrors finds Debian's archive and its security archive among the sources of a Debian host. Other
// archives name their suites like Debian's: an archive counts as Debian's if its path ends in
// "debian" or it has the updates of the host's release as well.
func hostMirrors(sources []source, codename string) (main, security string) {
	suites := []string{codename, "stable", "testing", "unstable", "sid", "oldstable"}
	for _, s := range sources {
		if !slices.Contains(s.components, "main") {
			continue
		}
		if security == "" && (strings.HasSuffix(s.suite, "-security") || strings.HasSuffix(s.suite, "/updates")) {
			security = s.url
		}
		if main != "" || !slices.Contains(suites, s.suite) {
			continue
		}
		updates := slices.ContainsFunc(sources, func(o source) bool {
			return o.url == s.url && o.suite == codename+"-updates"
		})
		if updates || path.Base(s.url) == "debian" {
			main = s.url
		}
	}
	return main, security
}

// source is one suite of one archive in the host's apt configuration.
type source struct {
	url, suite string
	components []string
}

// aptSources reads sources.list and sources.list.d as far as they can be read; only http and https count.
func aptSources(host fs.FS) []source {
	var out []source
	if data, err := fs.ReadFile(host, "etc/apt/sources.list"); err == nil {
		out = append(out, parseList(data)...)
	}
	files, err := fs.ReadDir(host, "etc/apt/sources.list.d") // sorted by name
	if err != nil {
		return out
	}
	for _, f := range files {
		data, err := fs.ReadFile(host, "etc/apt/sources.list.d/"+f.Name())
		if err != nil {
			continue
		}
		switch path.Ext(f.Name()) {
		case ".list":
			out = append(out, parseList(data)...)
		case ".sources":
			out = append(out, parseSources(data)...)
		}
	}
	return out
}

// parseList parses the one-line form of sources.list(5).
func parseList(data []byte) []source {
	var out []source
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		line, ok := strings.CutPrefix(strings.TrimSpace(line), "deb")
		if !ok || line == "" || line[0] != ' ' && line[0] != '\t' && line[0] != '[' {
			continue
		}
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			_, line, ok = strings.Cut(line, "]")
			if !ok {
				continue
			}
		}
		if f := strings.Fields(line); len(f) >= 3 {
			out = appendSource(out, f[0], f[1], f[2:])
		}
	}
	return out
}

// parseSources parses the deb822 form of sources.list(5); what follows a malformed paragraph is left out.
func parseSources(data []byte) []source {
	var out []source
	r := NewControlReader(bytes.NewReader(data))
	for {
		p, err := r.Next()
		if err != nil {
			return out
		}
		enabled := strings.ToLower(p["enabled"])
		if !slices.Contains(strings.Fields(p["types"]), "deb") ||
			slices.Contains([]string{"no", "false", "off", "0", "without", "disable"}, enabled) {
			continue
		}
		for u := range strings.FieldsSeq(p["uris"]) {
			for suite := range strings.FieldsSeq(p["suites"]) {
				out = appendSource(out, u, suite, strings.Fields(p["components"]))
			}
		}
	}
}

func appendSource(out []source, addr, suite string, components []string) []source {
	u, err := url.Parse(addr)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return out
	}
	return append(out, source{strings.TrimRight(addr, "/"), strings.TrimRight(suite, "/"), components})
}

// osRelease returns ID and VERSION_CODENAME of os-release(5).
func osRelease(host fs.FS) (id, codename string) {
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		data, err := fs.ReadFile(host, name)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			switch value = strings.Trim(value, `"'`); key {
			case "ID":
				id = value
			case "VERSION_CODENAME":
				codename = value
			}
		}
		return id, codename
	}
	return "", ""
}
