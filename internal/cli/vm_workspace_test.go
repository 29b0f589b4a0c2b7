package cli

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
)

// fakeWork is what the fake daemon knows of the copies in all its VMs.
type fakeWork struct {
	checked  []api.PrepareWorkspace
	prepared []api.PrepareWorkspace
	refuse   error // of a check
	answer   api.Workspace
	copies   []api.WorkspaceCopy
	asked    []api.AskWorkspace
	status   api.WorkspaceStatus
	pulls    []api.PullWorkspace
	pull     api.Pull
	patch    string                    // what a pull writes
	lost     map[string][]api.Unpulled // by VM
	unknown  error                     // the answer about what is lost
}

// workspaceRoutes are copies of directories: a VM's is at the path it has on the host, unless the answer says otherwise.
func (d *fakeDaemon) workspaceRoutes(handle handleFunc) {
	handle("POST /v1/workspaces/check", func(r *http.Request) (int, any, error) {
		var req api.PrepareWorkspace
		json.NewDecoder(r.Body).Decode(&req)
		d.mu.Lock()
		defer d.mu.Unlock()
		d.work.checked = append(d.work.checked, req)
		return http.StatusNoContent, nil, d.work.refuse
	})
	handle("POST /v1/vms/{name}/workspace", d.workspaceOperation("vm.workspace", func(r *http.Request) func() (any, error) {
		var req api.PrepareWorkspace
		json.NewDecoder(r.Body).Decode(&req)
		return func() (any, error) {
			d.copied, d.work.prepared = append(d.copied, req.Path), append(d.work.prepared, req)
			if d.work.answer.GuestPath != "" {
				return d.work.answer, nil
			}
			return api.Workspace{Path: req.Path, GuestPath: req.Path, Skipped: []string{"a socket"}}, nil
		}
	}))
	handle("POST /v1/vms/{name}/workspace/status", d.workspaceOperation("vm.workspace-status", func(r *http.Request) func() (any, error) {
		var req api.AskWorkspace
		json.NewDecoder(r.Body).Decode(&req)
		return func() (any, error) {
			d.work.asked = append(d.work.asked, req)
			return d.work.status, nil
		}
	}))
	handle("POST /v1/vms/{name}/workspace/pull", d.workspaceOperation("vm.workspace-pull", func(r *http.Request) func() (any, error) {
		var req api.PullWorkspace
		json.NewDecoder(r.Body).Decode(&req)
		return func() (any, error) {
			d.work.pulls = append(d.work.pulls, req)
			if req.Patch != "" && d.work.patch != "" {
				if err := os.WriteFile(req.Patch, []byte(d.work.patch), 0o600); err != nil {
					return nil, err
				}
			}
			return d.work.pull, nil
		}
	}))
	handle("GET /v1/vms/{name}/workspaces", func(r *http.Request) (int, any, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		_, err := d.find(r.PathValue("name"))
		return http.StatusOK, d.work.copies, err
	})
	handle("GET /v1/vms/{name}/unpulled", func(r *http.Request) (int, any, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		vm, err := d.find(r.PathValue("name"))
		if err == nil {
			err = d.work.unknown
		}
		if err != nil {
			return 0, nil, err
		}
		return http.StatusOK, append([]api.Unpulled{}, d.work.lost[vm.Name]...), nil
	})
}

// workspaceOperation is an operation on a VM that runs; read takes the request in, what it returns is the work.
func (d *fakeDaemon) workspaceOperation(kind string, read func(*http.Request) func() (any, error)) func(*http.Request) (int, any, error) {
	return func(r *http.Request) (int, any, error) {
		work := read(r)
		d.mu.Lock()
		defer d.mu.Unlock()
		vm, err := d.running(r.PathValue("name"))
		if err != nil {
			return 0, nil, err
		}
		return d.start(kind, vm.Name, func(*fakeOp) (any, error) {
			d.mu.Lock()
			defer d.mu.Unlock()
			return work()
		})
	}
}

