// Package probe chooses what runs VMs on this host. Decide is a pure function of
// what Observe saw, so that every kind of host is a row in a test.
//
// probe.go decides, observe.go looks at the host, prober.go does both again and again,
// and memory.go keeps which engines failed.
package probe

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker/release"
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
	// Arch is GOARCH, Kernel the host's kernel as uname -r has it.
	Arch, Kernel string
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
	// Firecracker are the programs that were found, the first to be preferred where it is new enough; a configured one is the only one.
	Firecracker []release.Program
	// Fetch is the Firecracker that banger can fetch.
	Fetch Fetch
	// Failures are the engines that ended at their start before.
	Failures []Failure
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

// Fetch is the release of Firecracker that banger can fetch.
type Fetch struct {
	// Version is the release's; empty where there is none for this host.
	Version string
	// Path and Jailer are where its programs will be, absolute.
	Path, Jailer string
	// Supplied: its archive is on this host already.
	Supplied bool
	// Failed says why it could not be fetched a short time ago; else empty.
	Failed string
	// Offline says what to do where it cannot be fetched.
	Offline string
}

// Decision is what runs VMs.
type Decision struct {
	Engine string // QEMU or Firecracker
	Accel  string // KVM or TCG; KVM for Firecracker
	Binary string // absolute path
	// Jailer is the absolute path of Firecracker's jailer, empty where there is none, or where it is not to be used.
	Jailer string
	// Unconfined: the VMM is not to be confined at all.
	Unconfined bool
	// Source is where the program comes from, Version what it says of itself.
	Source  release.Source
	Version string
	// Fetch: it is not on this host yet, and must be fetched before VMs run on it.
	Fetch bool
	// Reason is why VMs do not run on what is best, Firecracker with KVM, where that was to be chosen, or are emulated: a sentence for
	// people. Empty where there is nothing to say.
	Reason string
	// Hints say what would make it better.
	Hints []string
}

// Title names the engine for people, such as "Firecracker 1.17.0" or "QEMU 7.2.22 without KVM".
func (d Decision) Title() string { return title(d.Engine, d.Version, d.Accel) }

func title(engine, version, accel string) string {
	switch {
	case engine == Firecracker:
		return "Firecracker " + version
	case accel == KVM:
		return "QEMU " + version + " with KVM"
	}
	return "QEMU " + version + " without KVM"
}

// Decide chooses for the configured engine: Auto, QEMU or Firecracker. Its errors are for users.
func Decide(engine string, o Observations) (Decision, error) {
	switch {
	case engine != Auto && engine != QEMU && engine != Firecracker:
		return Decision{}, api.Errorf(api.KindInvalid, "unknown engine %q", engine).
			WithHint("engine is \"auto\", \"firecracker\" or \"qemu\"")
	case o.Arch != "amd64":
		return Decision{}, api.Errorf(api.KindUnavailable, "banger runs on x86-64 only for now, this host is %s", o.Arch)
	case engine == QEMU:
		return onQEMU(o)
	}
	why, hint := kvmUnusable(o)
	switch {
	case why != "" && engine == Firecracker:
		return Decision{}, api.Errorf(api.KindUnavailable, "engine \"firecracker\" needs KVM, which is not usable: %s", why).
			WithHint("%s", hints(hint, "set engine = \"auto\" in config.toml to have VMs emulated until then"))
	case why != "":
		d, err := onQEMU(o)
		if err != nil { // the way that leads to Firecracker is worth more than that to QEMU
			e := api.AsError(err)
			return d, api.Errorf(api.KindUnavailable, "KVM is not usable: %s; and without it: %w", why, err).WithHint("%s", hints(hint, e.Hint))
		}
		return d, nil
	case engine == Firecracker:
		return onFirecracker(o)
	}
	return choose(o)
}

// choose decides where the user leaves it to banger and KVM is usable: Firecracker, unless it failed at its start or could not be
// fetched, and there is something else.
func choose(o Observations) (Decision, error) {
	d, err := onFirecracker(o)
	if errors.Is(err, errNone) {
		if q, err := onQEMU(o); err == nil {
			q.Reason = cmp.Or(tooOld(o), "there is no Firecracker on this host")
			return q, nil
		}
	}
	if err != nil {
		return Decision{}, err
	}
	var reason string
	var advice []string
	switch f := o.failure(d); {
	case f != nil:
		reason = f.sentence()
	case d.Fetch && o.Fetch.Failed != "":
		reason, advice = "Firecracker could not be fetched: "+o.Fetch.Failed, []string{o.Fetch.Offline}
		if old := tooOld(o); old != "" {
			reason += "; " + old
		}
	default:
		return d, nil
	}
	q, err := onQEMU(o)
	if err != nil { // it is tried again, then
		d.Reason = reason
		return d, nil
	}
	if f := o.failure(q); f != nil {
		reason += "; " + f.sentence()
		q.Accel = TCG
	}
	q.Reason, q.Hints = reason, append(advice, q.Hints...)
	return q, nil
}

