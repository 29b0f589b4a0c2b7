//go:build e2e

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

// commandTimeout is how long one command line may take before the test gives up on it.
const commandTimeout = 6 * time.Minute

// waitShort is how long a test waits for something that happens at once.
const waitShort = 20 * time.Second

// install is where TestMain put banger; data is shared by all hosts, so that kernel and image are made once.
var install, data, cache string

// host is a user of banger with directories of its own: state, configuration, runtime directory and daemon.
type host struct {
	t   testing.TB
	dir string
	env []string
	// prefix is where this user's banger is installed; empty for the tests' own. uid and gid are 0 for the caller's.
	prefix   string
	uid, gid uint32
}

// newHost makes a host. When the test ends, its VMs are deleted, its daemon is stopped, and no process of it may be left.
func newHost(t testing.TB) *host {
	t.Helper()
	h := bareHost(t)
	t.Cleanup(h.close)
	return h
}

func bareHost(t testing.TB) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "be2e-") //nolint:usetesting // the shared host outlives the test that made it, and sockets need short paths
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, dir: dir}
	for _, d := range []string{"config/banger", "state", "run", "home"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	h.env = []string{
		"PATH=" + filepath.Join(install, "bin") + ":" + os.Getenv("PATH"), "HOME=" + filepath.Join(dir, "home"),
		"XDG_CONFIG_HOME=" + filepath.Join(dir, "config"), "XDG_STATE_HOME=" + filepath.Join(dir, "state"),
		"XDG_RUNTIME_DIR=" + filepath.Join(dir, "run"), "XDG_DATA_HOME=" + data, "XDG_CACHE_HOME=" + cache,
		"LANG=C.UTF-8", "TERM=dumb",
	}
	h.config("")
	return h
}

// config writes config.toml: what all tests want, and more.
func (h *host) config(more string) {
	h.t.Helper()
	text := "default_memory = \"512MiB\"\nallow_private_networks = false\n" + more
	if err := os.WriteFile(filepath.Join(h.dir, "config/banger/config.toml"), []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) close() {
	if h.t.Failed() {
		h.explain()
	}
	for _, problem := range h.leave() {
		h.t.Error(problem)
	}
}

// closeShared closes the host that all tests share, after the last of them.
func (h *host) closeShared() (ok bool) {
	problems := h.leave()
	for _, p := range problems {
		fmt.Fprintln(os.Stderr, "e2e:", p)
	}
	return len(problems) == 0
}

// leave deletes the host's VMs, stops its daemon, and says what is left all the same.
func (h *host) leave() (problems []string) {
	for _, args := range [][]string{{"vm", "delete", "--all", "--force"}, {"daemon", "stop"}} {
		ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
		_ = h.cmd(ctx, args...).Run()
		cancel()
	}
	if err := waitFor(waitShort, func() bool { return len(h.processes()) == 0 }); err != nil {
		for _, p := range h.processes() {
			problems = append(problems, fmt.Sprintf("left behind: process %d: %s", p.pid, p.cmdline))
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
		}
	}
	if err := os.RemoveAll(h.dir); err != nil {
		problems = append(problems, "clean up: "+err.Error())
	}
	return problems
}

// explain logs what a failed test wants to know.
func (h *host) explain() {
	for _, pattern := range []string{"state/banger/bangerd.log", "state/banger/vms/*/vmm.log", "state/banger/vms/*/console.log", "state/banger/vms/*/agent.log"} {
		files, _ := filepath.Glob(filepath.Join(h.dir, pattern))
		for _, f := range files {
			b, _ := os.ReadFile(f)
			if len(b) > 3000 {
				b = b[len(b)-3000:]
			}
			h.t.Logf("--- %s\n%s", f, b)
		}
	}
}

// process is a process that belongs to a host.
type process struct {
	pid     int
	cmdline string
}

// processes finds the processes whose command line or working directory is in the host's directory.
func (h *host) processes() []process {
	var found []process
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		cwd, _ := os.Readlink("/proc/" + e.Name() + "/cwd")
		environ, _ := os.ReadFile("/proc/" + e.Name() + "/environ")
		if len(cmdline) == 0 {
			continue // a zombie, or the kernel's own
		}
		if bytes.Contains(cmdline, []byte(h.dir)) || strings.HasPrefix(cwd, h.dir) || bytes.Contains(environ, []byte("XDG_STATE_HOME="+h.dir)) {
			found = append(found, process{pid, strings.ReplaceAll(string(cmdline), "\x00", " ")})
		}
	}
	return found
}