func workspaceApp(t *testing.T) (*testApp, *fakeDaemon) {
	t.Helper()
	a := newTestApp(t)
	d := startFake(t, a.env)
	d.add(api.VM{Name: "box", State: api.StateRunning})
	d.add(api.VM{Name: "off", State: api.StateStopped})
	return a, d
}

func TestWorkspacePrepare(t *testing.T) {
	a, d := workspaceApp(t)
	dir := t.TempDir()
	for _, c := range []struct {
		args   string
		answer api.Workspace
		want   api.PrepareWorkspace
		out    string
		err    string // contained
	}{
		{"", api.Workspace{GuestPath: "/root/r", Files: 12, Bytes: 1536, Skipped: []string{"x\x1b"}}, api.PrepareWorkspace{Path: dir}, "copied 12 files, 1.5KiB to box:/root/r\n", `banger: not copied: x\x1b`},
		{"--branch me/x --from origin/main --depth 3 --no-tooling --guest-path /srv --force", api.Workspace{GuestPath: "/srv", Branch: "me/x", Files: 1},
			api.PrepareWorkspace{Path: dir, GuestPath: "/srv", Branch: "me/x", From: "origin/main", Depth: 3, NoTooling: true, Force: true},
			"copied 1 file, 0B to box:/srv, on the new branch me/x\n", ""},
		{"", api.Workspace{GuestPath: "/root/r", Updated: true, Files: 3, Bytes: 5, Removed: 1}, api.PrepareWorkspace{Path: dir}, "brought box:/root/r up to date: 3 files, 5B, 1 removed\n", ""},
		{"", api.Workspace{GuestPath: "/root/r", Updated: true, ToolingLog: "/root/.cache/l.log"}, api.PrepareWorkspace{Path: dir},
			"nothing to copy: box:/root/r has it all\n", "banger: the tools that /root/r names are being installed; watch it: banger vm exec box -- tail -f /root/.cache/l.log\n"},
	} {
		d.work.answer = c.answer
		code := a.run(append([]string{"vm", "workspace", "prepare", "box", dir}, strings.Fields(c.args)...)...)
		if code != 0 || a.out.String() != c.out || !strings.Contains(a.err.String(), c.err) || c.err == "" && a.err.Len() > 0 {
			t.Errorf("%s: status %d, stdout %q, stderr %q", c.args, code, a.out.String(), a.err.String())
		}
		if diff := cmp.Diff(c.want, d.work.prepared[len(d.work.prepared)-1]); diff != "" {
			t.Errorf("%s: %s", c.args, diff)
		}
	}
	var ws api.Workspace
	if code := a.run("vm", "workspace", "prepare", "box", dir, "-o", "json"); code != 0 || json.Unmarshal(a.out.Bytes(), &ws) != nil || !ws.Updated {
		t.Errorf("json: status %d, %q", code, a.out.String())
	}
}

