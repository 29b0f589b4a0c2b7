package firecracker

import (
	"encoding/json"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// maxCPUs is the greatest vcpu_count (firecracker.yaml, MachineConfiguration).
const maxCPUs = 32

// guestCID is the guest's number on its vsock. Each Firecracker has a device of its own, so all guests may have the same.
const guestCID = 3

// vmConfig is the file for --config-file: a section for each request it replaces. Firecracker ignores a section it does not
// know, so the names matter (src/vmm/src/resources.rs, VmmConfig).
type vmConfig struct {
	BootSource    bootSource    `json:"boot-source"`
	Drives        []drive       `json:"drives"`
	Interfaces    []netDevice   `json:"network-interfaces,omitempty"`
	MachineConfig machineConfig `json:"machine-config"`
	Vsock         vsock         `json:"vsock"`
	Entropy       struct{}      `json:"entropy"`
	Balloon       balloon       `json:"balloon"`
}

type bootSource struct {
	KernelImagePath string `json:"kernel_image_path"`
	InitrdPath      string `json:"initrd_path"`
	BootArgs        string `json:"boot_args"`
}

// drive is a block device. The guest knows drives by their order: the serial Firecracker gives them is made of numbers
// of the host's inode.
type drive struct {
	ID         string `json:"drive_id"`
	PathOnHost string `json:"path_on_host"`
	// IsRootDevice is always false: Firecracker would add root= to the kernel's arguments, which the initramfs decides.
	IsRootDevice bool `json:"is_root_device"`
	IsReadOnly   bool `json:"is_read_only"`
	// CacheType is Writeback, or Unsafe, which does not offer the guest to flush.
	CacheType string `json:"cache_type"`
	IOEngine  string `json:"io_engine"`
}

// netDeviceID is the name of the one network device, to Firecracker alone.
const netDeviceID = "eth0"

// netDevice is a virtio-net device on a TAP of the host that Firecracker's user may open. It is not told an MTU: Firecracker
// knows one only from 1.17 on, and the guest's agent sets it.
type netDevice struct {
	ID          string `json:"iface_id"`
	MAC         string `json:"guest_mac"`
	HostDevName string `json:"host_dev_name"`
}

type machineConfig struct {
	VCPUCount  int `json:"vcpu_count"`
	MemSizeMiB int `json:"mem_size_mib"`
}

type vsock struct {
	GuestCID int    `json:"guest_cid"`
	UDSPath  string `json:"uds_path"`
}

// balloon is there so that the guest can be asked for memory, and gives back by itself what it does not use.
type balloon struct {
	AmountMiB         int  `json:"amount_mib"`
	DeflateOnOOM      bool `json:"deflate_on_oom"`
	FreePageReporting bool `json:"free_page_reporting"`
}

// check refuses what Firecracker would refuse, in words that say what to do.
func check(spec vmm.Spec) error {
	if spec.CPUs > maxCPUs {
		return api.Errorf(api.KindInvalid, "firecracker gives a VM at most %d CPUs, not %d", maxCPUs, spec.CPUs).
			WithHint("a smaller --cpus, or engine = \"qemu\" in config.toml")
	}
	if n := len(commandLine()); n >= maxCommandLine {
		return api.Errorf(api.KindInternal, "a kernel command line of %d bytes is longer than %d", n, maxCommandLine)
	}
	return nil
}

// maxCommandLine is the room for boot_args, in bytes (CMDLINE_MAX_SIZE of src/arch/x86_64), less what Firecracker appends.
const maxCommandLine = 2048 - 256

func newVMConfig(spec vmm.Spec, initrd string) vmConfig {
	c := vmConfig{
		BootSource:    bootSource{KernelImagePath: spec.Kernel, InitrdPath: initrd, BootArgs: commandLine()},
		Drives:        []drive{},
		MachineConfig: machineConfig{VCPUCount: spec.CPUs, MemSizeMiB: spec.MemoryMiB},
		Vsock:         vsock{GuestCID: guestCID, UDSPath: paths.VMVsock},
		Balloon:       balloon{DeflateOnOOM: true, FreePageReporting: true},
	}
	for _, d := range spec.Drives {
		cache := "Writeback"
		if spec.Unsafe && !d.ReadOnly {
			cache = "Unsafe"
		}
		c.Drives = append(c.Drives, drive{ID: d.ID, PathOnHost: d.Path, IsReadOnly: d.ReadOnly, CacheType: cache, IOEngine: "Sync"})
	}
	if spec.TAP != "" {
		c.Interfaces = []netDevice{{ID: netDeviceID, MAC: spec.Identity.Network.MAC, HostDevName: spec.TAP}}
	}
	return c
}

// commandLine is the guest kernel's command line, in place of Firecracker's own, which has nomodule. A reset by the keyboard
// controller is the only end Firecracker has: reboot=k. Devices are found by ACPI.
func commandLine() string {
	return strings.Join([]string{
		"console=ttyS0", "panic=-1", "reboot=k", "quiet", "net.ifnames=0", "cryptomgr.notests", "random.trust_cpu=on",
		"8250.nr_uarts=1", "rcupdate.rcu_expedited=1", "pci=off", "apparmor=0", "i8042.noaux", "i8042.nomux", "i8042.dumbkbd",
		"swiotlb=noforce", // no device here needs bounce buffers: 64 MiB of a large guest
	}, " ")
}

// encode is v as the body of a request or a file.
func encode(v any) ([]byte, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // a path is a path
	err := e.Encode(v)
	return []byte(b.String()), err
}
