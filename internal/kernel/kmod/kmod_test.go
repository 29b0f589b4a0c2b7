package kmod

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/kernel/kmod/kmodtest"
)

// tree is a small /lib/modules/RELEASE with one of everything: dashes, aliases with brackets, a softdep, device nodes, a chain of
// dependencies, a built-in module with an alias.
func tree() map[string]string {
	mod := func(m kmodtest.Module) string { return string(m.ELF()) }
	return map[string]string{
		"kernel/drivers/virtio/virtio-net.ko": mod(kmodtest.Module{Signed: true, Needs: []string{"net_failover_create", "printk"},
			Info: []string{"license=GPL", "alias=virtio:d00000001v*", "alias=pci:v00001AF4d[1-2]*sv-x", "depends=net-failover"}}),
		"kernel/drivers/net/net_failover.ko": mod(kmodtest.Module{Needs: []string{"failover_register"},
			Exports: []string{"net_failover_create", "net_failover_destroy"}, Info: []string{"depends=failover"}}),
		"kernel/net/core/failover.ko": mod(kmodtest.Module{Exports: []string{"failover_register"}, Info: []string{"depends=", "name=failover"}}),
		"kernel/drivers/net/tun.ko": mod(kmodtest.Module{Info: []string{"alias=devname:net/tun", "alias=char-major-10-200",
			"softdep=pre: failover post: virtio-net", "depends="}}),
		"kernel/drivers/block/loop.ko": mod(kmodtest.Module{Info: []string{"alias=block-major-7-*", "alias=devname:loop-control",
			"alias=char-major-10-237"}}),
		"kernel/extra/zz.ko":      mod(kmodtest.Module{Info: []string{"alias=virtio:d00000001v*", "alias=x86cpu:[a-b"}}),
		"modules.order":           "kernel/net/core/failover.ko\nkernel/drivers/virtio/virtio-net.ko\nkernel/drivers/net/net_failover.ko\nkernel/drivers/net/tun.ko\nkernel/not/there.ko\nkernel/drivers/block/loop.ko\n",
		"modules.builtin":         "kernel/fs/ext4/ext4.ko\nkernel/lib/crc-16.ko\n",
		"modules.builtin.modinfo": "ext4.alias=fs-ext4\x00ext4.license=GPL\x00ext4.alias=ext3\x00crc_16.file=lib/crc-16\x00crc_16.alias=crc16-any\x00",
	}
}

func newSet(t *testing.T, files map[string]string) (*Set, error) {
	t.Helper()
	var modules []Module
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !IsModule(name) {
			continue
		}
		data, err := Decompress(name, strings.NewReader(files[name]))
		if err != nil {
			t.Fatal(err)
		}
		m, err := Parse(name, data)
		if err != nil {
			t.Fatal(err)
		}
		modules = append(modules, m)
	}
	return NewSet(modules, Shipped{Order: []byte(files["modules.order"]), Builtin: []byte(files["modules.builtin"]),
		BuiltinInfo: []byte(files["modules.builtin.modinfo"])})
}

