package release

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// script writes a program of the shell.
func script(t testing.TB, path, body string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPins(t *testing.T) {
	for goarch, arch := range map[string]string{"amd64": "x86_64", "arm64": "aarch64"} {
		p, ok := Pinned(goarch)
		if !ok || p.Arch != arch || len(p.SHA256) != 64 || !AtLeast(p.Version, Minimum) {
			t.Errorf("%s: %+v, %v", goarch, p, ok)
		}
		want := "https://github.com/firecracker-microvm/firecracker/releases/download/v1.17.0/firecracker-v1.17.0-" + arch + ".tgz"
		if p.URL != want {
			t.Errorf("%s: %s", goarch, p.URL)
		}
	}
	if p, ok := Pinned("riscv64"); ok || p != (Pin{}) {
		t.Errorf("riscv64: %+v", p)
	}
}

func TestVersion(t *testing.T) {
	dir := t.TempDir()
	for name, tt := range map[string]struct{ body, want, err string }{
		"release": {`printf 'Firecracker v1.17.0\n\n2026-11-24T02:38:40.123456789 [anonymous-instance:main] Firecracker exiting successfully. exit_code=0\n'`, "1.17.0", ""},
		"dev":     {"echo Firecracker v1.18.0-dev", "1.18.0-dev", ""},
		"windows": {`printf 'Firecracker v1.17.0\r\n'`, "1.17.0", ""},
		"second":  {`printf 'hello\nFirecracker v1.17.0\n'`, "", "does not answer"},
		"jailer":  {"echo Jailer v1.17.0", "", "does not answer"},
		"mute":    {"exit 0", "", "does not answer"},
		"failing": {"echo Firecracker v1.17.0; echo no way >&2; exit 3", "", "no way"},
		"endless": {"echo Firecracker v1.17.0; head -c 10000000 /dev/zero", "1.17.0", ""},
	} {
		got, err := Version(t.Context(), script(t, filepath.Join(dir, name), tt.body))
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := Version(t.Context(), filepath.Join(dir, "nope")); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "nope: no such file") {
		t.Errorf("no program: %v", err)
	}
	if _, err := Version(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "directory") {
		t.Errorf("a directory: %v", err)
	}
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Version(t.Context(), plain); err == nil {
		t.Error("a file that is no program tells its version")
	}
}

func TestAtLeast(t *testing.T) {
	for _, tt := range []struct {
		version, least string
		want           bool
	}{
		{"1.17.0", "1.17.0", true}, {"1.17.1", "1.17.0", true}, {"1.18.0-dev", "1.17.0", true}, {"2.0.0", "1.17.0", true}, {"1.100.0", "1.17.0", true},
		{"1.16.9", "1.17.0", false}, {"1.17.0-dev", "1.17.0", false}, {"0.99.0", "1.17.0", false}, {"1.9.0", "1.17.0", false},
		{"1.17.0+local", "1.17.0", true}, {"1.17.0-dev", "1.17.0-dev", true},
		{"", "1.17.0", false}, {"1.17", "1.17.0", false}, {"1.17.x", "1.17.0", false}, {"1.-17.0", "1.17.0", false},
	} {
		if got := AtLeast(tt.version, tt.least); got != tt.want {
			t.Errorf("AtLeast(%q, %q) = %v", tt.version, tt.least, got)
		}
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	bin, path, opt := filepath.Join(dir, "bin"), filepath.Join(dir, "path"), filepath.Join(dir, "opt")
	t.Setenv("PATH", path)
	pin := Pin{Version: "1.17.0", Arch: "x86_64"}
	check := func(what, configured string, want ...Program) {
		t.Helper()
		if diff := cmp.Diff(want, Find(configured, bin, pin)); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	check("nothing", "")
	missing := filepath.Join(opt, "nope")
	check("configured, not there", missing, Program{Path: missing, Source: Configured})

	fc, jailer := pin.Own(bin)
	script(t, fc, "")
	check("own without its jailer", "")
	script(t, jailer, "")
	own := Program{Path: fc, Jailer: jailer, Source: Own}
	check("own", "", own)

	script(t, filepath.Join(opt, "firecracker-v1.18.0-x86_64"), "")
	script(t, filepath.Join(opt, "jailer-v1.18.0-x86_64"), "")
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(path, "firecracker")
	if err := os.Symlink(filepath.Join(opt, "firecracker-v1.18.0-x86_64"), link); err != nil {
		t.Fatal(err)
	}
	check("a link in PATH", "", Program{Path: link, Jailer: filepath.Join(opt, "jailer-v1.18.0-x86_64"), Source: Path}, own)
	check("configured", link, Program{Path: link, Jailer: filepath.Join(opt, "jailer-v1.18.0-x86_64"), Source: Configured})
	script(t, filepath.Join(path, "jailer"), "")
	check("both in PATH", "", Program{Path: link, Jailer: filepath.Join(path, "jailer"), Source: Path}, own)
	if err := os.Chmod(filepath.Join(path, "jailer"), 0o600); err != nil {
		t.Fatal(err)
	}
	vmm := script(t, filepath.Join(opt, "vmm"), "")
	check("another name", vmm, Program{Path: vmm, Source: Configured})
	if err := os.Chmod(fc, 0o600); err != nil {
		t.Fatal(err)
	}
	check("own, not executable", "", Program{Path: link, Jailer: filepath.Join(opt, "jailer-v1.18.0-x86_64"), Source: Path})
}

// FuzzVersions: what a program prints and what a server says lead to no version, or range, that is none.
func FuzzVersions(f *testing.F) {
	for _, s := range []string{"1.17.0", "1.18.0-dev", "1.17.0+x-y", "1..0", "-1.0.0", "bytes 5-9/10", "bytes 5-9/*", "bytes -1-2/3", "bytes 9-9/5", "bytes */5"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, _, ok := parse(s)
		if ok && (v[0] < 0 || v[1] < 0 || v[2] < 0 || !AtLeast(s, s)) {
			t.Errorf("%q is version %v", s, v)
		}
		if AtLeast(s, Minimum) && !ok {
			t.Errorf("%q, which is no version, is at least %s", s, Minimum)
		}
		if m := versionLine.FindStringSubmatch("Firecracker v" + s); m != nil && !AtLeast(m[1], "0.0.0-x") {
			t.Errorf("%q is told as a version and is none", m[1])
		}
		if first, total, ok := contentRange(s); ok && (first < 0 || total != -1 && total < first) {
			t.Errorf("%q is %d of %d", s, first, total)
		}
	})
}
