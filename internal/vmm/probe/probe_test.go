package probe

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker/release"
)

// good is a host on which everything works.
func good() Observations {
	return Observations{
		Arch: "amd64", Kernel: "6.12.1", KVMVersion: 12, CPUFlags: []string{"fpu", "vmx"}, Modules: []string{"kvm", "kvm_intel"},
		QEMU:        Program{Path: "/usr/bin/qemu-system-x86_64", Version: "7.2.22"},
		Firecracker: []release.Program{{Path: "/bin/fc", Jailer: "/bin/jailer", Source: release.Path, Version: "1.18.0"}},
		Fetch:       Fetch{Version: "1.17.0", Path: "/own/fc", Jailer: "/own/jailer", Offline: "curl it"},
		Distro:      []string{"debian"},
	}
}

// noKVM are hosts without KVM, each for another reason.
var noKVM = map[string]struct {
	host   func(*Observations)
	reason string // part of it
	hint   string // part of the only one; empty for none
}{
	"permission missing": {func(o *Observations) { o.KVMOpen, o.KVMVersion = "EACCES", 0 }, "may not open", "sudo usermod -aG kvm $USER"},
	"permission missing, mint": {func(o *Observations) {
		o.KVMOpen, o.KVMVersion, o.Distro = "EACCES", 0, []string{"linuxmint", "ubuntu", "debian"}
	}, "may not open", "console"},
	"permission missing, nixos": {func(o *Observations) { o.KVMOpen, o.KVMVersion, o.Distro = "EACCES", 0, []string{"nixos"} },
		"may not open", `extraGroups = [ "kvm" ]`},
	"permission missing, alpine": {func(o *Observations) { o.KVMOpen, o.KVMVersion, o.Distro = "EPERM", 0, []string{"alpine"} },
		"may not open", "sudo addgroup $USER kvm"},
	"no device, intel": {func(o *Observations) { o.KVMOpen, o.KVMVersion, o.Modules = "ENOENT", 0, nil }, "no /dev/kvm", "modprobe kvm_intel"},
	"no device, amd": {func(o *Observations) { o.KVMOpen, o.KVMVersion, o.CPUFlags = "ENOENT", 0, []string{"svm"} },
		"no /dev/kvm", "modprobe kvm_amd"},
	"module not loaded": {func(o *Observations) { o.KVMOpen, o.KVMVersion = "ENXIO", 0 }, "module is not loaded", "modprobe kvm_intel"},
	"driver without hardware": {func(o *Observations) { o.KVMOpen, o.KVMVersion = "ENODEV", 0 },
		"module is not loaded", "modprobe kvm_intel"},
	"odd errno":            {func(o *Observations) { o.KVMOpen, o.KVMVersion = "EIO", 0 }, "EIO", ""},
	"pvm with flags":       {func(o *Observations) { o.Modules = []string{"kvm", "kvm_pvm"} }, "kvm_pvm", ""},
	"pvm without flags":    {func(o *Observations) { o.Modules, o.CPUFlags = []string{"kvm", "kvm_pvm"}, nil }, "kvm_pvm", ""},
	"nested without flags": {func(o *Observations) { o.CPUFlags = []string{"hypervisor"} }, "a VM itself", "nested virtualization"},
	"off in the firmware":  {func(o *Observations) { o.CPUFlags = []string{"fpu"} }, "no virtualization", "firmware"},
	"old interface":        {func(o *Observations) { o.KVMVersion = 11 }, "version 11", ""},
	"no answer":            {func(o *Observations) { o.KVMVersion = 0 }, "version 0", ""},
	"virtualbox runs":      {func(o *Observations) { o.KVMCreate = "EBUSY" }, "another hypervisor", "other hypervisor"},
	"creates no VM":        {func(o *Observations) { o.KVMCreate = "ENOMEM" }, "ENOMEM", ""},
}