// The golden files are depmod's own. UPDATE=1 has depmod write them anew; where it is installed the test makes sure
// that they are what it writes.
func TestFilesAreDepmods(t *testing.T) {
	set, err := newSet(t, tree())
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "depmod")
	if made, ok := runDepmod(t, tree()); ok {
		for name, data := range made {
			if os.Getenv("UPDATE") != "" {
				if err := os.WriteFile(filepath.Join(golden, name), data, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want, _ := os.ReadFile(filepath.Join(golden, name)); !bytes.Equal(want, data) {
				t.Errorf("%s: depmod writes something else than the golden file: run with UPDATE=1", name)
			}
		}
	}
	for _, f := range set.Files() {
		want, err := os.ReadFile(filepath.Join(golden, f.Name))
		if err != nil {
			t.Fatal(err)
		}
		got := f.Data
		if f.Name == "modules.symbols" { // depmod writes it in the order of a hash table
			got, want = sortLines(got), sortLines(want)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s: %s", f.Name, diff)
		}
	}
}

func sortLines(data []byte) []byte {
	return []byte(strings.Join(slices.Sorted(strings.Lines(string(data))), ""))
}

// runDepmod returns what depmod writes for a tree; false where it is not installed.
func runDepmod(t *testing.T, files map[string]string) (map[string][]byte, bool) {
	t.Helper()
	if _, err := (hostexec.Runner{}).LookPath("depmod"); err != nil {
		return nil, false
	}
	root := t.TempDir()
	dir := filepath.Join(root, "lib", "modules", "6.12.0")
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := (hostexec.Runner{}).Run(context.Background(), hostexec.Cmd{Argv: []string{"depmod", "-b", root, "6.12.0"}}); err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for _, f := range (&Set{}).Files() { // a newer depmod may write more
		data, err := os.ReadFile(filepath.Join(dir, f.Name))
		if err != nil {
			t.Fatal(err)
		}
		out[f.Name] = data
	}
	return out, true
}

func TestParse(t *testing.T) {
	m, err := Parse("kernel/a-b.ko.xz", kmodtest.Module{Info: []string{"alias=x", "softdep=pre: y", "depends=c-d,e", "alias=z=1"},
		Exports: []string{"f"}, Needs: []string{"g"}, Signed: true}.ELF())
	if err != nil {
		t.Fatal(err)
	}
	want := Module{Path: "kernel/a-b.ko.xz", Name: "a_b", Depends: []string{"c_d", "e"}, Aliases: []string{"x", "z=1"},
		Softdeps: []string{"pre: y"}, Symbols: []string{"f"}}
	if diff := cmp.Diff(want, m); diff != "" {
		t.Error(diff)
	}
	whole := kmodtest.Module{Info: []string{"alias=x"}}.ELF()
	for name, data := range map[string][]byte{"empty": nil, "text": []byte("no module"), "cut": whole[:len(whole)-40]} {
		if _, err := Parse("a.ko", data); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v, want ErrFormat", name, err)
		}
	}
}

