package workspace

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/progress"

	"github.com/google/go-cmp/cmp"
)

// host is a user with a home and a git configuration of their own.
type host struct {
	*testing.T
	dir string
	env []string
	// timeless leaves the times of files out of comparisons: a file that was written anew as it was is not sent again.
	timeless bool
}

func newHost(t *testing.T) *host {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	home := filepath.Join(dir, "home")
	must(t, os.Mkdir(home, 0o755))
	must(t, os.WriteFile(filepath.Join(home, ".gitconfig"), []byte(`[user]
	name = A U Thor
	email = author@example.org
[protocol "file"]
	allow = always
[gc]
	auto = 0
[advice]
	detachedHead = false
[maintenance]
	auto = false
`), 0o644))
	return &host{T: t, dir: dir, env: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "LC_ALL=C", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_EDITOR=true", "GIT_AUTHOR_DATE=2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE=2026-01-01T00:00:00Z"}}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (h *host) try(dir string, args ...string) (string, error) {
	out, err := hostexec.Runner{}.Output(h.Context(), hostexec.Cmd{Argv: append([]string{"git"}, args...), Dir: dir, Env: h.env})
	return string(out), err
}

func (h *host) git(dir string, args ...string) string {
	h.Helper()
	out, err := h.try(dir, args...)
	if err != nil {
		h.Fatalf("git %q in %s: %v", args, dir, err)
	}
	return out
}

// file writes a file of the host.
func (h *host) file(name, content string) {
	h.Helper()
	path := filepath.Join(h.dir, name)
	must(h.T, os.MkdirAll(filepath.Dir(path), 0o755))
	must(h.T, os.WriteFile(path, []byte(content), 0o644))
}

// repo makes a repository with one commit of one file.
func (h *host) repo(name string) string {
	h.Helper()
	dir := filepath.Join(h.dir, name)
	h.git(h.dir, "init", "-q", "-b", "main", dir)
	h.file(name+"/tracked", "tracked\n")
	h.git(dir, "add", "-A")
	h.git(dir, "commit", "-qm", "first")
	return dir
}

func (h *host) config() Config {
	return Config{Environ: h.env, Home: filepath.Join(h.dir, "home"), TempDir: h.dir}
}

func (h *host) prepare(dir string) *Source {
	h.Helper()
	s, err := Prepare(h.Context(), h.config(), dir, Options{})
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() {
		if err := s.Close(); err != nil {
			h.Error(err)
		}
		if _, err := os.Lstat(s.temp); err == nil {
			h.Errorf("left behind: %s", s.temp)
		}
	})
	return s
}

// stream unpacks a source with tar into a directory of its own.
func (h *host) stream(s *Source) (string, api.Workspace) {
	h.Helper()
	var b bytes.Buffer
	ws, _, err := s.Stream(h.Context(), &b, progress.Discard)
	if err != nil {
		h.Fatal(err)
	}
	guest := filepath.Join(h.TempDir(), "guest")
	must(h.T, os.Mkdir(guest, 0o755))
	err = hostexec.Runner{}.Run(h.Context(), hostexec.Cmd{Argv: []string{"tar", "-xp", "--no-same-owner", "-C", guest}, Stdin: &b})
	if err != nil {
		h.Fatal(err)
	}
	return guest, ws
}

func (h *host) copy(dir string) (string, api.Workspace) {
	h.Helper()
	before := h.everything(dir)
	guest, ws := h.stream(h.prepare(dir))
	if diff := cmp.Diff(before, h.everything(dir)); diff != "" {
		h.Errorf("the host's directory was touched: (-before +after)\n%s", diff)
	}
	return guest, ws
}

// everything lists a directory, .git and all, with the times of files and directories.
func (h *host) everything(dir string) map[string]string {
	h.Helper()
	all := map[string]string{}
	must(h.T, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err == nil && !strings.HasPrefix(d.Name(), "sharedindex.") { // git keeps these young whenever it reads them
			all[p] = fmt.Sprint(st.Mode(), st.Size(), st.ModTime())
		}
		return err
	}))
	return all
}

