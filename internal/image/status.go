package image

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"

	"git.thaloco.com/thaloco/banger/internal/progress"
)

// status is a Writer that reads what mmdebstrap --verbose writes to stderr (its
// own remarks, and apt's and dpkg's output) and tells a Reporter where it is. It keeps what explains a failure.
//
// Steps that install count bytes too: the sizes of the packages dealt with so
// far, half of it when a package is unpacked and half when it is set up.
type status struct {
	rep   progress.Reporter
	line  []byte
	sizes map[string]int64 // of packages, by name, as downloaded
	done  int64
	total int64
	fetch bool // whether packages are being downloaded, so that apt's "Get:" counts
	seen  map[string]bool
	// writing: the last step has begun, which is read of stderr later, maybe, than the first bytes of the file system come.
	writing atomic.Bool
	// complaints are the last lines that say what went wrong.
	complaints []string
	// last is the last line that is not empty.
	last string
}

const (
	maxLine       = 4096
	maxComplaints = 5
	maxNames      = 1 << 16 // of packages: apt runs in a guest, maybe, which can invent them
)

func newStatus(rep progress.Reporter) *status {
	return &status{rep: rep, sizes: map[string]int64{}, seen: map[string]bool{}}
}

// stepWrite is the last step.
const stepWrite = "write the base drive"

// The steps, by how mmdebstrap announces them.
var (
	// needBytes is apt's "Need to get 38.0 MB of archives."
	needBytes = regexp.MustCompile(`^Need to get ([0-9.,]+ [kMG]?B)[ /]`)
	// getBytes is apt's "Get:8 http://… bookworm/main amd64 libkmod2 amd64 30 [57.9 kB]".
	getBytes = regexp.MustCompile(`^Get:\d+ \S+ \S+ \S+ (\S+) \S+ \S+ \[([0-9.,]+ [kMG]?B)\]$`)
	// setUp is dpkg's "Setting up libc6:amd64 (2.36) ..." or "Unpacking …".
	setUp     = regexp.MustCompile(`^(Unpacking|Setting up) ([^ :]+)[: ]`)
	complaint = regexp.MustCompile(`^(E:|W: Fail|Err:|dpkg: error|tar: |.*No space left on device|newuidmap|newgidmap|unshare)`)
)

func stepOf(line string) string {
	for prefix, step := range map[string]string{
		"I: running apt-get update":               "read Debian's package lists",
		"I: downloading packages with apt":        "download Debian's essential packages",
		"I: extracting archives":                  "unpack Debian's essential packages",
		"I: installing essential packages":        "install Debian's essential packages",
		"I: installing remaining packages inside": "download packages",
		"I: running --customize-hook":             "adjust the file system",
		"I: creating tarball":                     stepWrite,
	} {
		if strings.HasPrefix(line, prefix) {
			return step
		}
	}
	return ""
}

// Write takes the next piece of stderr; it never fails.
func (s *status) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		part, rest, ended := bytes.Cut(p, []byte{'\n'})
		if room := maxLine - len(s.line); len(part) > room {
			part = part[:room]
		}
		s.line = append(s.line, part...)
		if ended {
			s.read(strings.TrimRight(string(s.line), "\r "))
			s.line = s.line[:0]
		}
		p = rest
	}
	return n, nil
}

func (s *status) read(line string) {
	if line != "" {
		s.last = line
	}
	if step := stepOf(line); step != "" {
		s.start(step)
		return
	}
	if complaint.MatchString(line) {
		s.complaints = append(s.complaints, strings.TrimPrefix(line, "E: "))
		s.complaints = s.complaints[max(0, len(s.complaints)-maxComplaints):]
		return
	}
	if m := needBytes.FindStringSubmatch(line); m != nil {
		s.fetch, s.done, s.total = true, 0, parseAptSize(m[1])
		s.rep.Bytes(0, s.total)
		return
	}
	if m := getBytes.FindStringSubmatch(line); m != nil && s.fetch && len(s.sizes) < maxNames {
		size := parseAptSize(m[2])
		s.sizes[m[1]] = size
		s.done += size
		s.rep.Bytes(min(s.done, s.total), s.total)
		return
	}
	if m := setUp.FindStringSubmatch(line); m != nil && !s.seen[m[1]+m[2]] && len(s.seen) < maxNames {
		s.installing()
		s.seen[m[1]+m[2]] = true
		s.done += s.sizes[m[2]] / 2
		s.rep.Bytes(min(s.done, s.total), s.total)
	}
}

// start begins a step that mmdebstrap announced.
func (s *status) start(step string) {
	s.fetch, s.done, s.total = false, 0, 0
	if strings.HasPrefix(step, "install") {
		s.total = s.pending()
	}
	s.rep.Step(step)
	s.writing.Store(step == stepWrite)
}

// installing begins the step of installing where apt has just downloaded, for apt announces nothing in between.
func (s *status) installing() {
	if !s.fetch {
		return
	}
	s.fetch, s.done, s.total = false, 0, s.pending()
	s.rep.Step("install packages")
}

// pending is the size of the packages downloaded and not yet installed.
func (s *status) pending() int64 {
	var sum int64
	for name, size := range s.sizes {
		if !s.seen["Setting up"+name] {
			sum += size
		}
	}
	return sum
}

// parseAptSize reads "57.9 kB" as bytes; apt's units are decimal. What is no size is 0.
func parseAptSize(s string) int64 {
	number, unit, _ := strings.Cut(s, " ")
	n, err := strconv.ParseFloat(strings.ReplaceAll(number, ",", ""), 64)
	if err != nil || n < 0 || n > 1e12 {
		return 0
	}
	factor := map[string]float64{"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
	return int64(n * factor)
}
