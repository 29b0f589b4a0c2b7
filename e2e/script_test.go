//go:build !e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/initramfs"
	"git.thaloco.com/thaloco/banger/internal/kernel/kmod/kmodtest"
)

// soon is how long a script may wait for what happens at once.
const soon = time.Minute

// version is what the built programs say of themselves.
const version = "v0.0.0-script"

// install is where TestMain put banger, and QEMU's stand-in beside it.
var install string

// TestMain builds banger and the fake QEMU once, and lays them out as `make install` does.
func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "bscript-")
	if err == nil {
		defer os.RemoveAll(dir)
		install = dir
		err = build(dir)
	}
	if err == nil { // testscript makes its directories there, and leaves them where scripts are left out by -run
		err = os.Setenv("GOTMPDIR", dir)
	}
	if err == nil { // scripts wait more than they work; -parallel says otherwise
		err = flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0)))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	return m.Run()
}

// build makes dir/bin with banger, bangerd and the fake QEMU, and dir/lib/banger. The agent there is
// none: the daemon packs it, and nothing boots.
func build(dir string) error {
	bin := filepath.Join(dir, "bin") + "/"
	for out, pkgs := range map[string][]string{
		bin:                                  {"./cmd/banger", "./cmd/bangerd"},
		filepath.Join(dir, "qemu"):           {"./internal/vmm/fakeqemu/program"},
		filepath.Join(dir, "firecracker"):    {"./internal/vmm/firecracker/fakefc/program"},
		filepath.Join(dir, "jail", "jailer"): {"./internal/vmm/fakejailer/program"},
	} {
		args := []string{"build", "-trimpath", "-ldflags", "-s -w -X git.thaloco.com/thaloco/banger/internal/buildinfo.Version=" + version, "-o", out}
		c := exec.Command("go", append(args, pkgs...)...)
		c.Dir, c.Env = "..", append(os.Environ(), "CGO_ENABLED=0")
		if text, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("go build %s: %w\n%s", strings.Join(pkgs, " "), err, text)
		}
	}
	agent := filepath.Join(dir, "lib", "banger", "banger-vsock-agent")
	if err := os.MkdirAll(filepath.Dir(agent), 0o755); err != nil {
		return err
	}
	return os.WriteFile(agent, []byte("the agent of a guest that never boots\n"), 0o755)
}

// TestScript runs the scripts of testdata/script; UPDATE=1 rewrites what they compare with. Besides
// testscript's own commands there are
//
//	status N COMMAND [ARG...]           runs it as exec does; it must end with this exit status
//	until PATTERN COMMAND [ARG...]      runs it again and again until its stdout matches
//	interrupt N PATTERN COMMAND [ARG...]  sends it SIGINT once its output matches; exit status N
//	engine NAME                         configures that engine, with the fakes of both, and takes KVM for usable
//	json PATH VALUE                     the value at PATH (a.b.0.c) in the last stdout, as text
//	greeter VAR [TEXT]                  a server of this host and of fake guests, its port in VAR
//	ownkernel DIR RELEASE               a kernel the user built: DIR/vmlinux, and its modules in DIR/lib/modules/RELEASE
//	registry VAR                        a registry, its address in VAR; /private/ in it is, and of what is in /slow/ half comes
//	push REF [-OPTION=VALUE] ENTRY...   an image in a registry, of which each entry (see tarOf) is a layer
//	mktar FILE ENTRY...                 a tar
//	mkrootfs FILE ENTRY...              an ext4 file system; mounted FILE has it say that it is
//
// and the condition [root].
func TestScript(t *testing.T) {
	p := scriptParams(t, newUser)
	p.Dir = "testdata/script"
	testscript.Run(t, p)
}

// TestScriptFirecracker runs the scripts that say nothing of an engine on the other one.
func TestScriptFirecracker(t *testing.T) {
	p := scriptParams(t, func(e *testscript.Env) error {
		e.Setenv("BANGER_TEST_FIRECRACKER", "1")
		if err := newUser(e); err != nil {
			return err
		}
		return writeConfig(e.WorkDir, "firecracker")
	})
	for _, name := range []string{"cp_errors", "cp_files", "exec_resume", "forward", "guest_ends", "interrupt", "life", "owner_gone", "run_detach",
		"run_environment", "run_status", "session", "several", "ssh", "stats", "streams", "ui", "workspace_git", "workspace_plain", "workspace_pull"} {
		p.Files = append(p.Files, "testdata/script/"+name+".txtar")
	}
	testscript.Run(t, p)
}

