package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/internal/deb/debtest"
)

// debugInfo stands behind what a test kernel loads, and must not be copied.
const debugInfo = "a lot of debug information"

// kernelELF describes a vmlinux with what is looked at.
type kernelELF struct {
	release string
	config  map[string]string // nil for none
	noPVH   bool
	kind    elf.Type    // 0 for ET_EXEC
	machine elf.Machine // 0 for x86-64
}

func (k kernelELF) bytes(t testing.TB) []byte {
	t.Helper()
	var text bytes.Buffer
	text.WriteString(strings.Repeat("code ", 1000))
	if k.release != "" {
		text.WriteString("Linux version %s (\x00Linux version " + k.release + " (me@here) (gcc) #1 SMP\n\x00")
	}
	if k.config != nil {
		var lines strings.Builder
		lines.WriteString("#\n# Linux/x86 Kernel Configuration\n#\n# CONFIG_MODULES is not set\nCONFIG_CC_VERSION_TEXT=\"gcc\"\n")
		for _, name := range slices.Sorted(maps.Keys(k.config)) {
			lines.WriteString("CONFIG_" + name + "=" + k.config[name] + "\n")
		}
		text.WriteString("IKCFG_ST is what stands before it: IKCFG_ST" + string(debtest.Compress(t, []byte(lines.String()), ".gz")) + "IKCFG_ED")
	}
	notes := note("Linux", 257, "abc") + note("GNU", 3, "0123456789")
	if !k.noPVH {
		notes += note("Xen", 18, "\x00\x00\x00\x01\x00\x00\x00\x00")
	}
	const headers = elfHeaderLen + 2*phentLen
	hdr := elf.Header64{Type: uint16(k.kind), Machine: uint16(k.machine), Version: 1, Phoff: elfHeaderLen, Ehsize: 64, Phentsize: phentLen, Phnum: 2,
		Shentsize: 64}
	if k.kind == 0 {
		hdr.Type = uint16(elf.ET_EXEC)
	}
	if k.machine == 0 {
		hdr.Machine = uint16(elf.EM_X86_64)
	}
	copy(hdr.Ident[:], "\x7fELF\x02\x01\x01")
	progs := []elf.Prog64{
		{Type: uint32(elf.PT_LOAD), Off: headers, Filesz: uint64(text.Len()), Memsz: 1 << 20},
		{Type: uint32(elf.PT_NOTE), Off: headers + uint64(text.Len()), Filesz: uint64(len(notes))},
	}
	var b bytes.Buffer
	_ = errors.Join(binary.Write(&b, binary.LittleEndian, hdr), binary.Write(&b, binary.LittleEndian, progs)) // into memory: cannot fail
	b.Write(text.Bytes())
	b.WriteString(notes + debugInfo)
	return b.Bytes()
}

func note(name string, kind uint32, desc string) string {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(name)+1))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(desc)))
	b = binary.LittleEndian.AppendUint32(b, kind)
	pad := func(s string) { b = append(b, s+strings.Repeat("\x00", -len(s)&3)...) }
	pad(name + "\x00")
	pad(desc)
	return string(b)
}

func TestReadFacts(t *testing.T) {
	for name, c := range map[string]struct {
		kernel kernelELF
		want   facts
	}{
		"all":     {kernelELF{release: "6.12.9+deb13-cloud", config: map[string]string{"EXT4_FS": "y", "TUN": "m"}}, facts{release: "6.12.9+deb13-cloud", config: map[string]string{"EXT4_FS": "y", "TUN": "m", "CC_VERSION_TEXT": `"gcc"`}, pvh: true}},
		"nothing": {kernelELF{noPVH: true}, facts{}},
	} {
		got, err := readFacts(c.kernel.bytes(t))
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(facts{})); diff != "" || err != nil {
			t.Errorf("%s: %v %s", name, err, diff)
		}
	}
	cut := kernelELF{release: "6.12.9", config: map[string]string{"A": strings.Repeat("y", 4000)}}.bytes(t)
	at := bytes.Index(cut, []byte("IKCFG_ST\x1f\x8b"))
	if _, err := readFacts(append(cut[:at+30:at+30], make([]byte, 200)...)); !errors.Is(err, errBzImage) || !strings.Contains(err.Error(), "configuration") {
		t.Errorf("a damaged configuration: %v", err)
	}
}

func TestCopyVmlinux(t *testing.T) {
	file := kernelELF{release: "6.12.9"}.bytes(t)
	binary.LittleEndian.PutUint64(file[offShoff:], uint64(len(file))) // a section, behind the debug information
	binary.LittleEndian.PutUint16(file[offShnum:], 1)
	file = append(file, make([]byte, 64)...)
	var out bytes.Buffer
	if err := copyVmlinux(&out, bytes.NewReader(file)); err != nil {
		t.Fatal(err)
	}
	want := bytes.TrimSuffix(kernelELF{release: "6.12.9"}.bytes(t), []byte(debugInfo))
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
		"arm64":           {kernelELF{machine: elf.EM_AARCH64}.bytes(t), "EM_AARCH64"},
		"a module":        {kernelELF{kind: elf.ET_REL}.bytes(t), "ET_REL"},
		"no segments":     {vmlinux(), "nothing to load"},
		"empty":           {nil, "EOF"},
		"cut":             {kernelELF{}.bytes(t)[:3000], "ends after 3000 bytes"},
		"segment outside": {change(elfHeaderLen+32, 1<<40), "longer than"},
		"segment at end":  {change(elfHeaderLen+8, 1<<62), "longer than"},
	} {
		if err := copyVmlinux(io.Discard, bytes.NewReader(c.file)); !errors.Is(err, errBzImage) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func FuzzVmlinux(f *testing.F) {
	f.Add(kernelELF{release: "6.12.9", config: map[string]string{"EXT4_FS": "y"}}.bytes(f))
	f.Add(kernelELF{release: "6.12.9", noPVH: true}.bytes(f))
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
