package probe

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker/release"
)

const (
	qemuProgram = "qemu-system-x86_64"
	// versionTimeout is how long a program may take to tell its version.
	versionTimeout = 10 * time.Second
	// maxProc is how much of a file under /proc or /etc is read, in bytes.
	maxProc = 1 << 20
)

// Requests to /dev/kvm (linux/kvm.h).
const (
	kvmGetAPIVersion = 0xae00
	kvmCreateVM      = 0xae01
)

// Observe looks at this host. It takes some 50 ms and changes nothing.
func Observe(ctx context.Context, cfg Config) Observations {
	o := observeHost(cfg, time.Now())
	for i := range o.Firecracker {
		o.Firecracker[i].Version, o.Firecracker[i].Err = askFirecracker(ctx, o.Firecracker[i].Path)
	}
	o.QEMU.Version = askQEMU(ctx, o.QEMU.Path)
	return o
}

// observeHost looks at all but what programs say of themselves.
func observeHost(cfg Config, now time.Time) Observations {
	o := Observations{Arch: runtime.GOARCH}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err == nil {
		o.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	o.observeKVM()
	o.CPUFlags = fromFile("/proc/cpuinfo", parseFlags)
	o.Distro = fromFile("/etc/os-release", parseOSRelease)
	modules, _ := filepath.Glob("/sys/module/kvm*") // its only error is a bad pattern
	for _, m := range modules {
		o.Modules = append(o.Modules, filepath.Base(m))
	}
	if os.Getenv(envForceFirecracker) == "1" {
		assumeKVM(&o)
	}
	o.QEMU = findQEMU(cfg.QEMUBin)
	pin, pinned := release.Pinned(o.Arch)
	o.Firecracker = release.Find(cfg.FirecrackerBin, cfg.Bin, pin)
	mem := readMemory(cfg.Memory)
	o.Failures = mem.Failures
	if pinned && cfg.Bin != "" {
		o.Fetch = Fetch{Version: pin.Version, Offline: pin.Offline(cfg.Bin)}
		o.Fetch.Path, o.Fetch.Jailer = pin.Own(cfg.Bin)
		if o.Fetch.Supplied = pin.Supplied(cfg.Bin); !o.Fetch.Supplied {
			o.Fetch.Failed = mem.fetchFailed(pin.Version, now)
		}
	}
	return o
}

// observeKVM opens /dev/kvm and makes a VM, which vanishes with its descriptor.
func (o *Observations) observeKVM() {
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		o.KVMOpen = errnoName(err)
		return
	}
	defer unix.Close(fd)
	version, err := unix.IoctlRetInt(fd, kvmGetAPIVersion)
	if err != nil {
		return
	}
	o.KVMVersion = version
	vm, err := unix.IoctlRetInt(fd, kvmCreateVM)
	if err != nil {
		o.KVMCreate = errnoName(err)
		return
	}
	_ = unix.Close(vm)
}

func errnoName(err error) string {
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		if name := unix.ErrnoName(errno); name != "" {
			return name
		}
	}
	return err.Error()
}

// findQEMU finds QEMU's program, without its version.
func findQEMU(configured string) Program {
	p := Program{Configured: configured}
	name := configured
	if name == "" {
		name = qemuProgram
	}
	path, err := hostexec.Runner{}.LookPath(name)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err == nil {
		p.Path = path
	}
	return p
}

// askQEMU asks a QEMU for its version; empty where there is none.
func askQEMU(ctx context.Context, path string) string {
	if path == "" {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	out, err := hostexec.Runner{}.Output(ctx, hostexec.Cmd{
		Argv: []string{path, "--version"}, Env: []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"},
	})
	if err != nil {
		return ""
	}
	return qemuVersion(string(out))
}

// askFirecracker asks a Firecracker for its version, or says why it does not tell it.
func askFirecracker(ctx context.Context, path string) (version, why string) {
	version, err := release.Version(ctx, path)
	if err != nil {
		return "", err.Error()
	}
	return version, ""
}

var versionLine = regexp.MustCompile(`^QEMU emulator version ([0-9]+\.[0-9]+[0-9.]*)`)

// qemuVersion finds the version in what qemu --version prints.
func qemuVersion(out string) string {
	if m := versionLine.FindStringSubmatch(out); m != nil {
		return m[1]
	}
	return ""
}

// fromFile parses a file; nil where it is not there.
func fromFile(path string, parse func(io.Reader) []string) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	return parse(io.LimitReader(f, maxProc))
}

// parseFlags returns the flags of the first CPU in the text of /proc/cpuinfo.
func parseFlags(r io.Reader) []string {
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		if key, value, ok := strings.Cut(sc.Text(), ":"); ok && strings.TrimSpace(key) == "flags" {
			return strings.Fields(value)
		}
	}
	return nil
}

// parseOSRelease returns ID and ID_LIKE of the text of /etc/os-release.
func parseOSRelease(r io.Reader) []string {
	var id, like []string
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		key, value, _ := strings.Cut(sc.Text(), "=")
		value = strings.Trim(strings.TrimSpace(value), `"'`)
		switch key {
		case "ID":
			id = strings.Fields(value)
		case "ID_LIKE":
			like = strings.Fields(value)
		}
	}
	return slices.Concat(id, like)
}