// TestDecideWithoutKVM: QEMU emulates, and says why.
func TestDecideWithoutKVM(t *testing.T) {
	for name, tt := range noKVM {
		t.Run(name, func(t *testing.T) {
			o := good()
			tt.host(&o)
			for _, engine := range []string{Auto, QEMU} {
				d, err := Decide(engine, o)
				if err != nil {
					t.Fatal(err)
				}
				if d.Engine != QEMU || d.Accel != TCG || d.Binary != o.QEMU.Path || d.Version != "7.2.22" || d.Source != release.Path || d.Fetch || d.Jailer != "" {
					t.Errorf("%s gives %+v", engine, d)
				}
				if !strings.Contains(d.Reason, tt.reason) {
					t.Errorf("reason %q, want %q in it", d.Reason, tt.reason)
				}
				if hints := strings.Join(d.Hints, "\n"); (hints == "") != (tt.hint == "") || !strings.Contains(hints, tt.hint) {
					t.Errorf("hints %q, want %q", hints, tt.hint)
				}
			}
			// Firecracker needs KVM, and without QEMU either way is told.
			_, err := Decide(Firecracker, o)
			if e := api.AsError(err); err == nil || e.Kind != api.KindUnavailable || !strings.Contains(e.Message, tt.reason) ||
				!strings.Contains(e.Hint, tt.hint) || !strings.Contains(e.Hint, `engine = "auto"`) {
				t.Errorf("firecracker gives %v", err)
			}
			o.QEMU, o.Distro = Program{}, append(o.Distro, "debian")
			_, err = Decide(Auto, o)
			if e := api.AsError(err); err == nil || e.Kind != api.KindUnavailable || !strings.Contains(e.Message, tt.reason) || !strings.Contains(e.Message, "no qemu") ||
				!strings.Contains(e.Hint, tt.hint) || !strings.Contains(e.Hint, "qemu-system-x86") {
				t.Errorf("without QEMU it gives %v, hint %q", err, e.Hint)
			}
		})
	}
}