func scriptParams(t *testing.T, setup func(*testscript.Env) error) testscript.Params {
	t.Helper()
	deadline, ok := t.Deadline()
	if ok {
		deadline = deadline.Add(-time.Minute) // to clean up, and to say which one it was
	}
	p := testscript.Params{
		Setup:         setup,
		UpdateScripts: os.Getenv("UPDATE") != "",
		Deadline:      deadline,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": cmdStatus, "until": cmdUntil, "interrupt": cmdInterrupt, "json": cmdJSON, "engine": cmdEngine, "greeter": cmdGreeter, "ownkernel": cmdOwnKernel,
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		RequireUniqueNames: true,
	}
	maps.Copy(p.Cmds, imageCommands)
	return p
}

// user is who runs a script: directories of their own, and what they must leave behind.
type user struct {
	dir, runtime string
	env          []string
	t            testscript.T
}

type userKey struct{}

// cmdEngine configures an engine.
func cmdEngine(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: engine NAME")
	}
	ts.Check(writeConfig(ts.MkAbs("."), args[0]))
	ts.Setenv("BANGER_TEST_FIRECRACKER", "1")
}

// writeConfig writes the configuration of a script that works in dir.
func writeConfig(dir, engine string) error {
	qemu, firecracker := filepath.Join(dir, "qemu", "qemu"), filepath.Join(dir, "firecracker", "firecracker")
	config := fmt.Sprintf("engine = %q\nqemu_bin = %q\nfirecracker_bin = %q\njail = \"off\"\ndefault_memory = \"256MiB\"\ndefault_cpus = 1\n", engine, qemu, firecracker)
	return os.WriteFile(filepath.Join(dir, "config", "banger", "config.toml"), []byte(config), 0o600)
}

// newUser gives a script its directories, with a kernel and an image that are local, a configuration and the
// fake QEMU at $WORK/qemu/qemu and a fake Firecracker at $WORK/firecracker/firecracker, beside which knobs may be put.
func newUser(e *testscript.Env) error {
	runtime, err := os.MkdirTemp("/tmp", "bs-") // a socket's path has 107 bytes
	if err != nil {
		return err
	}
	e.Setenv("HOME", filepath.Join(e.WorkDir, "home"))
	for name, dir := range map[string]string{"CONFIG": "config", "DATA": "data", "STATE": "state", "CACHE": "cache"} {
		e.Setenv("XDG_"+name+"_HOME", filepath.Join(e.WorkDir, dir))
	}
	e.Setenv("XDG_RUNTIME_DIR", runtime)
	e.Setenv("PATH", filepath.Join(install, "bin")+":"+os.Getenv("PATH"))
	e.Setenv("INSTALL", install)
	e.Setenv("LC_ALL", "C.UTF-8")
	e.Setenv("TZ", "UTC")
	e.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	u := &user{dir: e.WorkDir, runtime: runtime, env: e.Vars, t: e.T()}
	e.Values[userKey{}] = u
	e.Defer(u.leave)
	for _, dir := range []string{"home", "config/banger", "qemu", "firecracker"} {
		if err := os.MkdirAll(filepath.Join(e.WorkDir, dir), 0o700); err != nil {
			return err
		}
	}
	qemu := filepath.Join(e.WorkDir, "qemu", "qemu")
	return errors.Join(
		os.Symlink(filepath.Join(install, "qemu"), qemu),
		os.Symlink(filepath.Join(install, "firecracker"), filepath.Join(e.WorkDir, "firecracker", "firecracker")),
		writeConfig(e.WorkDir, "qemu"),
		putImage(filepath.Join(e.WorkDir, "data/banger/images")),
		putKernel(filepath.Join(e.WorkDir, "data/banger/kernels")),
	)
}

// made is when image and kernel were made.
var made = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// putFile writes a file of the store and returns its SHA-256 in hexadecimal.
func putFile(path, text string) (string, error) {
	sum := sha256.Sum256([]byte(text))
	err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o444), os.Chtimes(path, made, made))
	return hex.EncodeToString(sum[:]), err
}

func putJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}

// putImage makes the default image local, as the image store has it on disk. No guest reads it.
func putImage(store string) error {
	const rootfs = "a root file system"
	digest, err := putFile(filepath.Join(store, "new", "rootfs.ext4"), rootfs)
	if err != nil {
		return err
	}
	img := api.Image{Name: "debian-bookworm", Digest: "sha256:" + digest, Description: "for scripts", Source: "script", Arch: "amd64",
		SizeBytes: int64(len(rootfs)), DiskBytes: 4096, Kernel: "generic-6.12", Env: []string{"IMAGE=bookworm"}, Local: true, CreatedAt: &made}
	record := map[string]any{"version": 1, "image": img, "rootfs_size": len(rootfs), "rootfs_mod_time_ns": made.UnixNano()}
	return errors.Join(putJSON(filepath.Join(store, "new", "image.json"), record),
		os.Rename(filepath.Join(store, "new"), filepath.Join(store, "sha256-"+digest)))
}

