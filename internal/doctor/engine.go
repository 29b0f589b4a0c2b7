package doctor

import (
	"cmp"
	"strings"

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
	if d.Engine != probe.QEMU {
		return ok(name, "%s (%s), %s", d.Engine, d.Binary, how)
	}
	if v := o.Probe.QEMU.Version; !atLeast(v, qemuMajor, qemuMinor) {
		return warn(name, "%s %s (%s), %s; banger is tested with %d.%d and newer", d.Engine, v, d.Binary, how, qemuMajor, qemuMinor).
			hint("%s", o.install(pkgQEMU))
	}
	return ok(name, "%s %s (%s), %s", d.Engine, o.Probe.QEMU.Version, d.Binary, how)
}

// kvm says whether VMs run at full speed, whatever engine there is.
func (o Observations) kvm() Check {
	const name = "kvm"
	seen := o.Probe
	seen.QEMU = probe.Program{Path: "qemu", Version: "99.0"} // only to have Decide speak of KVM; the engine has a check of its own
	d, err := probe.Decide(probe.QEMU, seen)
	switch {
	case err != nil:
		return warn(name, "not looked at: %s", err)
	case d.Accel != probe.KVM:
		return warn(name, "%s; VMs are emulated, which is slower", strings.TrimPrefix(d.Reason, "KVM is not usable: ")).
			hint("%s", strings.Join(d.Hints, "\n"))
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