// TestDecideWithKVM: Firecracker, unless something is against it.
func TestDecideWithKVM(t *testing.T) {
	at := time.Date(2026, 11, 24, 12, 0, 0, 0, time.Local)
	failed := func(engine, binary, version string) Failure {
		return Failure{Engine: engine, Accel: KVM, Binary: binary, Version: version, Kernel: "6.12.1", Reason: "it died", At: at}
	}
	own := release.Program{Path: "/own/fc", Jailer: "/own/jailer", Source: release.Own, Version: "1.17.0"}
	old := release.Program{Path: "/usr/bin/firecracker", Source: release.Path, Version: "1.10.1"}
	onPath := Decision{Engine: Firecracker, Accel: KVM, Binary: "/bin/fc", Jailer: "/bin/jailer", Source: release.Path, Version: "1.18.0"}
	onOwn := Decision{Engine: Firecracker, Accel: KVM, Binary: "/own/fc", Jailer: "/own/jailer", Source: release.Own, Version: "1.17.0"}
	fetched := onOwn
	fetched.Fetch = true
	onQEMU := Decision{Engine: QEMU, Accel: KVM, Binary: "/usr/bin/qemu-system-x86_64", Source: release.Path, Version: "7.2.22"}
	emulated := onQEMU
	emulated.Accel = TCG
	again := onPath // and again, for want of something else
	tests := map[string]struct {
		host   func(*Observations)
		want   Decision
		reason string // part of it; empty for none
		hint   string // part of the only one; empty for none
	}{
		"intel":             {func(*Observations) {}, onPath, "", ""},
		"amd":               {func(o *Observations) { o.CPUFlags, o.Modules = []string{"svm"}, []string{"kvm", "kvm_amd"} }, onPath, "", ""},
		"kvm built in":      {func(o *Observations) { o.Modules = nil }, onPath, "", ""},
		"nested with flags": {func(o *Observations) { o.CPUFlags = []string{"hypervisor", "vmx"} }, onPath, "", ""},
		"without QEMU":      {func(o *Observations) { o.QEMU = Program{} }, onPath, "", ""},
		"configured": {func(o *Observations) { o.Firecracker[0].Source = release.Configured },
			Decision{Engine: Firecracker, Accel: KVM, Binary: "/bin/fc", Jailer: "/bin/jailer", Source: release.Configured, Version: "1.18.0"}, "", ""},
		"own":                    {func(o *Observations) { o.Firecracker = []release.Program{own} }, onOwn, "", ""},
		"old one in PATH, own":   {func(o *Observations) { o.Firecracker = []release.Program{old, own} }, onOwn, "", ""},
		"old one in PATH, fetch": {func(o *Observations) { o.Firecracker = []release.Program{old} }, fetched, "", ""},
		"nothing, fetch":         {func(o *Observations) { o.Firecracker = nil }, fetched, "", ""},
		"could not be fetched": {func(o *Observations) { o.Firecracker, o.Fetch.Failed = nil, "no route" },
			onQEMU, "Firecracker could not be fetched: no route", "curl it"},
		"could not be fetched, old one": {func(o *Observations) { o.Firecracker, o.Fetch.Failed = []release.Program{old}, "no route" },
			onQEMU, "no route; /usr/bin/firecracker is version 1.10.1, older than 1.17.0", "curl it"},
		"could not be fetched, mute one": {func(o *Observations) {
			o.Firecracker, o.Fetch.Failed = []release.Program{{Path: "/x", Source: release.Path, Err: "/x says nothing"}}, "no route"
		}, onQEMU, "/x says nothing", "curl it"},
		"could not be fetched, no QEMU": {func(o *Observations) { o.Firecracker, o.Fetch.Failed, o.QEMU = nil, "no route", Program{} },
			fetched, "no route", ""},
		"could not be fetched, is there": {func(o *Observations) { o.Fetch.Failed = "no route" }, onPath, "", ""},
		"no release for this host":       {func(o *Observations) { o.Firecracker, o.Fetch = nil, Fetch{} }, onQEMU, "no Firecracker", ""},
		"died at start": {func(o *Observations) { o.Failures = []Failure{failed(Firecracker, "/bin/fc", "1.18.0")} },
			onQEMU, "Firecracker 1.18.0 ended at its start on 2026-11-24 12:00 (it died); after banger doctor it is tried again", ""},
		"both died": {func(o *Observations) {
			o.Failures = []Failure{failed(Firecracker, "/bin/fc", "1.18.0"), failed(QEMU, "/usr/bin/qemu-system-x86_64", "7.2.22")}
		}, emulated, "QEMU 7.2.22 with KVM ended at its start", ""},
		"died, could not be fetched": {func(o *Observations) {
			o.Firecracker, o.Fetch.Failed, o.Failures = nil, "no route", []Failure{failed(QEMU, "/usr/bin/qemu-system-x86_64", "7.2.22")}
		}, emulated, "no route", "curl it"},
		"died, no QEMU": {func(o *Observations) {
			o.Failures, o.QEMU = []Failure{failed(Firecracker, "/bin/fc", "1.18.0")}, Program{}
		}, again, "it died", ""},
		"died, another version": {func(o *Observations) { o.Failures = []Failure{failed(Firecracker, "/bin/fc", "1.17.0")} }, onPath, "", ""},
		"died, another program": {func(o *Observations) { o.Failures = []Failure{failed(Firecracker, "/opt/fc", "1.18.0")} }, onPath, "", ""},
		"died, another kernel": {func(o *Observations) {
			o.Kernel, o.Failures = "6.12.2", []Failure{failed(Firecracker, "/bin/fc", "1.18.0")}
		},
			onPath, "", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := good()
			tt.host(&o)
			d, err := Decide(Auto, o)
			if err != nil {
				t.Fatal(err)
			}
			if (d.Reason == "") != (tt.reason == "") || !strings.Contains(d.Reason, tt.reason) {
				t.Errorf("reason %q, want %q in it", d.Reason, tt.reason)
			}
			if hints := strings.Join(d.Hints, "\n"); (hints == "") != (tt.hint == "") || !strings.Contains(hints, tt.hint) {
				t.Errorf("hints %q, want %q", hints, tt.hint)
			}
			d.Reason, d.Hints = "", nil
			if diff := cmp.Diff(tt.want, d); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			// Configured engines know no other, and nothing of what failed before.
			if q, err := Decide(QEMU, o); o.QEMU.Path != "" && (err != nil || q.Engine != QEMU || q.Accel != KVM || q.Reason != "") {
				t.Errorf("qemu gives %+v, %v", q, err)
			}
			if f, err := Decide(Firecracker, o); len(o.Firecracker) > 0 && (err != nil || f.Engine != Firecracker || f.Reason != "") {
				t.Errorf("firecracker gives %+v, %v", f, err)
			}
		})
	}
}

