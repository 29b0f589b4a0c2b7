package supervise

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker/fakefc"
)

// The tests of this file and of firecracker_run_test.go let a Firecracker go wrong at each step of its life. After each nothing is left, and a
// healthy one starts in the same directory.

// badAPIFile makes the VMM a program that answers every connection to its API with the file's content, and then only breathes.
const badAPIFile = "badapi"

// badAPI is that program; false where the file is not there.
func badAPI() bool {
	answer, err := os.ReadFile(badAPIFile)
	if err != nil {
		return false
	}
	ln, err := net.Listen("unix", paths.VMFirecrackerAPI)
	if err != nil {
		return false
	}
	for {
		conn, err := ln.Accept()
		if err != nil {
			return true
		}
		_, _ = conn.Read(make([]byte, 4096))
		_, _ = conn.Write(answer)
		conn.Close()
	}
}

// startFC starts a VM on a fake Firecracker.
func startFC(t *testing.T, knobs fakefc.Knobs, change func(*vmm.Spec), args ...string) *run {
	t.Helper()
	dir, spec := newFCVM(t, knobs)
	if change != nil {
		change(&spec)
	}
	return launchFC(t, dir, spec, args...)
}

// launchFC starts the VM in dir, with args for its supervisor.
func launchFC(t *testing.T, dir string, spec vmm.Spec, args ...string) *run {
	t.Helper()
	r, err := tryFC(t, dir, spec, args...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// tryFC is launchFC of a VM that may end before it is known to have started.
func tryFC(t *testing.T, dir string, spec vmm.Spec, args ...string) (*run, error) {
	t.Helper()
	eng := newEngine(t, append([]string{"--ending-grace", "300ms"}, args...)...)
	ctx := within(t, 60*time.Second)
	m, err := eng.Start(ctx, dir, spec)
	if err != nil {
		return nil, err
	}
	r := &run{machine: m.(*machine), ctx: ctx, dir: dir, spec: spec, eng: eng}
	t.Cleanup(func() {
		_ = r.Kill(within(t, 30*time.Second))
		_ = r.Close()
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(dir, paths.VMMLog))
			t.Logf("vmm.log:\n%s", b[max(0, len(b)-4000):])
		}
	})
	return r, nil
}

// stays are the files a VM that does not run may have: its own, its logs, and those of the fake.
var stays = []string{"data.ext4", "fakeqemu.json", fakefc.KnobsFile, fakefc.BootsFile, fakefc.RequestsFile, fakefc.RefusedFile, "fakeguest", badAPIFile, "fakesnap",
	paths.VMSpec, paths.VMEnd, paths.VMMLog, paths.VMMLog + ".1", paths.VMConsoleLog, paths.VMConsoleLog + ".1", paths.VMAgentLog}

// nothingLeft fails where a process or a file of a VM that does not run is there, beside stays and also.
func nothingLeft(t *testing.T, dir string, also ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(stays, e.Name()) && !slices.Contains(also, e.Name()) {
			b, _ := os.ReadFile(filepath.Join(dir, e.Name()))
			t.Errorf("left behind: %s (%s) %.200q", e.Name(), e.Type(), b)
		}
	}
	// What was killed goes, but not at once.
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(30 * time.Second); ; {
		left := processesIn(dir)
		if len(left) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Errorf("left behind: processes %q", left)
			return
		}
	}
}

// processesIn are the processes that work in dir or were started with its name.
func processesIn(dir string) (found []string) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		cmdline, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if len(cmdline) == 0 {
			continue // gone, or no process
		}
		cwd, _ := os.Readlink("/proc/" + e.Name() + "/cwd")
		if strings.HasPrefix(cwd, dir) || bytes.Contains(cmdline, []byte(dir)) {
			found = append(found, fmt.Sprintf("%s %q", e.Name(), cmdline))
		}
	}
	return found
}

// worksAgain starts a healthy Firecracker in dir and ends it.
func worksAgain(t *testing.T, dir string, spec vmm.Spec) {
	t.Helper()
	_ = os.Remove(filepath.Join(dir, badAPIFile))
	if err := (fakefc.Knobs{}).Write(dir); err != nil {
		t.Fatal(err)
	}
	r := launchFC(t, dir, spec)
	if st := r.awaitFull(t); st.Phase != vmm.PhaseRunning {
		t.Fatalf("afterwards: %+v", st)
	}
	r.healthy(t)
	if err := r.Kill(r.ctx); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, dir)
}

// healthy fails where the guest runs nothing.
func (r *run) healthy(t *testing.T) {
	t.Helper()
	if out := r.order("echo", "there"); out != "there\n" {
		t.Errorf("the guest says %q", out)
	}
}

// badStart is a Firecracker that does not start.
type badStart struct {
	knobs  fakefc.Knobs
	api    string // for badAPIFile
	change func(*vmm.Spec)
	says   []string // in the error
	hint   string   // in its hint
	alive  bool     // another engine would do no better
}

