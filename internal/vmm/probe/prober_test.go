package probe

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker/release"
)

func TestProberAsksOnce(t *testing.T) {
	bin := put(t, filepath.Join(t.TempDir(), "qemu"), "QEMU emulator version 8.0.1")
	p := &Prober{Config: Config{Engine: QEMU, QEMUBin: bin}}
	for range 3 {
		if d, err := p.Choose(t.Context()); err != nil || d.Binary != bin || d.Version != "8.0.1" || d.Source != release.Configured {
			t.Fatalf("it gives %+v, %v", d, err)
		}
	}
	if n := asked(bin); n != 1 {
		t.Errorf("the version was asked for %d times", n)
	}
	put(t, bin, "QEMU emulator version 5.0.11") // another length: another program
	if _, err := p.Choose(t.Context()); api.KindOf(err) != api.KindUnavailable {
		t.Errorf("an older program in its place gives %v", err)
	}
}

// withKVM makes of this host one with KVM, to the prober that gets it.
func withKVM(o *Observations) {
	o.Arch, o.KVMOpen, o.KVMVersion, o.KVMCreate, o.CPUFlags, o.Modules = "amd64", "", kvmAPIVersion, "", []string{"vmx"}, nil
}

// TestProberAsksWhatMatters: with Firecracker there, QEMU is not run; without KVM, Firecracker is not.
func TestProberAsksWhatMatters(t *testing.T) {
	dir := t.TempDir()
	fc := put(t, filepath.Join(dir, "firecracker"), "Firecracker v1.17.0")
	put(t, filepath.Join(dir, "jailer"), "Jailer v1.17.0")
	qemu := put(t, filepath.Join(dir, "qemu"), "QEMU emulator version 8.0.1")
	cfg := Config{QEMUBin: qemu, FirecrackerBin: fc, Memory: filepath.Join(dir, "memory")}
	p := &Prober{Config: cfg, Adjust: withKVM}
	for range 2 {
		d, err := p.Choose(t.Context())
		if err != nil || d.Engine != Firecracker || d.Binary != fc || d.Version != "1.17.0" || d.Jailer != filepath.Join(dir, "jailer") {
			t.Fatalf("it gives %+v, %v", d, err)
		}
	}
	if asked(fc) != 1 || asked(qemu) != 0 {
		t.Errorf("firecracker was run %d times, QEMU %d", asked(fc), asked(qemu))
	}
	p = &Prober{Config: cfg, Adjust: func(o *Observations) { withKVM(o); o.KVMOpen = "ENOENT" }}
	if d, err := p.Choose(t.Context()); err != nil || d.Engine != QEMU || d.Accel != TCG || asked(fc) != 1 {
		t.Errorf("it gives %+v, %v", d, err)
	}
}

// TestProberRemembers: an engine that ended at its start is not chosen again, by this daemon or the next, until it is forgotten, or
// is another.
func TestProberRemembers(t *testing.T) {
	dir := t.TempDir()
	fc := put(t, filepath.Join(dir, "firecracker"), "Firecracker v1.17.0")
	qemu := put(t, filepath.Join(dir, "qemu"), "QEMU emulator version 8.0.1")
	memory := filepath.Join(dir, "memory")
	next := func() *Prober {
		return &Prober{Config: Config{QEMUBin: qemu, FirecrackerBin: fc, Memory: memory}, Adjust: withKVM}
	}
	p := next()
	choose := func(p *Prober, want string) Decision {
		t.Helper()
		d, err := p.Choose(t.Context())
		if err != nil || d.Engine+"/"+d.Accel != want {
			t.Errorf("it gives %+v, %v, want %s", d, err, want)
		}
		return d
	}
	d := choose(p, "firecracker/kvm")
	d, ok := p.Failed(t.Context(), d, errors.New("first line\nsecond "+strings.Repeat("ä", 1000)))
	if !ok || d.Engine != QEMU || d.Accel != KVM || !strings.Contains(d.Reason, "Firecracker 1.17.0 ended at its start on ") || !strings.Contains(d.Reason, "(first line second ä") ||
		len(d.Reason) > 500 || strings.ContainsRune(d.Reason, 0xfffd) {
		t.Errorf("instead: %+v, %v", d, ok)
	}
	choose(next(), "qemu/kvm")
	if d, ok = p.Failed(t.Context(), d, errors.New("no")); !ok || d.Engine != QEMU || d.Accel != TCG || !strings.Contains(d.Reason, "QEMU 8.0.1 with KVM") {
		t.Errorf("instead: %+v, %v", d, ok)
	}
	choose(next(), "qemu/tcg")
	if d, ok := p.Failed(t.Context(), d, errors.New("no")); ok {
		t.Errorf("after the last one: %+v", d)
	}
	put(t, fc, "Firecracker v1.17.10")
	choose(p, "firecracker/kvm")
	put(t, fc, "Firecracker v1.17.0")
	other := next()
	other.Adjust = func(o *Observations) { withKVM(o); o.Kernel = "7.0.0" }
	choose(other, "firecracker/kvm")
	choose(p, "qemu/tcg")
	if err := Forget(memory); err != nil {
		t.Error(err)
	}
	choose(p, "firecracker/kvm")
	if err := Forget(memory); err != nil {
		t.Error(err)
	}
	configured := next()
	configured.Engine = Firecracker
	if d, ok := configured.Failed(t.Context(), d, errors.New("no")); ok {
		t.Errorf("a configured engine is given up for %+v", d)
	}
	if _, err := os.Stat(memory); err == nil {
		t.Error("and remembered")
	}
}

