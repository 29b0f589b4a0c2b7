// Package agent is banger's program in the guest. One static binary is
//
//   - /init of the initramfs (PID 1): it makes the guest's root of the drives, starts the agent,
//     and becomes the image's init, or, where there is none, a minimal one;
//   - the agent, a process of its own named "@banger-agent" so that systemd's last kill spares it: it calls
//     the supervisor, runs commands, serves the API, and ends the guest;
//   - the sftp server, which runs as whoever has logged in by ssh;
//   - modprobe, which the kernel runs to load modules (images need no kmod);
//   - the shutdown hook, to which systemd hands PID 1 at the end.
//
// The image is never modified: what is changed lies on the VM's data drive or under /run.
//
// main.go chooses among them. boot.go is PID 1 in order, with root.go (mounts), drives.go,
// modules.go, seed.go (a new data drive), identity.go (names), units.go (systemd) and initproc.go (which
// init, and the minimal one). agent.go is the agent, with transport.go, call.go, api.go, ssh.go, grow.go, clock.go and log.go.
// control.go is how PID 1 tells the agent that the guest ends, end.go is the end itself, hook.go the
// shutdown hook, modprobe.go modprobe.
package agent

import (
	"fmt"
	"os"
	"path/filepath"
)

// agentName is argv[0] of the agent: systemd spares processes of root whose name begins with an @.
const agentName = "@banger-agent"

// role is what the binary was started as.
type role string

const (
	roleInit     role = "init"
	roleAgent    role = "agent"
	roleModprobe role = "modprobe"
	roleHook     role = "hook"
	roleSFTP     role = "sftp-server"
	roleUsage    role = "usage"
)

// chooseRole tells from the arguments and the process id what to be. PID 1 is the hook only where
// systemd starts it as such, with a verb.
func chooseRole(args []string, pid int) role {
	name := ""
	if len(args) > 0 {
		name = filepath.Base(args[0])
	}
	switch {
	case name == "shutdown" && len(args) > 1:
		return roleHook
	case pid == 1:
		return roleInit
	case name == agentName:
		return roleAgent
	case name == "modprobe":
		return roleModprobe
	case len(args) == 2 && args[1] == sftpArg:
		return roleSFTP
	}
	return roleUsage
}

// Main runs the role that args and pid name and returns the exit status. PID 1 does not return.
func Main(args []string, pid int) int {
	switch chooseRole(args, pid) {
	case roleInit:
		return bootMain()
	case roleAgent:
		return agentMain()
	case roleModprobe:
		return modprobeMain(args[1:])
	case roleSFTP:
		return sftpMain()
	case roleHook:
		return hookMain(args[1])
	default:
		fmt.Fprintln(os.Stderr, "banger-vsock-agent is /init of a banger guest; it is not run by hand")
		return 2
	}
}
