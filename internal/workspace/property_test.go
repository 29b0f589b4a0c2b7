package workspace

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// generator makes a random repository by doing what people do to one.
type generator struct {
	*testing.T
	rnd   *rand.Rand
	dir   string // the work tree
	git   func(dir string, args ...string) (string, error)
	n     int
	trace []string
}

// names are file names that hurt.
var names = []string{"a", "b.txt", "dir/c", "dir/deep/er/d", "sp ace", "tab\there", "new\nline", "ünïcode", "bad\xff\xfeutf8", "dir/\xe9",
	"-dash", "--", "quote\"'", "$(x)", "star*", ".hidden", "dir/.gitignore2", "long/" + strings.Repeat("n", 120) + "/" + strings.Repeat("m", 150),
	"x.ign", "build/out", "UPPER", "upper2", "trail ", "a~", "CON", "dir2/link", "exe.sh", "crlf.txt", "empty"}

func (g *generator) name() string { return names[g.rnd.IntN(len(names))] }

func (g *generator) run(args ...string) { // may fail: what people try
	out, err := g.git(g.dir, args...)
	g.trace = append(g.trace, fmt.Sprintf("git %q: %v", args, err))
	_ = out
}

func (g *generator) write(name string) {
	g.trace = append(g.trace, fmt.Sprintf("write %q", name))
	path := filepath.Join(g.dir, name)
	if os.MkdirAll(filepath.Dir(path), 0o755) != nil {
		return
	}
	g.n++
	content := fmt.Sprintf("%d %d\n", g.n, g.rnd.IntN(4))
	switch g.rnd.IntN(6) {
	case 0:
		content = strings.Repeat(content, 1+g.rnd.IntN(5000))
	case 1:
		content = ""
	case 2:
		content = strings.ReplaceAll(content+content, "\n", "\r\n")
	case 3:
		content = "bin\x00" + content
	}
	_ = os.Remove(path)
	_ = os.WriteFile(path, []byte(content), 0o644)
}

// step does one thing.
func (g *generator) step() {
	path := filepath.Join(g.dir, g.name())
	branch := fmt.Sprintf("b%d", g.rnd.IntN(4))
	switch g.rnd.IntN(34) {
	case 0, 1, 2, 3, 4, 5, 6:
		g.write(g.name())
	case 7, 8, 9:
		g.run("add", "-A")
	case 10:
		g.run("add", "--", g.name())
	case 11, 12, 13:
		g.run("commit", "-qam", fmt.Sprint("commit ", g.n))
	case 14:
		g.run("checkout", "-q", "-b", branch)
	case 15:
		g.run("checkout", "-q", branch)
	case 16:
		g.run("merge", "-q", "--no-edit", branch)
	case 17:
		g.run("rm", "-q", "-f", "--", g.name())
	case 18:
		g.run("mv", "--", g.name(), g.name())
	case 19:
		_ = os.RemoveAll(path)
	case 20:
		mode := []os.FileMode{0o755, 0o644, 0o600, 0o700}[g.rnd.IntN(4)]
		if st, err := os.Lstat(path); err == nil && st.Mode().IsRegular() { // what a link leads to is the machine's
			_ = os.Chmod(path, mode)
		}
	case 21:
		_ = os.RemoveAll(path)
		_ = os.Symlink([]string{"a", "../outside", "/nowhere/passwd", "dir", "nowhere\xff"}[g.rnd.IntN(5)], path)
	case 22:
		g.write(".gitignore")
		_ = os.WriteFile(filepath.Join(g.dir, ".gitignore"), []byte("*.ign\nbuild/\n"), 0o644)
	case 23:
		g.run("add", "-N", "-A")
	case 24:
		g.run("stash", "-q", "-u")
	case 25:
		g.run("tag", "-f", "-a", "-m", "tag", fmt.Sprintf("t%d", g.rnd.IntN(3)))
	case 26:
		g.run("reset", "-q", "--soft", "HEAD^")
	case 27:
		g.run([][]string{{"gc", "-q"}, {"repack", "-adq"}, {"pack-refs", "--all"}}[g.rnd.IntN(3)]...)
	case 28:
		g.run("checkout", "-q", "--detach")
	case 29:
		g.run([][]string{{"update-index", "--split-index"}, {"update-index", "--untracked-cache"}, {"update-index", "--index-version=4"},
			{"config", "core.autocrlf", "input"}, {"config", "status.showUntrackedFiles", "all"}, {"config", "core.trustctime", "false"},
			{"config", "core.checkStat", "minimal"}, {"symbolic-ref", "refs/remotes/origin/HEAD", "refs/heads/main"}}[g.rnd.IntN(8)]...)
	case 30:
		g.run("rebase", "-q", branch)
	case 31:
		g.run("cherry-pick", branch)
	case 32:
		g.run("update-index", []string{"--assume-unchanged", "--skip-worktree"}[g.rnd.IntN(2)], "--", g.name())
	case 33:
		sub := filepath.Join(g.dir, fmt.Sprintf("nested%d", g.rnd.IntN(2)))
		if os.Mkdir(sub, 0o755) == nil {
			_, _ = g.git(sub, "init", "-q", "-b", "main")
			_ = os.WriteFile(filepath.Join(sub, "f"), []byte("nested\n"), 0o644)
			_, _ = g.git(sub, "add", "-A")
			_, _ = g.git(sub, "commit", "-qm", "nested")
		} else {
			_ = os.WriteFile(filepath.Join(sub, "f"), []byte(fmt.Sprint(g.n)), 0o644)
		}
	}
}

