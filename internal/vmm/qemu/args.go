package qemu

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// Descriptors the VMM inherits beside 0, 1 and 2: one end each of socket pairs, so that none is a name
// in the file system that somebody else could connect to.
const (
	fdQMP   = 3
	fdAgent = 4
	fdNet   = 5 // only of a VM with a network device
)

// sandbox is QEMU's seccomp filter: no new processes, privileges, or scheduling.
const sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

// Options are what Args needs beside the Spec.
type Options struct {
	// Initrd is the joined initrd, absolute or relative to the VM's directory.
	Initrd string
	// TSCKHz is the rate of the host's time stamp counter; 0 leaves the guest to measure it. Ignored for KVM.
	TSCKHz int
	// Sandbox turns on QEMU's seccomp filter.
	Sandbox bool
}

// Args is QEMU's argument list for spec, without the program's name. Its process must run in the VM's
// directory and have QMP as descriptor 3, the agent's channel as 4, the guest's console as stdout.
//
// Paths of drives go in as JSON, which has no trouble with ',' and '='.
func Args(spec vmm.Spec, opt Options) []string {
	cpu := "max"
	if spec.Accel == "kvm" {
		cpu = "host"
	}
	args := []string{
		"-name", spec.Name,
		"-M", "microvm,accel=" + spec.Accel + ",rtc=on,acpi=on",
		"-cpu", cpu,
		"-m", strconv.Itoa(spec.MemoryMiB) + "M",
		"-smp", strconv.Itoa(spec.CPUs),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
	}
	if opt.Sandbox {
		args = append(args, "-sandbox", sandbox)
	}
	args = append(args,
		"-kernel", spec.Kernel,
		"-initrd", opt.Initrd,
		"-append", CommandLine(spec, opt),
		"-chardev", "socket,id=qmp,fd="+strconv.Itoa(fdQMP),
		"-mon", "chardev=qmp,mode=control",
		"-chardev", "stdio,id=console,signal=off",
		"-serial", "chardev:console",
	)
	for _, d := range spec.Drives {
		args = append(args, "-blockdev", blockdev(d, spec.Unsafe), "-device", blockDevice(d))
	}
	if n := spec.Identity.Network; n != nil && n.Device == wire.DeviceVirtio {
		backend := "socket" // -netdev dgram is the same since QEMU 7.2; this one is in all
		if spec.TAP != "" {
			backend = "tap"
		}
		args = append(args, "-netdev", backend+",id=net,fd="+strconv.Itoa(fdNet), "-device", netDevice(*n))
	}
	return append(args,
		"-device", "virtio-serial-device",
		"-chardev", "socket,id=agent,fd="+strconv.Itoa(fdAgent),
		"-device", "virtserialport,chardev=agent,name="+wire.PortName,
		"-device", "virtio-rng-device",
	)
}

// CommandLine is the guest kernel's command line.
func CommandLine(spec vmm.Spec, opt Options) string {
	words := []string{"console=ttyS0", "panic=-1", "reboot=t", "quiet"}
	if spec.Accel == "tcg" && opt.TSCKHz > 0 {
		// Without it an emulated guest on a busy host hangs in one early boot of ten, calibrating.
		words = append(words, fmt.Sprintf("tsc_early_khz=%d", opt.TSCKHz), "tsc=reliable")
	}
	if spec.Identity.Network != nil {
		words = append(words, "net.ifnames=0") // eth0 stays eth0 where the image has udev
	}
	words = append(words, "cryptomgr.notests", "random.trust_cpu=on", "no_timer_check", "8250.nr_uarts=1",
		"rcupdate.rcu_expedited=1", "pci=off", "apparmor=0")
	return strings.Join(words, " ")
}

// blockNode is a -blockdev: a raw node over a file node.
type blockNode struct {
	Driver   string     `json:"driver"`
	Node     string     `json:"node-name,omitempty"`
	Filename string     `json:"filename,omitempty"`
	ReadOnly bool       `json:"read-only"`
	Discard  string     `json:"discard,omitempty"`
	Zeroes   string     `json:"detect-zeroes,omitempty"`
	Cache    *cache     `json:"cache,omitempty"`
	File     *blockNode `json:"file,omitempty"`
}

type cache struct {
	Direct  bool `json:"direct"`
	NoFlush bool `json:"no-flush"`
}

func blockdev(d vmm.Drive, unsafe bool) string {
	file := &blockNode{Driver: "file", Filename: d.Path, ReadOnly: d.ReadOnly}
	raw := blockNode{Driver: "raw", Node: d.ID, ReadOnly: d.ReadOnly, File: file}
	if !d.ReadOnly {
		// What the guest trims becomes a hole in the host's file, and so do zeroes it writes.
		file.Discard, raw.Discard, raw.Zeroes = "unmap", "unmap", "unmap"
		raw.Cache = &cache{NoFlush: unsafe}
		file.Cache = &cache{NoFlush: unsafe}
	}
	return mustJSON(raw)
}

func blockDevice(d vmm.Drive) string {
	return mustJSON(struct {
		Driver     string `json:"driver"`
		Drive      string `json:"drive"`
		Serial     string `json:"serial"`
		WriteError string `json:"werror"`
		ReadError  string `json:"rerror"`
		WriteCache string `json:"write-cache"`
	}{"virtio-blk-device", d.ID, d.ID, "enospc", "report", "on"})
}

func netDevice(n wire.Network) string {
	return mustJSON(struct {
		Driver string `json:"driver"`
		Netdev string `json:"netdev"`
		MAC    string `json:"mac"`
		MTU    int    `json:"host_mtu"`
	}{"virtio-net-device", "net", n.MAC, n.MTU})
}

// mustJSON encodes a value of this file, which always can be.
func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}
