package confine

import (
	"bytes"
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
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// TestMain makes the test binary the confined process, and its children, as well.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "confined":
			runtime.LockOSThread()
			os.Exit(confined(os.Args[2]))
		case "hang":
			fmt.Println("here")
			hang := make(chan os.Signal, 1)
			signal.Notify(hang, syscall.SIGUSR1) // nobody sends it
			<-hang
		case "orphan":
			runtime.LockOSThread()
			os.Exit(orphan(os.Args[2]))
		case "limited":
			os.Exit(limited())
		case "limits":
			os.Exit(printLimits())
		case "signal":
			pid, _ := strconv.Atoi(os.Args[2])
			fmt.Println(word(syscall.Kill(pid, 0)))
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// job is what a confined process is told to do.
type job struct {
	Rules   Rules
	Outside string // a directory it knows nothing of, with a file "file" and a program "true"
	Program string
	TCP     string // an address somebody listens on
	Other   int    // a process outside
	Self    string // the test binary, where UID can run it
	UID     int    // whose process it is
	Free    bool   // not confined, to see that it is the confinement that makes the difference
}

// word is how an attempt went, in a word.
func word(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// confined confines this process and prints how each attempt at something went.
func confined(arg string) int {
	var j job
	if err := json.Unmarshal([]byte(arg), &j); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	before, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(j.Rules.Dir, "before")})
	if err == nil {
		defer before.Close()
	}
	if err == nil && !j.Free {
		_, err = Process(j.Rules)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	got := map[string]string{}
	// Goroutines of other threads are as confined as this one.
	done := make(chan struct{})
	go func() { defer close(done); j.files(got); j.sockets(got) }()
	<-done
	j.processes(got)
	if err := json.NewEncoder(os.Stdout).Encode(got); err != nil {
		return 2
	}
	return 0
}

func (j job) files(got map[string]string) {
	open := func(path string, flags int) error {
		f, err := os.OpenFile(path, flags, 0o600)
		if err == nil {
			f.Close()
		}
		return err
	}
	in := func(name string) string { return filepath.Join(j.Rules.Dir, name) }
	got["read what is permitted"] = word(open(j.Rules.Read[0], os.O_RDONLY))
	got["write what may be read"] = word(open(j.Rules.Read[0], os.O_WRONLY))
	got["read outside"] = word(open(filepath.Join(j.Outside, "file"), os.O_RDONLY))
	got["write outside"] = word(open(filepath.Join(j.Outside, "file"), os.O_WRONLY))
	got["make outside"] = word(open(filepath.Join(j.Outside, "new"), os.O_CREATE|os.O_WRONLY))
	got["list outside"] = word(open(j.Outside, os.O_RDONLY))
	got["truncate outside"] = word(os.Truncate(filepath.Join(j.Outside, "file"), 0))
	got["write in dir"] = word(open(in("log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC))
	got["rename in dir"] = word(os.Rename(in("log"), in("log.1")))
	got["make a directory"] = word(os.Mkdir(in("snapshots"), 0o700))
	got["rename to another directory"] = word(os.Rename(in("log.1"), in("snapshots/log")))
	got["remove in dir"] = word(os.RemoveAll(in("snapshots")))
	got["rename to outside"] = word(os.Rename(in("drive"), filepath.Join(j.Outside, "drive")))
	got["make a symbolic link"] = word(os.Symlink("/etc/passwd", in("passwd")))
	got["make a pipe"] = word(syscall.Mkfifo(in("fifo"), 0o600))
	got["make a device"] = word(syscall.Mknod(in("null"), syscall.S_IFCHR|0o600, 1<<8|3))
	got["follow a link out of dir"] = word(open(in("link"), os.O_RDONLY))
	got["write the permitted"] = word(open(j.Rules.Write[0], os.O_RDWR|os.O_TRUNC))
	got["read /proc/self/stat"] = word(open("/proc/self/stat", os.O_RDONLY))
	got["read the boot id"] = word(open("/proc/sys/kernel/random/boot_id", os.O_RDONLY))
	_, err := os.Open(fmt.Sprintf("/proc/%d/root/", j.Other))
	got["reach into a process outside"] = word(err)
	got["open /dev/null"] = word(open(os.DevNull, os.O_RDWR))
	got["open the permitted device"] = word(open("/dev/zero", os.O_RDWR))
	got["open another device"] = word(open("/dev/full", os.O_RDWR))
	got["ioctl of the permitted device"] = ioctl("/dev/zero")
}

// ioctl calls an ioctl that the driver does not know: ENOTTY says that it was asked.
func ioctl(path string) string {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return word(err)
	}
	defer f.Close()
	_, err = unix.IoctlGetInt(int(f.Fd()), 0x4242)
	return word(err)
}

func (j job) sockets(got map[string]string) {
	listen := func(network, address string) error {
		ln, err := net.Listen(network, address)
		if err == nil {
			ln.Close()
		}
		return err
	}
	dial := func(network, address string) error {
		conn, err := net.Dial(network, address)
		if err == nil {
			conn.Close()
		}
		return err
	}
	in := func(name string) string { return filepath.Join(j.Rules.Dir, name) }
	got["listen in dir"] = word(listen("unix", in("socket")))
	got["dial a socket from before"] = word(dial("unix", in("before")))
	got["listen outside"] = word(listen("unix", filepath.Join(j.Outside, "socket")))
	got["dial an abstract socket outside"] = word(dial("unix", "@"+j.Outside))
	got["connect by tcp"] = word(dial("tcp", j.TCP))
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0) // net.Listen's is Multipath TCP, which Landlock leaves alone
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
		unix.Close(fd)
	}
	got["bind by tcp"] = word(err)
}

func (j job) processes(got map[string]string) {
	start := func(argv ...string) (string, error) {
		r, w, err := os.Pipe()
		if err != nil {
			return "", err
		}
		defer r.Close()
		c, err := hostexec.Runner{}.StartChild(argv, j.Rules.Dir, nil, w, w)
		w.Close()
		if err != nil {
			return "", err
		}
		defer func() { _, _, _ = c.Wait() }()
		out, err := io.ReadAll(r)
		return strings.TrimSpace(string(out)), err
	}
	run := func(argv ...string) string {
		out, err := start(argv...)
		if err != nil {
			return word(err)
		}
		return out
	}
	got["run the permitted program"] = run(j.Program, "permitted")
	got["run another"] = run(filepath.Join(j.Outside, "true"))
	got["run a program in dir"] = run(filepath.Join(j.Rules.Dir, "program"))
	got["the child signals outside"] = run(j.Self, "signal", strconv.Itoa(j.Other))
	got["trace outside"] = word(syscall.PtraceAttach(j.Other))
	got["kill a child"] = word(killChild(j.Self))
}

// orphan leaves a child behind, which holds stdout.
func orphan(arg string) int {
	var j job
	if err := json.Unmarshal([]byte(arg), &j); err != nil {
		return 2
	}
	if _, err := Process(j.Rules); err != nil {
		return 3
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 4
	}
	self, _ := os.Executable()
	if _, err := (hostexec.Runner{}).StartChild([]string{self, "hang"}, "", nil, w, os.Stdout); err != nil {
		return 5
	}
	if _, err := r.Read(make([]byte, 4)); err != nil {
		return 6
	}
	return 0
}

// killChild starts a child from this thread, and kills it from another.
func killChild(self string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	c, err := hostexec.Runner{}.StartChild([]string{self, "hang"}, "", nil, w, nil)
	w.Close()
	if err != nil {
		return err
	}
	if _, err := r.Read(make([]byte, 4)); err != nil {
		return err
	}
	killed := make(chan error)
	go func() { killed <- syscall.Kill(c.PID(), syscall.SIGKILL) }()
	if err := <-killed; err != nil {
		c.Kill()
		return err
	}
	_, sig, err := c.Wait()
	if err == nil && sig != syscall.SIGKILL {
		err = fmt.Errorf("it ended by %v", sig)
	}
	return err
}

// needLandlock skips where the kernel has no Landlock of this ABI.
func needLandlock(t *testing.T, abi int) {
	t.Helper()
	if got := ABI(); got < abi {
		t.Skipf("this kernel has Landlock's ABI %d, not %d", got, abi)
	}
}

func file(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := errors.Join(os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
	return path
}

// newJob makes what a confined process plays with, as the user uid, and a process outside of the same user.
func newJob(t *testing.T, uid int) job {
	t.Helper()
	top, err := os.MkdirTemp("", "confine") //nolint:usetesting // any user can enter it, unlike T.TempDir's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	dir, outside, shared := filepath.Join(top, "vm"), filepath.Join(top, "outside"), filepath.Join(top, "shared")
	for _, d := range []string{dir, outside, shared} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program := file(t, filepath.Join(top, "program"), string(self), 0o755)
	file(t, filepath.Join(outside, "file"), "secret", 0o600)
	file(t, filepath.Join(dir, "drive"), "data", 0o600)
	if err := os.Symlink(filepath.Join(outside, "file"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	file(t, filepath.Join(outside, "true"), "#!/bin/sh\necho ran\n", 0o700)
	file(t, filepath.Join(dir, "program"), "#!/bin/sh\necho ran\n", 0o700)
	listen := func(network, address string) string {
		ln, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		return ln.Addr().String()
	}
	listen("unix", "@"+outside)
	j := job{
		Rules: Rules{
			Dir: dir, Read: []string{file(t, filepath.Join(shared, "kernel"), "kernel", 0o600), "/no/such/file"},
			Exec: []string{"/bin/echo", program}, Devices: []string{"/dev/zero"},
			Write: []string{file(t, filepath.Join(shared, "data.ext4"), "data", 0o600)},
		},
		Outside: outside, Program: "/bin/echo", Self: program, UID: uid, TCP: listen("tcp", "127.0.0.1:0"),
	}
	err = filepath.WalkDir(top, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, uid, -1))
	})
	if err := errors.Join(err, os.Chmod(top, 0o755)); err != nil {
		t.Fatal(err)
	}
	j.Other = j.bystander(t)
	return j
}

// command is the test binary, run as the job's user.
func (j job) command(t *testing.T, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), j.Self, args...)
	if j.UID != os.Geteuid() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(j.UID), Gid: uint32(j.UID)}}
	}
	return cmd
}

