package workspace

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWithoutCredentials(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"https://example.org/r.git", "https://example.org/r.git"},
		{"https://user:pw@example.org/r.git", "https://example.org/r.git"},
		{"https://token@example.org/r.git", "https://example.org/r.git"},
		{"https://us@er:p@w@example.org/r", "https://example.org/r"},
		{"HTTPS://user:pw@example.org", "HTTPS://example.org"},
		{"https://example.org/r?access_token=x", "https://example.org/r"},
		{"https://example.org/r#x", "https://example.org/r"},
		{"https://example.org/@scope/r", "https://example.org/@scope/r"},
		{"ssh://git@example.org:22/r", "ssh://git@example.org:22/r"},
		{"ssh://git:pw@example.org/r", "ssh://git@example.org/r"},
		{"git@example.org:me/r.git", "git@example.org:me/r.git"},
		{"ftp://u:p@example.org/r", "ftp://example.org/r"},
		{"hg::https://u:p@example.org/r", "hg::https://example.org/r"},
		{"../sibling", "../sibling"},
		{"/srv/git/r@home", "/srv/git/r@home"},
		{"file:///srv/r", "file:///srv/r"},
		{"origin", "origin"},
		{"", ""},
	} {
		if got := withoutCredentials(tc.in); got != tc.want {
			t.Errorf("%q becomes %q, want %q", tc.in, got, tc.want)
		}
	}
}

// What writeSetting writes, git reads as the same.
func TestSettingsReadBack(t *testing.T) {
	h := newHost(t)
	in := []setting{{"core.filemode", "true", true}, {`remote.a "b\c].url`, "x ; # \"q\" \\ \t end ", true}, {"remote.x.prune", "", false},
		{"remote.x.fetch", "+refs/heads/*:refs/remotes/x/*", true}, {"remote.x.fetch", "", true}, {"branch.ü.merge", "refs/heads/a=b", true},
		{"user.name", "line\nbreak", true}}
	var b strings.Builder
	for _, s := range in {
		writeSetting(&b, s)
	}
	file := filepath.Join(h.dir, "config")
	must(t, os.WriteFile(file, []byte(b.String()), 0o644))
	out := h.git(h.dir, "config", "--file", file, "--list", "-z")
	if diff := cmp.Diff(in, parseSettings([]byte(out)), cmp.AllowUnexported(setting{})); diff != "" {
		t.Errorf("(-written +read)\n%s\n%s", diff, b.String())
	}
}

// A section whose subsection has a dot is not taken for another name.
func TestGuestConfig(t *testing.T) {
	got := guestConfig(
		[]setting{{"core.autocrlf", "true", true}, {"core.autocrlf", "input", true}, {"core.editor", "vi", true}, {"user.email", "a@b", true}},
		[]setting{{"core.worktree", "/x", true}, {"remote.o.p.url", "https://u:p@h/", true}, {"remote.o.vcs", "evil", true}, {"urlx.url", "x", true},
			{"extensions.objectformat", "sha256", true}, {"extensions.worktreeconfig", "true", true}})
	want := `[core]
	bare = "false"
[core]
	logallrefupdates = "true"
[extensions]
	objectformat = "sha256"
[core]
	repositoryformatversion = "1"
[core]
	autocrlf = "input"
[user]
	email = "a@b"
[remote "o.p"]
	url = "https://h/"
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func FuzzWithoutCredentials(f *testing.F) {
	for _, s := range []string{"https://u:p@h/r", "ssh://u:p@h", "a::b::http://u@h?x", "git@h:r", "x://@", "://@"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, url string) {
		got := withoutCredentials(url)
		if withoutCredentials(got) != got {
			t.Errorf("%q becomes %q, and that %q", url, got, withoutCredentials(got))
		}
		if len(got) > len(url) || strings.Contains(got, "\n") {
			t.Errorf("%q becomes %q", url, got)
		}
		scheme, rest, ok := strings.Cut(got, "://")
		if host, _, _ := strings.Cut(rest, "/"); ok && strings.EqualFold(scheme, "https") && strings.Contains(host, "@") {
			t.Errorf("%q becomes %q", url, got)
		}
	})
}