func TestDecideRefuses(t *testing.T) {
	wrong := func(version, why string) func(*Observations) {
		return func(o *Observations) {
			o.Firecracker = []release.Program{{Path: "/opt/fc", Source: release.Configured, Version: version, Err: why}}
		}
	}
	tests := map[string]struct {
		engine string
		host   func(*Observations)
		kind   api.ErrorKind
		text   string // part of message and hint
	}{
		"unknown engine":    {"xen", func(*Observations) {}, api.KindInvalid, `"xen"`},
		"arm":               {Auto, func(o *Observations) { o.Arch = "arm64" }, api.KindUnavailable, "x86-64"},
		"arm, firecracker":  {Firecracker, func(o *Observations) { o.Arch = "arm64" }, api.KindUnavailable, "x86-64"},
		"no qemu on debian": {QEMU, func(o *Observations) { o.QEMU = Program{} }, api.KindUnavailable, "sudo apt-get install qemu-system-x86"},
		"no qemu on mint": {QEMU, func(o *Observations) { o.QEMU, o.Distro = Program{}, []string{"linuxmint", "ubuntu", "debian"} },
			api.KindUnavailable, "sudo apt-get install qemu-system-x86"},
		"no qemu on fedora": {QEMU, func(o *Observations) { o.QEMU, o.Distro = Program{}, []string{"fedora"} }, api.KindUnavailable, "dnf install"},
		"no qemu on nixos":  {QEMU, func(o *Observations) { o.QEMU, o.Distro = Program{}, []string{"nixos"} }, api.KindUnavailable, "install the package"},
		"qemu_bin wrong":    {QEMU, func(o *Observations) { o.QEMU = Program{Configured: "/opt/nosuch"} }, api.KindUnavailable, `qemu_bin "/opt/nosuch"`},
		"old qemu":          {QEMU, func(o *Observations) { o.QEMU.Version = "5.2.0" }, api.KindUnavailable, "5.2.0"},
		"not a qemu":        {QEMU, func(o *Observations) { o.QEMU.Version = "" }, api.KindUnavailable, "--version"},

		"firecracker_bin old":      {Firecracker, wrong("1.10.1", ""), api.KindUnavailable, `firecracker_bin "/opt/fc" is version 1.10.1, banger needs 1.17.0 or newer`},
		"firecracker_bin a dev":    {Firecracker, wrong("1.17.0-dev", ""), api.KindUnavailable, "1.17.0-dev"},
		"firecracker_bin no file":  {Firecracker, wrong("", "no such file"), api.KindUnavailable, `firecracker_bin "/opt/fc" cannot be used: no such file`},
		"firecracker_bin old, out": {Auto, wrong("1.10.1", ""), api.KindUnavailable, "remove firecracker_bin from config.toml"},
		"none for this host":       {Firecracker, func(o *Observations) { o.Firecracker, o.Fetch = nil, Fetch{} }, api.KindUnavailable, "firecracker_bin"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := good()
			tt.host(&o)
			d, err := Decide(tt.engine, o)
			if err == nil {
				t.Fatalf("it gives %+v", d)
			}
			e := api.AsError(err)
			if e.Kind != tt.kind || !strings.Contains(e.Message+"\n"+e.Hint, tt.text) {
				t.Errorf("it gives %s %q, hint %q", e.Kind, e.Message, e.Hint)
			}
		})
	}
}

