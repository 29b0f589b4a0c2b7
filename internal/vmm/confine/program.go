package confine

import (
	"bufio"
	"debug/elf"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxInterpreters is how many scripts may be in a row where a script runs a script; Linux's limit is the same.
const maxInterpreters = 4

// programs returns what must be permitted to be run, and to be read, so that these programs run.
func programs(paths []string) (run, read []string) {
	for _, path := range paths {
		for range maxInterpreters {
			run = append(run, path)
			if store := packageStore(path); store != "" {
				run = append(run, store)
			}
			p := inspect(path)
			if p.loader != "" {
				// With its directory: an upgrade of the C library, under a VM whose guest reboots later, is a new file there.
				run = append(run, p.loader, filepath.Dir(clean(p.loader)))
				read = append(read, libraries()...)
				read = append(read, p.libraries...)
			}
			if p.interpreter == "" {
				break
			}
			path = p.interpreter
		}
	}
	slices.Sort(run)
	slices.Sort(read)
	return slices.Compact(run), slices.Compact(read)
}

// libraries are where dynamic linkers look for libraries, and what tells them so. Reading is enough for a library.
func libraries() []string {
	dirs := []string{"/etc/ld.so.cache", "/etc/ld.so.preload"}
	for _, pattern := range []string{"/lib*", "/usr/lib*", "/usr/local/lib*", "/etc/ld-musl-*.path"} {
		found, _ := filepath.Glob(pattern) // the pattern is well-formed
		dirs = append(dirs, found...)
	}
	return dirs
}

// packageStore is the store of the package manager that path is in, "" for none. There, programs are wrappers of others of
// the same store, and have their own dynamic linker and libraries; anybody may read all of it.
func packageStore(path string) string {
	path = clean(path)
	for _, store := range []string{"/nix/store", "/gnu/store"} {
		if strings.HasPrefix(path, store+"/") {
			return store
		}
	}
	return ""
}

// program is what the kernel and the dynamic linker make of a file.
type program struct {
	loader      string   // the dynamic linker
	libraries   []string // directories the program names itself
	interpreter string   // of a script
}

// inspect looks into a program. Of one it cannot read nothing is known: it fails when it is run.
func inspect(path string) (p program) {
	f, err := os.Open(path)
	if err != nil {
		return p
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return p
	}
	if p.interpreter = interpreter(f); p.interpreter != "" {
		return p
	}
	file, err := elf.NewFile(f)
	if err != nil {
		return p
	}
	for _, h := range file.Progs {
		if h.Type == elf.PT_INTERP && h.Filesz < 4096 {
			if b, err := io.ReadAll(h.Open()); err == nil {
				p.loader = strings.TrimRight(string(b), "\x00")
			}
		}
	}
	origin := filepath.Dir(clean(path))
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		lists, _ := file.DynString(tag) // none in a static program
		for dir := range strings.SplitSeq(strings.Join(lists, ":"), ":") {
			dir = strings.NewReplacer("$ORIGIN", origin, "${ORIGIN}", origin).Replace(dir)
			if filepath.IsAbs(dir) && filepath.Clean(dir) != "/" {
				p.libraries = append(p.libraries, filepath.Clean(dir))
			}
		}
	}
	return p
}

// interpreter is the program that runs the script in r, "" for one that is none. What that runs in turn, as /usr/bin/env
// does, is for Rules.Exec.
func interpreter(r io.ReaderAt) string {
	line, _ := bufio.NewReaderSize(io.NewSectionReader(r, 0, 256), 256).ReadString('\n') // the kernel reads as much
	rest, is := strings.CutPrefix(line, "#!")
	words := strings.Fields(rest)
	if !is || len(words) == 0 {
		return ""
	}
	return words[0]
}
