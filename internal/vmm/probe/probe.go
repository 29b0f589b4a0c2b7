// Package probe chooses what runs VMs on this host. Decide is a pure function of
// what Observe saw, so that every kind of host is a row in a test.
package probe

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
)

// Engines, as they are configured and as Decision names them.
const (
	Auto        = "auto"
	QEMU        = "qemu"
	Firecracker = "firecracker"
)

// Kinds of Decision.Accel.
const (
	KVM = "kvm"
	TCG = "tcg"
)

// kvmAPIVersion is the only version of the KVM interface since Linux 2.6.22 (Documentation/virt/kvm/api.rst).
const kvmAPIVersion = 12

// minQEMU is the oldest QEMU that takes devices as JSON.
var minQEMU = [2]int{6, 2}

// Observations are what there is to know of a host.
type Observations struct {
	// Arch is GOARCH.
	Arch string
	// KVMOpen is the errno's name of opening /dev/kvm, such as "EACCES"; empty where it opened.
	KVMOpen string
	// KVMVersion is the answer to KVM_GET_API_VERSION, 0 where there was none.
	KVMVersion int
	// KVMCreate is the errno's name of KVM_CREATE_VM; empty where it worked.
	KVMCreate string
	// CPUFlags are the flags of the first CPU in /proc/cpuinfo.
	CPUFlags []string
	// Modules are the kvm modules of the running kernel: /sys/module/kvm*.
	Modules []string
	// QEMU is the program that was found.
	QEMU Program
	// Distro are ID and ID_LIKE of /etc/os-release.
	Distro []string
}

// Program is a program of the host.
type Program struct {
	// Path is absolute; empty where there is none.
	Path string
	// Version is what it says of itself, such as "7.2.22"; empty where it said nothing of the kind.
	Version string
	// Configured is the path the user configured, which then is the only one that counts.
	Configured string
}

// Decision is what runs VMs.
type Decision struct {
	Engine string // QEMU
	Accel  string // KVM or TCG
	Binary string // absolute path
	// Reason is why VMs are emulated, a sentence for people; empty where they are not.
	Reason string
	// Hints say what would make it better.
	Hints []string
}

// Decide chooses for the configured engine: Auto, QEMU or Firecracker. Its errors are for users.
func Decide(engine string, o Observations) (Decision, error) {
	switch {
	case engine == Firecracker:
		return Decision{}, api.Errorf(api.KindUnavailable, "engine \"firecracker\" is not available in this build yet").
			WithHint("set engine = \"auto\" in config.toml")
	case engine != Auto && engine != QEMU:
		return Decision{}, api.Errorf(api.KindInvalid, "unknown engine %q", engine).
			WithHint("engine is \"auto\", \"firecracker\" or \"qemu\"")
	case o.Arch != "amd64":
		return Decision{}, api.Errorf(api.KindUnavailable, "banger runs on x86-64 only for now, this host is %s", o.Arch)
	}
	if err := checkQEMU(o); err != nil {
		return Decision{}, err
	}
	d := Decision{Engine: QEMU, Accel: KVM, Binary: o.QEMU.Path}
	if why, hint := kvmUnusable(o); why != "" {
		d.Accel, d.Reason = TCG, "KVM is not usable: "+why
		if hint != "" {
			d.Hints = append(d.Hints, hint)
		}
	}
	return d, nil
}