// result is how a command line ended.
type result struct {
	stdout, stderr string
	code           int
	took           time.Duration
}

// cmd prepares a banger command line.
func (h *host) cmd(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, filepath.Join(cmp.Or(h.prefix, install), "bin", "banger"), args...)
	c.Env, c.Dir = h.env, h.dir
	if h.uid != 0 {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: h.uid, Gid: h.gid}}
	}
	return c
}

// feed runs a command line with stdin.
func (h *host) feed(stdin io.Reader, args ...string) result {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	c := h.cmd(ctx, args...)
	var out, errOut bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = stdin, &out, &errOut
	start := time.Now()
	err := c.Run()
	r := result{out.String(), errOut.String(), c.ProcessState.ExitCode(), time.Since(start)}
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		h.t.Fatalf("banger %s: %v", strings.Join(args, " "), err)
	}
	if ctx.Err() != nil {
		h.t.Fatalf("banger %s: not done after %s\nstdout: %s\nstderr: %s", strings.Join(args, " "), commandTimeout, r.stdout, r.stderr)
	}
	return r
}

// run runs a command line without stdin.
func (h *host) run(args ...string) result {
	h.t.Helper()
	return h.feed(nil, args...)
}

// ok runs a command line that must succeed and returns its stdout.
func (h *host) ok(args ...string) string {
	h.t.Helper()
	r := h.run(args...)
	if r.code != 0 {
		h.t.Fatalf("banger %s: exit status %d\nstdout: %s\nstderr: %s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// try runs a command line whose failure does not matter.
func (h *host) try(args ...string) { h.run(args...) }

// fails runs a command line that must fail with a status, and with a message that holds each of the texts.
func (h *host) fails(code int, texts []string, args ...string) {
	h.t.Helper()
	r := h.run(args...)
	if r.code != code {
		h.t.Errorf("banger %s: exit status %d, want %d\nstderr: %s", strings.Join(args, " "), r.code, code, r.stderr)
	}
	for _, text := range texts {
		if !strings.Contains(r.stderr, text) {
			h.t.Errorf("banger %s: stderr does not hold %q:\n%s", strings.Join(args, " "), text, r.stderr)
		}
	}
}

// vms is `banger vm list -o json`.
func (h *host) vms() []api.VM {
	h.t.Helper()
	return decode[[]api.VM](h.t, h.ok("vm", "list", "-o", "json"))
}

// vm is `banger vm show NAME -o json`.
func (h *host) vm(name string) api.VM {
	h.t.Helper()
	return decode[api.VM](h.t, h.ok("vm", "show", name, "-o", "json"))
}

// daemonPID is the pid of the host's daemon.
func (h *host) daemonPID() int {
	h.t.Helper()
	return decode[api.DaemonStatus](h.t, h.ok("daemon", "status", "-o", "json")).PID
}

// waitState waits until a VM is in a state.
func (h *host) waitState(name string, want api.VMState) api.VM {
	h.t.Helper()
	var last api.VM
	if err := waitFor(2*time.Minute, func() bool { last = h.vm(name); return last.State == want }); err != nil {
		h.t.Fatalf("vm %s is %s (%s), want %s", name, last.State, last.Reason, want)
	}
	return last
}

func decode[T any](t testing.TB, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("decode %T: %v\n%s", v, err, text)
	}
	return v
}

// waitFor looks again and again until ok, for at most d: what it waits for happens in other processes.
func waitFor(d time.Duration, ok func() bool) error {
	deadline := time.After(d)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok() {
			return nil
		}
		select {
		case <-deadline:
			return fmt.Errorf("not so after %s", d)
		case <-tick.C:
		}
	}
}

// kill sends SIGKILL to a process and waits until it is gone.
func kill(t testing.TB, pid int) {
	t.Helper()
	if pid <= 1 {
		t.Fatalf("kill: pid %d", pid)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
	if err := waitFor(10*time.Second, func() bool { return !alive(pid) }); err != nil {
		t.Fatalf("process %d survived SIGKILL", pid)
	}
}

// alive reports whether a process runs; a zombie does not.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}
