package probe

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// kvmGetAPIVersion is KVM_GET_API_VERSION of linux/kvm.h: _IO(0xAE, 0x00).
const kvmGetAPIVersion = 0xAE00

// Choose observes this host and decides.
func Choose(ctx context.Context, cfg Config) (Decision, error) {
	if err := ctx.Err(); err != nil {
		return Decision{}, err
	}
	return Decide(cfg, Observe(cfg))
}

// Observe looks at this host. It takes well under a millisecond, and changes nothing.
func Observe(cfg Config) Observations {
	o := Observations{Arch: runtime.GOARCH, CPUFlags: cpuFlags(), Modules: kvmModules(), Distro: distro()}
	o.KVMOpen, o.KVMVersion = openKVM("/dev/kvm")
	o.QEMU, o.QEMUErr = findProgram(cfg.QEMUBin, "qemu-system-x86_64")
	o.Firecracker, _ = findProgram(cfg.FirecrackerBin, "firecracker")
	return o
}

func findProgram(configured, name string) (path, problem string) {
	if configured == "" {
		p, err := hostexec.Runner{}.LookPath(name)
		if err != nil {
			return "", ""
		}
		if abs, err := filepath.Abs(p); err == nil {
			return abs, ""
		}
		return "", ""
	}
	st, err := os.Stat(configured)
	switch {
	case err != nil:
		return "", err.Error()
	case st.IsDir() || st.Mode()&0o111 == 0:
		return "", configured + " is not a program"
	case !filepath.IsAbs(configured):
		return "", configured + " is not an absolute path"
	}
	return configured, ""
}

func openKVM(path string) (problem string, version int) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return "missing", 0
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return "denied", 0
	case err != nil:
		return err.Error(), 0
	}
	defer func() { _ = unix.Close(fd) }()
	v, err := unix.IoctlRetInt(fd, kvmGetAPIVersion)
	if err != nil {
		return "", 0
	}
	return "", v
}

func cpuFlags() []string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	return parseCPUFlags(bufio.NewReader(f))
}

// parseCPUFlags reads the flags of the first CPU and keeps those Decide looks at.
func parseCPUFlags(r *bufio.Reader) []string {
	for {
		line, err := r.ReadString('\n')
		if rest, ok := strings.CutPrefix(line, "flags"); ok {
			_, list, _ := strings.Cut(rest, ":")
			return slices.DeleteFunc(strings.Fields(list), func(f string) bool {
				return f != "vmx" && f != "svm" && f != "hypervisor"
			})
		}
		if err != nil {
			return nil
		}
	}
}

func kvmModules() []string {
	b, err := os.ReadFile("/proc/modules")
	if err != nil {
		return nil
	}
	var out []string
	for line := range bytes.Lines(b) {
		if name, _, _ := strings.Cut(string(line), " "); strings.HasPrefix(name, "kvm") {
			out = append(out, name)
		}
	}
	return out
}

func distro() string {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if id, ok := strings.CutPrefix(line, "ID="); ok {
			return strings.Trim(strings.TrimSpace(id), `"'`)
		}
	}
	return ""
}
