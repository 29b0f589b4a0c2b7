// Package confine takes from a process what it does not need, without root: Process by Landlock, Limits by resource
// limits. It is made for a VM's supervisor, whose VMM, started later, is confined with it.
//
// What a kernel's Landlock can hold back depends on its ABI (landlock(7)): file systems from 1 (Linux 5.13), truncation
// from 3, TCP from 4, ioctl on devices from 5, abstract sockets and signals from 6 (6.12), connecting to named sockets from
// 9, UDP from 10. Never: stat, chmod, chown, chdir, and what was opened before. A confined process can mount nothing, so
// that one that is to set up a jail (package jail) must not be confined.
//
// The files: confine.go the rules and the limits, program.go what it takes to run a program.
package confine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/landlock-lsm/go-landlock/landlock"
	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// Rules are what is left to a confined process; paths are absolute, or count from the working directory. Rules are bound to
// the files that are there: a path that is missing (but Dir) is left out, and what is made there later, or replaces what was
// there, stays out of reach unless its directory is permitted.
type Rules struct {
	// Dir is the VM's directory: everything in it may be read, written, made, renamed and removed, sockets and named
	// pipes included. Not so: devices, symbolic links (the daemon might follow them), and running programs.
	Dir string
	// Read are files and directories to read.
	Read []string
	// Exec are programs to run; what loads them (a dynamic linker, the interpreter of a script) may run with them, and the
	// system's libraries may be read. A program that is upgraded afterwards cannot be run any more (EACCES).
	Exec []string
	// Devices are device files to read, write and call ioctl on: /dev/kvm. /dev/null needs no mention.
	Devices []string
	// Write are files to read and write, and directories to treat as Dir.
	Write []string
}

// Rights of Landlock. It ignores a right of an ABI the kernel has not.
const (
	readFile = llsys.AccessFSReadFile
	readDir  = llsys.AccessFSReadDir | readFile
	write    = readFile | llsys.AccessFSWriteFile | llsys.AccessFSTruncate
	device   = write | llsys.AccessFSIoctlDev
	run      = readFile | llsys.AccessFSExecute
	// own is all but devices, symbolic links and running programs. ResolveUnix, because a socket that was bound before the
	// confinement is one of somebody else's to Landlock.
	own = write | readDir | llsys.AccessFSRemoveDir | llsys.AccessFSRemoveFile | llsys.AccessFSMakeDir | llsys.AccessFSMakeReg |
		llsys.AccessFSMakeSock | llsys.AccessFSMakeFifo | llsys.AccessFSResolveUnix
)

const (
	// newestABI is the newest ABI of Landlock that is made use of.
	newestABI = 11
	// abiSignals is the first ABI that confines signals, abiTogether the first that puts all threads in one domain.
	abiSignals, abiTogether = 6, 8
	// abiRefer is the first ABI that can permit renaming a file into another directory.
	abiRefer = 2
	// errataSignals: signals between threads of a process are never held back (errata of landlock_create_ruleset(2)).
	errataSignals = 1 << 1
)

// ABI returns the ABI of Landlock that is made use of on this kernel; 0 where it has none, or it is switched off.
func ABI() int {
	v, err := llsys.LandlockGetABIVersion()
	if err != nil {
		return 0
	}
	if v >= abiSignals {
		// Threads of Go would not reach each other: go-landlock takes it for 5 then, and so does what is said of it.
		if errata, err := llsys.LandlockGetErrata(); err != nil || errata&errataSignals == 0 {
			v = abiSignals - 1
		}
	}
	return min(v, newestABI)
}

// Process confines the whole calling process, all its threads and all it starts, for good, to r. There is nothing it can
// reach by TCP (nor, from ABI 10, by UDP), and it gains no privileges by running a program. It returns what was achieved, as in
// "landlock ABI 7"; the empty string without an error where the kernel has no Landlock. After an error the process may be
// half confined: it should end.
//
// The calling goroutine must be locked to its thread, and programs be started from there alone: until ABI 8 each thread is a
// domain of its own to Landlock, whose members signal nobody outside, other threads' children included. So only the calling
// thread, and what it starts, loses the right to signal others there; the supervisor's other threads end the VMM.
func Process(r Rules) (string, error) {
	abi := ABI()
	if abi == 0 {
		return "", nil
	}
	rules, err := r.landlock(abi)
	if err != nil {
		return "", err
	}
	config := landlock.V11
	if abi < abiTogether {
		config.Scoped &^= llsys.ScopeSignal
	}
	if err := config.BestEffort().Restrict(rules...); err != nil {
		return "", fmt.Errorf("confine by landlock: %w", err)
	}
	if abi >= abiSignals && abi < abiTogether {
		if err := scopeSignals(); err != nil {
			return "", fmt.Errorf("confine by landlock: %w", err)
		}
	}
	return fmt.Sprintf("landlock ABI %d", abi), nil
}

