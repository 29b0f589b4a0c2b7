package image

import (
	"bufio"
	"cmp"
	"errors"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

const (
	// idCount is how many users and groups a file system is built with.
	idCount = 65536
	// rootFirstID is the first user and group root lends to a build where /etc/subuid gives root none. systemd's
	// UIDS-GIDS document lists the range from there on as used by nobody.
	rootFirstID = 0x70000000
)

// idRange is a range of subordinate users or groups.
type idRange struct {
	owner        string
	first, count int
}

// parseSubIDs reads /etc/subuid or /etc/subgid, see subuid(5); lines that are none are skipped, as newuidmap does.
func parseSubIDs(text string) []idRange {
	var out []idRange
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 3 || f[0] == "" {
			continue
		}
		first, err1 := strconv.ParseUint(f[1], 10, 31)
		count, err2 := strconv.ParseUint(f[2], 10, 31)
		if err1 == nil && err2 == nil && count > 0 {
			out = append(out, idRange{f[0], int(first), int(count)})
		}
	}
	return out
}

// host is what a build needs to know of the host, and of who runs it.
type host struct {
	files fs.FS // the root directory
	run   hostexec.Runner
	uid   int
	name  string // of the user; empty where it has none
}

func newHost(files fs.FS, run hostexec.Runner, uid int) host {
	h := host{files: files, run: run, uid: uid}
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		h.name = u.Username
	}
	return h
}

func (h host) subIDs(file string) []idRange {
	data, err := fs.ReadFile(h.files, file)
	if err != nil {
		return nil
	}
	return parseSubIDs(string(data))
}

// own returns the user's range in one of the files; mmdebstrap takes the first one under the user's name.
func (h host) own(file string) (idRange, bool) {
	all := h.subIDs(file)
	i := slices.IndexFunc(all, func(r idRange) bool { return r.owner == h.name })
	if i < 0 || all[i].count < idCount {
		return idRange{}, false
	}
	return all[i], true
}

// userNS returns the user namespace a build is run in, so that no script of a
// package runs as the host's root; nil where mmdebstrap makes it itself, for everybody but root.
func (h host) userNS() *hostexec.UserNS {
	if h.uid != 0 {
		return nil
	}
	u, okU := h.own("etc/subuid")
	g, okG := h.own("etc/subgid")
	if !okU || !okG {
		u.first, g.first = rootFirstID, rootFirstID
	}
	return &hostexec.UserNS{FirstUID: u.first, FirstGID: g.first, Count: idCount}
}

// CheckHost says what is missing on this host to build an image, and how to get it; nil where nothing is.
func CheckHost() error { return newHost(os.DirFS("/"), hostexec.Runner{}, os.Geteuid()).check() }

// check says what is missing on the host to build an image, and how to get it.
func (h host) check() error {
	var missing []string
	programs := []string{"mmdebstrap"}
	if h.uid != 0 {
		programs = append(programs, "newuidmap", "newgidmap")
	}
	for _, p := range programs {
		if _, err := h.run.LookPath(p); errors.Is(err, hostexec.ErrNotInstalled) {
			missing = append(missing, p)
		}
	}
	if len(missing) > 0 {
		return api.Errorf(api.KindUnavailable, "%s: %w", strings.Join(missing, ", "), hostexec.ErrNotInstalled).
			WithHint("%s", h.install(missing))
	}
	if h.uid == 0 {
		return nil
	}
	_, okU := h.own("etc/subuid")
	_, okG := h.own("etc/subgid")
	if okU && okG {
		return nil
	}
	if h.name == "" {
		return api.Errorf(api.KindUnavailable, "user %d has no name in /etc/passwd, so it cannot have subordinate users", h.uid)
	}
	first := h.freeRange()
	return api.Errorf(api.KindUnavailable, "user %q has no %d subordinate users and groups in /etc/subuid and /etc/subgid, which a build runs as", h.name, idCount).
		WithHint("sudo usermod --add-subuids %d-%d --add-subgids %d-%d %s", first, first+idCount-1, first, first+idCount-1, h.name)
}

// freeRange returns the start of a range that neither file gives to anybody.
func (h host) freeRange() int {
	first := 100000
	for _, r := range append(h.subIDs("etc/subuid"), h.subIDs("etc/subgid")...) {
		if r.first < rootFirstID {
			first = max(first, r.first+r.count)
		}
	}
	return first
}

// install is the command that installs what is missing, for the host's distribution.
func (h host) install(missing []string) string {
	packages := []string{"mmdebstrap"}
	if !slices.Contains(missing, "mmdebstrap") {
		packages = nil
	}
	sudo := ""
	if h.uid != 0 {
		sudo = "sudo "
	}
	like := h.distribution()
	needMap := slices.ContainsFunc(missing, func(p string) bool { return strings.HasPrefix(p, "new") })
	switch {
	case strings.Contains(like, "debian"), strings.Contains(like, "ubuntu"):
		if needMap || h.uid != 0 && packages != nil {
			packages = append(packages, "uidmap")
		}
		return sudo + "apt install " + strings.Join(packages, " ")
	case strings.Contains(like, "fedora"):
		if needMap {
			packages = append(packages, "shadow-utils")
		}
		return sudo + "dnf install " + strings.Join(packages, " ")
	}
	return "install " + strings.Join(missing, ", ") + " with the package manager of this host"
}

// distribution returns ID and ID_LIKE of the host's os-release.
func (h host) distribution() string {
	data, err := fs.ReadFile(h.files, "etc/os-release")
	if err != nil {
		return ""
	}
	var out []string
	for sc := bufio.NewScanner(strings.NewReader(string(data))); sc.Scan(); {
		key, value, _ := strings.Cut(sc.Text(), "=")
		if key == "ID" || key == "ID_LIKE" {
			out = append(out, strings.Trim(value, `"'`))
		}
	}
	return cmp.Or(strings.Join(out, " "), "unknown")
}
