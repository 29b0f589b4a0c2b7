// Package release finds Firecracker on a host, and fetches the release banger is made for where there is none.
//
// What is fetched lies in one directory, banger's bin/, as firecracker-vVERSION and jailer-vVERSION; the release is there when both
// are. The archive may lie there as well, put there by a user whose host has no way to the outside: it is used instead of a download.
//
// release.go has what is pinned and finds programs, fetch.go makes a release local, download.go gets the archive, unpack.go takes
// it apart.
package release

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// Minimum is the oldest version banger runs VMs on: 1.16 loses the connections into a guest that was paused.
const Minimum = "1.17.0"

// versionTimeout is how long a program may take to tell its version.
const versionTimeout = 10 * time.Second

// Pin is a release: where it is, and what it is.
type Pin struct {
	// Version is that of the release, such as "1.17.0".
	Version string
	// Arch is the architecture in the names of its files, such as "x86_64".
	Arch string
	// URL is where the archive is fetched from.
	URL string
	// SHA256 is the archive's, 64 hexadecimal digits.
	SHA256 string
	// MaxBytes is how long an archive may be at most, in bytes.
	MaxBytes int64
}

// Pinned returns the release for an architecture, as GOARCH has it; false where there is none.
func Pinned(goarch string) (Pin, bool) {
	const version = Minimum
	arch, sum := "", ""
	switch goarch {
	case "amd64":
		arch, sum = "x86_64", "06094a1108ae9e82aa4c23a775aa92758f53f1175d422270d9d6162cb9ade558"
	case "arm64":
		arch, sum = "aarch64", "e351ebe4f7a16b5873bbd51005d2e6767103cff4d5ebc829df2d3f95a93e2256"
	default:
		return Pin{}, false
	}
	p := Pin{Version: version, Arch: arch, SHA256: sum, MaxBytes: 256 << 20}
	p.URL = "https://github.com/firecracker-microvm/firecracker/releases/download/v" + version + "/" + p.Archive()
	return p, true
}

// Archive is the name of the release's archive.
func (p Pin) Archive() string { return "firecracker-v" + p.Version + "-" + p.Arch + ".tgz" }

// Own returns the paths of the release's programs in dir, whether they are there or not.
func (p Pin) Own(dir string) (firecracker, jailer string) {
	return filepath.Join(dir, "firecracker-v"+p.Version), filepath.Join(dir, "jailer-v"+p.Version)
}

// Supplied tells whether the release's archive lies in dir, which spares the download.
func (p Pin) Supplied(dir string) bool {
	st, err := os.Stat(filepath.Join(dir, p.Archive()))
	return err == nil && st.Mode().IsRegular()
}

// Offline says how the release gets into dir on a host that cannot fetch it.
func (p Pin) Offline(dir string) string {
	return fmt.Sprintf("elsewhere: curl -LO %s\nthen put the file at %s, or unpack it anywhere and name the program as firecracker_bin in config.toml",
		p.URL, filepath.Join(dir, p.Archive()))
}

// Source is where a program was found.
type Source string

// The sources.
const (
	// Configured: the configuration names it, so no other counts.
	Configured Source = "configured"
	// Path: in PATH, or in one of the sbin directories.
	Path Source = "path"
	// Own: in banger's own directory.
	Own Source = "own"
)

// Program is a Firecracker of this host.
type Program struct {
	// Path is absolute.
	Path string
	// Jailer is the absolute path of the jailer beside it; empty where there is none.
	Jailer string
	Source Source
	// Version is what it says of itself, such as "1.17.0"; empty where it was not asked, or said nothing of the kind because of Err.
	Version, Err string
}

// Find returns the Firecrackers of this host, the first to be preferred where it is new enough: the configured one alone where there is
// one, there or not; else that of PATH and that in dir, which has the release of pin. Their versions are not asked for.
func Find(configured, dir string, pin Pin) []Program {
	if configured != "" {
		p := Program{Path: configured, Source: Configured}
		if abs, err := filepath.Abs(configured); err == nil {
			p.Path = abs
		}
		p.Jailer = beside(p.Path)
		return []Program{p}
	}
	var out []Program
	if path, err := (hostexec.Runner{}).LookPath("firecracker"); err == nil {
		if abs, err := filepath.Abs(path); err == nil {
			out = append(out, Program{Path: abs, Jailer: beside(abs), Source: Path})
		}
	}
	if own, ok := installed(dir, pin); ok {
		out = append(out, own)
	}
	return out
}

