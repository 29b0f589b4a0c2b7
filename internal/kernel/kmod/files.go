package kmod

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// File is a file of /lib/modules/RELEASE.
type File struct {
	Name string
	Data []byte
}

// Files returns what depmod would write, sorted by name.
func (s *Set) Files() []File {
	dep, depBin := s.depFiles()
	alias, aliasBin := s.aliasFiles()
	symbols, symbolsBin := s.symbolFiles()
	var builtin []indexEntry
	for name := range s.builtin {
		builtin = append(builtin, indexEntry{key: name})
	}
	return []File{
		{"modules.alias", alias},
		{"modules.alias.bin", writeIndex(aliasBin)},
		{"modules.builtin.alias.bin", writeIndex(s.builtinAliases)},
		{"modules.builtin.bin", writeIndex(builtin)},
		{"modules.dep", dep},
		{"modules.dep.bin", writeIndex(depBin)},
		{"modules.devname", s.devnameFile()},
		{"modules.softdep", s.softdepFile()},
		{"modules.symbols", symbols},
		{"modules.symbols.bin", writeIndex(symbolsBin)},
	}
}

func (s *Set) depFiles() ([]byte, []indexEntry) {
	var text bytes.Buffer
	var index []indexEntry
	for _, n := range s.modules {
		var line strings.Builder
		line.WriteString(n.Path + ":")
		for _, d := range n.needs() {
			line.WriteString(" " + d.Path)
		}
		text.WriteString(line.String() + "\n")
		index = append(index, indexEntry{n.Name, line.String(), n.place})
	}
	return text.Bytes(), index
}

func (s *Set) aliasFiles() ([]byte, []indexEntry) {
	text := bytes.NewBufferString("# Aliases extracted from modules themselves.\n")
	var index []indexEntry
	for _, n := range s.modules {
		for _, a := range n.Aliases {
			fmt.Fprintf(text, "alias %s %s\n", a, n.Name)
			if key, ok := normalAlias(a); ok {
				index = append(index, indexEntry{key, n.Name, n.place})
			}
		}
	}
	return text.Bytes(), index
}

func (s *Set) symbolFiles() ([]byte, []indexEntry) {
	text := bytes.NewBufferString("# Aliases for symbols, used by symbol_request().\n")
	var index []indexEntry
	for _, n := range s.modules {
		for _, sym := range slices.Sorted(slices.Values(n.Symbols)) {
			fmt.Fprintf(text, "alias symbol:%s %s\n", sym, n.Name)
			index = append(index, indexEntry{"symbol:" + sym, n.Name, n.place})
		}
	}
	return text.Bytes(), index
}

func (s *Set) softdepFile() []byte {
	text := bytes.NewBufferString("# Soft dependencies extracted from modules themselves.\n")
	for _, n := range s.modules {
		for _, d := range n.Softdeps {
			fmt.Fprintf(text, "softdep %s %s\n", n.Name, d)
		}
	}
	return text.Bytes()
}

// devnameFile lists the device nodes whose first use loads a module: aliases give a name and a number.
func (s *Set) devnameFile() []byte {
	text := bytes.NewBufferString("# Device nodes to trigger on-demand module loading.\n")
	for _, n := range s.modules {
		var name, number string
		for _, a := range n.Aliases {
			if v, ok := strings.CutPrefix(a, "devname:"); ok {
				name = v
				continue
			}
			for prefix, kind := range map[string]string{"char-major-": "c", "block-major-": "b"} {
				var major, minor uint32
				if v, ok := strings.CutPrefix(a, prefix); ok {
					if c, err := fmt.Sscanf(v, "%d-%d", &major, &minor); c == 2 && err == nil {
						number = fmt.Sprintf("%s%d:%d", kind, major, minor)
					}
				}
			}
		}
		if name != "" && number != "" {
			fmt.Fprintf(text, "%s %s %s\n", n.Name, name, number)
		}
	}
	return text.Bytes()
}

// builtinAliases reads modules.builtin.modinfo: zero-terminated MODULE.KEY=VALUE.
func builtinAliases(info []byte) []indexEntry {
	var out []indexEntry
	for field := range bytes.SplitSeq(info, []byte{0}) {
		key, value, _ := strings.Cut(string(field), "=")
		name, isAlias := strings.CutSuffix(key, ".alias")
		if !isAlias {
			continue
		}
		if a, ok := normalAlias(value); ok {
			out = append(out, indexEntry{key: a, value: underscores(name)})
		}
	}
	return out
}

// normalAlias replaces dashes by underscores, but not between brackets, where they are ranges. ok is false where a
// bracket stands alone.
func normalAlias(alias string) (normal string, ok bool) {
	out := []byte(alias)
	in := false
	for i, c := range out {
		switch {
		case c == '[' && !in:
			in = true
		case c == ']' && !in:
			return "", false
		case c == ']':
			in = false
		case c == '-' && !in:
			out[i] = '_'
		}
	}
	return string(out), !in
}
