// Package paths names every file and directory banger writes on the host; it
// is the only place that does. docs/DISK_LAYOUT.md lists them for people.
package paths

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Paths are banger's directories, all absolute.
type Paths struct {
	// Config holds config.toml and ssh/; Data images, kernels, agents, engines; State
	// the database and the VMs; Cache what can be fetched again; Runtime the API socket.
	Config, Data, State, Cache, Runtime string
}

// FromEnv derives the directories from the XDG variables and HOME, as the XDG
// base directory specification says: a relative value counts as unset. Runtime is
// State where XDG_RUNTIME_DIR is unset.
func FromEnv(getenv func(string) string) (Paths, error) {
	home, err := Home(getenv)
	if err != nil {
		return Paths{}, err
	}
	dir := func(env, def string) string {
		if v := getenv(env); filepath.IsAbs(v) {
			return filepath.Join(v, "banger")
		}
		return filepath.Join(home, def, "banger")
	}
	p := Paths{
		Config: dir("XDG_CONFIG_HOME", ".config"),
		Data:   dir("XDG_DATA_HOME", ".local/share"),
		State:  dir("XDG_STATE_HOME", ".local/state"),
		Cache:  dir("XDG_CACHE_HOME", ".cache"),
	}
	p.Runtime = p.State
	if v := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(v) {
		p.Runtime = filepath.Join(v, "banger")
	}
	return p, nil
}

// Home is the user's home directory, absolute.
func Home(getenv func(string) string) (string, error) {
	home := getenv("HOME")
	if home == "" {
		h, err := os.UserHomeDir()
		if err != nil {
			return "", errors.New("find the home directory: HOME is not set")
		}
		home = h
	}
	if !filepath.IsAbs(home) {
		return "", fmt.Errorf("find the home directory: HOME is %q, not an absolute path", home)
	}
	return home, nil
}

// ConfigFile is the configuration.
func (p Paths) ConfigFile() string { return filepath.Join(p.Config, "config.toml") }

// SSHKey is banger's own key for ssh, its public half beside it with .pub.
func (p Paths) SSHKey() string { return filepath.Join(p.Config, "ssh", "id_ed25519") }

// SSHConfig is what ~/.ssh/config includes.
func (p Paths) SSHConfig() string { return filepath.Join(p.Config, "ssh", "config") }

// KnownHosts has the host keys of all VMs, for OpenSSH.
func (p Paths) KnownHosts() string { return filepath.Join(p.State, "known_hosts") }

// Images holds immutable content, as Kernels and Agents do: a directory per digest ("sha256-<hex>").
func (p Paths) Images() string { return filepath.Join(p.Data, "images") }

// Kernels holds the kernels.
func (p Paths) Kernels() string { return filepath.Join(p.Data, "kernels") }

// Agents holds the initramfs archives of agents.
func (p Paths) Agents() string { return filepath.Join(p.Data, "agents") }

// Bin holds the engines that were fetched.
func (p Paths) Bin() string { return filepath.Join(p.Data, "bin") }

// DebCache holds packages and indexes of Debian's archive.
func (p Paths) DebCache() string { return filepath.Join(p.Cache, "deb") }

// Database is the SQLite database.
func (p Paths) Database() string { return filepath.Join(p.State, "banger.db") }

// EngineMemory is what is remembered of engines that failed: which ended at their start, which could not be fetched.
func (p Paths) EngineMemory() string { return filepath.Join(p.State, "engine-failures.json") }

// Lock is the flock of the one daemon; its holder writes its socket's path there.
func (p Paths) Lock() string { return filepath.Join(p.State, "lock") }

// DaemonLog is the daemon's log; rotated beside it.
func (p Paths) DaemonLog() string { return filepath.Join(p.State, "bangerd.log") }

// Socket is the API's socket.
func (p Paths) Socket() string { return filepath.Join(p.Runtime, "bangerd.sock") }

// Sessions holds a socket per session that runs.
func (p Paths) Sessions() string { return filepath.Join(p.Runtime, "sessions") }

// maxSocketPath is the longest path of a unix socket, in bytes.
const maxSocketPath = 107

// SessionSocket leads to a session of the VM with that id. It has the session's name where a unix socket's path has room for it, and a digest of
// it otherwise.
func (p Paths) SessionSocket(vm, session string) string {
	path := filepath.Join(p.Sessions(), fmt.Sprintf("%.8s-%s.sock", vm, session))
	if len(path) <= maxSocketPath {
		return path
	}
	sum := sha256.Sum256([]byte(session))
	return filepath.Join(p.Sessions(), fmt.Sprintf("%.8s-%x.sock", vm, sum[:6]))
}

// VMs holds a directory per VM.
func (p Paths) VMs() string { return filepath.Join(p.State, "vms") }

// VM is the directory of a VM.
func (p Paths) VM(id string) string { return filepath.Join(p.VMs(), id) }

// Workspaces is the directory of a VM in which is written what it shares with directories of the host.
func (p Paths) Workspaces(vm string) string { return filepath.Join(p.VM(vm), "workspaces") }

// Lost holds the directories of VMs that no record mentions: a database was lost. Their data is not banger's to delete.
func (p Paths) Lost() string { return filepath.Join(p.State, "lost") }

// Files in a VM's directory.
const (
	VMData       = "data.ext4"
	VMFirstBoot  = "first-boot.tar" // what the guest is given once; secret
	VMInitrd     = "initrd"
	VMSpec       = "spec.json"       // vmm.Spec
	VMSupervisor = "supervisor.json" // pid, start time, boot id of the supervisor
	VMEnd        = "end.json"        // vmm.End of the last run
	VMConsoleLog = "console.log"     // rotated to console.log.1
	VMMLog       = "vmm.log"         // the VMM's and the supervisor's own messages
	VMAgentLog   = "agent.log"
	VMControl    = "control.sock" // the supervisor's own protocol
	VMVsock      = "vsock.sock"   // Firecracker's CONNECT protocol, both engines

	// In the directory of a snapshot.
	SnapshotInfo   = "snapshot.json" // of the supervisor; secret
	SnapshotState  = "state"         // the devices
	SnapshotMemory = "memory"

	VMFirecrackerAPI    = "firecracker.sock" // Firecracker's API
	VMFirecrackerConfig = "firecracker.json" // its configuration, while it starts
	VMFirecrackerLog    = "firecracker.log"  // a named pipe
)
