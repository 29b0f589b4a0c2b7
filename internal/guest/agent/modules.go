package agent

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// moduleDir is a directory of kernel modules and the file "order", their
// names in the order in which they can be loaded.
const moduleDir = "/modules"

// neededModules are those without which the root cannot be made or systemd complains; the rest is
// loaded by the agent, while the guest boots on.
var neededModules = []string{"virtio_mmio", "virtio_blk", "overlay", "autofs4"}

// vsockModules are needed before the agent can be reached by vsock.
var vsockModules = []string{"vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"}

// networkModules are those of a network's device.
func networkModules(n wire.Network) []string {
	if n.Device == wire.DeviceTAP {
		return []string{"tun"}
	}
	return []string{"failover", "net_failover", "virtio_net"}
}

// moduleName is a module's name as the kernel has it: "snd-pcm.ko.xz" is snd_pcm.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// parseOrder returns the files an order file names: one a line, paths and blank lines allowed.
func parseOrder(data []byte) []string {
	var out []string
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			out = append(out, path.Base(line))
		}
	}
	return out
}

// splitOrder divides order into the files that are needed first and the others.
func splitOrder(order []string, needed ...[]string) (first, later []string) {
	want := map[string]bool{}
	for _, names := range needed {
		for _, n := range names {
			want[n] = true
		}
	}
	for _, f := range order {
		// An order file may number its files, as in 03-overlay.ko.
		name := strings.TrimLeft(moduleName(f), "0123456789_")
		if want[name] {
			first = append(first, f)
		} else {
			later = append(later, f)
		}
	}
	return first, later
}

// loadNeeded loads the boot modules in the directory dir that are named. Where that alone does not do, everything is tried in its order, and
// say is told: the kernel's modules may have come to depend on one another in a new way.
func loadNeeded(dir int, needed []string, say func(format string, args ...any)) error {
	order, err := readOrder(dir)
	if err != nil {
		return fmt.Errorf("read the order of the boot modules: %w", err)
	}
	first, _ := splitOrder(order, needed)
	if err := loadOrdered(dir, first); err != nil {
		say("needed modules: %v; loading all", err)
		if err := loadOrdered(dir, order); err != nil {
			say("%v", err)
		}
	}
	return nil
}

// readOrder returns the order of the modules in the directory dirfd.
func readOrder(dirfd int) ([]string, error) {
	f, err := openAt(dirfd, "order")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(f); err != nil {
		return nil, err
	}
	return parseOrder(b.Bytes()), nil
}

func openAt(dirfd int, name string) (*os.File, error) {
	fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// loadOrdered loads files of the directory dirfd in turn. It goes on after a failure, for the
// modules behind it may not need the one that failed, and returns all failures.
func loadOrdered(dirfd int, files []string) error {
	var errs []error
	for _, name := range files {
		f, err := openAt(dirfd, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, loadModule(f, name, ""))
		f.Close()
	}
	return errors.Join(errs...)
}

// loadModule loads one module; one that is loaded already is fine. Names that end in a compression's suffix
// are left to the kernel to decompress.
func loadModule(f *os.File, name, params string) error {
	flags := 0
	if !strings.HasSuffix(name, ".ko") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	err := unix.FinitModule(int(f.Fd()), params, flags)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %q: %w", moduleName(name), err)
	}
	return nil
}

// moduleDB answers what a directory /lib/modules/RELEASE says about modules.
type moduleDB struct {
	dir  string
	read func(name string) ([]byte, error)
}

func newModuleDB(dir string) moduleDB {
	return moduleDB{dir: dir, read: func(name string) ([]byte, error) { return os.ReadFile(path.Join(dir, name)) }}
}

// resolve returns the files to load, in order and relative to dir, for a module's name or an
// alias such as "net-pf-10"; none for what is built in. Unknown names are an error.
func (db moduleDB) resolve(name string) ([]string, error) {
	want := strings.ReplaceAll(name, "-", "_")
	dep, err := db.read("modules.dep")
	if err != nil {
		return nil, fmt.Errorf("resolve module %q: %w", name, err)
	}
	soft, _ := db.read("modules.softdep") // optional
	if files := withSoft(dep, soft, want); files != nil {
		return files, nil
	}
	if builtin, err := db.read("modules.builtin"); err == nil && hasModule(builtin, want) {
		return nil, nil
	}
	alias, err := db.read("modules.alias")
	if err != nil {
		return nil, fmt.Errorf("resolve module %q: %w", name, err)
	}
	var out []string
	for _, mod := range matchAliases(alias, want) {
		out = append(out, withSoft(dep, soft, mod)...)
	}
	if out == nil {
		return nil, fmt.Errorf("resolve module %q: no such module or alias in %s", name, db.dir)
	}
	return out, nil
}

// withSoft is depChain with the modules before it that a softdep wants.
func withSoft(dep, soft []byte, name string) []string {
	chain := depChain(dep, name)
	if chain == nil {
		return nil
	}
	var out []string
	for line := range bytes.Lines(soft) {
		f := strings.Fields(string(line))
		if len(f) < 4 || f[0] != "softdep" || strings.ReplaceAll(f[1], "-", "_") != name || f[2] != "pre:" {
			continue
		}
		for _, pre := range f[3:] {
			if pre == "post:" {
				break
			}
			out = append(out, depChain(dep, strings.ReplaceAll(pre, "-", "_"))...)
		}
	}
	return append(out, chain...)
}

// depChain returns the files modules.dep wants for a module, the module itself last.
func depChain(dep []byte, name string) []string {
	for line := range bytes.Lines(dep) {
		file, deps, ok := strings.Cut(strings.TrimSpace(string(line)), ":")
		if !ok || moduleName(file) != name {
			continue
		}
		out := strings.Fields(deps)
		// modules.dep lists the nearest dependency first; the farthest has to be loaded first.
		for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
			out[i], out[j] = out[j], out[i]
		}
		return append(out, file)
	}
	return nil
}

func hasModule(list []byte, name string) bool {
	for line := range bytes.Lines(list) {
		if moduleName(strings.TrimSpace(string(line))) == name {
			return true
		}
	}
	return false
}

// matchAliases returns the modules whose alias, a shell pattern, matches name, which is underscored.
func matchAliases(alias []byte, name string) []string {
	var out []string
	s := bufio.NewScanner(bytes.NewReader(alias))
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) != 3 || f[0] != "alias" {
			continue
		}
		pattern := underscored(f[1])
		if ok, err := path.Match(pattern, name); pattern == name || err == nil && ok {
			out = append(out, f[2])
		}
	}
	return out
}

// underscored replaces - by _ as modprobe does: everywhere but in the brackets of a pattern.
func underscored(s string) string {
	depth := 0
	return strings.Map(func(r rune) rune {
		switch r {
		case '[':
			depth++
		case ']':
			depth--
		case '-':
			if depth == 0 {
				return '_'
			}
		}
		return r
	}, s)
}