// bystander starts a process of the job's user that nobody confines, and returns its pid.
func (j job) bystander(t *testing.T) int {
	t.Helper()
	cmd := j.command(t, "hang")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // says that it was killed
	})
	if _, err := out.Read(make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

// run runs j in a process of its own.
func (j job) run(t *testing.T) map[string]string {
	t.Helper()
	arg, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	cmd := j.command(t, "confined", string(arg))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("the confined process: %v\n%s", err, stderr.Bytes())
	}
	got := map[string]string{}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	return got
}

// TestProcess confines a process of this user, and of an ordinary one where this is root.
func TestProcess(t *testing.T) {
	needLandlock(t, 1)
	if _, err := os.Stat("/bin/sh"); err != nil {
		t.Skip("no shell")
	}
	uids := map[string]int{"this user": os.Geteuid()}
	if os.Geteuid() == 0 {
		uids["nobody"] = 65534
	}
	for name, uid := range uids {
		t.Run(name, func(t *testing.T) {
			checkConfined(t, newJob(t, uid).run(t))
			free := newJob(t, uid)
			free.Free = true
			got := free.run(t)
			for what, want := range wants() {
				if denied := want.word == "EACCES" || want.word == "EPERM"; denied == (got[what] == want.word) {
					t.Errorf("%s, without confinement: %s", what, got[what])
				}
			}
		})
	}
}

