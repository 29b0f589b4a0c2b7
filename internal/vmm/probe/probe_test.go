package probe

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
)

// good is a host on which everything works.
func good() Observations {
	return Observations{
		Arch: "amd64", KVMVersion: 12, CPUFlags: []string{"fpu", "vmx"}, Modules: []string{"kvm", "kvm_intel"},
		QEMU: Program{Path: "/usr/bin/qemu-system-x86_64", Version: "7.2.22"}, Distro: []string{"debian"},
	}
}

func TestDecideAccel(t *testing.T) {
	tests := map[string]struct {
		host   func(*Observations)
		accel  string
		reason string // part of it
		hint   string // part of the only one; empty for none
	}{
		"intel":              {func(*Observations) {}, KVM, "", ""},
		"amd":                {func(o *Observations) { o.CPUFlags, o.Modules = []string{"svm"}, []string{"kvm", "kvm_amd"} }, KVM, "", ""},
		"kvm built in":       {func(o *Observations) { o.Modules = nil }, KVM, "", ""},
		"nested with flags":  {func(o *Observations) { o.CPUFlags = []string{"hypervisor", "vmx"} }, KVM, "", ""},
		"permission missing": {func(o *Observations) { o.KVMOpen, o.KVMVersion = "EACCES", 0 }, TCG, "may not open", "usermod -aG kvm"},
		"no device, intel":   {func(o *Observations) { o.KVMOpen, o.KVMVersion = "ENOENT", 0 }, TCG, "no /dev/kvm", "modprobe kvm_intel"},
		"no device, amd": {func(o *Observations) { o.KVMOpen, o.KVMVersion, o.CPUFlags = "ENOENT", 0, []string{"svm"} },
			TCG, "no /dev/kvm", "modprobe kvm_amd"},
		"module not loaded": {func(o *Observations) { o.KVMOpen, o.KVMVersion = "ENXIO", 0 }, TCG, "module is not loaded", "modprobe kvm_intel"},
		"odd errno":         {func(o *Observations) { o.KVMOpen, o.KVMVersion = "EIO", 0 }, TCG, "EIO", ""},
		"pvm with flags": {func(o *Observations) { o.Modules = []string{"kvm", "kvm_pvm"} },
			TCG, "kvm_pvm", ""},
		"pvm without flags": {func(o *Observations) { o.Modules, o.CPUFlags = []string{"kvm", "kvm_pvm"}, nil }, TCG, "kvm_pvm", ""},
		"nested without flags": {func(o *Observations) { o.CPUFlags = []string{"hypervisor"} },
			TCG, "a VM itself", "nested virtualization"},
		"off in the firmware": {func(o *Observations) { o.CPUFlags = []string{"fpu"} }, TCG, "no virtualization", "firmware"},
		"old interface":       {func(o *Observations) { o.KVMVersion = 11 }, TCG, "version 11", ""},
		"no answer":           {func(o *Observations) { o.KVMVersion = 0 }, TCG, "version 0", ""},
		"virtualbox runs":     {func(o *Observations) { o.KVMCreate = "EBUSY" }, TCG, "another hypervisor", "other hypervisor"},
		"creates no VM":       {func(o *Observations) { o.KVMCreate = "ENOMEM" }, TCG, "ENOMEM", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := good()
			tt.host(&o)
			for _, engine := range []string{Auto, QEMU} {
				d, err := Decide(engine, o)
				if err != nil {
					t.Fatal(err)
				}
				if d.Engine != QEMU || d.Accel != tt.accel || d.Binary != o.QEMU.Path {
					t.Errorf("%s gives %+v", engine, d)
				}
				if (d.Reason == "") != (tt.accel == KVM) || !strings.Contains(d.Reason, tt.reason) {
					t.Errorf("reason %q, want %q in it", d.Reason, tt.reason)
				}
				if hints := strings.Join(d.Hints, "\n"); (hints == "") != (tt.hint == "") || !strings.Contains(hints, tt.hint) {
					t.Errorf("hints %q, want %q", hints, tt.hint)
				}
			}
		})
	}
}