// installed returns the release in dir, where it is there.
func installed(dir string, pin Pin) (Program, bool) {
	if pin.Version == "" {
		return Program{}, false
	}
	fc, jailer := pin.Own(dir)
	return Program{Path: fc, Jailer: jailer, Source: Own}, runnable(fc) && runnable(jailer)
}

// beside finds the jailer of a Firecracker: the file that is called the same but for that, in its directory or, where it is a
// link, in that of what it leads to.
func beside(firecracker string) string {
	for _, path := range []string{firecracker, resolved(firecracker)} {
		dir, base := filepath.Split(path)
		name := strings.Replace(base, "firecracker", "jailer", 1)
		if jailer := filepath.Join(dir, name); name != base && runnable(jailer) {
			return jailer
		}
	}
	return ""
}

func resolved(path string) string {
	if p, err := filepath.EvalSymlinks(path); err == nil {
		return p
	}
	return path
}

// runnable tells whether path is a file that somebody may execute.
func runnable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0
}

// versionLine is the first line of --version; a line of the log follows it.
var versionLine = regexp.MustCompile(`^Firecracker v([0-9]{1,6}\.[0-9]{1,6}\.[0-9]{1,6}(?:[-+][0-9A-Za-z.+-]{1,64})?)$`)

// Version asks a Firecracker for its version, such as "1.17.0" or "1.18.0-dev".
func Version(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, versionTimeout, fmt.Errorf("no answer within %s", versionTimeout))
	defer cancel()
	if st, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s: %w", path, cause(err))
	} else if st.IsDir() {
		return "", fmt.Errorf("%s is a directory", path)
	}
	var out head
	err := hostexec.Runner{}.Run(ctx, hostexec.Cmd{
		Argv: []string{path, "--version"}, Dir: "/", Env: []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}, Stdout: &out, Grace: time.Second,
	})
	if err != nil {
		return "", fmt.Errorf("ask %q for its version: %w", path, cause(err))
	}
	line, _, _ := strings.Cut(string(out.data), "\n")
	m := versionLine.FindStringSubmatch(strings.TrimRight(line, "\r"))
	if m == nil {
		return "", fmt.Errorf("ask %q for its version: it does not answer as Firecracker does", path)
	}
	return m[1], nil
}

// cause leaves out of an error what the program is called, which the error around it says.
func cause(err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return pe.Err
	}
	return err
}

// busy tells whether a program could not be run because a child of this process that has not come to its own program yet
// has it open for writing.
func busy(err error) bool { return errors.Is(err, syscall.ETXTBSY) }

// head keeps the beginning of what is written to it.
type head struct{ data []byte }

// Write implements io.Writer.
func (h *head) Write(p []byte) (int, error) {
	const limit = 4 << 10
	h.data = append(h.data, p[:min(len(p), limit-len(h.data))]...)
	return len(p), nil
}

// AtLeast tells whether a version, such as Version returns, is not older than another. What comes before a release ("1.17.0-dev")
// is older than it; what is no version is older than all.
func AtLeast(version, least string) bool {
	v, vPre, ok := parse(version)
	l, lPre, okLeast := parse(least)
	if !ok || !okLeast {
		return false
	}
	for i := range v {
		if v[i] != l[i] {
			return v[i] > l[i]
		}
	}
	return !vPre || lPre
}

// parse takes a version apart; pre tells whether it is before the release of these numbers.
func parse(version string) (v [3]int, pre, ok bool) {
	version, _, _ = strings.Cut(version, "+")
	version, _, pre = strings.Cut(version, "-")
	parts := strings.Split(version, ".")
	if len(parts) != len(v) {
		return v, false, false
	}
	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil || n < 0 {
			return v, false, false
		}
		v[i] = n
	}
	return v, pre, true
}
