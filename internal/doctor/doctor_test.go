package doctor

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/config"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker/release"
	"git.thaloco.com/thaloco/banger/internal/vmm/probe"
)

// good is a host on which everything is as it should be.
func good() Observations {
	place := func(use string) Place {
		return Place{Use: use, Path: "/home/u/" + use, Exists: true, Writable: true, Owner: 1000, Mode: 0o700, Device: 1, Free: 100 << 30}
	}
	return Observations{
		UID: 1000, Home: "/home/u", Settings: config.Default(), ConfigPath: "/home/u/config.toml", ConfigExists: true,
		Probe: probe.Observations{Arch: "amd64", KVMVersion: 12, CPUFlags: []string{"vmx"}, Modules: []string{"kvm", "kvm_intel"},
			QEMU: probe.Program{Path: "/usr/bin/qemu-system-x86_64", Version: "7.2.22"}, Distro: []string{"debian"}, Kernel: "6.12.1-amd64",
			Firecracker: []release.Program{{Path: "/usr/bin/firecracker", Source: release.Path, Version: "1.17.0"}},
			Fetch:       probe.Fetch{Version: "1.17.0", Path: "/own/fc", Offline: "curl it"}},
		Tuning:  Tuning{Kernel: "6.12.1-amd64", Cgroup2: "/sys/fs/cgroup", HugePages: "never"},
		Version: "v1", Daemon: Program{Path: "/usr/bin/bangerd", Version: "v1"}, Agent: "/usr/lib/banger/banger-vsock-agent",
		Socket:  Socket{Path: "/run/user/1000/banger/bangerd.sock", Runtime: "/run/user/1000"},
		Places:  []Place{place("config"), place("data"), place("state"), place("cache"), place("runtime")},
		Scratch: []Place{{Path: "/var/tmp", Free: 20 << 30}},
		Git:     Program{"/usr/bin/git", "2.39.5"}, SSH: Program{"/usr/bin/ssh", "9.2p1"},
		Image: "debian-bookworm", Kernel: "generic-6.12", ImageHere: true, ImageKnown: true, KernelHere: true, KernelKnown: true,
		Mirror: "http://mirror/debian", MirrorAsked: true,
		SSHConfig: SSHConfig{User: "/home/u/.ssh/config", Ours: "/home/u/config/ssh/config", Included: true, Exists: true},
		Routes:    []Route{{netip.MustParsePrefix("0.0.0.0/0"), "eth0"}, {netip.MustParsePrefix("192.168.1.0/24"), "eth0"}},
		Resolvers: []netip.AddrPort{netip.MustParseAddrPort("192.168.1.1:53")}, PingGroups: [2]int{0, 1 << 30}, Groups: []int{1000},
		CPUs: 8, MemoryTotal: 16 << 30, MemoryAvailable: 8 << 30,
	}
}

func TestGood(t *testing.T) {
	checks := Examine(good())
	var names []string
	for _, c := range checks {
		names = append(names, c.Name)
		if c.Status != OK || c.Hint != "" || c.Detail == "" {
			t.Errorf("%+v", c)
		}
	}
	want := strings.Split("configuration engine firecracker kvm programs daemon socket directories,disk space,memory cpus image kernel,image build,mirror git ssh,ssh config,network bridge resolver ping,web port", ",")
	var flat []string
	for _, part := range want {
		if part == "disk space" || part == "image build" || part == "ssh config" || part == "web port" {
			flat = append(flat, part)
		} else {
			flat = append(flat, strings.Fields(part)...)
		}
	}
	if diff := cmp.Diff(flat, names); diff != "" {
		t.Error(diff)
	}
	if Failed(checks) {
		t.Error("it failed")
	}
	o := good()
	o.MirrorAsked = false
	if slices.ContainsFunc(Examine(o), func(c Check) bool { return c.Name == "mirror" }) {
		t.Error("a mirror that was not asked is judged")
	}
}

// TestNothing has a host of which nothing is known.
func TestNothing(t *testing.T) {
	checks := Examine(Observations{})
	if !Failed(checks) {
		t.Errorf("it is well: %+v", checks)
	}
}