// TestProberRemembersFetches for an hour.
func TestProberRemembersFetches(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", "/usr/bin:/bin")
	qemu := put(t, filepath.Join(dir, "qemu"), "QEMU emulator version 8.0.1")
	cfg := Config{QEMUBin: qemu, Bin: filepath.Join(dir, "bin"), Memory: filepath.Join(dir, "memory")}
	pin, ok := release.Pinned("amd64")
	if !ok {
		t.Fatal("no release is pinned")
	}
	adjust := func(o *Observations) {
		withKVM(o)
		o.Firecracker = nil // whatever this host has
	}
	p := &Prober{Config: cfg, Adjust: adjust}
	is := func(what string, fetch bool) {
		t.Helper()
		if d, err := p.Choose(t.Context()); err != nil || d.Fetch != fetch || (d.Engine == Firecracker) != fetch {
			t.Errorf("%s: %+v, %v", what, d, err)
		}
	}
	is("at first", true)
	p.FetchFailed(errors.New("no route"))
	is("after a failure", false)
	archive := filepath.Join(cfg.Bin, pin.Archive())
	put(t, archive, "")
	is("with the archive there", true)
	if err := os.Remove(archive); err != nil {
		t.Fatal(err)
	}
	is("with it gone", false)
	m := readMemory(cfg.Memory)
	for what, at := range map[string]time.Time{"an hour ago": time.Now().Add(-fetchAgain), "in the future": time.Now().Add(time.Hour)} {
		m.Fetch.At = at
		if err := m.write(cfg.Memory); err != nil {
			t.Fatal(err)
		}
		is(what, true)
	}
	m.Fetch.At, m.Fetch.Version = time.Now(), "1.0.0"
	if err := m.write(cfg.Memory); err != nil {
		t.Fatal(err)
	}
	is("of another release", true)
}

// TestMemory: what cannot be read is nothing, and what cannot be written is kept.
func TestMemory(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "memory")
	for _, text := range []string{"", "{", "[]", `{"version": 2, "failures": [{}]}`, strings.Repeat(" ", maxMemory) + `{"version": 1, "failures": [{}]}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if m := readMemory(path); len(m.Failures) > 0 || m.Fetch != nil {
			t.Errorf("%.40q is %+v", text, m)
		}
	}
	var m memory
	for i := range 2 * maxFailures {
		m.add(Failure{Engine: "e", Binary: string(rune('a' + i)), Kernel: "k"})
	}
	m.add(Failure{Engine: "e", Binary: "p", Kernel: "k", Reason: "again"})
	if len(m.Failures) != maxFailures || m.Failures[maxFailures-1].Reason != "again" || m.Failures[0].Binary != "i" {
		t.Errorf("it keeps %+v", m.Failures)
	}
	m.add(Failure{Engine: "e", Kernel: "newer"})
	if len(m.Failures) != 1 {
		t.Errorf("of a kernel of the past it keeps %+v", m.Failures)
	}

	fc := put(t, filepath.Join(dir, "firecracker"), "Firecracker v1.17.0")
	qemu := put(t, filepath.Join(dir, "qemu"), "QEMU emulator version 8.0.1")
	for _, lost := range []string{"", filepath.Join(dir, "none", "memory")} {
		p := &Prober{Config: Config{QEMUBin: qemu, FirecrackerBin: fc, Memory: lost}, Adjust: withKVM}
		d, err := p.Choose(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := p.Failed(t.Context(), d, errors.New("no")); !ok || d.Engine != QEMU {
			t.Errorf("memory %q: %+v, %v", lost, d, ok)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 5 {
		t.Errorf("there is %v, %v", entries, err)
	}
}
