package agent

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// initKind is what sort of init an image has.
type initKind string

const (
	initSystemd initKind = "systemd"
	initOther   initKind = "other"
	initNone    initKind = "none" // the agent's binary stays PID 1
)

// wire is the kind as the call names it.
func (k initKind) wire() string { return string(k) }

// findInit looks for the init of the image whose root is root. A busybox without anything to run at boot is
// none: it would do no more than the minimal init does, and could not say how the guest ends.
func findInit(root string) (initKind, string) {
	for _, p := range []string{"/sbin/init", "/etc/init", "/bin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd"} {
		real, err := filepath.EvalSymlinks(filepath.Join(root, p))
		if err != nil {
			continue
		}
		info, err := os.Stat(real)
		if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
			continue
		}
		switch {
		case path.Base(real) == "systemd":
			return initSystemd, p
		case isBusybox(root, real, info) && !bootsByItself(root):
			return initNone, ""
		}
		return initOther, p
	}
	return initNone, ""
}

// isBusybox tells whether a program is busybox: by name, or as another link of it.
func isBusybox(root, real string, info os.FileInfo) bool {
	if strings.HasPrefix(path.Base(real), "busybox") {
		return true
	}
	for _, p := range []string{"/bin/busybox", "/usr/bin/busybox", "/bin/sh"} {
		if other, err := os.Stat(filepath.Join(root, p)); err == nil && os.SameFile(info, other) {
			return true
		}
	}
	return false
}

// bootsByItself tells whether a busybox init has something to run.
func bootsByItself(root string) bool {
	for _, p := range []string{"/sbin/openrc", "/etc/init.d/rcS"} {
		if _, err := os.Stat(filepath.Join(root, p)); err == nil {
			return true
		}
	}
	return false
}

// Real-time signals as systemd understands them: SIGRTMIN is 34 for the C library.
const (
	sigHalt     = syscall.Signal(34 + 3)
	sigPoweroff = syscall.Signal(34 + 4)
	sigReboot   = syscall.Signal(34 + 5)
)

// initSignals are the signals that end a guest through its PID 1: those of busybox and sysvinit's
// tools, of systemd, and of Ctrl-Alt-Del and a failing power supply.
var initSignals = map[os.Signal]string{
	syscall.SIGUSR1: verbHalt,
	syscall.SIGUSR2: verbPoweroff,
	syscall.SIGTERM: verbReboot,
	syscall.SIGINT:  verbReboot,
	syscall.SIGPWR:  verbPoweroff,
	sigHalt:         verbHalt,
	sigPoweroff:     verbPoweroff,
	sigReboot:       verbReboot,
}

// killGrace is how long processes may take to end after SIGTERM.
const killGrace = 3 * time.Second

// minimalInit is PID 1 of an image without an init: it reaps, and ends the guest when it is told to.
func minimalInit(agent *os.Process) {
	ends := make(chan os.Signal, 8)
	for s := range initSignals {
		signal.Notify(ends, s)
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	for {
		reap(agent.Pid)
		select {
		case <-children:
		case s := <-ends:
			stopProcesses(agent.Pid, children)
			endFrom(initSignals[s])
		}
	}
}

// reap collects children that ended. Without its agent a guest cannot be reached any more; it goes on for what
// runs in it, and says so.
func reap(agent int) {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if pid <= 0 || err != nil {
			return
		}
		if pid == agent {
			fmt.Fprintln(os.Stderr, "banger: the agent has ended")
		}
	}
}

// stopProcesses ends all processes but the agent: with SIGTERM, and after killGrace with SIGKILL.
func stopProcesses(agent int, children <-chan os.Signal) {
	end := time.NewTimer(killGrace)
	defer end.Stop()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	signalAll(agent, unix.SIGTERM)
	for {
		reap(agent)
		if len(others(agent)) == 0 {
			return
		}
		select {
		case <-children:
		case <-look.C:
		case <-end.C:
			signalAll(agent, unix.SIGKILL)
			return
		}
	}
}

func signalAll(agent int, sig syscall.Signal) {
	for _, pid := range others(agent) {
		_ = unix.Kill(pid, sig) // it may be gone
		_ = unix.Kill(pid, unix.SIGCONT)
	}
}

// others are the processes of user space but this one and the agent.
func others(agent int) []int {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var out []int
	for _, d := range dirs {
		pid, err := strconv.Atoi(path.Base(d))
		if err != nil || pid == os.Getpid() || pid == agent {
			continue
		}
		// Kernel threads have no arguments; neither have zombies.
		if cmdline, err := os.ReadFile(d + "/cmdline"); err == nil && len(cmdline) > 0 {
			out = append(out, pid)
		}
	}
	return out
}