func TestExamine(t *testing.T) {
	e := func(hint string) error { return api.Errorf(api.KindUnavailable, "it is broken").WithHint("%s", hint) }
	dir := func(use string, change func(*Place)) func(*Observations) {
		return func(o *Observations) {
			for i := range o.Places {
				if o.Places[i].Use == use {
					change(&o.Places[i])
				}
			}
		}
	}
	distro := func(ids ...string) func(*Observations) {
		return func(o *Observations) { o.Probe.Distro, o.SSH = ids, Program{} }
	}
	root := func(o *Observations) {
		o.UID = 0
		for i := range o.Places {
			o.Places[i].Owner = 0
		}
	}
	tests := map[string]struct {
		host   func(*Observations)
		check  string
		status Status
		detail string // part of it
		hint   string // part of it; empty for none
	}{
		"no configuration":    {func(o *Observations) { o.ConfigExists = false }, "configuration", OK, "defaults", ""},
		"wrong configuration": {func(o *Observations) { o.ConfigErr = errors.New("c.toml:3:1: no") }, "configuration", Fail, "c.toml:3:1", "config show"},
		"configuration, hint": {func(o *Observations) { o.ConfigErr = e("do it") }, "configuration", Fail, "broken", "do it"},

		"firecracker":   {func(*Observations) {}, "engine", OK, "firecracker 1.17.0 (/usr/bin/firecracker), with KVM", ""},
		"to be fetched": {func(o *Observations) { o.Probe.Firecracker = nil }, "engine", OK, "firecracker 1.17.0, with KVM; it is not on this host yet", ""},
		"not fetched":   {func(o *Observations) { o.Probe.Firecracker, o.Probe.Fetch.Failed = nil, "no route" }, "engine", Warn, "qemu 7.2.22 (/usr/bin/qemu-system-x86_64), with KVM, because Firecracker could not be fetched: no route", "curl it"},
		"died": {func(o *Observations) {
			o.Probe.Failures = []probe.Failure{{Engine: "firecracker", Accel: "kvm", Binary: "/usr/bin/firecracker", Version: "1.17.0", Kernel: "6.12.1-amd64", Reason: "it died"}}
		}, "engine", Warn, "because Firecracker 1.17.0 ended at its start on", ""},
		"needs kvm": {func(o *Observations) { o.Settings.Engine, o.Probe.KVMOpen = "firecracker", "EACCES" }, "engine", Fail, "needs KVM", "usermod -aG kvm"},
		"qemu":      {func(o *Observations) { o.Settings.Engine = "qemu" }, "engine", OK, "qemu 7.2.22 (/usr/bin/qemu-system-x86_64), with KVM", ""},

		"firecracker, where":       {func(*Observations) {}, "firecracker", OK, "1.17.0 (/usr/bin/firecracker, in PATH), confined without the jailer", ""},
		"firecracker, own":         {func(o *Observations) { o.Probe.Firecracker[0].Source = release.Own }, "firecracker", OK, "banger's own", ""},
		"firecracker, configured":  {func(o *Observations) { o.Probe.Firecracker[0].Source = release.Configured }, "firecracker", OK, "firecracker_bin", ""},
		"firecracker, root":        {func(o *Observations) { root(o); o.Probe.Firecracker[0].Jailer = "/usr/bin/jailer" }, "firecracker", OK, "jailer /usr/bin/jailer", ""},
		"firecracker, no jailer":   {root, "firecracker", Warn, "no jailer", "same release"},
		"jail on, no root":         {func(o *Observations) { o.Settings.Jail = "on" }, "firecracker", Fail, "takes root", "jail = \"auto\""},
		"jail on, no jailer":       {func(o *Observations) { root(o); o.Settings.Jail = "on" }, "firecracker", Fail, "no jailer", "same release"},
		"jail off":                 {func(o *Observations) { root(o); o.Settings.Jail = "off" }, "firecracker", OK, "1.17.0", ""},
		"firecracker, not here":    {func(o *Observations) { o.Probe.Firecracker = nil }, "firecracker", OK, "not on this host yet", "curl it"},
		"firecracker, old":         {func(o *Observations) { o.Probe.Firecracker[0].Version = "1.10.1" }, "firecracker", OK, "/usr/bin/firecracker is version 1.10.1, older than 1.17.0", "curl it"},
		"firecracker, archive":     {func(o *Observations) { o.Probe.Firecracker, o.Probe.Fetch.Supplied = nil, true }, "firecracker", OK, "archive", ""},
		"firecracker, not fetched": {func(o *Observations) { o.Probe.Firecracker, o.Probe.Fetch.Failed = nil, "no route" }, "firecracker", Warn, "no route", "curl it"},
		"firecracker, no release":  {func(o *Observations) { o.Probe.Firecracker, o.Probe.Fetch = nil, probe.Fetch{} }, "firecracker", OK, "none for this host", ""},
		"firecracker, no kvm":      {func(o *Observations) { o.Probe.KVMOpen = "EACCES" }, "firecracker", OK, "1.17.0 (/usr/bin/firecracker, in PATH); not used: it needs KVM", ""},
		"neither":                  {func(o *Observations) { o.Probe.KVMOpen, o.Probe.Firecracker = "EACCES", nil }, "firecracker", OK, "not on this host; not used", ""},
		"firecracker, qemu chosen": {func(o *Observations) { o.Settings.Engine = "qemu" }, "firecracker", OK, "not used: engine is \"qemu\"", ""},
		"firecracker_bin old": {func(o *Observations) {
			o.Probe.Firecracker = []release.Program{{Path: "/opt/fc", Source: release.Configured, Version: "1.10.1"}}
		}, "firecracker", Fail, "/opt/fc is version 1.10.1, older than 1.17.0", "config.toml"},
		"firecracker_bin wrong": {func(o *Observations) {
			o.Probe.Firecracker = []release.Program{{Path: "/opt/fc", Source: release.Configured, Err: "no such file"}}
		}, "firecracker", Fail, "no such file", "config.toml"},
		"firecracker_bin wrong, qemu": {func(o *Observations) {
			o.Settings.Engine, o.Probe.Firecracker = "qemu", []release.Program{{Path: "/opt/fc", Source: release.Configured, Err: "no such file"}}
		}, "firecracker", Warn, "no such file", "config.toml"},

		"no qemu":         {func(o *Observations) { o.Settings.Engine, o.Probe.QEMU = "qemu", probe.Program{} }, "engine", Fail, "no qemu", "apt-get install qemu-system-x86"},
		"no qemu, kvm":    {func(o *Observations) { o.Probe.QEMU = probe.Program{} }, "kvm", OK, "usable", ""},
		"qemu 6.2":        {func(o *Observations) { o.Settings.Engine, o.Probe.QEMU.Version = "qemu", "6.2.0" }, "engine", Warn, "7.2", "qemu-system-x86"},
		"arm":             {func(o *Observations) { o.Probe.Arch = "arm64" }, "kvm", Warn, "arm64", ""},
		"emulated":        {func(o *Observations) { o.Probe.KVMOpen = "EACCES" }, "engine", OK, "emulated", ""},
		"kvm refused":     {func(o *Observations) { o.Probe.KVMOpen = "EACCES" }, "kvm", Warn, "may not open", "usermod -aG kvm"},
		"kvm absent":      {func(o *Observations) { o.Probe.KVMOpen = "ENOENT" }, "kvm", Warn, "no /dev/kvm", "modprobe kvm_intel"},
		"kvm off":         {func(o *Observations) { o.Probe.CPUFlags = nil }, "kvm", Warn, "no virtualization", "firmware"},
		"kvm nested":      {func(o *Observations) { o.Probe.CPUFlags = []string{"hypervisor"} }, "kvm", Warn, "a VM itself", "nested"},
		"kvm_pvm":         {func(o *Observations) { o.Probe.Modules = []string{"kvm_pvm"} }, "kvm", Warn, "kvm_pvm", ""},
		"kvm, slow":       {func(o *Observations) { o.Tuning.HugePages = "Y" }, "kvm", OK, "usable", "remount,favordynmods /sys/fs/cgroup"},
		"kvm, favoured":   {func(o *Observations) { o.Tuning.HugePages, o.Tuning.FavorDynMods = "Y", true }, "kvm", OK, "usable", ""},
		"kvm, old kernel": {func(o *Observations) { o.Tuning.HugePages, o.Tuning.Kernel = "Y", "5.15.0-91-generic" }, "kvm", OK, "usable", ""},

		"no bangerd":   {func(o *Observations) { o.DaemonErr = e("make install") }, "programs", Fail, "broken", "make install"},
		"no agent":     {func(o *Observations) { o.Agent = "" }, "programs", Fail, "agent", "make install"},
		"mute bangerd": {func(o *Observations) { o.Daemon.Version = "" }, "programs", Fail, "version", "make install"},
		"mixed":        {func(o *Observations) { o.Daemon.Version = "v0" }, "programs", Warn, "is v0", "make install"},

		"daemon runs": {func(o *Observations) {
			o.Running = &api.DaemonStatus{PID: 7, Version: "v1", APIVersion: api.Version, StateDir: "/home/u/state"}
		}, "daemon", OK, "pid 7", ""},
		"older daemon": {func(o *Observations) { o.Running = &api.DaemonStatus{Version: "v0", APIVersion: api.Version} },
			"daemon", Warn, "version v0", "banger daemon stop"},
		"other api": {func(o *Observations) { o.Running = &api.DaemonStatus{Version: "v1", APIVersion: api.Version + 1} },
			"daemon", Warn, "API", "banger daemon stop"},
		"daemon of another": {func(o *Observations) {
			o.Running = &api.DaemonStatus{Version: "v1", APIVersion: api.Version, StateDir: "/elsewhere"}
		}, "daemon", Warn, "/elsewhere", "XDG_STATE_HOME"},
		"mute daemon":   {func(o *Observations) { o.Socket.Locked, o.RunningErr = true, errors.New("timeout") }, "daemon", Fail, "timeout", "daemon logs"},
		"stale socket":  {func(o *Observations) { o.Socket.Exists = true }, "socket", OK, "replaces", ""},
		"long socket":   {func(o *Observations) { o.Socket.Path = "/" + strings.Repeat("x", 107) }, "socket", Fail, "108 bytes", "XDG_RUNTIME_DIR"},
		"no runtime":    {func(o *Observations) { o.Socket.Runtime = "" }, "socket", OK, "not set", ""},
		"wrong runtime": {func(o *Observations) { o.Socket.RuntimeErr = errors.New("gone") }, "socket", Fail, "gone", "unset"},

		"not ours":       {dir("state", func(p *Place) { p.Owner = 0 }), "directories", Fail, "another user", "sudo chown -R $(id -u):$(id -g) /home/u/state"},
		"read only":      {dir("data", func(p *Place) { p.Writable = false }), "directories", Fail, "cannot be written", "chmod u+rwx"},
		"cannot be made": {dir("data", func(p *Place) { p.Writable, p.Exists = false, false }), "directories", Fail, "/home/u cannot be written", ""},
		"to be made":     {dir("data", func(p *Place) { p.Exists, p.Owner, p.Mode = false, 0, 0o777 }), "directories", OK, "", ""},
		"open":           {dir("state", func(p *Place) { p.Mode = 0o770; p.Path = "/home/u/my state" }), "directories", Warn, "by others", "chmod go-rwx '/home/u/my state'"},
		"unreadable":     {dir("cache", func(p *Place) { p.Err = errors.New("input/output error") }), "directories", Fail, "input/output", ""},
		"little room":    {dir("state", func(p *Place) { p.Device, p.Free = 2, 9<<30 }), "disk space", Warn, "9.0 GiB free at /home/u/state", "make room at /home/u/state"},
		"no room":        {dir("data", func(p *Place) { p.Device, p.Free = 2, 1<<30-1 }), "disk space", Fail, "1023 MiB", "/home/u/data"},
		"no room, said once": {func(o *Observations) {
			for i := range o.Places {
				o.Places[i].Free = 0
			}
		}, "disk space", Fail, "0 MiB free at /home/u/data", "/home/u/data"},
		"little memory":   {func(o *Observations) { o.MemoryAvailable = 2<<30 - 1 }, "memory", Warn, "of 16 GiB", "--memory"},
		"unknown memory":  {func(o *Observations) { o.MemoryTotal = 0 }, "memory", Warn, "not known", ""},
		"more CPUs asked": {func(o *Observations) { o.Settings.DefaultCPUs = 9 }, "cpus", Warn, "has 9", "default_cpus = 8"},

		"image to get":  {func(o *Observations) { o.ImageHere = false }, "image", OK, "not on this host yet", "banger image pull debian-bookworm"},
		"image unknown": {func(o *Observations) { o.ImageHere, o.ImageKnown = false, false }, "image", Fail, "catalog", "banger image list"},
		"own image":     {func(o *Observations) { o.ImageKnown = false }, "image", OK, "on this host", ""},
		"kernel to get": {func(o *Observations) { o.KernelHere = false }, "kernel", OK, "not on this host yet", "banger kernel pull generic-6.12"},
		"kernel gone":   {func(o *Observations) { o.KernelHere, o.KernelKnown = false, false }, "kernel", Fail, "catalog", "banger kernel list"},

		"no mmdebstrap": {func(o *Observations) { o.BuildErr, o.ImageHere = e("apt install"), false }, "image build", Warn, "broken: images are built in a VM", "apt install"},
		"no scratch": {func(o *Observations) {
			o.ImageHere = false
			o.Scratch = []Place{{Path: "/a", NoExec: true}, {Path: "/b", Free: 2<<30 - 1}, {Err: errors.New("no /c")}}
		}, "image build", Fail, "/a is mounted noexec; 2.0 GiB free in /b; no /c", "make room"},
		"second scratch": {func(o *Observations) { o.Scratch = []Place{{NoExec: true}, {Free: 2 << 30}} }, "image build", OK, "", ""},

		"mirror away":         {func(o *Observations) { o.MirrorErr = errors.New("no answer") }, "mirror", Warn, "no answer", "debian_mirror in /home/u/config.toml"},
		"mirror away, needed": {func(o *Observations) { o.MirrorErr, o.KernelHere = errors.New("no answer"), false }, "mirror", Fail, "no answer", "debian_mirror"},

		"no git":           {func(o *Observations) { o.Git = Program{} }, "git", Warn, "not installed", "sudo apt-get install git"},
		"no ssh, debian":   {distro("linuxmint", "ubuntu", "debian"), "ssh", Warn, "not installed", "sudo apt-get install openssh-client"},
		"no ssh, fedora":   {distro("fedora"), "ssh", Warn, "not installed", "sudo dnf install openssh-clients"},
		"no ssh, arch":     {distro("endeavouros", "arch"), "ssh", Warn, "not installed", "sudo pacman -S openssh"},
		"no ssh, unknown":  {distro("nixos"), "ssh", Warn, "not installed", "package manager"},
		"old ssh":          {func(o *Observations) { o.SSH.Version = "8.4p1" }, "ssh", Warn, "8.5 or newer", "openssh-client"},
		"8.10":             {func(o *Observations) { o.SSH.Version = "8.10" }, "ssh", OK, "8.10", ""},
		"dropbear":         {func(o *Observations) { o.SSH.Version = "" }, "ssh", Warn, "not OpenSSH", "openssh-client"},
		"no Include":       {func(o *Observations) { o.SSHConfig.Included = false }, "ssh config", OK, "not installed", "banger ssh-config --install"},
		"dangling Include": {func(o *Observations) { o.SSHConfig.Exists = false }, "ssh config", Warn, "gone", "banger ssh-config --install"},
		"web port of the daemon": {func(o *Observations) {
			o.Running = &api.DaemonStatus{Version: "v1", APIVersion: api.Version, WebAddress: "127.0.0.1:7777"}
		}, "web port", OK, "http://localhost:7777/", ""},
		"another web port": {func(o *Observations) {
			o.Running = &api.DaemonStatus{Version: "v1", APIVersion: api.Version, WebAddress: "127.0.0.1:7778", WebWarning: "7777 is used by x"}
		}, "web port", Warn, "7777 is used by x", "set web_listen_addr in /home/u/config.toml to what is free, then: banger daemon stop"},
		"an older daemon has none": {func(o *Observations) { o.Running = &api.DaemonStatus{Version: "v1", APIVersion: api.Version} },
			"web port", Warn, "has none", "banger daemon stop"},
		"web port off": {func(o *Observations) { o.Settings.WebListenAddr = "" }, "web port", OK, "none", ""},
		"web port taken": {func(o *Observations) { o.Web = WebPort{Err: syscall.EADDRINUSE, By: "nginx (pid 12)"} },
			"web port", Warn, "127.0.0.1:7777 is used by nginx (pid 12)", "end what uses it, or set web_listen_addr in /home/u/config.toml"},
		"web port taken by somebody": {func(o *Observations) { o.Web.Err = os.NewSyscallError("bind", syscall.EADDRINUSE) }, "web port", Warn, "another program", "web_listen_addr"},
		"web port forbidden":         {func(o *Observations) { o.Web.Err = syscall.EACCES }, "web port", Warn, "permission denied", `web_listen_addr = "127.0.0.1:7777"`},

		"no resolver": {func(o *Observations) { o.Resolvers = nil }, "resolver", Warn, "names no resolver", "default_dns"},
		"resolver given": {func(o *Observations) {
			o.Resolvers, o.Settings.DefaultDNS = nil, []netip.AddrPort{netip.MustParseAddrPort("9.9.9.9:5353")}
		}, "resolver", OK, "9.9.9.9:5353, from default_dns", ""},
		"no ping": {func(o *Observations) { o.PingGroups = [2]int{1, 0} }, "ping", OK, "gateway", "ping_group_range"},
		"a VPN's route": {func(o *Observations) {
			o.Routes = append(o.Routes, Route{netip.MustParsePrefix("172.16.0.0/12"), "tun0"})
		}, "network", Warn, "172.16.0.0/12 by tun0", `set cidr = "10.213.0.0/24"`},
		"the bridge's route": {func(o *Observations) {
			o.Settings.Network = "bridge"
			o.Routes = append(o.Routes, Route{o.Settings.CIDR, "bngr0"})
		}, "network", OK, "bridge", ""},
		"no bridge mode": {func(o *Observations) {}, "bridge", OK, "not used", ""},
		"a bridge":       {func(o *Observations) { o.Settings.Network = "bridge" }, "bridge", OK, "bngr0 with 32 TAPs", ""},
		"no bridge": {func(o *Observations) {
			o.Settings.Network, o.Bridge = "bridge", api.Errorf(api.KindUnavailable, "bridge is not there").WithHint("sudo banger net setup")
		}, "bridge", Fail, "bridge is not there", "sudo banger net setup"},
		"no bridge yet": {func(o *Observations) {
			o.Settings.Network, o.Bridge, o.BridgeByDaemon = "bridge", api.Errorf(api.KindUnavailable, "bridge is not there"), true
		}, "bridge", OK, "the daemon may make it", ""},
		"somebody's bridge": {func(o *Observations) {
			o.Settings.Network, o.Bridge, o.BridgeByDaemon = "bridge", api.Errorf(api.KindConflict, "banger did not make it").WithHint("another name"), true
		}, "bridge", Fail, "did not make it", "another name"},
		"a route of the bridge's in user mode": {func(o *Observations) { o.Routes = append(o.Routes, Route{o.Settings.CIDR, "bngr0"}) }, "network", Warn, "bngr0", "set cidr"},
		"all is taken": {func(o *Observations) {
			for _, p := range []string{"172.16.0.0/12", "10.0.0.0/8", "192.168.0.0/16", "198.18.0.0/15"} {
				o.Routes = append(o.Routes, Route{netip.MustParsePrefix(p), "x"})
			}
		}, "network", Warn, "172.16.0.0/12 by x", "does not use"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := good()
			tt.host(&o)
			checks := Examine(o)
			i := slices.IndexFunc(checks, func(c Check) bool { return c.Name == tt.check })
			if i < 0 {
				t.Fatalf("no check %q", tt.check)
			}
			c := checks[i]
			if c.Status != tt.status || !strings.Contains(c.Detail, tt.detail) || (c.Hint == "") != (tt.hint == "") || !strings.Contains(c.Hint, tt.hint) {
				t.Errorf("%+v", c)
			}
			if Failed(checks) != (tt.status == Fail) && tt.check != "kvm" {
				t.Errorf("failed: %v", Failed(checks))
			}
		})
	}
}

func TestOverlap(t *testing.T) {
	route := func(s string) Route { return Route{netip.MustParsePrefix(s), s} }
	routes := []Route{route("0.0.0.0/0"), route("0.0.0.0/1"), route("128.0.0.0/1"), route("172.16.0.0/12"), route("172.16.0.128/25"),
		route("172.16.1.0/24"), route("172.16.0.5/32"), route("10.0.0.0/8"), route("fe80::/64")}
	var got []string
	for _, r := range Overlap(netip.MustParsePrefix("172.16.0.0/24"), routes) {
		got = append(got, r.To.String())
	}
	if diff := cmp.Diff([]string{"172.16.0.5/32", "172.16.0.128/25", "172.16.0.0/12"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestAtLeast(t *testing.T) {
	for version, want := range map[string]bool{"7.2": true, "7.2.22": true, "7.10": true, "10.0": true, "7.1.9": false, "6.9": false, "7.2p1": true,
		"7": false, "": false, "x.y": false, "7.": false} {
		if got := atLeast(version, 7, 2); got != want {
			t.Errorf("%q: %v", version, got)
		}
	}
}