// failure finds what is remembered of the engine of d; nil where it has not failed.
func (o Observations) failure(d Decision) *Failure {
	for _, f := range o.Failures {
		if f.Engine == d.Engine && f.Accel == d.Accel && f.Binary == d.Binary && f.Version == d.Version && f.Kernel == o.Kernel {
			return &f
		}
	}
	return nil
}

// sentence says what happened, and how it is tried again.
func (f Failure) sentence() string {
	return fmt.Sprintf("%s ended at its start on %s (%s); after banger doctor it is tried again",
		title(f.Engine, f.Version, f.Accel), f.At.Local().Format("2006-01-02 15:04"), f.Reason)
}

// onQEMU decides for QEMU, with KVM where that is usable.
func onQEMU(o Observations) (Decision, error) {
	if err := checkQEMU(o); err != nil {
		return Decision{}, err
	}
	d := Decision{Engine: QEMU, Accel: KVM, Binary: o.QEMU.Path, Version: o.QEMU.Version, Source: release.Path}
	if o.QEMU.Configured != "" {
		d.Source = release.Configured
	}
	if why, hint := kvmUnusable(o); why != "" {
		d.Accel, d.Reason = TCG, "KVM is not usable: "+why
		if hint != "" {
			d.Hints = append(d.Hints, hint)
		}
	}
	return d, nil
}

// errNone is a host without a Firecracker, to which none can be fetched.
var errNone = errors.New("there is no Firecracker on this host")

// onFirecracker decides for Firecracker, on a host with KVM: the one that is there, else the one to be fetched.
func onFirecracker(o Observations) (Decision, error) {
	for _, p := range o.Firecracker {
		if release.AtLeast(p.Version, release.Minimum) {
			return Decision{Engine: Firecracker, Accel: KVM, Binary: p.Path, Jailer: p.Jailer, Source: p.Source, Version: p.Version}, nil
		}
		if p.Source != release.Configured {
			continue
		}
		const remove = "or remove firecracker_bin from config.toml: banger then finds or fetches one itself"
		if p.Version == "" {
			return Decision{}, api.Errorf(api.KindUnavailable, "firecracker_bin %q cannot be used: %s", p.Path, cmp.Or(p.Err, "it does not tell its version")).
				WithHint("%s", hints("correct firecracker_bin in config.toml,", remove))
		}
		return Decision{}, api.Errorf(api.KindUnavailable, "firecracker_bin %q is version %s, banger needs %s or newer", p.Path, p.Version, release.Minimum).
			WithHint("%s", hints("name a newer one,", remove))
	}
	if o.Fetch.Version == "" {
		return Decision{}, api.Errorf(api.KindUnavailable, "%w of version %s or newer", errNone, release.Minimum).
			WithHint("name one with firecracker_bin in config.toml")
	}
	return Decision{Engine: Firecracker, Accel: KVM, Binary: o.Fetch.Path, Jailer: o.Fetch.Jailer, Source: release.Own, Version: o.Fetch.Version, Fetch: true}, nil
}

// tooOld names the Firecrackers of the host that are not used because of their age, or say nothing of it; empty where there is none.
func tooOld(o Observations) string {
	var out []string
	for _, p := range o.Firecracker {
		switch {
		case release.AtLeast(p.Version, release.Minimum):
		case p.Version != "":
			out = append(out, fmt.Sprintf("%s is version %s, older than %s", p.Path, p.Version, release.Minimum))
		case p.Err != "":
			out = append(out, p.Err)
		}
	}
	return strings.Join(out, "; ")
}

// hints joins hints, a line each.
func hints(lines ...string) string {
	return strings.Join(slices.DeleteFunc(lines, func(s string) bool { return s == "" }), "\n")
}

// envForceFirecracker set to 1 has KVM taken for usable whatever it looks like: for a host of which banger is wrong, and for tests.
const envForceFirecracker = "BANGER_TEST_FIRECRACKER"

// assumeKVM makes o those of a host whose KVM is usable.
func assumeKVM(o *Observations) {
	o.KVMOpen, o.KVMVersion, o.KVMCreate = "", kvmAPIVersion, ""
	o.CPUFlags = append(slices.Clone(o.CPUFlags), "vmx")
	o.Modules = []string{"kvm", "kvm_intel"}
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
		return "this user may not open /dev/kvm", joinKVM(o.Distro)
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

// joinKVM is how a user is let in to /dev/kvm on a distribution. Who sits at the console is let in by systemd-logind (uaccess).
func joinKVM(distro []string) string {
	for _, id := range distro {
		switch id {
		case "nixos":
			return `users.users.NAME.extraGroups = [ "kvm" ];   # in configuration.nix, then nixos-rebuild switch and log in again`
		case "alpine":
			return "sudo addgroup $USER kvm   # then log in again"
		}
	}
	return "sudo usermod -aG kvm $USER   # then log in again; who sits at this host's console needs no group"
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