func badStarts() map[string]badStart {
	at := func(moment string, status int) fakefc.Knobs {
		return fakefc.Knobs{DieAt: map[string]int{moment: status}}
	}
	signal := func(sig unix.Signal) fakefc.Knobs {
		return fakefc.Knobs{SignalAt: map[string]int{fakefc.MomentBoot: int(sig)}}
	}
	const answers = "firecracker: GET /"
	return map[string]badStart{
		"crash":       {knobs: fakefc.Knobs{CrashAtStart: "libfoo.so: not found"}, says: []string{"start firecracker: exit status 1", "libfoo.so: not found"}},
		"hang":        {knobs: fakefc.Knobs{HangAtStart: true}, says: []string{"start firecracker: it did not answer within 500ms"}},
		"hang, build": {knobs: fakefc.Knobs{HangAt: []string{fakefc.MomentBoot}}, says: []string{"it did not answer within 500ms"}},
		"status 1":    {knobs: at(fakefc.MomentBoot, 1), says: []string{"start firecracker: exit status 1"}},
		"status 148":  {knobs: at(fakefc.MomentBoot, 148), says: []string{"exit status 148", "system call that its filter forbids", "bad syscall (56)"}, hint: `engine = "qemu"`},
		"status 149":  {knobs: at(fakefc.MomentBoot, 149), says: []string{"exit status 149", "memory"}, hint: "make room"},
		"status 151":  {knobs: at(fakefc.MomentBoot, 151), says: []string{"exit status 151", "ulimit -f"}, hint: "ulimit -f unlimited"},
		"status 152":  {knobs: at(fakefc.MomentBoot, 152), says: []string{"exit status 152", "its configuration"}, hint: "banger doctor"},
		"status 153":  {knobs: at(fakefc.MomentBoot, 153), says: []string{"exit status 153", "its arguments"}, hint: "banger doctor"},
		"status 156":  {knobs: at(fakefc.MomentBoot, 156), says: []string{"start firecracker: a signal of the host"}, alive: true},
		"SIGKILL":     {knobs: signal(unix.SIGKILL), says: []string{"start firecracker: ended by signal killed"}},
		"SIGSEGV":     {knobs: signal(unix.SIGSEGV), says: []string{"ended by signal segmentation fault"}},
		"SIGTERM":     {knobs: signal(unix.SIGTERM), says: []string{"start firecracker: a signal of the host"}, alive: true},
		"no kvm":      {knobs: fakefc.Knobs{KVM: fakefc.KVMMissing}, says: []string{"start firecracker: exit status 1", "Error creating KVM object"}, hint: "banger doctor says what KVM lacks"},
		"permission":  {knobs: fakefc.Knobs{KVM: fakefc.KVMPermission}, says: []string{"Permission denied (os error 13)"}, hint: "usermod -aG kvm"},
		"hardware":    {knobs: fakefc.Knobs{KVM: fakefc.KVMNoHardware}, says: []string{"No such device (os error 19)"}, hint: "banger doctor says what KVM lacks"},
		"old kvm":     {knobs: fakefc.Knobs{KVM: fakefc.KVMTooOld}, says: []string{"Missing KVM capabilities"}, hint: `engine = "qemu"`},
		"no kernel":   {change: func(s *vmm.Spec) { s.Kernel = "/nosuch/vmlinux" }, says: []string{"start firecracker: exit status 1", "No such file or directory (os error 2)"}},
		"no drive":    {change: func(s *vmm.Spec) { s.Drives[1].Path = "nosuch.ext4" }, says: []string{"start firecracker: exit status 1", "No such file or directory (os error 2) nosuch.ext4"}},
		"33 CPUs":     {change: func(s *vmm.Spec) { s.CPUs = 33 }, says: []string{"at most 32 CPUs, not 33"}, hint: "--cpus", alive: true},
		"no program":  {change: func(s *vmm.Spec) { s.Binary = "/nosuch/firecracker" }, says: []string{"start firecracker: /nosuch/firecracker: not installed"}, alive: true},
		"fault":       {knobs: fakefc.Knobs{FaultAt: map[string]string{"GET /": "No\x1b[31m way."}}, says: []string{answers + ": No [31m way."}},
		"no content":  {knobs: fakefc.Knobs{LieAt: []string{"GET /"}}, says: []string{answers, "unexpected end of JSON"}},
		"dies asked":  {knobs: at("GET /", 3), says: []string{"start firecracker: exit status 3"}},
		"hang, asked": {knobs: fakefc.Knobs{HangAt: []string{"GET /"}}, says: []string{"it did not answer within 500ms"}},
		"closes":      {api: "", says: []string{answers, "EOF"}},
		"garbage":     {api: "\x00\xff220 mail.example.org ESMTP\r\n", says: []string{answers, "malformed HTTP"}},
		"status 500":  {api: "HTTP/1.1 500 \r\nContent-Length: 8\r\n\r\n<b>oh\n\n!", says: []string{answers + ": <b>oh"}},
		"no JSON":     {api: "HTTP/1.1 200 \r\nContent-Length: 4\r\n\r\nhuh?", says: []string{answers, "invalid character"}},
		"cut short":   {api: "HTTP/1.1 200 \r\nContent-Length: 400\r\n\r\n{", says: []string{answers, "unexpected EOF"}},
		"other state": {api: "HTTP/1.1 200 \r\nContent-Length: 18\r\n\r\n{\"state\":\"Paused\"}", says: []string{`it is in state "Paused"`}},
		"not started": {api: "HTTP/1.1 200 \r\nContent-Length: 23\r\n\r\n{\"state\":\"Not started\"}", says: []string{`it is in state "Not started"`}},
		"much":        {api: "HTTP/1.1 200 \r\nContent-Length: 4000000\r\n\r\n" + strings.Repeat("x", 4000000), says: []string{answers, "invalid character"}},
	}
}