func TestDecompress(t *testing.T) {
	want := bytes.Repeat([]byte("module "), 10_000)
	var gz, x, zst bytes.Buffer
	gw := gzip.NewWriter(&gz)
	xw, err := xz.NewWriter(&x)
	zw, err2 := zstd.NewWriter(&zst)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	for _, w := range []interface {
		Write([]byte) (int, error)
		Close() error
	}{gw, xw, zw} {
		_, err := w.Write(want)
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range map[string][]byte{"a.ko": want, "a.ko.gz": gz.Bytes(), "a.ko.xz": x.Bytes(), "a.ko.zst": zst.Bytes()} {
		if !IsModule(name) || Name("x/"+name) != "a" {
			t.Errorf("%s is no module, or not called a", name)
		}
		got, err := Decompress(name, bytes.NewReader(data))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		if _, err := Decompress(name, bytes.NewReader(data[:len(data)/2])); err == nil && name != "a.ko" {
			t.Errorf("%s: half of it gave no error", name)
		}
	}
	for _, name := range []string{"modules.order", "a.ko.lz4", "ko", "a.xz"} {
		if IsModule(name) {
			t.Errorf("%s is taken for a module", name)
		}
	}
}

func TestStripSignature(t *testing.T) {
	plain := string(kmodtest.Module{Info: []string{"alias=x"}}.ELF())
	for data, want := range map[string]string{
		plain + kmodtest.Signature: plain,
		plain:                      plain,
		signatureMagic:             signatureMagic,
		"":                         "",
		"x" + strings.Repeat("\xff", 12) + signatureMagic: "x" + strings.Repeat("\xff", 12) + signatureMagic,
	} {
		if got := string(StripSignature([]byte(data))); got != want {
			t.Errorf("%d bytes became %d, want %d", len(data), len(got), len(want))
		}
	}
}

func TestLoadOrder(t *testing.T) {
	set, err := newSet(t, tree())
	if err != nil {
		t.Fatal(err)
	}
	mods, err := set.LoadOrder("ext4", "tun", "virtio-net", "failover", "crc_16")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range mods {
		got = append(got, m.Name)
	}
	if diff := cmp.Diff(strings.Fields("tun failover net_failover virtio_net"), got); diff != "" {
		t.Error(diff)
	}
	if _, err := set.LoadOrder("tun", "nothing"); err == nil || !strings.Contains(err.Error(), `"nothing"`) {
		t.Errorf("got %v", err)
	}
}

// However the dependencies branch, each module comes after all it needs and once.
func TestLoadOrderOfDiamonds(t *testing.T) {
	deps := map[string]string{"a": "b,c", "b": "d,e", "c": "e,d,f", "d": "g", "e": "g", "f": "", "g": "", "h": "a,g"}
	var modules []Module
	for name, d := range deps {
		m := Module{Path: name + ".ko", Name: name}
		if d != "" {
			m.Depends = strings.Split(d, ",")
		}
		modules = append(modules, m)
	}
	set, err := NewSet(modules, Shipped{})
	if err != nil {
		t.Fatal(err)
	}
	for name := range deps {
		mods, err := set.LoadOrder(name, "c")
		if err != nil {
			t.Fatal(err)
		}
		loaded := map[string]bool{}
		for _, m := range mods {
			for _, d := range m.Depends {
				if !loaded[d] {
					t.Errorf("%s before %s, which it needs", m.Name, d)
				}
			}
			if loaded[m.Name] {
				t.Errorf("%s comes twice", m.Name)
			}
			loaded[m.Name] = true
		}
		if !loaded[name] || !loaded["c"] {
			t.Errorf("%s is missing in %v", name, loaded)
		}
	}
}

func TestNewSetRefuses(t *testing.T) {
	mod := func(path string, deps ...string) Module { return Module{Path: path, Name: Name(path), Depends: deps} }
	for name, mods := range map[string][]Module{
		"missing": {mod("a.ko", "b")},
		"circle":  {mod("a.ko", "b"), mod("b.ko", "c"), mod("c.ko", "b")},
		"itself":  {mod("a.ko", "a")},
		"twice":   {mod("x/a.ko"), mod("y/a.ko.xz")},
	} {
		if _, err := NewSet(mods, Shipped{}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// lookup finds a key as modprobe does, in the bytes of an index.
func lookup(t *testing.T, index []byte, key string) []string {
	t.Helper()
	num := func(at uint32) uint32 { return binary.BigEndian.Uint32(index[at:]) }
	text := func(at uint32) string { return string(index[at : at+uint32(bytes.IndexByte(index[at:], 0))]) }
	if num(0) != indexMagic || num(4) != indexVersion {
		t.Fatal("bad header")
	}
	for ref := num(8); ; {
		at := ref & 0x0fffffff
		if ref&flagPrefix != 0 {
			prefix := text(at)
			if !strings.HasPrefix(key, prefix) {
				return nil
			}
			key = key[len(prefix):]
			at += uint32(len(prefix)) + 1
		}
		var children uint32
		var first, last byte
		if ref&flagChildren != 0 {
			first, last, children = index[at], index[at+1], at+2
			at += 2 + 4*uint32(last-first+1)
		}
		if key == "" {
			if ref&flagValues == 0 {
				return nil
			}
			var out []string
			n := num(at)
			at += 4
			for range n {
				v := text(at + 4)
				out = append(out, v)
				at += 4 + uint32(len(v)) + 1
			}
			return out
		}
		if children == 0 || key[0] < first || key[0] > last {
			return nil
		}
		if ref = num(children + 4*uint32(key[0]-first)); ref == 0 {
			return nil
		}
		key = key[1:]
	}
}

func FuzzIndex(f *testing.F) {
	f.Add("a ab abc b", "x")
	f.Add("virtio:d1 virtio:d2 virtio virt", "virtio:d")
	f.Fuzz(func(t *testing.T, keys, other string) {
		want := map[string][]string{}
		var entries []indexEntry
		for i, key := range strings.Fields(keys) {
			entries = append(entries, indexEntry{key, fmt.Sprint(i), i})
			if !strings.ContainsFunc(key, func(r rune) bool { return r == 0 || r > 127 }) {
				want[key] = append(want[key], fmt.Sprint(i))
			}
		}
		index := writeIndex(entries)
		for key, values := range want {
			if diff := cmp.Diff(values, lookup(t, index, key)); diff != "" {
				t.Errorf("%q: %s", key, diff)
			}
		}
		if got := lookup(t, index, other); want[other] == nil && got != nil {
			t.Errorf("%q: found %v", other, got)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(kmodtest.Module{Info: []string{"alias=x", "depends=a,b"}, Exports: []string{"s"}, Needs: []string{"u"}, Signed: true}.ELF())
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Parse("kernel/x.ko", data)
		if err != nil && !errors.Is(err, ErrFormat) {
			t.Fatal(err)
		}
		for _, d := range m.Depends {
			if d == "" || strings.ContainsAny(d, "-,") {
				t.Fatalf("depends on %q", d)
			}
		}
		if rest := StripSignature(data); !bytes.HasPrefix(data, rest) {
			t.Fatal("StripSignature made bytes up")
		}
	})
}
