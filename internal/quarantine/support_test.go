package quarantine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// world is a user with a home, a repository "host" and a guest's repository "guest".
type world struct {
	testing.TB
	dir, host, guest string
	env, guestEnv    []string
	cfg              Config
	have             []string
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const gitconfig = `[user]
	name = A U Thor
	email = author@example.org
[protocol "file"]
	allow = always
[gc]
	auto = 0
[maintenance]
	auto = false
[advice]
	detachedHead = false
`

// newWorld makes a host's repository with one commit, and a guest's that is a clone of it.
func newWorld(t testing.TB) *world {
	t.Helper()
	w := emptyWorld(t)
	must(t, os.CopyFS(w.dir, os.DirFS(template(t))))
	w.write(w.guest, ".git/config", strings.ReplaceAll(string(read(t, filepath.Join(w.guest, ".git/config"))), template(t), w.dir))
	w.have = []string{strings.TrimSpace(string(read(t, filepath.Join(w.host, ".git/refs/heads/main"))))}
	return w
}

// templateDir is what newWorld copies: making it anew takes git a while.
var templateDir string

func template(t testing.TB) string {
	t.Helper()
	if _, err := os.Stat(templateDir); templateDir != "" && err == nil {
		return templateDir
	}
	dir, err := os.MkdirTemp("", "banger-quarantine-test-") //nolint:usetesting // it outlives the test that comes first
	must(t, err)
	w := emptyWorld(t)
	w.dir, w.host, w.guest = dir, filepath.Join(dir, "host"), filepath.Join(dir, "guest")
	w.firstCommit()
	w.git("", "clone", "-q", w.host, w.guest)
	templateDir = dir
	return dir
}

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child())
	}
	code := m.Run()
	if templateDir != "" {
		_ = os.RemoveAll(templateDir)
	}
	os.Exit(code)
}

func read(t testing.TB, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	return b
}

// emptyWorld is a user without repositories.
func emptyWorld(t testing.TB) *world {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	w := &world{TB: t, dir: dir, host: filepath.Join(dir, "host"), guest: filepath.Join(dir, "guest")}
	environment := func(home string) []string {
		home = filepath.Join(dir, home)
		must(t, os.Mkdir(home, 0o755))
		must(t, os.WriteFile(filepath.Join(home, ".gitconfig"), []byte(gitconfig), 0o644))
		return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "LC_ALL=C", "GIT_CONFIG_NOSYSTEM=1", "GIT_EDITOR=true"}
	}
	w.env, w.guestEnv = environment("home"), environment("guesthome")
	w.cfg = Config{Environ: w.env, TempDir: filepath.Join(dir, "temp")}
	return w
}

// firstCommit makes the host's repository.
func (w *world) firstCommit(initArgs ...string) {
	w.Helper()
	w.git("", append([]string{"init", "-q", "-b", "main", w.host}, initArgs...)...)
	w.write(w.host, "file", "one\n")
	w.git(w.host, "add", "-A")
	w.git(w.host, "commit", "-qm", "first")
	w.have = []string{w.id(w.host, "main")}
}

func (w *world) try(dir string, stdin io.Reader, args ...string) (string, error) {
	if dir == "" {
		dir = w.dir
	}
	env := w.env
	if strings.HasPrefix(dir, w.guest) {
		env = w.guestEnv
	}
	out, err := hostexec.Runner{}.Output(context.WithoutCancel(w.Context()),
		hostexec.Cmd{Argv: append([]string{"git"}, args...), Dir: dir, Env: env, Stdin: stdin})
	return string(out), err
}

func (w *world) git(dir string, args ...string) string {
	w.Helper()
	return w.gitIn(dir, "", args...)
}

func (w *world) gitIn(dir, stdin string, args ...string) string {
	w.Helper()
	out, err := w.try(dir, strings.NewReader(stdin), args...)
	if err != nil {
		w.Fatalf("git %q in %s: %v", args, dir, err)
	}
	return strings.TrimSuffix(out, "\n")
}

func (w *world) id(dir, rev string) string {
	w.Helper()
	return w.git(dir, "rev-parse", "--verify", rev)
}

func (w *world) write(dir, name, content string) {
	w.Helper()
	path := filepath.Join(dir, name)
	must(w, os.MkdirAll(filepath.Dir(path), 0o755))
	must(w, os.WriteFile(path, []byte(content), 0o644))
}

// commit makes a commit that changes one file, and returns its id.
func (w *world) commit(dir, message string) string {
	w.Helper()
	w.write(dir, "file", message+"\n")
	w.git(dir, "add", "-A")
	w.git(dir, "commit", "-qm", message)
	return w.id(dir, "HEAD")
}

// object writes an object to the guest's repository without any check.
func (w *world) object(kind, content string) string {
	w.Helper()
	return w.gitIn(w.guest, content, "hash-object", "-t", kind, "-w", "--stdin", "--literally")
}

// tree is the content of a tree object; entries are "mode name id".
func tree(t testing.TB, entries ...string) string {
	t.Helper()
	var b bytes.Buffer
	for _, e := range entries {
		mode, rest, _ := strings.Cut(e, " ")
		i := strings.LastIndexByte(rest, ' ')
		fmt.Fprintf(&b, "%s %s\x00", mode, rest[:i])
		var id []byte
		_, err := fmt.Sscanf(rest[i+1:], "%x", &id)
		must(t, err)
		b.Write(id)
	}
	return b.String()
}