func TestFirecrackerDoesNotStart(t *testing.T) {
	for name, c := range badStarts() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, spec := newFCVM(t, c.knobs)
			good := spec
			good.Drives = slices.Clone(spec.Drives)
			if c.change != nil {
				c.change(&spec)
			}
			if c.api != "" || name == "closes" {
				if err := os.WriteFile(filepath.Join(dir, badAPIFile), []byte(c.api), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			timeout := "20s"
			if strings.HasPrefix(name, "hang") {
				timeout = "500ms"
			}
			m, err := newEngine(t, "--start-timeout", timeout).Start(within(t, 60*time.Second), dir, spec)
			if err == nil {
				_ = m.Kill(within(t, 30*time.Second))
				t.Fatal("it was started")
			}
			for _, words := range c.says {
				if !strings.Contains(err.Error(), words) {
					t.Errorf("the error is %q, without %q", err, words)
				}
			}
			if e := api.AsError(err); !strings.Contains(e.Hint, c.hint) || len(e.Message) > 1500 || strings.Count(e.Message, "os error") > 1 || strings.ContainsAny(e.Message, "\n\x1b") {
				t.Errorf("the error is %q (%s), the hint %q, want %q in it", e.Message, e.Kind, e.Hint, c.hint)
			}
			if errors.Is(err, vmm.ErrStart) == c.alive {
				t.Errorf("the error is %v, a vmm.ErrStart: %v", err, !c.alive)
			}
			nothingLeft(t, dir)
			worksAgain(t, dir, good)
		})
	}
}

func TestFirecrackerStartIsCancelled(t *testing.T) {
	for name, knobs := range map[string]fakefc.Knobs{
		"before its socket": {HangAtStart: true},
		"while it builds":   {HangAt: []string{fakefc.MomentBoot}},
		"while it answers":  {HangAt: []string{"GET /"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, spec := newFCVM(t, knobs)
			ctx := within(t, 500*time.Millisecond)
			if _, err := newEngine(t).Start(ctx, dir, spec); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, vmm.ErrStart) {
				t.Errorf("start: %v", err)
			}
			nothingLeft(t, dir)
			worksAgain(t, dir, spec)
		})
	}
}

// TestFirecrackerStaleFiles: what an end of the host, or somebody, left under the names of a VM's own files keeps nothing from starting, unless
// it is what nobody may remove unasked.
func TestFirecrackerStaleFiles(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	for name, put := range map[string]func(path string) error{
		"file":      func(path string) error { return os.WriteFile(path, []byte("stale"), 0o400) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"link":      func(path string) error { return os.Symlink(outside, path) },
		"pipe":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"socket": func(path string) error {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return inDir(filepath.Dir(path), func(short string) error {
				return unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(short, filepath.Base(path))})
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, spec := newFCVM(t, fakefc.Knobs{})
			for _, file := range transient() {
				if err := put(filepath.Join(dir, file)); err != nil {
					t.Fatal(err)
				}
			}
			worksAgain(t, dir, spec)
			if _, err := os.Lstat(outside); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a link led out of the directory: %v", err)
			}
		})
	}
	for _, name := range transient() {
		t.Run("full "+name, func(t *testing.T) {
			t.Parallel()
			dir, spec := newFCVM(t, fakefc.Knobs{})
			if err := os.MkdirAll(filepath.Join(dir, name, "somebody's"), 0o700); err != nil {
				t.Fatal(err)
			}
			if _, err := newEngine(t).Start(within(t, 30*time.Second), dir, spec); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("start: %v, want %q in it", err, name)
			}
			nothingLeft(t, dir, name)
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			worksAgain(t, dir, spec)
		})
	}
}

// inDir calls f with a short name of a directory.
func inDir(dir string, f func(short string) error) error {
	d, err := openDir(dir)
	if err != nil {
		return err
	}
	defer d.release()
	short, _ := d.name(".")
	defer d.release()
	return f(short)
}