// TestWorkspaceMistakes are found before the daemon is asked for anything.
func TestWorkspaceMistakes(t *testing.T) {
	a, d := workspaceApp(t)
	for _, c := range []struct {
		args string
		code int
		err  string
	}{
		{"workspace prepare box", 2, "needs the name of a VM and a PATH"},
		{"workspace prepare box /no/such/dir", 1, `copy "/no/such/dir": there is no such directory`},
		{"workspace prepare box . --from main", 2, "there is no --branch\nhint: banger vm workspace prepare box . --branch try-it --from main\n"},
		{"workspace prepare box . --branch=", 2, "--branch is empty"},
		{"workspace prepare box . --depth -1", 2, "--depth is -1"},
		{"workspace pull box --patch x --apply", 2, "--apply and --patch exclude each other"},
		{"workspace pull box --max-size 5", 2, "hint: use a number with MiB or GiB"},
		{"workspace pull box --patch - -o json", 2, "not both"},
		{"workspace status", 2, "needs the name of one VM"},
		{"workspace nope", 2, `unknown command "nope" of "banger vm workspace"`},
		{"pull", 2, "did you mean banger vm workspace pull?"},
		{"run --branch x -- true", 2, "--branch is about the directory that is copied, and there is no PATH\nhint: banger vm run . --branch x\n"},
		{"run --no-tooling", 2, "hint: banger vm run . --no-tooling\n"},
		{"run . --from main -- true", 2, "hint: banger vm run . --branch try-it --from main\n"},
		{"run --force -- true", 2, "there is no --rm"},
	} {
		code := a.run(append([]string{"vm"}, strings.Fields(c.args)...)...)
		if code != c.code || !strings.Contains(a.err.String(), c.err) {
			t.Errorf("vm %s: status %d, %q; want %d, … %q …", c.args, code, a.err.String(), c.code, c.err)
		}
	}
	if len(d.requests) > 0 {
		t.Errorf("the daemon was asked: %q", d.requests)
	}
}

// TestRunBranch: the directory is checked before there is a VM, and what the flags say is what is asked for.
func TestRunBranch(t *testing.T) {
	a, d := workspaceApp(t)
	dir := t.TempDir()
	d.work.answer = api.Workspace{GuestPath: dir, ToolingLog: "/root/.cache/l.log"}
	if code := a.run("vm", "run", dir, "--branch", "x", "--from", "main", "--depth", "2", "--no-tooling", "--", "true"); code != 0 {
		t.Fatalf("status %d, %q", code, a.err.String())
	}
	want := []api.PrepareWorkspace{{Path: dir, Branch: "x", From: "main", Depth: 2, NoTooling: true, Force: true}}
	if diff := cmp.Diff(want, d.work.prepared); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want, d.work.checked); diff != "" {
		t.Error(diff)
	}
	for _, line := range []string{
		"banger: the tools that " + dir + " names are being installed; watch it: banger vm exec quiet-otter -- tail -f /root/.cache/l.log\n",
		"banger: get its commits: banger vm workspace pull quiet-otter\nbanger: remove it: ",
	} {
		if !strings.Contains(a.err.String(), line) {
			t.Errorf("%q lacks %q", a.err.String(), line)
		}
	}
	d.work.refuse = api.Errorf(api.KindConflict, "branch %q: it is there", "x").WithHint("another")
	made := d.asked("POST /v1/vms")
	if code := a.run("vm", "run", dir, "--branch", "x", "--name", "other", "--", "true"); code != 125 || a.err.String() != "banger: branch \"x\": it is there\nhint: another\n" || d.asked("POST /v1/vms") != made {
		t.Errorf("refused: status %d, %q", code, a.err.String())
	}
}

func TestWorkspaceList(t *testing.T) {
	a, d := workspaceApp(t)
	if code := a.run("vm", "workspace", "list", "box"); code != 0 || !strings.Contains(a.err.String(), "banger vm workspace prepare box PATH") {
		t.Errorf("none: status %d, %q", code, a.err.String())
	}
	d.work.copies = []api.WorkspaceCopy{
		{Path: "/h/a", GuestPath: "/root/a", Git: true, Branch: "x", CopiedAt: a.Now().Add(-5 * time.Minute)},
		{Path: "/h/b\x1b", GuestPath: "/root/b", Copying: true},
	}
	a.run("vm", "workspace", "ls", "off")
	const want = "GUEST    HOST      GIT  BRANCH  COPIED\n/root/a  /h/a      yes  x       5m\n/root/b  /h/b\\x1b  no   -       not whole\n"
	if a.out.String() != want {
		t.Errorf("got\n%swant\n%s", a.out.String(), want)
	}
	var got []api.WorkspaceCopy
	if code := a.run("vm", "workspace", "list", "box", "-o", "json"); code != 0 || json.Unmarshal(a.out.Bytes(), &got) != nil || len(got) != 2 {
		t.Errorf("json: status %d, %q", code, a.out.String())
	}
	if code := a.run("vm", "workspace", "list", "nope"); code != 1 || !strings.Contains(a.err.String(), "hint: banger vm list") {
		t.Errorf("status %d, %q", code, a.err.String())
	}
}

