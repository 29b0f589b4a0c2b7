package kmodtest

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"strings"
)

// DebugInfo stands behind what is loaded of a Vmlinux.
const DebugInfo = "a lot of debug information"

// Vmlinux describes a kernel: an ELF file with what it says of itself, and no code.
type Vmlinux struct {
	// Release is what uname -r would say; empty where it does not tell.
	Release string
	// Config are the options it was built with, without CONFIG_; nil where it does not tell.
	Config map[string]string
	// NoPVH leaves out the entry that QEMU needs.
	NoPVH bool
	// Type and Machine are 0 for those of a kernel for x86-64.
	Type    elf.Type
	Machine elf.Machine
}

// ELF returns the kernel's file.
func (k Vmlinux) ELF() []byte {
	const headerLen, progLen = 64, 56
	text := k.text()
	notes := note("Linux", 257, "abc") + note("GNU", 3, "0123456789")
	if !k.NoPVH {
		notes += note("Xen", 18, "\x00\x00\x00\x01\x00\x00\x00\x00")
	}
	hdr := elf.Header64{Type: uint16(k.Type), Machine: uint16(k.Machine), Version: 1, Phoff: headerLen, Ehsize: headerLen, Phentsize: progLen, Phnum: 2,
		Shentsize: 64}
	if k.Type == 0 {
		hdr.Type = uint16(elf.ET_EXEC)
	}
	if k.Machine == 0 {
		hdr.Machine = uint16(elf.EM_X86_64)
	}
	copy(hdr.Ident[:], "\x7fELF\x02\x01\x01")
	const at = headerLen + 2*progLen
	progs := []elf.Prog64{
		{Type: uint32(elf.PT_LOAD), Off: at, Filesz: uint64(len(text)), Memsz: 1 << 20},
		{Type: uint32(elf.PT_NOTE), Off: at + uint64(len(text)), Filesz: uint64(len(notes))},
	}
	var b bytes.Buffer
	_ = errors.Join(binary.Write(&b, binary.LittleEndian, hdr), binary.Write(&b, binary.LittleEndian, progs)) // into memory: cannot fail
	b.WriteString(text + notes + DebugInfo)
	return b.Bytes()
}

func (k Vmlinux) text() string {
	text := strings.Repeat("code ", 1000)
	if k.Release != "" {
		text += "Linux version %s (\x00Linux version " + k.Release + " (me@here) (gcc) #1 SMP\n\x00"
	}
	if k.Config == nil {
		return text
	}
	var lines strings.Builder
	lines.WriteString("#\n# Linux/x86 Kernel Configuration\n#\n# CONFIG_MODULES is not set\nCONFIG_CC_VERSION_TEXT=\"gcc\"\n")
	for _, name := range slices.Sorted(maps.Keys(k.Config)) {
		lines.WriteString("CONFIG_" + name + "=" + k.Config[name] + "\n")
	}
	var config bytes.Buffer
	z := gzip.NewWriter(&config)
	_, err := z.Write([]byte(lines.String()))
	_ = errors.Join(err, z.Close()) // into memory: cannot fail
	return text + "IKCFG_ST is what stands before it: IKCFG_ST" + config.String() + "IKCFG_ED"
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
