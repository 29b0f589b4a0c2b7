package jail

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/vmm/fakejailer"
)

// TestMain makes the test binary the jailer, and a supervisor that is to be killed, as well.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "--id", "--version":
			os.Exit(fakejailer.Main(os.Args[1:]))
		case "prepare":
			os.Exit(prepareAndHang(os.Args[2]))
		case "check":
			if err := Check(os.Args[2], os.Args[3]); err != nil {
				fmt.Println(err)
			}
			os.Exit(0)
		}
	}
	unix.Umask(0o077) // a supervisor's
	os.Exit(m.Run())
}

func prepareAndHang(arg string) int {
	var cfg Config
	if err := json.Unmarshal([]byte(arg), &cfg); err != nil {
		return 2
	}
	if _, err := Prepare(context.Background(), cfg); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("prepared")
	hang := make(chan os.Signal, 1)
	signal.Notify(hang, syscall.SIGUSR1) // nobody sends it
	<-hang
	return 0
}

const testID = "a1b2c3d4e5f60718293a4b5c6d7e8f90"

// needRoot skips where no jail can be made.
func needRoot(t *testing.T) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := Check(t.TempDir(), self); err != nil {
		t.Skip(err)
	}
}

// program builds the program that is jailed: a static one, as the jail has no libraries.
func program(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "firecracker-v1.17.0-x86_64")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, "./testdata/jailed")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	link := filepath.Join(dir, "firecracker") // as a host has it
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	return link
}

