package kmod

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// MaxModule is the size of the largest module that is read, in bytes.
const MaxModule = 256 << 20

// ErrFormat says that a file is no kernel module.
var ErrFormat = errors.New("not a kernel module")

// Module is what depmod needs to know of a module.
type Module struct {
	// Path is relative to /lib/modules/RELEASE, such as "kernel/net/tun.ko.xz".
	Path string
	// Name is the name in the kernel: no dashes, no ending.
	Name string
	// Depends are names of modules whose symbols it uses.
	Depends []string
	// Aliases, Softdeps are as in its .modinfo, in their order.
	Aliases, Softdeps []string
	// Symbols are those it exports.
	Symbols []string
	// Release is that of the kernel it was built for, as uname -r says it; empty where it does not tell.
	Release string
}

// IsModule reports whether a file is a module by its name, compressed or not.
func IsModule(file string) bool {
	base, _ := splitName(file)
	return strings.HasSuffix(base, ".ko")
}

// Name returns the module's name for a file, "virtio_net" for "kernel/net/virtio-net.ko.xz".
func Name(file string) string {
	base, _ := splitName(path.Base(file))
	return underscores(strings.TrimSuffix(base, ".ko"))
}

// splitName splits off the ending of a compression.
func splitName(file string) (base, ext string) {
	for _, ext := range []string{".xz", ".zst", ".gz"} {
		if b, ok := strings.CutSuffix(file, ext); ok {
			return b, ext
		}
	}
	return file, ""
}

// Plain returns the name of a module's file without the ending of its compression.
func Plain(file string) string {
	base, _ := splitName(file)
	return base
}

func underscores(s string) string { return strings.ReplaceAll(s, "-", "_") }

// Decompress returns the content of a module file, which may be compressed as the ending of its name says.
func Decompress(file string, r io.Reader) ([]byte, error) {
	_, ext := splitName(file)
	var err error
	switch ext {
	case ".xz":
		// The dictionary is as large as the file says, 1 MiB in Debian's, and not the library's 8 MiB.
		r, err = xz.ReaderConfig{DictCap: 1 << 16}.NewReader(r)
	case ".gz":
		r, err = gzip.NewReader(r)
	case ".zst":
		var z *zstd.Decoder
		if z, err = zstd.NewReader(r, zstd.WithDecoderConcurrency(1)); err == nil {
			defer z.Close()
			r = z
		}
	}
	if err != nil {
		return nil, fmt.Errorf("decompress %q: %w: %w", file, err, ErrFormat)
	}
	data, err := io.ReadAll(io.LimitReader(r, MaxModule+1))
	if err == nil && len(data) > MaxModule {
		err = fmt.Errorf("longer than %d bytes", MaxModule)
	}
	if err != nil {
		return nil, fmt.Errorf("decompress %q: %w: %w", file, err, ErrFormat)
	}
	return data, nil
}

// Parse reads a decompressed module. file is its path relative to /lib/modules/RELEASE.
func Parse(file string, data []byte) (m Module, err error) {
	defer func() {
		if p := recover(); p != nil { // debug/elf is not hardened against hostile files
			err = fmt.Errorf("read module %q: %v: %w", file, p, ErrFormat)
		}
	}()
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return Module{}, fmt.Errorf("read module %q: %w: %w", file, err, ErrFormat)
	}
	section := f.Section(".modinfo")
	if section == nil || f.Type != elf.ET_REL {
		return Module{}, fmt.Errorf("read module %q: no .modinfo: %w", file, ErrFormat)
	}
	if f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 {
		return Module{}, fmt.Errorf("read module %q: it is for %s, %s: %w", file, f.Machine, f.Class, ErrFormat)
	}
	info, err := section.Data()
	if err != nil {
		return Module{}, fmt.Errorf("read module %q: %w: %w", file, err, ErrFormat)
	}
	m = Module{Path: file, Name: Name(file)}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		key, value, _ := strings.Cut(string(field), "=")
		switch key {
		case "alias":
			m.Aliases = append(m.Aliases, value)
		case "vermagic":
			m.Release, _, _ = strings.Cut(value, " ")
		case "softdep":
			m.Softdeps = append(m.Softdeps, value)
		case "depends":
			for name := range strings.SplitSeq(value, ",") {
				if name != "" {
					m.Depends = append(m.Depends, underscores(name))
				}
			}
		}
	}
	if m.Symbols, err = exported(f); err != nil {
		return Module{}, fmt.Errorf("read module %q: %w: %w", file, err, ErrFormat)
	}
	return m, nil
}

// exported returns the symbols a module exports: for each the linker makes an entry __ksymtab_NAME.
func exported(f *elf.File) ([]string, error) {
	symbols, err := f.Symbols()
	if errors.Is(err, elf.ErrNoSymbols) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, s := range symbols {
		if name, ok := strings.CutPrefix(s.Name, "__ksymtab_"); ok && s.Section != elf.SHN_UNDEF {
			out = append(out, name)
		}
	}
	return out, nil
}

// signatureMagic ends a signed module; before it stands a struct module_signature (12 bytes, the last 4 the
// signature's length, big-endian), before that the signature (scripts/sign-file.c of the kernel).
const signatureMagic = "~Module signature appended~\n"

// StripSignature returns a module without its appended signature. A kernel that does not insist on signatures loads it
// faster so, and notes in its taint flags that it was unsigned.
func StripSignature(data []byte) []byte {
	rest, ok := bytes.CutSuffix(data, []byte(signatureMagic))
	const structLen = 12
	if !ok || len(rest) < structLen {
		return data
	}
	n := binary.BigEndian.Uint32(rest[len(rest)-4:])
	rest = rest[:len(rest)-structLen]
	if int64(n) > int64(len(rest)) {
		return data
	}
	return rest[:len(rest)-int(n)]
}
