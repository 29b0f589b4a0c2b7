// Package doctor tells whether a host has what banger needs, and what to do
// where it has not. Observe looks, and changes nothing and starts nothing;
// Examine judges what was seen, and is a pure function, so that every kind of host is a row in a test.
//
// The files: doctor.go has the list of checks, engine.go, places.go, programs.go,
// network.go and host.go the checks by what they are about, packages.go the names
// of packages; observe.go looks at the host, read.go reads what the kernel tells.
package doctor

import (
	"fmt"
	"io/fs"
	"net/netip"
	"strconv"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/config"
	"git.thaloco.com/thaloco/banger/internal/vmm/probe"
)

// Status is how a check ended.
type Status string

// The statuses. Warn is what works and could be better, or will not work in some case; Fail keeps banger from running VMs.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
)

// Check is one finding.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Detail is what was found, a few words.
	Detail string `json:"detail"`
	// Hint is what to do, most often a command; may be empty.
	Hint string `json:"hint,omitempty"`
}

// Failed reports whether one of the checks failed.
func Failed(checks []Check) bool {
	for _, c := range checks {
		if c.Status == Fail {
			return true
		}
	}
	return false
}

// Observations are what is to know of a host. The zero value is a host with nothing.
type Observations struct {
	UID  int
	Home string // of the user; may be empty

	// Settings are the configuration, the default one where it cannot be read because of ConfigErr.
	Settings     config.Config
	ConfigPath   string
	ConfigExists bool
	ConfigErr    error

	Probe  probe.Observations
	Tuning Tuning

	// Version is that of this program; Daemon is the bangerd that would be started, DaemonErr why there is none;
	// Agent is the path of the guest's agent, empty for none.
	Version   string
	Daemon    Program
	DaemonErr error
	Agent     string

	// Running is the daemon that answers, nil for none because of RunningErr.
	Running    *api.DaemonStatus
	RunningErr error
	Socket     Socket

	Places  []Place
	Scratch []Place // where images are put together

	Git, SSH Program
	// BuildErr says what the local build of an image lacks.
	BuildErr error
	// ImageHere and ImageKnown tell whether the default image is on this host and whether it is in the catalog; likewise for
	// the default kernel.
	Image, Kernel           string
	ImageHere, ImageKnown   bool
	KernelHere, KernelKnown bool
	// Mirror is where Debian is fetched from. MirrorAsked tells whether it was asked, MirrorErr what came of it.
	Mirror      string
	MirrorAsked bool
	MirrorErr   error

	SSHConfig SSHConfig

	// Bridge is what keeps VMs from the bridge, in bridge mode; BridgeByDaemon that this user's daemon may set up the host by itself.
	Bridge         error
	BridgeByDaemon bool

	Routes    []Route
	Resolvers []netip.AddrPort
	// PingGroups are the least and the greatest group that may ping, Groups those of the user.
	PingGroups [2]int
	Groups     []int

	Web WebPort

	CPUs int
	// MemoryTotal and MemoryAvailable are in bytes, 0 where they are not known.
	MemoryTotal, MemoryAvailable int64
}

// Program is a program of the host.
type Program struct {
	Path    string // empty for none
	Version string // empty where it does not tell
}

// Socket is the state of the daemon's socket.
type Socket struct {
	Path   string
	Exists bool
	// Runtime is XDG_RUNTIME_DIR, empty where it is not set; RuntimeErr says what is wrong with it.
	Runtime    string
	RuntimeErr error
	// Locked tells whether a daemon holds the lock of the state directory.
	Locked bool
}

// Place is a directory.
type Place struct {
	// Use is what it is for, such as "state".
	Use, Path string
	// Exists is false where banger has to make it; Writable then is about the first directory above that exists.
	Exists, Writable bool
	Owner            int
	Mode             fs.FileMode
	// Device tells file systems apart; Free is in bytes, what the user may use of it.
	Device uint64
	Free   int64
	NoExec bool
	// Err is why it could not be looked at.
	Err error
}

// WebPort is whether the daemon could open its web port; it was not looked where a daemon runs.
type WebPort struct {
	// Err is why it could not, nil where it could; By is who has it, such as "nginx (pid 123)", empty where that is not known.
	Err error
	By  string
}

// SSHConfig is whether OpenSSH knows of the VMs.
type SSHConfig struct {
	// User is the user's file, Ours what it is to include.
	User, Ours string
	// Included tells whether it does, Exists whether Ours is there.
	Included, Exists bool
}

// Tuning is what slows KVM down on some hosts.
type Tuning struct {
	Kernel string // as uname -r has it
	// Cgroup2 is where a cgroup2 hierarchy is mounted, empty for nowhere, FavorDynMods whether with that option.
	Cgroup2      string
	FavorDynMods bool
	// HugePages is the parameter nx_huge_pages of module kvm, empty where it is not there.
	HugePages string
}

// Examine judges what was observed. The checks and their order are the same for all hosts but for "mirror", which is
// there where it was asked for.
func Examine(o Observations) []Check {
	out := []Check{
		o.configuration(), o.engine(), o.firecracker(), o.kvm(), o.programs(), o.daemon(), o.socket(),
		o.directories(), o.space(), o.memory(), o.cpus(),
		o.image(), o.kernel(), o.build(),
	}
	if o.MirrorAsked {
		out = append(out, o.mirror())
	}
	return append(out, o.git(), o.ssh(), o.sshConfig(), o.network(), o.bridge(), o.resolver(), o.ping(), o.webPort())
}

func ok(name, format string, args ...any) Check {
	return Check{Name: name, Status: OK, Detail: fmt.Sprintf(format, args...)}
}

func warn(name, format string, args ...any) Check {
	return Check{Name: name, Status: Warn, Detail: fmt.Sprintf(format, args...)}
}

func fail(name, format string, args ...any) Check {
	return Check{Name: name, Status: Fail, Detail: fmt.Sprintf(format, args...)}
}

// failErr is a failure that an error explains.
func failErr(name string, err error) Check {
	e := api.AsError(err)
	return fail(name, "%s", e.Message).hint("%s", e.Hint)
}

// hint returns c with a hint.
func (c Check) hint(format string, args ...any) Check {
	c.Hint = fmt.Sprintf(format, args...)
	return c
}

// atLeast reports whether a version such as "7.2.22" or "9.2p1" is not before major.minor; false where it is none.
func atLeast(version string, major, minor int) bool {
	head, rest, _ := strings.Cut(version, ".")
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end >= 0 {
		rest = rest[:end]
	}
	gotMajor, err1 := strconv.Atoi(head)
	gotMinor, err2 := strconv.Atoi(rest)
	if err1 != nil || err2 != nil {
		return false
	}
	return gotMajor > major || gotMajor == major && gotMinor >= minor
}

// size is n bytes for people.
func size(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	}
	return fmt.Sprintf("%d MiB", n>>20)
}
