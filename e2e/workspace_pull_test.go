//go:build e2e

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// work is a repository of a host that is worked on in VMs.
type work struct {
	*host
	t   testing.TB
	dir string
}

// newWork makes a repository with one commit.
func (h *host) newWork(t testing.TB, name string) *work {
	t.Helper()
	w := &work{host: h, t: t, dir: filepath.Join(h.dir, name)}
	w.git("init", "-q", "-b", "main", w.dir)
	w.git("-C", w.dir, "config", "user.name", "A U Thor")
	w.git("-C", w.dir, "config", "user.email", "author@example.org")
	w.write("tracked", "1\n2\n3\n4\n5\n6\n7\n8\n")
	w.write("other", "other\n")
	w.commit("first")
	return w
}

func (w *work) git(args ...string) string {
	w.t.Helper()
	return command(w.t, append([]string{"git"}, args...)...)
}

func (w *work) in(args ...string) string {
	w.t.Helper()
	return w.git(append([]string{"-C", w.dir}, args...)...)
}

func (w *work) write(name, content string) {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

func (w *work) read(name string) string {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, name))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func (w *work) commit(message string) {
	w.t.Helper()
	w.in("add", "-A")
	w.in("commit", "-qm", message)
}

// TestWorkspaceThereAndBack: a repository goes in on a branch of its own, is brought up to date, and its work comes back in every way there is.
func TestWorkspaceThereAndBack(t *testing.T) {
	h := newHost(t)
	w := h.newWork(t, "repo")
	upstream := filepath.Join(h.dir, "upstream.git")
	w.git("clone", "-q", "--bare", w.dir, upstream)
	w.in("remote", "add", "origin", "https://user:secret@example.org/repo.git")
	w.in("fetch", "-q", upstream, "main:refs/remotes/origin/main")

	// A branch that is there costs no VM.
	h.fails(125, []string{`has the branch "main" already`, "hint:"}, "vm", "run", "--name", "dev", w.dir, "--branch", "main", "--", "true")
	h.fails(2, []string{"--branch"}, "vm", "run", "--name", "dev", "--branch", "x", "--", "true")
	if vms := h.vms(); len(vms) != 0 {
		t.Fatalf("left are %v", vms)
	}
	w.write("dirty", "not committed\n")
	if out := h.ok("vm", "run", "--name", "dev", w.dir, "--branch", "try-it", "--from", "origin/main", "--", "sh", "-c",
		"git branch --show-current; git status --porcelain --branch; git remote get-url origin"); out != "try-it\n## try-it...origin/main\nhttps://example.org/repo.git\n" {
		t.Errorf("%q", out)
	}
	if refs := w.in("for-each-ref", "refs/heads"); strings.Contains(refs, "try-it") {
		t.Errorf("the host has %s", refs)
	}

	// A copy of the work tree as it is, beside it; the second time brings only what has changed.
	h.ok("vm", "workspace", "prepare", "dev", w.dir, "--guest-path", "/root/as-it-is")
	h.inGuest("dev", "cd /root/as-it-is && echo guest > notes && git status --porcelain | sort > /tmp/s && grep dirty /tmp/s")
	w.write("dirty", "changed\n")
	w.write("tracked", "1\n2\n3\n4\n5\n6\n7\neight\n")
	if out := h.ok("vm", "workspace", "prepare", "dev", w.dir, "--guest-path", "/root/as-it-is", "-o", "json"); !strings.Contains(out, `"files": 2`) || !strings.Contains(out, `"updated": true`) {
		t.Errorf("%s", out)
	}
	if out := h.inGuest("dev", "cd /root/as-it-is && cat notes dirty && tail -1 tracked"); out != "guest\nchanged\neight\n" {
		t.Errorf("%q", out)
	}
	h.inGuest("dev", "cd /root/as-it-is && echo guest >> other")
	w.write("other", "host\n")
	h.fails(1, []string{"other", "--force"}, "vm", "workspace", "prepare", "dev", w.dir, "--guest-path", "/root/as-it-is")
	if out := h.inGuest("dev", "cat /root/as-it-is/other"); out != "other\nguest\n" {
		t.Errorf("%q", out)
	}
	w.in("checkout", "-q", "other")

	// What has changed there, as a status, a patch, and applied.
	h.inGuest("dev", "cd /root/as-it-is && sed -i s/1/one/ tracked && rm -f dirty && mkdir -p new && printf 'x\\ny\\n' > new/file && chmod +x new/file && ln -s file new/link")
	h.fails(1, []string{"more than one copy", "/root/as-it-is", "/root/repo"}, "vm", "workspace", "status", "dev")
	st := h.ok("vm", "workspace", "status", "dev", "--guest-path", "/root/as-it-is")
	for _, want := range []string{"new/file", "tracked", "dirty", "notes"} {
		if !strings.Contains(st, want) {
			t.Errorf("status lacks %q:\n%s", want, st)
		}
	}
	patch := h.ok("vm", "workspace", "diff", "dev", "--guest-path", "/root/as-it-is")
	for _, want := range []string{"-1\n+one\n", "deleted file mode 100644", "new file mode 100755", "new file mode 120000", "+guest\n"} {
		if !strings.Contains(patch, want) {
			t.Errorf("the patch lacks %q:\n%s", want, patch)
		}
	}
	file := filepath.Join(h.dir, "out.patch")
	h.ok("vm", "workspace", "pull", "dev", "--guest-path", "/root/as-it-is", "--patch", file)
	w.in("apply", "--check", file)
	w.write("tracked", "1\n2\n3\n4\n5\n6\n7\nacht\n") // at the other end of the file
	h.ok("vm", "workspace", "pull", "dev", "--guest-path", "/root/as-it-is", "--apply")
	for name, want := range map[string]string{"tracked": "one\n2\n3\n4\n5\n6\n7\nacht\n", "other": "other\nguest\n", "new/file": "x\ny\n", "notes": "guest\n"} {
		if got := w.read(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if _, err := os.Lstat(filepath.Join(w.dir, "dirty")); err == nil {
		t.Error("dirty was removed there and is still here")
	}

	// Commits come to refs of their own.
	h.inGuest("dev", "cd /root/repo && echo work > work && git add -A && git commit -qm 'the work' && echo more >> work")
	out := h.ok("vm", "workspace", "pull", "dev", "--guest-path", "/root/repo")
	if !strings.Contains(out, "refs/banger/dev/try-it") || !strings.Contains(out, "git merge") {
		t.Errorf("%s", out)
	}
	if got := w.in("show", "refs/banger/dev/try-it:work"); got != "work\n" {
		t.Errorf("%q", got)
	}
	w.in("stash", "-qu")
	w.in("merge", "-q", "--no-edit", "refs/banger/dev/try-it")

	// What was not pulled keeps the VM, also when it does not run.
	h.inGuest("dev", "cd /root/repo && git commit -qam 'more work' && sync")
	h.ok("vm", "stop", "dev")
	h.fails(1, []string{"/root/repo", "try-it", "--force"}, "vm", "delete", "dev")
	h.ok("vm", "start", "dev")
	h.ok("vm", "workspace", "pull", "dev", "--guest-path", "/root/repo")
	h.ok("vm", "stop", "dev")
	h.ok("vm", "delete", "dev")
}

// TestWorkspaceTooling: the tools a repository names are installed in the background, and the run does not wait for them.
func TestWorkspaceTooling(t *testing.T) {
	h := newHost(t)
	w := h.newWork(t, "tools")
	w.write("mise.toml", "[tools]\n")
	h.ok("vm", "create", "--name", "v")
	h.inGuest("v", `mkdir -p /usr/local/bin; printf '#!/bin/sh\necho "mise $* in $PWD"\n[ "$1" = trust ] || { touch /tmp/begun; while [ ! -e /tmp/go ]; do sleep 0.1; done; exit 3; }\n' > /usr/local/bin/mise; chmod +x /usr/local/bin/mise`)
	h.ok("vm", "workspace", "prepare", "v", w.dir)
	const log = "/root/.cache/banger/vm-run-tooling-tools.log"
	out := h.inGuest("v", "while [ ! -e /tmp/begun ]; do sleep 0.1; done; touch /tmp/go; while ! grep -q ended "+log+"; do sleep 0.1; done; cat "+log)
	for _, want := range []string{"mise install --yes in /root/tools", "ended with status 3"} {
		if !strings.Contains(out, want) {
			t.Errorf("the log lacks %q: %s", want, out)
		}
	}
	h.ok("vm", "workspace", "prepare", "v", w.dir, "--guest-path", "/root/without", "--no-tooling")
	if r := h.run("vm", "exec", "v", "--", "test", "-e", "/root/.cache/banger/vm-run-tooling-without.log"); r.code != 1 {
		t.Error("tools were installed in spite of --no-tooling")
	}
}

// TestWorkspaceInterrupted kills the daemon and the client in the middle of a copy and of a pull; another one finishes the work.
func TestWorkspaceInterrupted(t *testing.T) {
	h := newHost(t)
	w := h.newWork(t, "repo")
	rnd := rand.NewChaCha8([32]byte{1})
	blob := make([]byte, 64<<10)
	for i := range 400 {
		_, _ = rnd.Read(blob)
		w.write(fmt.Sprintf("data/%d", i), string(blob))
	}
	w.commit("data")
	h.ok("vm", "create", "--name", "v")
	half := func() bool { return h.inGuest("v", "ls /root/repo/data 2>/dev/null | wc -l") != "0\n" }
	h.midway(t, half, func(d *dialog) { kill(t, h.daemonPID()) }, "vm", "workspace", "prepare", "v", w.dir)
	h.fails(1, []string{"broken off", "prepare"}, "vm", "workspace", "status", "v")
	h.ok("vm", "workspace", "prepare", "v", w.dir)
	if out := h.inGuest("v", "cd /root/repo && git status --porcelain && git fsck && git rev-parse HEAD"); out != w.in("rev-parse", "HEAD") {
		t.Errorf("%q", out)
	}
	if left, _ := filepath.Glob(filepath.Join(cache, "banger/banger-workspace-*")); len(left) != 0 {
		t.Errorf("left are %q", left)
	}

	// A pull of as much, cut off by the end of the daemon, then by the end of the client.
	h.inGuest("v", "cd /root/repo && for f in data/*; do echo more >> $f; done && git commit -qam 'all of it'")
	begun := func() bool {
		left, _ := filepath.Glob(filepath.Join(cache, "banger/banger-quarantine-*"))
		return len(left) > 0
	}
	h.midway(t, begun, func(*dialog) { kill(t, h.daemonPID()) }, "vm", "workspace", "pull", "v")
	h.ok("vm", "list") // a daemon that starts tidies up
	h.midway(t, begun, func(d *dialog) { d.interrupt() }, "vm", "workspace", "pull", "v")
	h.ok("vm", "workspace", "pull", "v")
	if out := w.in("log", "-1", "--format=%s", "refs/banger/v/main"); out != "all of it\n" {
		t.Errorf("%q", out)
	}
	w.in("fsck", "--connectivity-only")
	if begun() {
		t.Error("a quarantine was left")
	}

	// The VM goes in the middle of an application: nothing here is changed.
	before := w.in("status", "--porcelain")
	code := h.midway(t, func() bool { return true }, func(*dialog) { h.ok("vm", "kill", "v") }, "vm", "workspace", "pull", "v", "--apply")
	if after := w.in("status", "--porcelain"); code != 0 && after != before {
		t.Errorf("the pull failed, and the work tree is %s", after)
	}
	// What a drive holds that was not unmounted is not known.
	h.fails(1, []string{"not known", "was not shut down", "--force"}, "vm", "delete", "v")
	h.ok("vm", "start", "v")
	h.ok("vm", "workspace", "pull", "v", "--apply")
	if !strings.HasSuffix(w.read("data/7"), "more\n") {
		t.Error("data/7 is not what the VM has")
	}
}

// TestHostileWorkspace: a guest whose git lies and whose repository is a trap changes nothing on the host.
func TestHostileWorkspace(t *testing.T) {
	h := newHost(t)
	w := h.newWork(t, "repo")
	canary := filepath.Join(h.dir, "canary")
	h.ok("vm", "run", "--name", "v", w.dir, "--", "true")
	h.inGuest("v", `cd /root/repo
		evil='touch `+canary+` || true'
		git config core.fsmonitor "$evil; false" ; git config core.hooksPath /root/hooks; mkdir -p /root/hooks
		for k in post-checkout pre-push reference-transaction post-merge update; do printf '#!/bin/sh\n%s\nexit 0\n' "$evil" > /root/hooks/$k; chmod +x /root/hooks/$k; done
		git config filter.evil.smudge "$evil"; git config filter.evil.clean "$evil; cat"; git config diff.external "$evil"
		git config uploadpack.packObjectsHook "$evil"; git config core.sshCommand "$evil"; git config alias.status "!$evil"
		echo '* filter=evil diff=evil merge=evil' > .gitattributes
		printf '[submodule "x"]\n\tpath = x\n\turl = ext::sh -c touch%% '`+canary+`'\n\tupdate = !touch '`+canary+`'\n' > .gitmodules
		echo changed >> tracked; git add -A; git -c core.fsmonitor=false commit -qm trap; echo dirty >> tracked`)
	before := everything(t, w.dir)
	r := h.run("vm", "workspace", "pull", "v", "-o", "json")
	if r.code == 0 { // git finds the submodule's address out, or takes the commit as what it is: data
		t.Logf("pulled: %s", r.stdout)
	}
	h.run("vm", "workspace", "diff", "v")
	h.run("vm", "workspace", "status", "v")

	// Paths and links that act on a host, from an agent that lists what it likes: the guest's git is a program of the guest's.
	h.inGuest("v", `cat > /usr/local/bin/git <<'END'
#!/bin/sh
case "$*" in
*ls-files*) printf '.git/hooks/post-checkout\0../../evil\0tracked\0/etc/passwd\0' ;;
*for-each-ref*) echo '*0000000000000000000000000000000000000001 refs/heads/../../../../evil '; echo ' $(touch `+canary+`) refs/heads/x ' ;;
*pack-objects*) head -c 1000000 /dev/urandom ;;
*) echo deadbeefdeadbeefdeadbeefdeadbeefdeadbeef ;;
esac
END
chmod +x /usr/local/bin/git; ln -sf /usr/local/bin/git /usr/bin/git`)
	for _, args := range [][]string{{"pull", "v"}, {"pull", "v", "--apply"}, {"diff", "v"}, {"status", "v"}} {
		// The agent does not say what git must not; without commits the rest is what it is.
		r := h.run(append([]string{"vm", "workspace"}, args...)...)
		if r.code != 1 && args[0] != "diff" || strings.Contains(r.stdout, "evil") || strings.Contains(r.stdout, "hooks") || strings.Contains(r.stdout, "passwd") {
			t.Errorf("%q: exit status %d, %s%s", args, r.code, r.stdout, r.stderr)
		}
	}
	if after := everything(t, w.dir); after != before {
		t.Errorf("the work tree was\n%s\nand is\n%s", before, after)
	}
	if _, err := os.Lstat(canary); err == nil {
		t.Error("something ran on the host")
	}
	w.in("fsck")
}

// everything lists a work tree with its git directory, but for what a pull may add.
func everything(t testing.TB, dir string) string {
	t.Helper()
	return command(t, "sh", "-c", `cd "$0" && find . -path ./.git/objects -prune -o -path ./.git/refs -prune -o -path ./.git/logs -prune -o -type f -printf '%P %m %s %T@\n' | LC_ALL=C sort`, dir)
}

// midway runs a command line, does something once ready says so, and returns its exit status.
func (h *host) midway(t *testing.T, ready func() bool, do func(*dialog), args ...string) (code int) {
	t.Helper()
	d := h.begin(args...)
	if err := waitFor(waitShort, func() bool { return ready() }); err != nil {
		t.Fatal(err)
	}
	do(d)
	return d.wait()
}

// TestWorkspaceCycles: whatever is committed in the guest, a pull brings it, and nothing that was brought is ever lost.
func TestWorkspaceCycles(t *testing.T) { workspaceCycles(t, 8, 1) }

func workspaceCycles(t *testing.T, count int, seed uint64) {
	h := newHost(t)
	w := h.newWork(t, "repo")
	rnd := rand.New(rand.NewPCG(seed, 3))
	h.ok("vm", "run", "--name", "v", w.dir, "--branch", "work", "--", "true")
	steps := []string{
		"echo $RANDOM >> f$((RANDOM % 5)); git add -A; git commit -qm edit",
		"git checkout -q -B b$((RANDOM % 3))", "git commit -q --amend --allow-empty -m amended", "git reset -q --hard HEAD~1",
		"git merge -q --no-edit b$((RANDOM % 3)) || git merge --abort", "git checkout -q --detach; git commit -q --allow-empty -m detached",
		"echo stashed > s$RANDOM; git stash -qu", "git tag -f t$((RANDOM % 2))", "git branch -D b$((RANDOM % 3))", "git rebase -q main || git rebase --abort",
		"git branch -M moved/b$RANDOM", "git gc -q --prune=now", "git mv f1 f$RANDOM; git commit -qam moved",
	}
	seen := map[string]bool{}
	for i := range count {
		var script strings.Builder
		script.WriteString("cd /root/repo\n")
		for range 1 + rnd.IntN(5) {
			fmt.Fprintf(&script, "RANDOM=%d; %s\n", rnd.IntN(30000), steps[rnd.IntN(len(steps))])
		}
		script.WriteString("git rev-list --all HEAD\n")
		r := h.run("vm", "exec", "v", "--", "bash", "-c", "{ "+script.String()+"} 2>/dev/null")
		for id := range strings.FieldsSeq(r.stdout) {
			if len(id) == 40 {
				seen[id] = true
			}
		}
		if rnd.IntN(3) == 0 { // the host goes on, and tidies up
			w.write("host", fmt.Sprint(i))
			w.commit("host")
			w.in("gc", "-q", "--prune=now")
			if r := h.run("vm", "workspace", "prepare", "v", w.dir); r.code != 0 && !strings.Contains(r.stderr, "since the last copy") {
				t.Fatalf("prepare: %s", r.stderr)
			}
		}
		h.ok("vm", "workspace", "pull", "v")
	}
	reached := w.in("rev-list", "--all")
	for id := range seen {
		if !strings.Contains(reached, id) {
			t.Errorf("commit %s of the guest is reached by nothing", id)
		}
	}
	w.in("fsck", "--full")
	t.Logf("%d cycles, %d commits", count, len(seen))
	h.ok("vm", "stop", "v")
	h.ok("vm", "delete", "v")
}