// view is what git and the file system say of a work tree.
func (h *host) view(dir string) map[string]string {
	h.Helper()
	v := map[string]string{}
	v["tree"] = h.tree(dir)
	for _, args := range [][]string{
		{"ls-files", "-s", "-z"}, {"ls-files", "-v", "-z"}, {"status", "--porcelain", "-z"}, {"status", "--porcelain=v2", "--branch", "-z"},
		{"for-each-ref"}, {"symbolic-ref", "-q", "HEAD"}, {"rev-parse", "-q", "--verify", "HEAD"},
		{"log", "--format=%H %P", "--glob=refs/*"}, {"log", "--format=%H %P"}, {"diff", "--binary"}, {"diff", "--cached", "--binary"}, {"status"},
	} {
		out, err := h.try(dir, args...)
		if rest, ok := strings.CutPrefix(out, "HEAD detached "); ok { // at or from where: that is in the reflog
			_, out, _ = strings.Cut(rest, "\n")
		}
		if args[0] == "log" { // commits of the same second come in any order
			lines := strings.Split(out, "\n")
			slices.Sort(lines)
			out = strings.Join(lines, "\n")
		}
		out = strings.TrimPrefix(out, "Not currently on any branch.\n")
		v[strings.Join(args, " ")] = fmt.Sprintf("%q %v", strings.Split(out, "\x00"), exitOf(err))
	}
	return v
}

func exitOf(err error) int {
	if err == nil {
		return 0
	}
	code, _ := status(err)
	return code
}

// tree lists a directory without any .git: type, mode, content, and for what git tracks or could.
func (h *host) tree(dir string) string {
	h.Helper()
	var b strings.Builder
	for _, list := range [][]string{{"ls-files", "-z", "--cached"}, {"ls-files", "-z", "--others", "--exclude-standard"}} {
		for _, name := range slices.Compact(split([]byte(h.git(dir, list...)), "\x00")) {
			state := describe(filepath.Join(dir, name))
			if f := strings.Fields(state); h.timeless && len(f) == 3 {
				state = f[0] + " " + f[2]
			}
			fmt.Fprintf(&b, "%q %s\n", name, state)
		}
	}
	return b.String()
}

func describe(path string) string {
	st, err := os.Lstat(path)
	if err != nil {
		return "absent"
	}
	switch st.Mode().Type() {
	case 0:
		b, err := os.ReadFile(path)
		if err != nil {
			return err.Error()
		}
		sum := sha256.Sum256(b)
		return fmt.Sprintf("%v %d %s", st.Mode(), st.ModTime().Unix(), hex.EncodeToString(sum[:8]))
	case fs.ModeSymlink:
		target, _ := os.Readlink(path)
		return "-> " + target
	}
	return st.Mode().String()
}

// same compares the work trees of host and guest, and checks that the guest's is sound and complete.
func (h *host) same(dir, guest string) {
	h.Helper()
	hostIndex := describe(filepath.Join(dir, ".git/index"))
	got := h.view(guest) // first: the host's git is not to refresh anything before
	if now := describe(filepath.Join(dir, ".git/index")); now != hostIndex {
		h.Errorf("the host's index was touched: %s, then %s", hostIndex, now)
	}
	if diff := cmp.Diff(h.view(dir), got); diff != "" {
		h.Errorf("(-host +guest)\n%s", diff)
	}
	if out, err := h.try(guest, "fsck", "--no-dangling", "--strict"); err != nil {
		h.Errorf("fsck in the guest: %v\n%s", err, out)
	}
	for _, never := range []string{"hooks", "logs", "objects/info/alternates"} {
		if _, err := os.Lstat(filepath.Join(guest, ".git", never)); err == nil {
			h.Errorf(".git/%s travelled", never)
		}
	}
}