// putKernel makes the default kernel local, as the kernel store has it on disk.
func putKernel(store string) error {
	type file struct {
		Name    string `json:"name"`
		SHA256  string `json:"sha256"`
		Size    int    `json:"size"`
		ModTime int64  `json:"mod_time_ns"`
	}
	var files []file
	all := sha256.New()
	for _, name := range []string{"boot.cpio", "modules.ext4", "vmlinux"} { // the order the digest wants
		text := "the kernel's " + name
		if name == "boot.cpio" { // the fake QEMU looks for the boot configuration behind it
			var archive bytes.Buffer
			if err := initramfs.NewWriter(&archive).Close(); err != nil {
				return err
			}
			text = archive.String()
		}
		sum, err := putFile(filepath.Join(store, "new", name), text)
		if err != nil {
			return err
		}
		fmt.Fprintf(all, "%s %s\n", name, sum)
		files = append(files, file{name, sum, len(text), made.UnixNano()})
	}
	digest := hex.EncodeToString(all.Sum(nil))
	krn := api.Kernel{Name: "generic-6.12", Digest: "sha256:" + digest, Description: "for scripts", Release: "6.12.0-script",
		Package: "script 1", Arch: "amd64", SizeBytes: 64, Local: true, CreatedAt: &made}
	return errors.Join(putJSON(filepath.Join(store, "new", "kernel.json"), map[string]any{"version": 1, "kernel": krn, "files": files}),
		os.Rename(filepath.Join(store, "new"), filepath.Join(store, "sha256-"+digest)))
}

// cmdOwnKernel writes a kernel of which virtio_net and overlay are modules.
func cmdOwnKernel(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: ownkernel DIR RELEASE")
	}
	dir, release := ts.MkAbs(args[0]), args[1]
	modules := filepath.Join(dir, "lib/modules", release)
	files := map[string][]byte{
		filepath.Join(dir, "vmlinux"): kmodtest.Vmlinux{Release: release}.ELF(),
		filepath.Join(modules, "modules.builtin"): []byte("kernel/virtio_mmio.ko\nkernel/virtio_blk.ko\nkernel/virtio_console.ko\nkernel/ext4.ko\nkernel/vsock.ko\n" +
			"kernel/vmw_vsock_virtio_transport.ko\nkernel/autofs4.ko\n"),
	}
	for _, name := range []string{"virtio_net", "overlay"} {
		files[filepath.Join(modules, "kernel", name+".ko")] = kmodtest.Module{Info: []string{"vermagic=" + release + " SMP"}}.ELF()
	}
	for path, data := range files {
		ts.Check(errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)))
	}
}

// leave ends what a script left running by intent, VMs and the daemon, and fails where anything else is left.
func (u *user) leave() {
	defer os.RemoveAll(u.runtime)
	config := filepath.Join(u.dir, "config/banger/config.toml")
	if text, err := os.ReadFile(config); err == nil && !bytes.Contains(text, []byte("qemu_bin")) {
		_ = os.Remove(config) // one that is wrong by intent would keep the daemon from starting
	}
	var problems []string
	for _, args := range [][]string{{"vm", "delete", "--all", "--force"}, {"daemon", "stop"}} {
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		c := u.command(ctx, "banger", args...)
		if text, err := c.CombinedOutput(); err != nil {
			problems = append(problems, fmt.Sprintf("banger %s: %v\n%s", strings.Join(args, " "), err, text))
		}
		cancel()
	}
	// The commands of a fake guest are processes of this host, and go on where their guest was killed.
	for pid := range u.processes("/fakeguest/bin:") {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err := poll(soon, func() bool { return len(u.processes("")) == 0 }); err != nil {
		for pid, cmdline := range u.processes("") {
			problems = append(problems, fmt.Sprintf("left behind: process %d: %s", pid, cmdline))
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	for _, pattern := range []string{"state/banger/vms/*", "state/banger/vms/.*", "cache/banger/*", "data/banger/*/.tmp-*"} {
		left, _ := filepath.Glob(filepath.Join(u.dir, pattern)) // fails only for a bad pattern
		for _, path := range left {
			if base := filepath.Base(path); base != "deb" && base != "oci" {
				problems = append(problems, "left behind: "+path)
			}
		}
	}
	if _, err := os.Lstat(filepath.Join(u.runtime, "banger/bangerd.sock")); !errors.Is(err, fs.ErrNotExist) {
		problems = append(problems, "left behind: the daemon's socket")
	}
	if len(problems) > 0 {
		if log, err := os.ReadFile(filepath.Join(u.dir, "state/banger/bangerd.log")); err == nil {
			u.t.Log(string(log))
		}
		u.t.Fatal(strings.Join(problems, "\n"))
	}
}

// command prepares a program in the user's environment.
func (u *user) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if name == "banger" {
		name = filepath.Join(install, "bin", name)
	}
	c := exec.CommandContext(ctx, name, args...)
	c.Dir, c.Env = u.dir, u.env
	return c
}

// processes are those whose command line, directory or environment is in the user's directory, by pid. Where inEnv is
// not empty, only those that have it in their environment too.
func (u *user) processes(inEnv string) map[int]string {
	found := map[int]string{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if len(cmdline) == 0 {
			continue // gone, a zombie, or the kernel's own
		}
		cwd, _ := os.Readlink("/proc/" + e.Name() + "/cwd")
		environ, _ := os.ReadFile("/proc/" + e.Name() + "/environ")
		ours := mentions(cmdline, u.dir) || mentions(environ, u.dir) || mentions([]byte(cwd), u.dir)
		if ours && bytes.Contains(environ, []byte(inEnv)) {
			found[pid] = strings.ReplaceAll(string(cmdline), "\x00", " ")
		}
	}
	return found
}

// mentions tells whether text has the path dir, and not only as the beginning of another name.
func mentions(text []byte, dir string) bool {
	for rest, found := text, true; ; {
		if _, rest, found = bytes.Cut(rest, []byte(dir)); !found {
			return false
		}
		if len(rest) == 0 || bytes.IndexByte([]byte("/\x00: '\"\n"), rest[0]) >= 0 {
			return true
		}
	}
}

// poll looks again and again until ok, for at most d: what is waited for happens in other processes.
func poll(d time.Duration, ok func() bool) error {
	deadline := time.After(d)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			return fmt.Errorf("not so after %s", d)
		case <-tick.C:
		}
	}
	return nil
}