// want is how an attempt ends on a kernel of an ABI, or a newer one.
type want struct {
	abi  int
	word string
}

func wants() map[string]want {
	return map[string]want{
		"read what is permitted": {1, "ok"}, "write what may be read": {1, "EACCES"},
		"read outside": {1, "EACCES"}, "write outside": {1, "EACCES"}, "make outside": {1, "EACCES"}, "list outside": {1, "EACCES"},
		"truncate outside": {3, "EACCES"},
		"write in dir":     {1, "ok"}, "rename in dir": {1, "ok"}, "make a directory": {1, "ok"}, "remove in dir": {1, "ok"},
		"rename to another directory": {2, "ok"}, "rename to outside": {2, "EACCES"},
		"make a symbolic link": {1, "EACCES"}, "make a pipe": {1, "ok"}, "make a device": {1, "EACCES"},
		"follow a link out of dir": {1, "EACCES"}, "write the permitted": {1, "ok"},
		"read /proc/self/stat": {1, "ok"}, "read the boot id": {1, "ok"}, "reach into a process outside": {1, "EACCES"},
		"open /dev/null": {1, "ok"}, "open the permitted device": {1, "ok"}, "open another device": {1, "EACCES"},
		"ioctl of the permitted device": {1, "ENOTTY"},
		"listen in dir":                 {1, "ok"}, "dial a socket from before": {1, "ok"}, "listen outside": {1, "EACCES"},
		"dial an abstract socket outside": {6, "EPERM"}, "connect by tcp": {4, "EACCES"}, "bind by tcp": {4, "EACCES"},
		"run the permitted program": {1, "permitted"}, "run another": {1, "EACCES"}, "run a program in dir": {1, "EACCES"},
		"the child signals outside": {6, "EPERM"}, "trace outside": {1, "EPERM"}, "kill a child": {1, "ok"},
	}
}