func TestDecideRefuses(t *testing.T) {
	tests := map[string]struct {
		engine string
		host   func(*Observations)
		kind   api.ErrorKind
		text   string // part of message and hint
	}{
		"firecracker":       {Firecracker, func(*Observations) {}, api.KindUnavailable, "not available in this build"},
		"unknown engine":    {"xen", func(*Observations) {}, api.KindInvalid, `"xen"`},
		"arm":               {Auto, func(o *Observations) { o.Arch = "arm64" }, api.KindUnavailable, "x86-64"},
		"no qemu on debian": {Auto, func(o *Observations) { o.QEMU = Program{} }, api.KindUnavailable, "sudo apt-get install qemu-system-x86"},
		"no qemu on mint": {Auto, func(o *Observations) { o.QEMU, o.Distro = Program{}, []string{"linuxmint", "ubuntu", "debian"} },
			api.KindUnavailable, "sudo apt-get install qemu-system-x86"},
		"no qemu on fedora": {Auto, func(o *Observations) { o.QEMU, o.Distro = Program{}, []string{"fedora"} }, api.KindUnavailable, "dnf install"},
		"no qemu on nixos":  {Auto, func(o *Observations) { o.QEMU, o.Distro = Program{}, []string{"nixos"} }, api.KindUnavailable, "install the package"},
		"qemu_bin wrong":    {Auto, func(o *Observations) { o.QEMU = Program{Configured: "/opt/nosuch"} }, api.KindUnavailable, `qemu_bin "/opt/nosuch"`},
		"old qemu":          {QEMU, func(o *Observations) { o.QEMU.Version = "5.2.0" }, api.KindUnavailable, "5.2.0"},
		"not a qemu":        {QEMU, func(o *Observations) { o.QEMU.Version = "" }, api.KindUnavailable, "--version"},
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

func TestObserve(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(bin, []byte("#!/bin/sh\necho 'QEMU emulator version 8.0.1 (of the test)'\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	o := Observe(context.Background(), bin)
	if want := (Program{Path: bin, Version: "8.0.1", Configured: bin}); o.QEMU != want {
		t.Errorf("the program is %+v, want %+v", o.QEMU, want)
	}
	if o.Arch == "" || len(o.CPUFlags) == 0 {
		t.Errorf("the host is %+v", o)
	}
	if o.KVMOpen == "" && o.KVMVersion != kvmAPIVersion {
		t.Errorf("/dev/kvm opened and answered %d", o.KVMVersion)
	}
	if o := Observe(context.Background(), bin+"-not-there"); o.QEMU.Path != "" {
		t.Errorf("a program that is not there is %+v", o.QEMU)
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

func TestProberAsksOnce(t *testing.T) {
	dir := t.TempDir()
	bin, asked := filepath.Join(dir, "qemu"), filepath.Join(dir, "asked")
	script := func(version string) {
		t.Helper()
		text := "#!/bin/sh\necho x >>" + asked + "\necho 'QEMU emulator version " + version + "'\n"
		if err := os.WriteFile(bin, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	times := func() int {
		b, _ := os.ReadFile(asked)
		return strings.Count(string(b), "x")
	}
	script("8.0.1")
	p := &Prober{Config: Config{QEMUBin: bin}}
	for range 3 {
		if d, err := p.Choose(t.Context()); err != nil || d.Binary != bin {
			t.Fatalf("it gives %+v, %v", d, err)
		}
	}
	if n := times(); n != 1 {
		t.Errorf("the version was asked for %d times", n)
	}
	script("5.0.11") // another length: another program
	if _, err := p.Choose(t.Context()); api.KindOf(err) != api.KindUnavailable {
		t.Errorf("an older program in its place gives %v", err)
	}
}