// scopeSignals keeps the calling thread, and what it starts, from sending signals to others.
func scopeSignals() error {
	fd, err := llsys.LandlockCreateRuleset(&llsys.RulesetAttr{Scoped: llsys.ScopeSignal}, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return llsys.LandlockRestrictSelf(fd, 0)
}

// landlock translates r for a kernel with this ABI.
func (r Rules) landlock(abi int) ([]landlock.Rule, error) {
	dirRights := landlock.AccessFSSet(own)
	if abi >= abiRefer { // to ask for it where there is none is to be not confined at all
		dirRights |= llsys.AccessFSRefer
	}
	if st, err := os.Stat(r.Dir); err != nil {
		return nil, fmt.Errorf("confine: %w", err)
	} else if !st.IsDir() {
		return nil, fmt.Errorf("confine to %q: not a directory", r.Dir)
	}
	rules := []landlock.Rule{landlock.PathAccess(dirRights, r.Dir)}
	allow := func(file, dir landlock.AccessFSSet, paths ...string) error {
		for _, path := range paths {
			st, err := os.Stat(path)
			if missing(err) {
				continue
			}
			if err != nil {
				return fmt.Errorf("confine: %w", err)
			}
			rights := file
			if st.IsDir() {
				rights = dir
			}
			if rights != 0 {
				rules = append(rules, landlock.PathAccess(rights, path).IgnoreIfMissing())
			}
		}
		return nil
	}
	execs, reads := programs(r.Exec)
	execDir := landlock.AccessFSSet(run | readDir)
	err := errors.Join(
		allow(readFile, readDir, slices.Concat(basics(), reads, r.Read)...),
		allow(run, execDir, execs...),
		allow(device, 0, append([]string{os.DevNull}, r.Devices...)...),
		allow(write, dirRights, r.Write...),
	)
	return rules, err
}

// missing reports whether a file is not there; one in a directory this user may not enter is as good as that.
func missing(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, os.ErrPermission)
}

// basics are what every program reads: about itself and its children, time zones, and how many CPUs there are. Of /proc,
// Landlock still holds back what a debugger would need of processes outside, such as their memory and descriptors.
func basics() []string {
	return []string{
		"/proc", "/dev/urandom", "/etc/localtime", "/usr/share/zoneinfo",
		"/sys/devices/system/cpu", "/sys/devices/system/node", "/sys/kernel/mm/transparent_hugepage",
	}
}

// MaxFiles is the limit of descriptors of a VM's processes. Firecracker holds one for each of its at most 1023 streams by
// vsock (MAX_CONNECTIONS of its muxer), as the supervisor of QEMU does, and fewer than 300 others (some per vCPU, queue and
// drive). It is what its jailer sets. More would cost: Firecracker moves a descriptor to the last there can be, and the
// kernel makes a table for all of them.
const MaxFiles = 2048

// Limits limits the resources of the process and of all it starts, for good: MaxFiles descriptors, no core dump (it would
// hold the guest's memory). The size of files is not limited: SIGXFSZ would end a VMM whose guest has merely filled its drive
// (Firecracker exits with 151), and what a VM can take is limited already, by the size of its drives and of its logs.
func Limits() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("limit core dumps: %w", err)
	}
	var files unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files)
	if err == nil {
		files.Max = min(files.Max, MaxFiles)
		files.Cur = files.Max
		err = unix.Setrlimit(unix.RLIMIT_NOFILE, &files) // by package syscall, which then hands it to children as it is
	}
	if err != nil {
		return fmt.Errorf("limit descriptors: %w", err)
	}
	return nil
}

// clean is path without symbolic links, itself where that cannot be found out.
func clean(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}
