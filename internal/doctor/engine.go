package doctor

import (
	"cmp"
	"fmt"
	"strings"

	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker/release"
	"git.thaloco.com/thaloco/banger/internal/vmm/probe"
)

// The oldest QEMU banger is tested with.
const qemuMajor, qemuMinor = 7, 2

// engine says what runs VMs, and why.
func (o Observations) engine() Check {
	const name = "engine"
	d, err := probe.Decide(cmp.Or(o.Settings.Engine, probe.Auto), o.Probe)
	if err != nil {
		return failErr(name, err)
	}
	how := "with KVM"
	if d.Accel != probe.KVM {
		how = "emulated"
	}
	detail := fmt.Sprintf("%s %s (%s), %s", d.Engine, d.Version, d.Binary, how)
	switch {
	case d.Fetch:
		detail = fmt.Sprintf("%s %s, %s; it is not on this host yet: the first VM gets it", d.Engine, d.Version, how)
	case d.Engine == probe.QEMU && !atLeast(d.Version, qemuMajor, qemuMinor):
		return warn(name, "%s; banger is tested with %d.%d and newer", detail, qemuMajor, qemuMinor).hint("%s", o.install(pkgQEMU))
	}
	if why, _ := o.kvmMissing(); d.Reason != "" && why == "" { // else the check of KVM says it
		return warn(name, "%s, because %s", detail, d.Reason).hint("%s", strings.Join(d.Hints, "\n"))
	}
	return ok(name, "%s", detail)
}

// firecracker says which Firecracker there is, whether it is used or not, and how it gets here.
func (o Observations) firecracker() Check {
	const name = "firecracker"
	unused := ""
	if why, _ := o.kvmMissing(); o.Settings.Engine == probe.QEMU {
		unused = "; not used: engine is \"qemu\""
	} else if why != "" {
		unused = "; not used: it needs KVM"
	}
	var old []string
	for _, p := range o.Probe.Firecracker {
		if release.AtLeast(p.Version, release.Minimum) {
			return o.jailer(fmt.Sprintf("%s (%s, %s)", p.Version, p.Path, sourceOf(p.Source)), p.Jailer, unused)
		}
		why := fmt.Sprintf("%s is version %s, older than %s", p.Path, p.Version, release.Minimum)
		if p.Version == "" {
			why = p.Err
		}
		if p.Source == release.Configured {
			c := fail(name, "firecracker_bin: %s%s", why, unused)
			if unused != "" {
				c.Status = Warn
			}
			return c.hint("correct firecracker_bin in %s, or remove it", o.ConfigPath)
		}
		old = append(old, why)
	}
	f := o.Probe.Fetch
	because := strings.Join(append([]string{""}, old...), "; ")
	switch {
	case f.Version == "":
		return ok(name, "there is none for this host%s%s", because, unused)
	case unused != "":
		return ok(name, "not on this host%s%s", because, unused)
	case f.Failed != "":
		return warn(name, "%s could not be fetched: %s%s; the next VM tries it again", f.Version, f.Failed, because).hint("%s", f.Offline)
	case f.Supplied:
		return ok(name, "%s is here as an archive%s; the first VM unpacks it", f.Version, because)
	}
	return ok(name, "%s is not on this host yet%s; the first VM gets it", f.Version, because).hint("without a way to the outside, %s", f.Offline)
}

// jailer adds to a Firecracker that is there what its jailer is.
func (o Observations) jailer(detail, jailer, unused string) Check {
	const name = "firecracker"
	switch {
	case unused != "" || o.Settings.Jail == "off":
		return ok(name, "%s%s", detail, unused)
	case o.Settings.Jail == "on" && o.UID != 0:
		return fail(name, "%s; jail is \"on\", and the jailer takes root", detail).hint("jail = \"auto\" in %s", o.ConfigPath)
	case o.Settings.Jail == "on" && jailer == "":
		return fail(name, "%s; jail is \"on\", and there is no jailer beside it", detail).hint("put the jailer of the same release there")
	case jailer == "" && o.UID == 0:
		return warn(name, "%s; there is no jailer beside it, so it runs as root", detail).hint("put the jailer of the same release there")
	case o.UID == 0:
		return ok(name, "%s, jailer %s", detail, jailer)
	}
	return ok(name, "%s, confined without the jailer, which takes root", detail)
}

func sourceOf(s release.Source) string {
	switch s {
	case release.Configured:
		return "firecracker_bin"
	case release.Path:
		return "in PATH"
	}
	return "banger's own"
}

// kvmMissing says why KVM cannot be used, and what to do; empty where it can, or where nothing runs here.
func (o Observations) kvmMissing() (why string, hints []string) {
	seen := o.Probe
	seen.QEMU = probe.Program{Path: "qemu", Version: "99.0"} // only to have Decide speak of KVM; the engine has a check of its own
	if d, err := probe.Decide(probe.QEMU, seen); err == nil {
		return strings.TrimPrefix(d.Reason, "KVM is not usable: "), d.Hints
	}
	return "", nil
}

// kvm says whether VMs run at full speed, whatever engine there is.
func (o Observations) kvm() Check {
	const name = "kvm"
	if o.Probe.Arch != "amd64" {
		_, err := probe.Decide(probe.QEMU, o.Probe)
		return warn(name, "not looked at: %s", err)
	}
	if why, hints := o.kvmMissing(); why != "" {
		return warn(name, "%s; VMs are emulated, which is slower", why).hint("%s", strings.Join(hints, "\n"))
	}
	c := ok(name, "usable")
	if t := o.Tuning; atLeast(t.Kernel, 6, 1) && t.Cgroup2 != "" && !t.FavorDynMods && t.HugePages != "never" && t.HugePages != "" {
		// KVM_CREATE_VM starts a thread and moves it to its maker's cgroups, which waits for
		// cgroup_threadgroup_rwsem: Firecracker, docs/prod-host-setup.md.
		c.Detail = "usable; on Linux 6.1 and newer the start of a VM may wait some 10 ms for control groups"
		return c.hint("sudo mount -o remount,favordynmods %s", t.Cgroup2)
	}
	return c
}
