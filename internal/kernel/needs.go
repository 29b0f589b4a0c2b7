package kernel

import (
	"fmt"
	"slices"
	"strings"

	"git.thaloco.com/thaloco/banger/internal/kernel/kmod"
)

// driver is a part of a kernel that is built in or a module.
type driver struct {
	// module is its name, option the one of the kernel's configuration without CONFIG_.
	module, option string
	// why says what needs it. optional: guests work without, but for that.
	why      string
	optional bool
}

// drivers are what a guest needs before its modules drive is there, or what it must have early, in the order to load them: systemd wants
// autofs4 at its start, and Docker's own modprobe finds br_netfilter only in images with kmod.
func drivers() []driver {
	return []driver{
		{module: "virtio_mmio", option: "VIRTIO_MMIO", why: "every device"},
		{module: "virtio_blk", option: "VIRTIO_BLK", why: "the drives"},
		{module: "virtio_net", option: "VIRTIO_NET", why: "the network"},
		{module: "virtio_rng", option: "HW_RANDOM_VIRTIO", why: "randomness from the host", optional: true},
		{module: "virtio_balloon", option: "VIRTIO_BALLOON", why: "memory given back to the host", optional: true},
		{module: "virtio_console", option: "VIRTIO_CONSOLE", why: "the agent, on QEMU"},
		{module: "ext4", option: "EXT4_FS", why: "the root"},
		{module: "overlay", option: "OVERLAY_FS", why: "the root"},
		{module: "tun", option: "TUN", why: "VPNs", optional: true},
		{module: "autofs4", option: "AUTOFS_FS", why: "systemd's automounts", optional: true},
		{module: "vsock", option: "VSOCKETS", why: "the agent, on Firecracker"},
		{module: "vmw_vsock_virtio_transport", option: "VIRTIO_VSOCKETS", why: "the agent, on Firecracker"},
		{module: "llc", option: "LLC", why: "bridges", optional: true},
		{module: "stp", option: "STP", why: "bridges", optional: true},
		{module: "bridge", option: "BRIDGE", why: "Docker's networks", optional: true},
		{module: "br_netfilter", option: "BRIDGE_NETFILTER", why: "Docker's networks", optional: true},
	}
}

// bootModules are the names of all drivers.
func bootModules() []string {
	var out []string
	for _, d := range drivers() {
		out = append(out, d.module)
	}
	return out
}

// builtinOptions are what a kernel must have been configured with and cannot have as modules: what the agent mounts, and how the engines
// start a kernel and show it its devices. QEMU's microvm describes them by ACPI.
func builtinOptions() []string {
	return []string{"BLK_DEV_INITRD", "DEVTMPFS", "PROC_FS", "SYSFS", "TMPFS", "UNIX98_PTYS", "CGROUPS", "BINFMT_ELF", "UNIX", "INET", "ACPI"}
}

// needs is how a kernel stands to what a guest needs.
type needs struct {
	// missing is what guests cannot do without, spelled for a user.
	missing []string
	// without is what they can do without, unknown what the kernel may have built in or not: nothing tells.
	without, unknown []string
	// boot are the drivers that are modules.
	boot []string
}

// look compares a kernel with what guests need. listed says that the set knows all that is built in.
func look(f facts, set *kmod.Set, listed bool) needs {
	var n needs
	if !f.pvh {
		n.missing = append(n.missing, "PVH, the entry that QEMU starts it at (CONFIG_PVH)")
	}
	for _, d := range drivers() {
		module, builtin := set.Has(d.module)
		switch name := fmt.Sprintf("%s for %s (CONFIG_%s)", d.module, d.why, d.option); {
		case module:
			n.boot = append(n.boot, d.module)
		case builtin || f.config[d.option] == "y":
		case f.config == nil && !listed:
			n.unknown = append(n.unknown, d.module)
		case d.optional:
			n.without = append(n.without, d.module)
		default:
			n.missing = append(n.missing, name)
		}
	}
	for _, o := range builtinOptions() {
		if f.config != nil && f.config[o] != "y" {
			n.missing = append(n.missing, "CONFIG_"+o)
		}
	}
	return n
}

// asModules reports whether a kernel has drivers as modules, by its own configuration.
func asModules(f facts) bool {
	return slices.ContainsFunc(drivers(), func(d driver) bool { return f.config[d.option] == "m" })
}

// list is "a, b and c".
func list(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " and " + words[len(words)-1]
}