// TestDecideFetchesAgain: who configured Firecracker has each start try to fetch it.
func TestDecideFetchesAgain(t *testing.T) {
	o := good()
	o.Firecracker, o.Fetch.Failed = nil, "no route"
	if d, err := Decide(Firecracker, o); err != nil || !d.Fetch || d.Binary != "/own/fc" {
		t.Errorf("%+v, %v", d, err)
	}
}

// put writes a program that says what it is.
func put(t *testing.T, path, says string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho x >>\"$0.asked\"\necho '"+says+"'\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// asked is how often a program was run.
func asked(path string) int {
	b, _ := os.ReadFile(path + ".asked")
	return strings.Count(string(b), "x")
}

func TestObserve(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", "/usr/bin:/bin")
	bin := put(t, filepath.Join(dir, "qemu"), "QEMU emulator version 8.0.1 (of the test)")
	fc := put(t, filepath.Join(dir, "firecracker"), "Firecracker v1.20.0")
	cfg := Config{QEMUBin: bin, FirecrackerBin: fc, Bin: filepath.Join(dir, "bin"), Memory: filepath.Join(dir, "memory")}
	o := Observe(t.Context(), cfg)
	if want := (Program{Path: bin, Version: "8.0.1", Configured: bin}); o.QEMU != want {
		t.Errorf("the program is %+v, want %+v", o.QEMU, want)
	}
	if want := []release.Program{{Path: fc, Source: release.Configured, Version: "1.20.0"}}; !slices.Equal(o.Firecracker, want) {
		t.Errorf("firecracker is %+v, want %+v", o.Firecracker, want)
	}
	if o.Arch == "" || len(o.CPUFlags) == 0 || o.Kernel == "" {
		t.Errorf("the host is %+v", o)
	}
	if pin, ok := release.Pinned(o.Arch); ok && (o.Fetch.Version != pin.Version || o.Fetch.Supplied || o.Fetch.Failed != "" || filepath.Dir(o.Fetch.Path) != cfg.Bin || o.Fetch.Offline == "") {
		t.Errorf("what can be fetched is %+v", o.Fetch)
	}
	if o.KVMOpen == "" && o.KVMVersion != kvmAPIVersion {
		t.Errorf("/dev/kvm opened and answered %d", o.KVMVersion)
	}
	cfg.QEMUBin, cfg.FirecrackerBin = bin+"-not-there", fc+"-not-there"
	if o := Observe(t.Context(), cfg); o.QEMU.Path != "" || o.Firecracker[0].Version != "" || o.Firecracker[0].Err == "" {
		t.Errorf("programs that are not there are %+v, %+v", o.QEMU, o.Firecracker)
	}
}

func TestParse(t *testing.T) {
	for out, want := range map[string]string{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright": "7.2.22",
		"QEMU emulator version 9.1.0-rc1\n":                                         "9.1.0",
		"hello":                                                                     "",
	} {
		if got := qemuVersion(out); got != want {
			t.Errorf("qemuVersion(%q) = %q, want %q", out, got, want)
		}
	}
	release := "NAME=\"Linux Mint\"\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"
	if diff := cmp.Diff([]string{"linuxmint", "ubuntu", "debian"}, parseOSRelease(strings.NewReader(release))); diff != "" {
		t.Error(diff)
	}
	cpuinfo := "processor\t: 0\nflags\t\t: fpu svm\n\nprocessor\t: 1\nflags\t\t: other\n"
	if diff := cmp.Diff([]string{"fpu", "svm"}, parseFlags(strings.NewReader(cpuinfo))); diff != "" {
		t.Error(diff)
	}
}