// checkConfined checks how each attempt of a confined process went.
func checkConfined(t *testing.T, got map[string]string) {
	t.Helper()
	abi, wants := ABI(), wants()
	for what, want := range wants {
		if abi >= want.abi && got[what] != want.word {
			t.Errorf("%s: %s, want %s", what, got[what], want.word)
		}
	}
	for what := range got {
		if _, ok := wants[what]; !ok {
			t.Errorf("%s: nobody looks at it", what)
		}
	}
}

// TestChildDiesWithItsParent: the kernel's signal passes, though it is one between confined processes.
func TestChildDiesWithItsParent(t *testing.T) {
	needLandlock(t, 1)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	self, _ := os.Executable()
	arg, _ := json.Marshal(job{Rules: Rules{Dir: t.TempDir(), Exec: []string{self}}})
	cmd := exec.CommandContext(t.Context(), self, "orphan", string(arg))
	cmd.Stdout = w
	err = cmd.Run()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); err != nil { // its end closes the pipe
		t.Errorf("the child lives on: %v", err)
	}
}

// TestLimits runs in a process of its own: they cannot be undone.
func TestLimits(t *testing.T) {
	self, _ := os.Executable()
	out, err := exec.CommandContext(t.Context(), self, "limited").Output()
	if err != nil {
		t.Fatal(err)
	}
	var want unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &want); err != nil {
		t.Fatal(err)
	}
	n := min(want.Max, MaxFiles)
	if got, want := strings.TrimSpace(string(out)), fmt.Sprintf("files %d %d core 0 0", n, n); got != want {
		t.Errorf("a child has %q, want %q", got, want)
	}
}

// limited limits itself and lets a child say what it has.
func limited() int {
	if err := Limits(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	self, _ := os.Executable()
	c, err := hostexec.Runner{}.StartChild([]string{self, "limits"}, "", nil, os.Stdout, os.Stderr)
	if err != nil {
		return 2
	}
	status, _, _ := c.Wait()
	return status
}

// printLimits prints what this process has; Go has raised its soft limit to the hard one.
func printLimits() int {
	var files, core unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) != nil || unix.Getrlimit(unix.RLIMIT_CORE, &core) != nil {
		return 1
	}
	fmt.Printf("files %d %d core %d %d\n", files.Cur, files.Max, core.Cur, core.Max)
	return 0
}

func TestInspect(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct{ text, want string }{
		"script": {"#! /bin/sh -e\n", "/bin/sh"}, "bare": {"#!/bin/sh", "/bin/sh"}, "empty": {"", ""}, "no words": {"#!\n", ""},
		"text": {"hello", ""}, "magic alone": {"\x7fELF", ""}, "no end": {"#!" + strings.Repeat("x", 300), strings.Repeat("x", 254)},
	} {
		if got := inspect(file(t, filepath.Join(dir, name), c.text, 0o700)); got.interpreter != c.want || got.loader != "" {
			t.Errorf("%s: %+v, want the interpreter %q", name, got, c.want)
		}
	}
	for _, path := range []string{dir, "/no/such/program", "/dev/null"} {
		if got := inspect(path); got.interpreter != "" || got.loader != "" {
			t.Errorf("%s: %+v", path, got)
		}
	}
}

// TestScript: what runs a script may run with it, and nothing else.
func TestScript(t *testing.T) {
	run, _ := programs([]string{file(t, filepath.Join(t.TempDir(), "vmm"), "#!/bin/sh\n", 0o700)})
	if len(run) < 2 || !slices.Contains(run, "/bin/sh") || slices.Contains(run, "/bin/echo") {
		t.Errorf("runs %q", run)
	}
}

func TestProcessRefuses(t *testing.T) {
	needLandlock(t, 1)
	path := file(t, filepath.Join(t.TempDir(), "file"), "", 0o600)
	for _, dir := range []string{"", "/no/such/directory", path} {
		// Nothing is confined before the rules are complete: this process goes on.
		if got, err := Process(Rules{Dir: dir}); err == nil || got != "" {
			t.Errorf("confined to %q: %q, %v", dir, got, err)
		}
	}
}