// checkQEMU refuses a host without a QEMU that is new enough.
func checkQEMU(o Observations) error {
	switch {
	case o.QEMU.Path == "" && o.QEMU.Configured != "":
		return api.Errorf(api.KindUnavailable, "qemu_bin %q cannot be run", o.QEMU.Configured).
			WithHint("correct qemu_bin in config.toml, or remove it to use qemu-system-x86_64 of PATH")
	case o.QEMU.Path == "":
		return api.Errorf(api.KindUnavailable, "no qemu-system-x86_64 is installed").WithHint("%s", installQEMU(o.Distro))
	}
	v, ok := parseVersion(o.QEMU.Version)
	if !ok {
		return api.Errorf(api.KindUnavailable, "%q does not tell its version as QEMU does", o.QEMU.Path).
			WithHint("%s --version", o.QEMU.Path)
	}
	if slices.Compare(v[:], minQEMU[:]) < 0 {
		return api.Errorf(api.KindUnavailable, "%q is version %s, banger needs %d.%d or newer",
			o.QEMU.Path, o.QEMU.Version, minQEMU[0], minQEMU[1]).WithHint("install a newer QEMU and name it with qemu_bin in config.toml")
	}
	return nil
}

// kvmUnusable says why no ordinary guest runs with KVM here, and what to do about it; empty where one does.
func kvmUnusable(o Observations) (why, hint string) {
	vmx, svm := slices.Contains(o.CPUFlags, "vmx"), slices.Contains(o.CPUFlags, "svm")
	nested := slices.Contains(o.CPUFlags, "hypervisor")
	module := "kvm_intel"
	if svm {
		module = "kvm_amd"
	}
	switch {
	case slices.Contains(o.Modules, "kvm_pvm"):
		// It opens and creates VMs, and runs only guests made for it.
		return "this host's KVM is kvm_pvm, which runs no ordinary guests", ""
	case !vmx && !svm && nested:
		return "this host is a VM itself, whose CPU has no virtualization (vmx or svm)", "turn on nested virtualization in the hypervisor this host runs on"
	case !vmx && !svm:
		return "the CPU offers no virtualization (vmx or svm)", "turn on virtualization (VT-x, AMD-V, SVM) in the firmware setup of this host"
	case o.KVMOpen == "ENOENT":
		return "there is no /dev/kvm", "sudo modprobe " + module
	case o.KVMOpen == "ENODEV" || o.KVMOpen == "ENXIO":
		return "/dev/kvm is there and its module is not loaded", "sudo modprobe " + module
	case o.KVMOpen == "EACCES" || o.KVMOpen == "EPERM":
		return "this user may not open /dev/kvm", "sudo usermod -aG kvm $USER   # then log in again"
	case o.KVMOpen != "":
		return "/dev/kvm does not open: " + o.KVMOpen, ""
	case o.KVMVersion != kvmAPIVersion:
		return fmt.Sprintf("/dev/kvm speaks version %d of its interface, not %d", o.KVMVersion, kvmAPIVersion), ""
	case o.KVMCreate == "EBUSY":
		return "another hypervisor on this host (VirtualBox, VMware) holds the CPU's virtualization", "end the VMs of the other hypervisor, or unload its modules"
	case o.KVMCreate != "":
		return "/dev/kvm creates no VM: " + o.KVMCreate, ""
	}
	return "", ""
}

// installQEMU is the command that installs QEMU on a distribution.
func installQEMU(distro []string) string {
	for _, id := range distro {
		switch id {
		case "debian", "ubuntu":
			return "sudo apt-get install qemu-system-x86"
		case "fedora":
			return "sudo dnf install qemu-system-x86-core"
		case "arch":
			return "sudo pacman -S qemu-base"
		case "alpine":
			return "sudo apk add qemu-system-x86_64"
		case "suse", "opensuse", "opensuse-tumbleweed", "opensuse-leap":
			return "sudo zypper install qemu-x86"
		}
	}
	return "install the package with qemu-system-x86_64; on Debian: sudo apt-get install qemu-system-x86"
}

// parseVersion takes major and minor out of a version such as "7.2.22" or "9.1.0-rc1".
func parseVersion(s string) (v [2]int, ok bool) {
	parts := strings.SplitN(s, ".", 3)
	if len(parts) < 2 {
		return v, false
	}
	var errs [2]error
	v[0], errs[0] = strconv.Atoi(parts[0])
	v[1], errs[1] = strconv.Atoi(parts[1])
	return v, cmp.Or(errs[0], errs[1]) == nil
}
