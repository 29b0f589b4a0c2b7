package quarantine

import (
	"fmt"
	"strings"
)

// format is an object format of git.
type format string

// hexLen is the length of an id.
func (f format) hexLen() int {
	if f == "sha256" {
		return 64
	}
	return 40
}

// zero is the id that stands for no object.
func (f format) zero() string { return strings.Repeat("0", f.hexLen()) }

// valid tells whether id is one of an object, written as git writes it.
func (f format) valid(id string) bool {
	return len(id) == f.hexLen() && strings.Trim(id, "0123456789abcdef") == "" && id != f.zero()
}

const (
	// maxName bounds a ref's name, in bytes.
	maxName = 1024
	// maxComponent bounds a part of it: a file name, and git makes "<name>.lock" beside it.
	maxComponent = 250
)

// checkName returns why a ref may not have this name, or nothing: the rules of git-check-ref-format(1), the
// limits of file systems, and that it is below refs/.
func checkName(name string) string {
	switch {
	case name == "HEAD" || stashEntry(name):
		return ""
	case len(name) > maxName:
		return fmt.Sprintf("its name is longer than %d bytes", maxName)
	case !strings.HasPrefix(name, "refs/"):
		return "it is not below refs/"
	case strings.Contains(name, ".."), strings.Contains(name, "@{"), strings.HasSuffix(name, "."):
		return "git does not allow its name"
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c == 0x7f || strings.IndexByte(`~^:?*[\`, c) >= 0 {
			return "git does not allow its name"
		}
	}
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "", part[0] == '.', strings.HasSuffix(part, ".lock"):
			return "git does not allow its name"
		case len(part) > maxComponent:
			return fmt.Sprintf("a part of its name is longer than %d bytes", maxComponent)
		}
	}
	return ""
}

// stashEntry tells whether name is that of an entry of the stash's reflog.
func stashEntry(name string) bool {
	n, ok := strings.CutPrefix(name, "stash@{")
	n, end := strings.CutSuffix(n, "}")
	return ok && end && n != "" && len(n) < 7 && strings.Trim(n, "0123456789") == ""
}

// isHead tells whether name is that of a branch.
func isHead(name string) bool { return strings.HasPrefix(name, "refs/heads/") }

// hostName is where a ref of the guest goes on the host.
func hostName(vm string, r Ref) string {
	own := prefix + vm + "/"
	if branch, ok := strings.CutPrefix(r.Name, "refs/heads/"); ok {
		// What begins with these has another meaning on the host: @ is ours, and a dash begins an option.
		if branch == "@" || strings.HasPrefix(branch, "@/") || branch[0] == '-' {
			return own + "@/heads/" + branch
		}
		return own + branch
	}
	if tag, ok := strings.CutPrefix(r.Name, "refs/tags/"); ok {
		return own + "@/tags/" + tag
	}
	switch {
	case r.Name == "HEAD":
		return own + "@/HEAD"
	case r.Name == "refs/stash":
		return own + "@/stash"
	case stashEntry(r.Name): // its number changes with each new one
		return own + "@/stashed/" + r.ID
	}
	return own + "@/other/" + strings.TrimPrefix(r.Name, "refs/")
}

// keptName is the ref that holds an id whose own ref moved on.
func keptName(vm, id string) string { return prefix + vm + "/@/kept/" + id }

// rank orders the refs of the guest: those of a lower rank are pulled first, and one that is not a branch is not pulled
// where they reach it.
func rank(name string) int {
	switch {
	case isHead(name):
		return 0
	case name == "HEAD":
		return 1
	case name == "refs/stash":
		return 2
	case strings.HasPrefix(name, "refs/tags/"):
		return 3
	case stashEntry(name):
		return 4
	}
	return 5
}