func TestWorkspaceStatus(t *testing.T) {
	a, d := workspaceApp(t)
	box := api.WorkspaceCopy{Path: "/h/my repo", GuestPath: "/root/r", Git: true, CopiedAt: a.Now().Add(-time.Hour)}
	for name, c := range map[string]struct {
		status api.WorkspaceStatus
		want   string
	}{
		"much": {api.WorkspaceStatus{WorkspaceCopy: box, GuestBranch: "try\x1b", GuestCommit: "c", Against: "origin/main", Ahead: 2, Behind: 1, Modified: 3, Untracked: 1,
			Unpulled: []string{"refs/heads/try\x1b"}, ChangedHere: 2, More: 4, Changes: []api.WorkspaceChange{
				{Path: "a\n", Kind: api.ChangeAdded}, {Path: "m", Kind: api.ChangeModified, Here: true}, {Path: "d", Kind: api.ChangeRemoved}}},
			`box:/root/r is a copy of /h/my repo, 60m old
On branch try\x1b, 2 commits ahead of and 1 behind origin/main
Not committed in the VM: 3 modified, 1 untracked

Changed in the VM since the copy:
    A a\n
  ! M m
    D d
    and 4 more
  (see how: banger vm workspace diff box --guest-path /root/r)

2 files have changed here since the copy.
  (bring that in: banger vm workspace prepare box '/h/my repo' --guest-path /root/r)

With commits that were not pulled:
    refs/heads/try\x1b
  (get them: banger vm workspace pull box --guest-path /root/r)
`},
		"nothing": {api.WorkspaceStatus{WorkspaceCopy: box, GuestBranch: "main", GuestCommit: "c", Against: "main"},
			"box:/root/r is a copy of /h/my repo, 60m old\nOn branch main, even with main\nNot committed in the VM: 0 modified, 0 untracked\n\nNo file has changed in the VM since the copy.\n"},
		"detached": {api.WorkspaceStatus{WorkspaceCopy: box, GuestCommit: "0123456789abcdef", Against: "HEAD", Behind: 1, ChangedHere: 1},
			"box:/root/r is a copy of /h/my repo, 60m old\nOn commit 0123456789ab, 1 commit behind this side's HEAD\nNot committed in the VM: 0 modified, 0 untracked\n\n" +
				"No file has changed in the VM since the copy.\n\n1 file has changed here since the copy.\n  (bring that in: banger vm workspace prepare box '/h/my repo' --guest-path /root/r)\n"},
		"no git": {api.WorkspaceStatus{WorkspaceCopy: api.WorkspaceCopy{Path: "/h", GuestPath: "/g", CopiedAt: a.Now()}},
			"box:/g is a copy of /h, 0s old\n\nNo file has changed in the VM since the copy.\n"},
	} {
		c.want = strings.ReplaceAll(c.want, "60m old", "1h old")
		d.work.status = c.status
		if code := a.run("vm", "workspace", "status", "box"); code != 0 || a.out.String() != c.want || a.err.Len() > 0 {
			t.Errorf("%s: status %d, %q, got\n%swant\n%s", name, code, a.err.String(), a.out.String(), c.want)
		}
	}
	var st api.WorkspaceStatus
	if code := a.run("vm", "workspace", "status", "box", "--guest-path", "/x", "-o", "json"); code != 0 || json.Unmarshal(a.out.Bytes(), &st) != nil || st.WorkspaceCopy != d.work.status.WorkspaceCopy {
		t.Errorf("json: status %d, %q", code, a.out.String())
	}
	if got := d.work.asked[len(d.work.asked)-1].GuestPath; got != "/x" {
		t.Errorf("asked about %q", got)
	}
	d.on("vm.workspace-status", func(context.Context, *fakeOp) error {
		return api.Errorf(api.KindConflict, "vm %q has several copies:\n  /root/a\n  /root/b", "box").WithHint("say which: --guest-path /root/a")
	})
	if code := a.run("vm", "workspace", "status", "box"); code != 1 || a.err.String() != "banger: vm \"box\" has several copies:\n  /root/a\n  /root/b\nhint: say which: --guest-path /root/a\n" {
		t.Errorf("several: status %d, %q", code, a.err.String())
	}
	if code := a.run("vm", "workspace", "status", "off"); code != 1 || !strings.Contains(a.err.String(), "banger vm start off") {
		t.Errorf("stopped: status %d, %q", code, a.err.String())
	}
}