// exitStatus is the status in the error of a program that ran.
func exitStatus(err error) int {
	var ee *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &ee):
		return ee.ExitCode()
	}
	return -1
}

// wantStatus takes the status a command begins with.
func wantStatus(ts *testscript.TestScript, neg bool, args []string, least int) int {
	if neg || len(args) < least {
		ts.Fatalf("usage: see TestScript")
	}
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	return n
}

func cmdStatus(ts *testscript.TestScript, neg bool, args []string) {
	want := wantStatus(ts, neg, args, 2)
	err := ts.Exec(args[1], args[2:]...)
	if got := exitStatus(err); got != want {
		ts.Fatalf("exit status %d, want %d (%v)", got, want, err)
	}
}

func cmdUntil(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until PATTERN COMMAND [ARG...]")
	}
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	err = poll(soon, func() bool {
		return ts.Exec(args[1], args[2:]...) == nil && re.MatchString(ts.ReadFile("stdout"))
	})
	if err != nil {
		ts.Fatalf("until %s: %v", args[0], err)
	}
}

// output is what a program wrote so far.
type output struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func cmdInterrupt(ts *testscript.TestScript, neg bool, args []string) {
	want := wantStatus(ts, neg, args, 3)
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	var stdout, stderr output
	c := ts.Value(userKey{}).(*user).command(ctx, args[2], args[3:]...)
	c.Stdout, c.Stderr = &stdout, &stderr
	ts.Check(c.Start())
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	ended := false
	err = poll(soon, func() bool {
		ended = ended || len(done) > 0
		return ended || re.MatchString(stdout.String()) || re.MatchString(stderr.String())
	})
	if err == nil && !ended {
		ts.Check(c.Process.Signal(syscall.SIGINT))
	}
	waitErr := <-done
	fmt.Fprint(ts.Stdout(), stdout.String())
	fmt.Fprint(ts.Stderr(), stderr.String())
	switch got := exitStatus(waitErr); {
	case err != nil:
		ts.Fatalf("%s did not appear: %v\n%s%s", args[1], err, stdout.String(), stderr.String())
	case ended:
		ts.Fatalf("ended before it was interrupted: %v\n%s%s", waitErr, stdout.String(), stderr.String())
	case got != want:
		ts.Fatalf("exit status %d, want %d (%v)\n%s%s", got, want, waitErr, stdout.String(), stderr.String())
	}
}

func cmdJSON(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: [!] json PATH VALUE")
	}
	var v any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &v))
	for key := range strings.SplitSeq(args[0], ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[key]
		case []any:
			n, err := strconv.Atoi(key)
			if key == "length" {
				v = len(at)
				continue
			}
			ts.Check(err)
			if n >= len(at) {
				ts.Fatalf("json %s: only %d elements", args[0], len(at))
			}
			v = at[n]
		default:
			ts.Fatalf("json %s: nothing at %q", args[0], key)
		}
	}
	got := fmt.Sprint(v)
	if f, ok := v.(float64); ok {
		got = strconv.FormatFloat(f, 'f', -1, 64)
	}
	if (got == args[1]) == neg {
		ts.Fatalf("json %s: %s", args[0], got)
	}
}
