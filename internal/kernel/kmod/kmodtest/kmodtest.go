// Package kmodtest makes kernel modules and kernels for tests: ELF files with what depmod, modprobe and banger look at, and no code.
package kmodtest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"strings"
)

// Module describes a module.
type Module struct {
	// Info are the fields of .modinfo, such as "alias=x".
	Info []string
	// Exports are the symbols it offers, Needs those it uses.
	Exports, Needs []string
	// Signed appends something in the form of a signature.
	Signed bool
}

// Signature is what Signed appends: 5 bytes of signature, a struct module_signature, the magic.
const Signature = "SIGN!" + "\x00\x00\x02\x00\x00\x00\x00\x00" + "\x00\x00\x00\x05" + "~Module signature appended~\n"

// ELF returns the module's file.
func (m Module) ELF() []byte {
	var strtab, shstrtab table
	symbols := []elf.Sym64{{}}
	global := elf.ST_INFO(elf.STB_GLOBAL, elf.STT_NOTYPE)
	for _, s := range m.Exports {
		symbols = append(symbols,
			elf.Sym64{Name: strtab.add("__ksymtab_" + s), Info: global, Shndx: 2},
			elf.Sym64{Name: strtab.add("__crc_" + s), Info: global, Shndx: uint16(elf.SHN_ABS), Value: 0x1234})
	}
	for _, s := range m.Needs {
		symbols = append(symbols, elf.Sym64{Name: strtab.add(s), Info: global, Shndx: uint16(elf.SHN_UNDEF)})
	}
	var symtab bytes.Buffer
	_ = binary.Write(&symtab, binary.LittleEndian, symbols) // into memory: cannot fail
	var ksymtab strings.Builder
	for _, s := range m.Exports {
		ksymtab.WriteString(s + "\x00")
	}
	out := write(&shstrtab, []section{
		{".modinfo", elf.SHT_PROGBITS, []byte(strings.Join(m.Info, "\x00") + "\x00"), 0, 0},
		{"__ksymtab_strings", elf.SHT_PROGBITS, []byte(ksymtab.String()), 0, 0},
		{".symtab", elf.SHT_SYMTAB, symtab.Bytes(), 4, 24},
		{".strtab", elf.SHT_STRTAB, strtab.bytes(), 0, 0},
	})
	if m.Signed {
		out = append(out, Signature...)
	}
	return out
}

type section struct {
	name    string
	kind    elf.SectionType
	data    []byte
	link    uint32
	entSize uint64
}

func write(names *table, sections []section) []byte {
	const headerLen = 64
	headers := []elf.Section64{{}}
	var body bytes.Buffer
	add := func(s section) {
		headers = append(headers, elf.Section64{Name: names.add(s.name), Type: uint32(s.kind), Off: uint64(headerLen + body.Len()),
			Size: uint64(len(s.data)), Link: s.link, Info: 1, Addralign: 1, Entsize: s.entSize})
		body.Write(s.data)
	}
	for _, s := range sections {
		add(s)
	}
	names.add(".shstrtab")
	add(section{".shstrtab", elf.SHT_STRTAB, names.bytes(), 0, 0})
	hdr := elf.Header64{Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Shoff: uint64(headerLen + body.Len()),
		Ehsize: headerLen, Shentsize: 64, Shnum: uint16(len(headers)), Shstrndx: uint16(len(headers) - 1)}
	copy(hdr.Ident[:], "\x7fELF\x02\x01\x01")
	var out bytes.Buffer
	_ = binary.Write(&out, binary.LittleEndian, hdr)
	out.Write(body.Bytes())
	_ = binary.Write(&out, binary.LittleEndian, headers)
	return out.Bytes()
}

// table is a string table; equal strings are stored once.
type table struct {
	data []byte
	at   map[string]uint32
}

func (t *table) add(s string) uint32 {
	if t.at == nil {
		t.data, t.at = []byte{0}, map[string]uint32{}
	}
	if at, ok := t.at[s]; ok {
		return at
	}
	t.at[s] = uint32(len(t.data))
	t.data = append(append(t.data, s...), 0)
	return t.at[s]
}

func (t *table) bytes() []byte {
	if t.data == nil {
		return []byte{0}
	}
	return t.data
}