const somePatch = `diff --git a/f b/f
index 1..2 100644
--- a/f
+++ b/f
@@ -1,3 +1,2 @@ func
 same
--- not a header
-	old
+new` + "\x1b[31m\r" + `
\ No newline at end of file
diff --git a/b b/b
GIT binary patch
literal 3
`

func TestWorkspaceDiff(t *testing.T) {
	a, d := workspaceApp(t)
	t.Setenv("TMPDIR", t.TempDir())
	d.work.patch = somePatch
	if code := a.run("vm", "workspace", "diff", "box", "--guest-path", "/x"); code != 0 || a.out.String() != somePatch || a.err.Len() > 0 {
		t.Errorf("status %d, %q, %q", code, a.out.String(), a.err.String())
	}
	if got := d.work.pulls[0]; !got.NoCommits || got.Apply || !filepath.IsAbs(got.Patch) || got.GuestPath != "/x" {
		t.Errorf("asked for %+v", got)
	}
	plain := strings.Replace(somePatch, "\x1b[31m\r", `\x1b[31m\r`, 1)
	a.Terminal.Out = true
	a.env["NO_COLOR"] = "1"
	if a.run("vm", "workspace", "diff", "box"); a.out.String() != plain {
		t.Errorf("on a terminal: %q", a.out.String())
	}
	delete(a.env, "NO_COLOR")
	const want = "\x1b[1mdiff --git a/f b/f\x1b[m\n\x1b[1mindex 1..2 100644\x1b[m\n\x1b[1m--- a/f\x1b[m\n\x1b[1m+++ b/f\x1b[m\n\x1b[36m@@ -1,3 +1,2 @@ func\x1b[m\n same\n" +
		"\x1b[31m--- not a header\x1b[m\n\x1b[31m-\told\x1b[m\n\x1b[32m+new\\x1b[31m\\r\x1b[m\n\\ No newline at end of file\n\x1b[1mdiff --git a/b b/b\x1b[m\nGIT binary patch\nliteral 3\n"
	if a.run("vm", "workspace", "diff", "box"); a.out.String() != want {
		t.Errorf("in colours: got\n%q\nwant\n%q", a.out.String(), want)
	}
	d.work.patch = ""
	if code := a.run("vm", "workspace", "diff", "box"); code != 0 || a.out.Len()+a.err.Len() > 0 {
		t.Errorf("nothing changed: status %d, %q, %q", code, a.out.String(), a.err.String())
	}
	if left, _ := os.ReadDir(os.TempDir()); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	d.work.status = api.WorkspaceStatus{More: 2, Changes: []api.WorkspaceChange{{Path: "a", Kind: api.ChangeAdded}, {Path: "b\x1b", Kind: api.ChangeRemoved}}}
	if a.run("vm", "workspace", "diff", "box", "--name-only"); a.out.String() != "a\nb\\x1b\n" || a.err.String() != "banger: and 2 more\n" {
		t.Errorf("names: %q, %q", a.out.String(), a.err.String())
	}
}

