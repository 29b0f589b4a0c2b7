package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/internal/kernel/kmod/kmodtest"
)

func TestReadFacts(t *testing.T) {
	for name, c := range map[string]struct {
		kernel kmodtest.Vmlinux
		want   facts
	}{
		"all":     {kmodtest.Vmlinux{Release: "6.12.9+deb13-cloud", Config: map[string]string{"EXT4_FS": "y", "TUN": "m"}}, facts{release: "6.12.9+deb13-cloud", config: map[string]string{"EXT4_FS": "y", "TUN": "m", "CC_VERSION_TEXT": `"gcc"`}, pvh: true}},
		"nothing": {kmodtest.Vmlinux{NoPVH: true}, facts{}},
	} {
		got, err := readFacts(c.kernel.ELF())
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(facts{})); diff != "" || err != nil {
			t.Errorf("%s: %v %s", name, err, diff)
		}
	}
	cut := kmodtest.Vmlinux{Release: "6.12.9", Config: map[string]string{"A": strings.Repeat("y", 4000)}}.ELF()
	at := bytes.Index(cut, []byte("IKCFG_ST\x1f\x8b"))
	if _, err := readFacts(append(cut[:at+30:at+30], make([]byte, 200)...)); !errors.Is(err, errBzImage) || !strings.Contains(err.Error(), "configuration") {
		t.Errorf("a damaged configuration: %v", err)
	}
}

func TestCopyVmlinux(t *testing.T) {
	file := kmodtest.Vmlinux{Release: "6.12.9"}.ELF()
	binary.LittleEndian.PutUint64(file[offShoff:], uint64(len(file))) // a section, behind the debug information
	binary.LittleEndian.PutUint16(file[offShnum:], 1)
	file = append(file, make([]byte, 64)...)
	var out bytes.Buffer
	if err := copyVmlinux(&out, bytes.NewReader(file)); err != nil {
		t.Fatal(err)
	}
	want := bytes.TrimSuffix(kmodtest.Vmlinux{Release: "6.12.9"}.ELF(), []byte(kmodtest.DebugInfo))
	if !bytes.Equal(want, out.Bytes()) {
		t.Errorf("copied %d bytes, want the %d that are loaded", out.Len(), len(want))
	}
	var again bytes.Buffer
	if err := copyVmlinux(&again, bytes.NewReader(out.Bytes())); err != nil || !bytes.Equal(again.Bytes(), out.Bytes()) {
		t.Errorf("a copy of the copy: %d bytes, %v", again.Len(), err)
	}
	change := func(at int, v uint64) []byte {
		c := bytes.Clone(file)
		binary.LittleEndian.PutUint64(c[at:], v)
		return c
	}
	for name, c := range map[string]struct {
		file []byte
		want string
	}{
		"arm64":           {kmodtest.Vmlinux{Machine: elf.EM_AARCH64}.ELF(), "EM_AARCH64"},
		"a module":        {kmodtest.Vmlinux{Type: elf.ET_REL}.ELF(), "ET_REL"},
		"no segments":     {vmlinux(), "nothing to load"},
		"empty":           {nil, "EOF"},
		"cut":             {kmodtest.Vmlinux{}.ELF()[:3000], "ends after 3000 bytes"},
		"segment outside": {change(elfHeaderLen+32, 1<<40), "longer than"},
		"segment at end":  {change(elfHeaderLen+8, 1<<62), "longer than"},
	} {
		if err := copyVmlinux(io.Discard, bytes.NewReader(c.file)); !errors.Is(err, errBzImage) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func FuzzVmlinux(f *testing.F) {
	f.Add(kmodtest.Vmlinux{Release: "6.12.9", Config: map[string]string{"EXT4_FS": "y"}}.ELF())
	f.Add(kmodtest.Vmlinux{Release: "6.12.9", NoPVH: true}.ELF())
	f.Add(vmlinux())
	f.Fuzz(func(t *testing.T, data []byte) {
		var out bytes.Buffer
		if err := copyVmlinux(&out, bytes.NewReader(data)); err != nil {
			if !errors.Is(err, errBzImage) {
				t.Fatal(err)
			}
		} else if out.Len() > len(data) {
			t.Fatalf("%d bytes of %d", out.Len(), len(data))
		}
		got, err := readFacts(data)
		if err != nil && !errors.Is(err, errBzImage) {
			t.Fatal(err)
		}
		if strings.ContainsAny(got.release, "/ \n") {
			t.Fatalf("release %q", got.release)
		}
	})
}
