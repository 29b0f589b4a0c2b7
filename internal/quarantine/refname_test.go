package quarantine

import (
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

var badNames = []string{"", "refs", "refs/", "refs//x", "/refs/heads/x", "refs/heads/", "refs/heads/x/", "refs/heads/.x", "refs/heads/x.", "refs/heads/x.lock",
	"refs/heads/x.lock/y", "refs/heads/a..b", "refs/heads/../../config", "refs/heads/a b", "refs/heads/a~b", "refs/heads/a^b", "refs/heads/a:b",
	"refs/heads/a?b", "refs/heads/a*b", "refs/heads/a[b", `refs/heads/a\b`, "refs/heads/a@{b", "refs/heads/a\x1b[31m", "refs/heads/a\x7f", "refs/heads/a\nb",
	"refs/heads/a\x00b", "-x", "--upload-pack=x", "heads/x", "main", "FETCH_HEAD", "../x", "stash@{x}", "stash@{}", "stash@{99999999}",
	"refs/heads/" + strings.Repeat("n", 251), "refs/heads/" + strings.Repeat("n/", 600) + "n"}

var goodNames = map[string]string{
	"refs/heads/main": "main", "refs/heads/a/b": "a/b", "refs/heads/@x": "@x", "refs/heads/@": "@/heads/@", "refs/heads/@/kept/x": "@/heads/@/kept/x",
	"refs/heads/-x": "@/heads/-x", "refs/heads/HEAD": "HEAD", "refs/heads/ünïcode": "ünïcode", "refs/heads/a\xff": "a\xff", "refs/heads/refs/heads/x": "refs/heads/x",
	"refs/tags/v1": "@/tags/v1", "refs/stash": "@/stash", "HEAD": "@/HEAD", "refs/remotes/origin/main": "@/other/remotes/origin/main",
	"refs/notes/commits": "@/other/notes/commits", "refs/banger/x/y": "@/other/banger/x/y", "refs/x": "@/other/x", "stash@{3}": "@/stashed/ID",
	"refs/heads/a{": "a{", "refs/heads/x.lockx": "x.lockx", "refs/heads/'$(x)'": "'$(x)'",
}

// The names that are taken are those git takes.
func TestCheckName(t *testing.T) {
	git := func(name string) bool {
		if strings.Contains(name, "\x00") {
			return false
		}
		_, err := hostexec.Runner{}.Output(t.Context(), hostexec.Cmd{Argv: []string{"git", "check-ref-format", name}})
		return err == nil
	}
	for _, name := range badNames {
		if checkName(name) == "" {
			t.Errorf("%q is taken", name)
		}
	}
	for name, want := range goodNames {
		if why := checkName(name); why != "" {
			t.Errorf("%q is not taken: %s", name, why)
		}
		host := hostName("dev", Ref{name, "ID"})
		if host != "refs/banger/dev/"+want {
			t.Errorf("%q goes to %q", name, host)
		}
		if !git(host) {
			t.Errorf("git does not take %q", host)
		}
	}
	for _, name := range badNames {
		if git(name) && strings.HasPrefix(name, "refs/") && len(name) < 200 {
			t.Errorf("git takes %q", name)
		}
	}
}

// FuzzCheckName: a name that is taken leads to one that git takes, below the VM's own, and two do not lead to the same.
func FuzzCheckName(f *testing.F) {
	for _, name := range badNames {
		f.Add(name, "refs/heads/@/tags/x")
	}
	for name := range goodNames {
		f.Add(name, "refs/tags/x")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if checkName(a) != "" {
			return
		}
		host := hostName("dev", Ref{a, "0123"})
		if !strings.HasPrefix(host, "refs/banger/dev/") || strings.HasPrefix(host, "refs/banger/dev/@/kept") ||
			len(host) < maxName && checkName(host) != "" {
			t.Errorf("%q goes to %q", a, host)
		}
		for c := range strings.SplitSeq(host, "/") {
			if c == "" || c[0] == '.' || strings.ContainsAny(c, " \n\x00") {
				t.Errorf("%q goes to %q", a, host)
			}
		}
		if checkName(b) == "" && a != b && host == hostName("dev", Ref{b, "4567"}) {
			t.Errorf("%q and %q go to %q", a, b, host)
		}
	})
}

func TestFormat(t *testing.T) {
	one, two := strings.Repeat("1", 40), strings.Repeat("2", 64)
	for _, tt := range []struct {
		f    format
		id   string
		want bool
	}{
		{"sha1", one, true}, {"sha256", one, false}, {"sha1", two, false}, {"sha256", two, true}, {"sha1", "", false},
		{"sha1", strings.Repeat("0", 40), false}, {"sha1", strings.Repeat("A", 40), false}, {"sha1", one[:39] + "\n", false}, {"sha1", "-" + one[1:], false},
	} {
		if got := tt.f.valid(tt.id); got != tt.want {
			t.Errorf("%s %q: %v", tt.f, tt.id, got)
		}
	}
}

// FuzzGraph: what git says of commits is taken or refused; it does not break anything.
func FuzzGraph(f *testing.F) {
	id := func(c string) string { return strings.Repeat(c, 40) }
	f.Add(id("1") + " " + id("2") + "\n" + id("2"))
	f.Add(id("1") + " " + id("1"))
	f.Add(strings.Repeat("a", 64) + " " + strings.Repeat("b", 64))
	f.Add(" \n" + id("g"))
	f.Fuzz(func(t *testing.T, text string) {
		g := newGraph()
		for l := range strings.SplitSeq(text, "\n") {
			if g.add([]byte(l)) != nil {
				return
			}
		}
		for l := range strings.SplitSeq(text, "\n") {
			first, _, _ := strings.Cut(l, " ")
			i := g.find(first)
			if i < 0 {
				t.Fatalf("%q is not found", first)
			}
			seen := make(marks, len(g.listed))
			if n, err := g.mark(t.Context(), seen, i); n < 1 || n > len(g.listed) || err != nil {
				t.Errorf("%d commits, %v", n, err)
			}
		}
	})
}

// FuzzFatal: git's words, which may have the guest's in them, become one harmless, bounded line.
func FuzzFatal(f *testing.F) {
	f.Add("warning: x\nerror: object 1: hasDotgit: contains '.git'\nfatal: fsck error in packed object\n")
	f.Add("fatal: early EOF\n")
	f.Add("\x1b[2J\xff\u202e\n\n")
	f.Fuzz(func(t *testing.T, said string) {
		got := fatal(said)
		if len(got) > 4000 || strings.ContainsFunc(got, func(r rune) bool {
			return r < ' ' || r == 0x7f || r == 0x9b || r == 0x202e || r == 0xfffd && !strings.Contains(said, "\ufffd")
		}) {
			t.Errorf("%q", got)
		}
	})
}

func TestFatal(t *testing.T) {
	for said, want := range map[string]string{
		"warning: x\nerror: object 1: hasDotgit: contains '.git'\nfatal: fsck error in packed object\n": "object 1: hasDotgit: contains '.git'",
		"fatal: early EOF\nfatal: second": "early EOF", "one\ntwo\n": "two", "": "",
		"fatal: \x1b[2J\"x\" \u202e": `\x1b[2J"x" \u202e`,
	} {
		if got := fatal(said); got != want {
			t.Errorf("%q becomes %q, want %q", said, got, want)
		}
	}
}