// commitTree makes a commit of a tree in the guest.
func (w *world) commitTree(treeID string, parents ...string) string {
	w.Helper()
	c := "tree " + treeID + "\n"
	for _, p := range parents {
		c += "parent " + p + "\n"
	}
	return w.object("commit", c+"author A <a@example.org> 1700000000 +0000\ncommitter A <a@example.org> 1700000000 +0000\n\nmessage\n")
}

var stashLine = regexp.MustCompile(`(?m)^([0-9a-f]+) (.*)$`)

// refs reads the guest's refs as the agent does.
func (w *world) refs() []Ref {
	w.Helper()
	var refs []Ref
	out := w.git(w.guest, "for-each-ref", "--format=%(objectname) %(refname)")
	for _, m := range stashLine.FindAllStringSubmatch(out, -1) {
		refs = append(refs, Ref{m[2], m[1]})
	}
	if _, err := w.try(w.guest, nil, "symbolic-ref", "-q", "HEAD"); err != nil {
		if id, err := w.try(w.guest, nil, "rev-parse", "-q", "--verify", "HEAD^{commit}"); err == nil {
			refs = append(refs, Ref{"HEAD", strings.TrimSpace(id)})
		}
	}
	if out, err := w.try(w.guest, nil, "log", "-g", "--format=%H", "refs/stash", "--"); err == nil {
		for i, id := range strings.Fields(out) {
			if i > 0 {
				refs = append(refs, Ref{fmt.Sprintf("stash@{%d}", i), id})
			}
		}
	}
	return refs
}

// pack is what the agent does.
func (w *world) pack(ctx context.Context, want, have []string, to io.Writer) error {
	in := strings.Join(want, "\n") + "\n"
	out, err := hostexec.Runner{}.Output(ctx, hostexec.Cmd{Argv: []string{"git", "cat-file", "--batch-check=%(objectname)"},
		Dir: w.guest, Env: w.guestEnv, Stdin: strings.NewReader(strings.Join(have, "\n") + "\n")})
	if err != nil {
		return err
	}
	for l := range strings.FieldsSeq(strings.ReplaceAll(string(out), " missing", "-missing")) {
		if !strings.HasSuffix(l, "-missing") {
			in += "^" + l + "\n"
		}
	}
	return hostexec.Runner{}.Run(ctx, hostexec.Cmd{Argv: []string{"git", "pack-objects", "--revs", "--stdout", "--thin", "-q"},
		Dir: w.guest, Env: w.guestEnv, Stdin: strings.NewReader(in), Stdout: to})
}

func (w *world) request() Request {
	w.Helper()
	req := Request{Repo: w.host, VM: "dev", Refs: w.refs(), Have: w.have, Pack: w.pack}
	if b, err := os.ReadFile(filepath.Join(w.guest, ".git", "shallow")); err == nil {
		req.Shallow = strings.Fields(string(b))
	}
	return req
}

// pull pulls, and checks that nothing else of the host's repository has changed.
func (w *world) pull() (Result, error) {
	w.Helper()
	return w.pullReq(w.request())
}

func (w *world) pullReq(req Request) (Result, error) {
	w.Helper()
	before := w.listing()
	res, err := Pull(w.Context(), w.cfg, req)
	if after := w.listing(); !slices.Equal(before, after) {
		w.Errorf("the host's files were\n%s\nand are\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	if left, _ := os.ReadDir(w.cfg.TempDir); len(left) > 0 {
		w.Errorf("left behind: %v", left)
	}
	if keep, _ := filepath.Glob(filepath.Join(w.host, ".git/objects/pack/*.keep")); len(keep) > 0 {
		w.Errorf("left behind: %v", keep)
	}
	return res, err
}

func (w *world) mustPull() Result {
	w.Helper()
	res, err := w.pull()
	must(w, err)
	w.whole()
	return res
}

// whole checks that the host's repository lacks nothing.
func (w *world) whole() {
	w.Helper()
	if out, err := w.try(w.host, nil, "fsck", "--connectivity-only"); err != nil {
		w.Errorf("git fsck on the host: %v\n%s", err, out)
	}
}

// listing is what is in the host's work tree and git directory, other than objects and refs/banger/, with times.
func (w *world) listing() []string {
	w.Helper()
	var all []string
	must(w, filepath.WalkDir(w.host, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		rel, _ := filepath.Rel(w.host, path)
		if err != nil {
			return err
		}
		if rel == ".git/objects" || rel == ".git/refs/banger" || rel == ".git/reftable" {
			return fs.SkipDir
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		when := st.ModTime().String()
		if rel == ".git" || rel == ".git/refs" || rel == ".git/packed-refs" { // git makes locks and refs/banger in them
			when = ""
		}
		all = append(all, fmt.Sprint(rel, " ", st.Mode(), " ", st.Size(), " ", when))
		return nil
	}))
	return all
}

// pulled are the refs below refs/banger/ on the host, short, with their ids.
func (w *world) pulled() map[string]string {
	w.Helper()
	refs := map[string]string{}
	for _, m := range stashLine.FindAllStringSubmatch(w.git(w.host, "for-each-ref", "--format=%(objectname) %(refname)", "refs/banger/"), -1) {
		refs[strings.TrimPrefix(m[2], "refs/banger/")] = m[1]
	}
	return refs
}