func write(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := errors.Join(os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
	return path
}

func mkdir(t *testing.T, path string) string {
	t.Helper()
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// newConfig makes a VM's directory and its files, and a program that is only asked for its version.
func newConfig(t *testing.T) Config {
	t.Helper()
	needRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	top := mkdir(t, filepath.Join(t.TempDir(), "state"))
	vm, images := mkdir(t, filepath.Join(top, "vm")), mkdir(t, filepath.Join(top, "images"))
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(vm, "vsock.sock_1024")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	version := write(t, filepath.Join(t.TempDir(), "firecracker-v1.17.0-x86_64"), "#!/bin/sh\necho Firecracker v1.17.0\n", 0o700)
	return Config{
		Jailer: self, Firecracker: version, ID: testID, Dir: vm, UID: UserOf(testID), GID: UserOf(testID),
		Files: []File{
			{Host: write(t, filepath.Join(images, "rootfs.ext4"), "the base", 0o600), Name: "base.ext4"},
			{Host: write(t, filepath.Join(vm, "data.ext4"), "data", 0o600), Name: "data.ext4", Writable: true},
			{Host: filepath.Join(vm, "vsock.sock_1024"), Name: "vsock.sock_1024", Writable: true},
		},
	}
}

// run runs the program in the jail: what it saw, its stderr and its exit status.
func run(t *testing.T, j *Jail, args ...string) (map[string]any, string, int) {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil { // as a supervisor has; of this thread
		t.Fatal(err)
	}
	outR, outW := pipe(t)
	errR, errW := pipe(t)
	c, err := hostexec.Runner{}.StartChild(append(j.Command(), args...), j.Root(), []string{"SECRET=1"}, outW, errW)
	outW.Close()
	errW.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, err1 := io.ReadAll(outR)
	stderr, err2 := io.ReadAll(errR)
	status, _, err3 := c.Wait()
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	seen := map[string]any{}
	if len(out) > 0 {
		if err := json.Unmarshal(out, &seen); err != nil {
			t.Fatalf("%v: %q", err, out)
		}
	}
	return seen, string(stderr), status
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r, w
}

func ownerMode(t *testing.T, path string) string {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d %04o", st.Uid, st.Gid, st.Mode&0o7777)
}

// mounted reports whether another thread than a jail's sees anything mounted below dir.
func mounted(t *testing.T, dir string) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/1/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", os.Getppid()))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(b)+string(self), dir)
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestJail(t *testing.T) {
	cfg := newConfig(t)
	cfg.Firecracker = program(t)
	j, err := Prepare(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	user := fmt.Sprintf("%d:%d", cfg.UID, cfg.GID)
	base, data := cfg.Files[0].Host, cfg.Files[1].Host
	write(t, filepath.Join(j.Root(), "firecracker.json"), "{}", 0o600)
	if err := j.Give("firecracker.json"); err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(cfg.Dir, "jail/firecracker-v1.17.0-x86_64", testID, "root"); j.Root() != want {
		t.Errorf("the root is %q, want %q", j.Root(), want)
	}
	if got := filepath.Join(cfg.Dir, j.Rel()); got != j.Root() {
		t.Errorf("relative it is %q", j.Rel())
	}
	seen, stderr, status := run(t, j, "--api-sock", "firecracker.sock")
	if status != 42 {
		t.Fatalf("exit status %d: %s", status, stderr)
	}
	args := seen["args"].([]any)
	seen["args"] = []any{args[0], args[1], args[2], args[len(args)-2], args[len(args)-1]}
	want := map[string]any{
		"args": []any{"/firecracker-v1.17.0-x86_64", "--id", testID, "--api-sock", "firecracker.sock"},
		"env":  []any{}, "uid": float64(cfg.UID), "gid": float64(cfg.GID), "groups": []any{}, "cwd": "/", "files": float64(2048),
		"root": []any{"base.ext4", "data.ext4", "dev", "firecracker-v1.17.0-x86_64", "firecracker-v1.17.0-x86_64.pid",
			"firecracker.json", "run", "vsock.sock_1024"},
		"read base": "ok", "write base": "open base.ext4: read-only file system", "chmod base": "chmod base.ext4: read-only file system",
		"write data": "ok", "read config": "ok", "read /etc/passwd": "open /etc/passwd: no such file or directory",
		"listen": "ok", "dial": "ok", "device": "ok",
	}
	if seen["groups"] == nil {
		seen["groups"] = []any{}
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Error(diff)
	}
	if mounted(t, cfg.Dir) {
		t.Error("mounts are seen outside")
	}
	if got := ownerMode(t, data); got != user+" 0600" {
		t.Errorf("the data drive is %s", got)
	}
	if err := j.Remove(); err != nil {
		t.Fatal(err)
	}
	if err := j.Remove(); err != nil {
		t.Errorf("once more: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(cfg.Dir, "jail")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the jail is left: %v", err)
	}
	root := fmt.Sprintf("%d:%d", os.Geteuid(), os.Getegid())
	if got := ownerMode(t, data); got != root+" 0600" || content(t, data) != "written in the jail" {
		t.Errorf("the data drive is %s and holds %q", got, content(t, data))
	}
	if got := ownerMode(t, base); got != root+" 0604" || content(t, base) != "the base" {
		t.Errorf("the base is %s and holds %q", got, content(t, base))
	}
}

// TestAgain: a VM that reboots is jailed again, with or without the first jail having been removed.
func TestAgain(t *testing.T) {
	cfg := newConfig(t)
	cfg.Firecracker = program(t)
	var j *Jail
	for range 3 {
		var err error
		if j, err = Prepare(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		if _, stderr, status := run(t, j); status != 42 {
			t.Fatalf("exit status %d: %s", status, stderr)
		}
	}
	// The jailer itself would not have it.
	_, stderr, status := run(t, j)
	if status != 1 || !strings.Contains(stderr, "Failed to create /dev/net/tun via mknod inside the jail: File exists (os error 17)") {
		t.Errorf("in a used jail: exit status %d: %s", status, stderr)
	}
	if err := j.Remove(); err != nil {
		t.Fatal(err)
	}
	if got, want := content(t, cfg.Files[0].Host), "the base"; got != want {
		t.Errorf("the base holds %q", got)
	}
}

// TestSupervisorKilled: what a killed supervisor leaves is no mount and no obstacle, and the drive comes back.
func TestSupervisorKilled(t *testing.T) {
	cfg := newConfig(t)
	arg, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), cfg.Jailer, "prepare", string(arg))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 200)
	n, err := out.Read(line)
	if got := strings.TrimSpace(string(line[:n])); got != "prepared" || err != nil {
		t.Errorf("it says %q, %v", got, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // says how it ended
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() {
		t.Errorf("it ended by itself: %v", cmd.ProcessState)
	}
	if mounted(t, cfg.Dir) {
		t.Error("mounts are left")
	}
	j, err := Prepare(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Remove(); err != nil {
		t.Fatal(err)
	}
	if got, want := ownerMode(t, cfg.Files[1].Host), fmt.Sprintf("%d:%d 0600", os.Geteuid(), os.Getegid()); got != want {
		t.Errorf("the data drive is %s, want %s", got, want)
	}
}

// TestOrphan: what still runs in the jail is ended before there is a second one with the same drive.
func TestOrphan(t *testing.T) {
	cfg := newConfig(t)
	cfg.Firecracker = program(t)
	j, err := Prepare(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	r, w := pipe(t)
	c, err := hostexec.Runner{}.StartChild(append(j.Command(), "--hang"), j.Root(), nil, w, w)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 200)
	if n, err := r.Read(line); err != nil || string(line[:n]) != "here\n" {
		t.Errorf("it says %q, %v", line[:n], err)
	}
	ended := make(chan syscall.Signal)
	go func() {
		_, sig, _ := c.Wait()
		ended <- sig
	}()
	if j, err = Prepare(t.Context(), cfg); err != nil {
		c.Kill()
		<-ended
		t.Fatal(err)
	}
	if sig := <-ended; sig != syscall.SIGKILL {
		t.Errorf("it ended by %v", sig)
	}
	if err := j.Remove(); err != nil {
		t.Error(err)
	}
}

// TestRemoveElsewhere: a thread that does not see the mounts removes the jail as well, and the files stay whole.
func TestRemoveElsewhere(t *testing.T) {
	cfg := newConfig(t)
	j, err := Prepare(t.Context(), cfg) // locks this goroutine to its thread
	if err != nil {
		t.Fatal(err)
	}
	inside := filepath.Join(j.Root(), "base.ext4")
	if got := content(t, inside); got != "the base" {
		t.Errorf("on the jail's thread the base is %q", got)
	}
	done := make(chan error)
	go func() {
		b, err := os.ReadFile(inside)
		if err == nil && len(b) > 0 {
			err = fmt.Errorf("another thread sees %q", b)
		}
		done <- errors.Join(err, j.Remove())
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(cfg.Dir, "jail")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the jail is left: %v", err)
	}
	if got := content(t, cfg.Files[0].Host); got != "the base" {
		t.Errorf("the base holds %q", got)
	}
}

// TestPrepareFails: an error leaves no jail and no file given away.
func TestPrepareFails(t *testing.T) {
	for name, c := range map[string]struct {
		change func(t *testing.T, cfg *Config)
		want   string
	}{
		"no such file":       {func(_ *testing.T, cfg *Config) { cfg.Files = append(cfg.Files, File{Host: "/no/such/file", Name: "x"}) }, `put "x" into the jail: lstat /no: no such file or directory`},
		"a directory":        {func(_ *testing.T, cfg *Config) { cfg.Files = append(cfg.Files, File{Host: "/etc", Name: "x"}) }, `put "/etc" into the jail: neither a file nor a socket`},
		"a device":           {func(_ *testing.T, cfg *Config) { cfg.Files = append(cfg.Files, File{Host: "/dev/null", Name: "x"}) }, `put "/dev/null" into the jail: neither a file nor a socket`},
		"a name twice":       {func(_ *testing.T, cfg *Config) { cfg.Files = append(cfg.Files, cfg.Files[0]) }, `make a jail: "base.ext4" cannot be the name of a file`},
		"the program's name": {func(_ *testing.T, cfg *Config) { cfg.Files[0].Name = "firecracker-v1.17.0-x86_64" }, `make a jail: "firecracker-v1.17.0-x86_64" cannot be the name of a file`},
		"a path as name":     {func(_ *testing.T, cfg *Config) { cfg.Files[0].Name = "../base" }, `make a jail: "../base" cannot be the name of a file`},
		"root":               {func(_ *testing.T, cfg *Config) { cfg.UID = 0 }, fmt.Sprintf("make a jail: user 0, group %d", UserOf(testID))},
		"a long name": {func(t *testing.T, cfg *Config) {
			cfg.Firecracker = write(t, filepath.Join(t.TempDir(), strings.Repeat("f", 48)), "", 0o700)
		}, "leaves too little room for a socket's"},
		"an id": {func(_ *testing.T, cfg *Config) { cfg.ID = "a_b" }, `make a jail: "a_b" is no id for firecracker`},
		"two names": {func(t *testing.T, cfg *Config) {
			if err := os.Link(cfg.Files[1].Host, cfg.Files[1].Host+".2"); err != nil {
				t.Fatal(err)
			}
		}, `data.ext4" into the jail: it has 2 names, whose owner would change with it`},
		"not for everybody": {func(t *testing.T, cfg *Config) {
			dir, err := os.MkdirTemp("", "jail") //nolint:usetesting // anybody can enter it, unlike T.TempDir's
			if err == nil {
				err = os.Chmod(dir, 0o755)
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			cfg.Files = append(cfg.Files, File{Host: write(t, filepath.Join(dir, "open"), "", 0o600), Name: "x"})
		}, `/open" into the jail: its mode 0600 keeps the jail's user from reading it`},
		"another version": {func(t *testing.T, _ *Config) { t.Setenv(fakejailer.VersionVar, "1.16.1") }, "is of version v1.17.0, "},
		"no version": {func(t *testing.T, cfg *Config) {
			cfg.Jailer = write(t, filepath.Join(t.TempDir(), "jailer"), "#!/bin/sh\necho none\n", 0o700)
		}, `/jailer says "none" for a version`},
		"no jailer": {func(_ *testing.T, cfg *Config) { cfg.Jailer = "/no/such/jailer" }, "jail firecracker: stat /no/such/jailer: no such file or directory"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := newConfig(t)
			data := cfg.Files[1].Host
			c.change(t, &cfg)
			_, err := Prepare(t.Context(), cfg)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("err = %v, want %s", err, c.want)
			}
			if got, want := ownerMode(t, data), fmt.Sprintf("%d:%d 0600", os.Geteuid(), os.Getegid()); got != want {
				t.Errorf("the data drive is %s, want %s", got, want)
			}
			if _, err := os.Lstat(filepath.Join(cfg.Dir, "jail")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the jail is left: %v", err)
			}
		})
	}
}

func TestGive(t *testing.T) {
	cfg := newConfig(t)
	cfg.Files = nil
	j, err := Prepare(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	victim := write(t, filepath.Join(t.TempDir(), "victim"), "", 0o600)
	if err := os.Symlink(victim, filepath.Join(j.Root(), "link")); err != nil {
		t.Fatal(err)
	}
	before := ownerMode(t, victim)
	if err := j.Give("link"); err != nil || ownerMode(t, victim) != before {
		t.Errorf("given a link, the file is %s: %v", ownerMode(t, victim), err)
	}
	for _, name := range []string{"a/b", "../x", "nothing"} {
		if err := j.Give(name); err == nil {
			t.Errorf("gave %q", name)
		}
	}
	if err := j.Remove(); err != nil {
		t.Fatal(err)
	}
	if content(t, victim) != "" {
		t.Error("the file a link leads to was changed")
	}
}

// TestRemoveTree: nothing that is mounted in a jail, or linked to from it, is removed with it.
func TestRemoveTree(t *testing.T) {
	needRoot(t)
	runtime.LockOSThread()
	if err := ownMounts(); err != nil {
		t.Fatal(err)
	}
	outside := mkdir(t, filepath.Join(t.TempDir(), "outside/sub"))
	file := write(t, filepath.Join(outside, "file"), "precious", 0o600)
	tree := mkdir(t, filepath.Join(t.TempDir(), "jail/a/b"))
	for range 2 { // mounted over each other
		if err := unix.Mount(filepath.Dir(outside), tree, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			t.Fatal(err)
		}
	}
	top := filepath.Dir(filepath.Dir(tree))
	if err := unix.Mount(file, write(t, filepath.Join(top, "file"), "", 0o600), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(top, "link")); err != nil {
		t.Fatal(err)
	}
	if err := removeTree(top); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(top); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}
	if got := content(t, file); got != "precious" {
		t.Errorf("the file holds %q", got)
	}
	if err := removeTree(top); err != nil {
		t.Errorf("once more: %v", err)
	}
	if err := removeTree("/no/such/directory/jail"); err != nil {
		t.Errorf("without its parent: %v", err)
	}
}

func TestCommand(t *testing.T) {
	j := &Jail{base: "/vms/a/jail", cfg: Config{Jailer: "/bin/jailer", Firecracker: "/bin/firecracker", ID: "a", UID: 7, GID: 8}}
	want := strings.Fields("/bin/jailer --id a --exec-file /bin/firecracker --uid 7 --gid 8 --chroot-base-dir /vms/a/jail --")
	if diff := cmp.Diff(want, j.Command()); diff != "" {
		t.Error(diff)
	}
}

func TestUserOf(t *testing.T) {
	for id, want := range map[string]int{
		"000000": 1_900_000_000, "000001ffff": 1_900_000_001, "ffffffff": 1_900_000_000 + 1<<24 - 1,
		testID: 1_900_000_000 + 0xa1b2c3, "": 1_900_000_000, "f": 1_900_000_015,
	} {
		if got := UserOf(id); got != want {
			t.Errorf("UserOf(%q) = %d, want %d", id, got, want)
		}
	}
	for _, id := range []string{"dev", "an id of somebody else's", "\xff\xff\xff\xff"} {
		if got := UserOf(id); got < 1_900_000_000 || got >= 1_900_000_000+1<<24 {
			t.Errorf("UserOf(%q) = %d", id, got)
		}
	}
}
