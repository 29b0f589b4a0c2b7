// Package probe chooses the engine for new VMs. Decide is a pure function over
// Observations, so that every kind of host is a fixture; Observe looks at the real one, Choose does both.
package probe

import (
	"fmt"
	"slices"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
)

// KVMAPIVersion is what KVM_GET_API_VERSION has answered since Linux 2.6.22 (the kernel's Documentation/virt/kvm/api.rst).
const KVMAPIVersion = 12

// Config is what the user has configured.
type Config struct {
	// Engine is "auto", "firecracker" or "qemu"; empty for auto.
	Engine string
	// QEMUBin and FirecrackerBin are programs; empty for the one found in PATH.
	QEMUBin, FirecrackerBin string
}

// Observations are what was seen of a host.
type Observations struct {
	// Arch is GOARCH.
	Arch string
	// KVMOpen is what opening /dev/kvm for reading and writing failed with: "", "missing", "denied" or another text.
	KVMOpen string
	// KVMVersion is KVM's API version, 0 where it was not asked.
	KVMVersion int
	// CPUFlags are those of the first CPU that matter here: vmx, svm, hypervisor.
	CPUFlags []string
	// Modules are the loaded modules whose name begins with kvm.
	Modules []string
	// QEMU is the absolute path of the QEMU program, empty where none was found; QEMUErr says why a
	// configured one cannot be used.
	QEMU, QEMUErr string
	// Firecracker is the path of a Firecracker program, empty where none was found.
	Firecracker string
	// Distro is ID of os-release, for hints.
	Distro string
}

// Decision is the engine for new VMs.
type Decision struct {
	// Engine is "qemu"; Accel "kvm" or "tcg" (software emulation).
	Engine, Accel string
	// Binary is the absolute path of its program.
	Binary string
	// Reason says why, in a line.
	Reason string
	// Hints say how the host could do better.
	Hints []string
}

// Decide chooses the engine. The error is an api.Error of KindInvalid where the configuration asks for what
// cannot be, of KindUnavailable where a program is missing.
func Decide(cfg Config, o Observations) (Decision, error) {
	if o.Arch != "amd64" {
		return Decision{}, api.Errorf(api.KindUnavailable, "banger runs on x86-64 only, this host is %s", o.Arch)
	}
	switch cfg.Engine {
	case "", "auto", "qemu":
	case "firecracker":
		return Decision{}, api.Errorf(api.KindUnavailable, "the Firecracker engine is not available in this version of banger").
			WithHint(`set engine = "auto" in the configuration: QEMU uses KVM as well`)
	default:
		return Decision{}, api.Errorf(api.KindInvalid, "engine %q is not known", cfg.Engine).WithHint("use auto, firecracker or qemu")
	}
	if o.QEMUErr != "" {
		return Decision{}, api.Errorf(api.KindUnavailable, "qemu_bin: %s", o.QEMUErr).
			WithHint("correct qemu_bin in the configuration, or leave it out")
	}
	if o.QEMU == "" {
		return Decision{}, api.Errorf(api.KindUnavailable, "QEMU is not installed").WithHint("%s", installHint(o.Distro))
	}
	d := Decision{Engine: "qemu", Accel: "kvm", Binary: o.QEMU}
	usable, reason, hint := kvm(o)
	d.Reason = reason
	if !usable {
		d.Accel = "tcg"
		d.Reason = "software emulation: " + reason
	}
	if hint != "" {
		d.Hints = append(d.Hints, hint)
	}
	return d, nil
}

// kvm reports whether KVM can run an ordinary guest, why (not), and how to get it.
func kvm(o Observations) (usable bool, reason, hint string) {
	virt := slices.Contains(o.CPUFlags, "vmx") || slices.Contains(o.CPUFlags, "svm")
	switch {
	case o.KVMOpen == "missing" && virt:
		return false, "there is no /dev/kvm, though the CPU could", "load the module: sudo modprobe kvm_intel or kvm_amd, or enable virtualisation in the firmware"
	case o.KVMOpen == "missing" && slices.Contains(o.CPUFlags, "hypervisor"):
		return false, "there is no /dev/kvm: this is a VM without nested virtualisation", "enable nested virtualisation on the host of this VM"
	case o.KVMOpen == "missing":
		return false, "there is no /dev/kvm", "enable virtualisation (VT-x, AMD-V) in the firmware"
	case o.KVMOpen == "denied":
		return false, "/dev/kvm may not be opened by this user", "sudo usermod -aG kvm $USER, then log in again"
	case o.KVMOpen != "":
		return false, "/dev/kvm cannot be opened: " + o.KVMOpen, ""
	case slices.Contains(o.Modules, "kvm_pvm"):
		return false, "/dev/kvm is kvm_pvm, which runs no ordinary guest", ""
	case o.KVMVersion != KVMAPIVersion:
		return false, fmt.Sprintf("/dev/kvm speaks version %d of its API, not %d", o.KVMVersion, KVMAPIVersion), ""
	case !virt:
		return false, "/dev/kvm opens, but the CPU shows neither vmx nor svm", "enable nested virtualisation on the host of this VM"
	}
	return true, "KVM is usable", ""
}

// installHint is how QEMU is installed on a distribution.
func installHint(distro string) string {
	switch {
	case distro == "fedora":
		return "sudo dnf install qemu-system-x86-core"
	case strings.HasPrefix(distro, "arch"):
		return "sudo pacman -S qemu-system-x86"
	case strings.HasPrefix(distro, "opensuse"):
		return "sudo zypper install qemu-x86"
	default:
		return "sudo apt-get install qemu-system-x86"
	}
}
