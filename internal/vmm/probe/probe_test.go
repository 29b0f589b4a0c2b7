package probe

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
)

func TestDecide(t *testing.T) {
	const qemu = "/usr/bin/qemu-system-x86_64"
	kvmHost := Observations{Arch: "amd64", KVMVersion: 12, CPUFlags: []string{"vmx"}, Modules: []string{"kvm_intel", "kvm"}, QEMU: qemu, Distro: "debian"}
	with := func(change func(*Observations)) Observations {
		o := kvmHost
		change(&o)
		return o
	}
	for _, tc := range []struct {
		name   string
		cfg    Config
		o      Observations
		accel  string // empty where an error is wanted
		reason string
		hint   string
		kind   api.ErrorKind
	}{
		{name: "normal KVM", o: kvmHost, accel: "kvm", reason: "usable"},
		{name: "AMD", o: with(func(o *Observations) { o.CPUFlags = []string{"svm"} }), accel: "kvm"},
		{name: "nested with flags", o: with(func(o *Observations) { o.CPUFlags = []string{"vmx", "hypervisor"} }), accel: "kvm"},
		{name: "permission missing", o: with(func(o *Observations) { o.KVMOpen, o.KVMVersion = "denied", 0 }), accel: "tcg", reason: "may not", hint: "usermod -aG kvm"},
		{name: "no /dev/kvm, modules not loaded", o: with(func(o *Observations) { o.KVMOpen, o.KVMVersion, o.Modules = "missing", 0, nil }), accel: "tcg", reason: "no /dev/kvm", hint: "modprobe"},
		{name: "no /dev/kvm, cloud VM", o: with(func(o *Observations) {
			o.KVMOpen, o.KVMVersion, o.CPUFlags = "missing", 0, []string{"hypervisor"}
		}), accel: "tcg", reason: "nested", hint: "nested"},
		{name: "no /dev/kvm, firmware", o: with(func(o *Observations) { o.KVMOpen, o.KVMVersion, o.CPUFlags = "missing", 0, nil }), accel: "tcg", hint: "firmware"},
		{name: "opens without flags", o: with(func(o *Observations) { o.CPUFlags = []string{"hypervisor"} }), accel: "tcg", reason: "neither vmx nor svm", hint: "nested"},
		{name: "kvm_pvm", o: with(func(o *Observations) { o.Modules = []string{"kvm_pvm", "kvm"} }), accel: "tcg", reason: "kvm_pvm"},
		{name: "strange version", o: with(func(o *Observations) { o.KVMVersion = 3 }), accel: "tcg", reason: "version 3"},
		{name: "busy", o: with(func(o *Observations) { o.KVMOpen = "device or resource busy" }), accel: "tcg", reason: "busy"},
		{name: "qemu asked for", cfg: Config{Engine: "qemu"}, o: kvmHost, accel: "kvm"},
		{name: "firecracker asked for", cfg: Config{Engine: "firecracker"}, o: kvmHost, kind: api.KindUnavailable, hint: "auto"},
		{name: "nonsense asked for", cfg: Config{Engine: "vbox"}, o: kvmHost, kind: api.KindInvalid, hint: "qemu"},
		{name: "no QEMU", o: with(func(o *Observations) { o.QEMU = "" }), kind: api.KindUnavailable, hint: "apt-get install qemu-system-x86"},
		{name: "no QEMU on Fedora", o: with(func(o *Observations) { o.QEMU, o.Distro = "", "fedora" }), kind: api.KindUnavailable, hint: "dnf"},
		{name: "configured QEMU is gone", o: with(func(o *Observations) { o.QEMU, o.QEMUErr = "", "stat /x: no such file" }), kind: api.KindUnavailable, hint: "qemu_bin"},
		{name: "ARM", o: with(func(o *Observations) { o.Arch = "arm64" }), kind: api.KindUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := Decide(tc.cfg, tc.o)
			if tc.accel == "" {
				if api.KindOf(err) != tc.kind || !strings.Contains(api.AsError(err).Hint, tc.hint) {
					t.Errorf("error %v (%s), hint %q; want %s with %q", err, api.KindOf(err), api.AsError(err).Hint, tc.kind, tc.hint)
				}
				return
			}
			if err != nil || d.Engine != "qemu" || d.Accel != tc.accel || d.Binary != qemu {
				t.Fatalf("decided %+v, %v; want %s", d, err, tc.accel)
			}
			if !strings.Contains(d.Reason, tc.reason) || !strings.Contains(strings.Join(d.Hints, "\n"), tc.hint) {
				t.Errorf("reason %q, hints %q; want %q and %q", d.Reason, d.Hints, tc.reason, tc.hint)
			}
		})
	}
}

func TestParseCPUFlags(t *testing.T) {
	text := "processor\t: 0\nflags\t\t: fpu vme svm hypervisor lm\n\nprocessor\t: 1\nflags\t\t: vmx\n"
	if got := parseCPUFlags(bufio.NewReader(strings.NewReader(text))); !slices.Equal(got, []string{"svm", "hypervisor"}) {
		t.Errorf("flags %v", got)
	}
	if got := parseCPUFlags(bufio.NewReader(strings.NewReader("nothing"))); got != nil {
		t.Errorf("flags %v of a file without", got)
	}
}

func TestFindProgram(t *testing.T) {
	dir := t.TempDir()
	prog, plain := filepath.Join(dir, "prog"), filepath.Join(dir, "plain")
	for path, mode := range map[string]os.FileMode{prog: 0o755, plain: 0o644} {
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct{ configured, path, problem string }{
		{prog, prog, ""}, {plain, "", "not a program"}, {dir, "", "not a program"}, {filepath.Join(dir, "none"), "", "no such file"},
	} {
		path, problem := findProgram(tc.configured, "ignored")
		if path != tc.path || !strings.Contains(problem, tc.problem) || (tc.problem == "") != (problem == "") {
			t.Errorf("findProgram(%q) = %q, %q", tc.configured, path, problem)
		}
	}
}

func TestObserve(t *testing.T) {
	if o := Observe(Config{}); o.Arch == "" {
		t.Errorf("observed %+v", o)
	}
	if problem, _ := openKVM(filepath.Join(t.TempDir(), "none")); problem != "missing" {
		t.Errorf("a device that is not there: %q", problem)
	}
}