// TestShowPatchLongLine: a line longer than the buffer keeps its colour, and a hunk that does not say how long it is ends nothing.
func TestShowPatchLongLine(t *testing.T) {
	var b strings.Builder
	long := strings.Repeat("x", 64<<10)
	if err := showPatch(&b, strings.NewReader("@@ -0,0 +1 @@\n+"+long+"\n@@ nonsense\n+x"), true); err != nil {
		t.Fatal(err)
	}
	want := "\x1b[36m@@ -0,0 +1 @@\x1b[m\n\x1b[32m+" + long[1:] + "\x1b[m\x1b[32mx\x1b[m\n\x1b[36m@@ nonsense\x1b[m\n+x\n"
	if b.String() != want {
		t.Errorf("%d bytes, want %d: … %q", b.Len(), len(want), b.String()[max(0, b.Len()-80):])
	}
	failing := io.MultiReader(strings.NewReader("a\n"), &failingReader{})
	if err := showPatch(&b, failing, true); err == nil {
		t.Error("a patch that cannot be read to its end is to be an error")
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, io.ErrNoProgress }

func TestWorkspacePull(t *testing.T) {
	a, d := workspaceApp(t)
	t.Chdir(t.TempDir())
	t.Setenv("TMPDIR", t.TempDir())
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	box := api.WorkspaceCopy{Path: "/h/r", GuestPath: "/root/r", Git: true}
	const ref = "refs/banger/box/try"
	const merge = "look:  cd /h/r && git log HEAD.." + ref + "\nmerge: cd /h/r && git merge " + ref + "\n"
	pulled := []api.PulledRef{{Ref: ref, New: "n", Commits: 2}}
	for name, c := range map[string]struct {
		args     string
		pull     api.Pull
		patch    string
		want     api.PullWorkspace
		out, err string
	}{
		"new": {"", api.Pull{WorkspaceCopy: box, Refs: pulled, Current: ref, Uncommitted: 1, Skipped: []string{"a tag"}}, "", api.PullWorkspace{},
			ref + "  new, 2 commits\n" + merge, "banger: not taken: a tag\nbanger: 1 changed file in the VM: not committed, so not pulled; --patch FILE or --apply brings that, too\n"},
		"rewritten, hostile": {"--guest-path /root/r --max-size 1GiB", api.Pull{WorkspaceCopy: box, Refs: []api.PulledRef{
			{Ref: "refs/banger/box/a;b\u202e", Old: "0123456789abcdef", New: "n", Commits: 1, Rewritten: true}, {Ref: "refs/banger/box/c", Old: "o", New: "n", Commits: 3}}, Current: "refs/banger/box/a;b\u202e"}, "",
			api.PullWorkspace{AskWorkspace: api.AskWorkspace{GuestPath: "/root/r"}, MaxBytes: 1 << 30},
			`refs/banger/box/a;b\u202e  1 commit
  rewritten in the VM; what it was: git show 0123456789ab
refs/banger/box/c  3 commits
look:  cd /h/r && git log 'HEAD..refs/banger/box/a;b\u202e'
merge: cd /h/r && git merge 'refs/banger/box/a;b\u202e'
`, ""},
		"in the repository": {"", api.Pull{WorkspaceCopy: api.WorkspaceCopy{Path: filepath.Dir(dir), Git: true}, Refs: pulled}, "", api.PullWorkspace{},
			ref + "  new, 2 commits\nlook:  git log HEAD.." + ref + "\nmerge: git merge " + ref + "\n", ""},
		"not looked at": {"", api.Pull{WorkspaceCopy: box, UncommittedUnknown: true}, "", api.PullWorkspace{}, "no new commits in box:/root/r\n",
			"banger: the VM may have changes that are not committed; to look: banger vm workspace status box --guest-path /root/r\n"},
		"nothing new":   {"", api.Pull{WorkspaceCopy: box}, "", api.PullWorkspace{}, "no new commits in box:/root/r\n", ""},
		"pulled before": {"", api.Pull{WorkspaceCopy: box, Current: ref}, "", api.PullWorkspace{}, "no new commits in box:/root/r\n" + merge, ""},
		"patch": {"--patch o.patch", api.Pull{WorkspaceCopy: box, Uncommitted: 1, Patched: 1}, "p", api.PullWorkspace{Patch: filepath.Join(dir, "o.patch")},
			"no new commits in box:/root/r\no.patch changes 1 file; apply it: git -C /h/r apply " + filepath.Join(dir, "o.patch") + "\n", ""},
		"empty patch": {"--patch o.patch", api.Pull{}, "", api.PullWorkspace{Patch: filepath.Join(dir, "o.patch")}, "the patch is empty: no file has changed in the VM since the copy\n", ""},
		"patch to stdout": {"--patch -", api.Pull{WorkspaceCopy: box, Refs: pulled, Patched: 2}, "+\x1b\n", api.PullWorkspace{Patch: "*"},
			"+\x1b\n", ref + "  new, 2 commits\n" + merge + "the patch changes 2 files\n"},
		"apply": {"--apply", api.Pull{WorkspaceCopy: box, Uncommitted: 2, Applied: []api.WorkspaceChange{{Path: "a\x1b", Kind: api.ChangeAdded}, {Path: "b", Kind: "new kind"}}}, "", api.PullWorkspace{Apply: true},
			"no new commits in box:/root/r\napplied to /h/r:\n  A a\\x1b\n  ? b\n", ""},
		"nothing to apply": {"--apply", api.Pull{}, "", api.PullWorkspace{Apply: true}, "nothing to apply: no file has changed in the VM since the copy\n", ""},
	} {
		d.work.pull, d.work.patch, d.work.pulls = c.pull, c.patch, nil
		code := a.run(append([]string{"vm", "workspace", "pull", "box"}, strings.Fields(c.args)...)...)
		if code != 0 || a.out.String() != c.out || a.err.String() != c.err {
			t.Errorf("%s: status %d, got\n%s(%q), want\n%s(%q)", name, code, a.out.String(), a.err.String(), c.out, c.err)
		}
		got := d.work.pulls[0]
		if c.want.Patch == "*" && filepath.IsAbs(got.Patch) {
			c.want.Patch = got.Patch
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	d.work.pull = api.Pull{Current: ref}
	var p api.Pull
	if code := a.run("vm", "workspace", "pull", "box", "-o", "json"); code != 0 || json.Unmarshal(a.out.Bytes(), &p) != nil || p.Current != ref {
		t.Errorf("json: status %d, %q", code, a.out.String())
	}
	if left, _ := os.ReadDir(os.TempDir()); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestCompleteWorkspace(t *testing.T) {
	a, d := workspaceApp(t)
	d.work.copies = []api.WorkspaceCopy{{GuestPath: "/root/a"}, {GuestPath: "/srv/b"}}
	for args, want := range map[string]string{
		"vm workspace pull b":                       "box\n:4",
		"vm workspace pull box --guest-path /r":     "/root/a\n:4",
		"vm workspace prepare box . --guest-path /": "/root/a\n/srv/b\n:4",
		"vm workspace pull --guest-path /":          ":4",
		"vm workspace prepare box ./":               ":16",
		"vm workspace prepare box . x":              ":4",
		"vm workspace prepare box . --branch x":     ":4",
		"vm run . --from x":                         ":4",
		"vm workspace pull box --max-size x":        ":4",
		"vm workspace pull box --patch x":           ":0",
		"vm workspace status box -o j":              "table\njson\n:4",
	} {
		a.run(append([]string{"__complete"}, strings.Fields(args)...)...)
		if !strings.HasPrefix(a.out.String(), want) {
			t.Errorf("complete %q: %q, want %q", args, a.out.String(), want)
		}
	}
}
