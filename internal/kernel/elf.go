package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/klauspost/compress/gzip"
)

// maxConfig bounds a kernel's configuration, maxNotes its notes, in bytes.
const (
	maxConfig = 4 << 20
	maxNotes  = 1 << 20
)

// facts are what a vmlinux says of itself.
type facts struct {
	// release is what uname -r says; empty where it was not found.
	release string
	// config has the options it was built with, without CONFIG_; nil where it was built without CONFIG_IKCONFIG.
	config map[string]string
	// pvh tells whether it has the entry at which QEMU starts an ELF file.
	pvh bool
}

// parseELF reads the headers of a kernel for this architecture.
func parseELF(r io.ReaderAt) (f *elf.File, err error) {
	defer func() {
		if p := recover(); p != nil { // debug/elf is not hardened against hostile files
			f, err = nil, fmt.Errorf("%v: %w", p, errBzImage)
		}
	}()
	if f, err = elf.NewFile(r); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errBzImage)
	}
	if f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 || f.Type != elf.ET_EXEC {
		return nil, fmt.Errorf("it is an ELF of %s, %s, %s, not of a kernel for x86-64: %w", f.Class, f.Machine, f.Type, errBzImage)
	}
	return f, nil
}

// Offsets in the header of a 64-bit ELF file.
const (
	elfHeaderLen = 64
	offPhoff     = 32
	offShoff     = 40
	offPhnum     = 56
	offShnum     = 60
	offShstrndx  = 62
	phentLen     = 56
)

// copyVmlinux writes what is loaded of an ELF vmlinux, without sections and with that without debug information, which may be many
// times as large and stands behind it.
func copyVmlinux(w io.Writer, r io.ReaderAt) error {
	f, err := parseELF(r)
	if err != nil {
		return err
	}
	hdr := make([]byte, elfHeaderLen)
	if _, err := r.ReadAt(hdr, 0); err != nil {
		return err
	}
	table := binary.LittleEndian.Uint64(hdr[offPhoff:])
	end := max(elfHeaderLen, table+uint64(binary.LittleEndian.Uint16(hdr[offPhnum:]))*phentLen)
	loads := false
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD && p.Type != elf.PT_NOTE {
			continue
		}
		loads = loads || p.Type == elf.PT_LOAD
		end = max(end, p.Off+p.Filesz)
		if p.Off > maxVmlinux || p.Filesz > maxVmlinux {
			end = maxVmlinux + 1
		}
	}
	switch {
	case !loads:
		return fmt.Errorf("it is an ELF with nothing to load: %w", errBzImage)
	case table > maxVmlinux || end > maxVmlinux:
		return fmt.Errorf("what it loads is longer than %d bytes: %w", maxVmlinux, errBzImage)
	}
	clear(hdr[offShoff : offShoff+8])
	clear(hdr[offShnum : offShnum+2])
	clear(hdr[offShstrndx : offShstrndx+2])
	if _, err := w.Write(hdr); err != nil {
		return err
	}
	n, err := io.Copy(w, io.NewSectionReader(r, elfHeaderLen, int64(end)-elfHeaderLen))
	if err == nil && n != int64(end)-elfHeaderLen {
		err = fmt.Errorf("it ends after %d bytes, before what it loads does: %w", n+elfHeaderLen, errBzImage)
	}
	return err
}

// banner is what /proc/version begins with (init/version-timestamp.c of the kernel).
var banner = regexp.MustCompile(`Linux version ([0-9][0-9A-Za-z._+~-]*) \(`)

// readFacts looks at a vmlinux.
func readFacts(data []byte) (facts, error) {
	f, err := parseELF(bytes.NewReader(data))
	if err != nil {
		return facts{}, err
	}
	out := facts{pvh: hasPVH(f)}
	if m := banner.FindSubmatch(data); m != nil {
		out.release = string(m[1])
	}
	out.config, err = readConfig(data)
	return out, err
}

// hasPVH looks for the note XEN_ELFNOTE_PHYS32_ENTRY, which CONFIG_PVH makes.
func hasPVH(f *elf.File) bool {
	const physEntry = 18
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > maxNotes {
			continue
		}
		notes, err := io.ReadAll(p.Open())
		if err != nil {
			continue
		}
		for len(notes) >= 12 {
			nameLen, descLen := binary.LittleEndian.Uint32(notes), binary.LittleEndian.Uint32(notes[4:])
			kind := binary.LittleEndian.Uint32(notes[8:])
			name, rest, ok := padded(notes[12:], nameLen)
			if !ok {
				break
			}
			if string(name) == "Xen\x00" && kind == physEntry {
				return true
			}
			if _, rest, ok = padded(rest, descLen); !ok {
				break
			}
			notes = rest
		}
	}
	return false
}

// padded splits off n bytes and those that fill them up to a multiple of 4.
func padded(data []byte, n uint32) (field, rest []byte, ok bool) {
	full := (int64(n) + 3) &^ 3
	if int64(n) > int64(len(data)) {
		return nil, nil, false
	}
	return data[:n], data[min(full, int64(len(data))):], true
}

// configMagic stands before the configuration, a gzip stream (kernel/configs.c of the kernel).
const configMagic = "IKCFG_ST"

// readConfig returns the configuration in a kernel; nil where there is none.
func readConfig(data []byte) (map[string]string, error) {
	at := bytes.Index(data, []byte(configMagic+"\x1f\x8b\x08"))
	if at < 0 {
		return nil, nil
	}
	z, err := gzip.NewReader(bytes.NewReader(data[at+len(configMagic):]))
	if err != nil {
		return nil, fmt.Errorf("read the configuration in it: %w: %w", err, errBzImage)
	}
	z.Multistream(false)
	text, err := io.ReadAll(io.LimitReader(z, maxConfig+1))
	if err != nil {
		return nil, fmt.Errorf("read the configuration in it: %w: %w", err, errBzImage)
	}
	if len(text) > maxConfig {
		return nil, fmt.Errorf("read the configuration in it: more than %d bytes: %w", maxConfig, errBzImage)
	}
	config := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if name, isOption := strings.CutPrefix(name, "CONFIG_"); ok && isOption {
			config[name] = value
		}
	}
	return config, nil
}