// variant turns the repository into one that lies differently on the disk, sometimes.
func (g *generator) variant() {
	other := g.dir + "-v"
	made := func(args ...string) {
		_, err := g.git(g.dir, args...)
		g.trace = append(g.trace, fmt.Sprintf("variant %q: %v", args, err))
		if err == nil {
			g.dir = other
			for range 6 {
				g.step()
			}
		}
	}
	switch g.rnd.IntN(9) {
	case 0:
		made("worktree", "add", "-q", "--force", other)
	case 1:
		made("clone", "-q", "--shared", g.dir, other)
	case 2:
		made("clone", "-q", "--depth=2", "--no-single-branch", "file://"+g.dir, other)
	case 3:
		_, _ = g.git(g.dir, "config", "uploadpack.allowFilter", "true")
		made("clone", "-q", "--filter=blob:none", "file://"+g.dir, other)
	case 4:
		g.run("sparse-checkout", "set", "dir")
	}
}

// seeds runs a test for COUNT repositories (few, where it is not set), from SEED (1) on.
func seeds(t *testing.T, few uint64, run func(t *testing.T, seed uint64)) {
	count, err := strconv.ParseUint(cmp.Or(os.Getenv("COUNT"), fmt.Sprint(few)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	seed, err := strconv.ParseUint(cmp.Or(os.Getenv("SEED"), "1"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	for i := range count {
		t.Run(fmt.Sprint(seed+i), func(t *testing.T) { run(t, seed+i) })
	}
}

// generated makes the random repository of a seed.
func (h *host) generated(seed uint64) *generator {
	g := &generator{T: h.T, rnd: rand.New(rand.NewPCG(seed, 7)), dir: filepath.Join(h.dir, "repo"), git: h.try}
	h.git(h.dir, "init", "-q", "-b", "main", g.dir)
	for range 10 + g.rnd.IntN(50) {
		g.step()
	}
	g.variant()
	h.Cleanup(func() {
		if h.Failed() {
			h.Logf("SEED=%d COUNT=1, %s:\n%s", seed, g.dir, strings.Join(g.trace, "\n"))
		}
	})
	return g
}

// What git in the guest says of a copied repository is what git on the host says, for random repositories.
func TestPropertyGitSeesTheSame(t *testing.T) {
	seeds(t, 25, func(t *testing.T, seed uint64) {
		h := newHost(t)
		g := h.generated(seed)
		guest, ws := h.copy(g.dir)
		if !ws.Git || ws.Path != g.dir {
			t.Errorf("%+v", ws)
		}
		h.same(g.dir, guest)
	})
}

// The same is so after copies that bring only what has changed, whatever the user has done meanwhile.
func TestPropertyUpdates(t *testing.T) {
	seeds(t, 15, func(t *testing.T, seed uint64) {
		h := newHost(t)
		g := h.generated(seed)
		p := h.pairOf(g.dir, Options{})
		h.timeless = true
		for range 3 {
			for range 1 + g.rnd.IntN(12) {
				g.step()
			}
			g.trace = append(g.trace, "-- update")
			if _, err := p.update(false); err != nil {
				t.Fatal(err)
			}
			p.same(g.dir, p.guest.dir)
		}
	})
}
