package layering

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "git.thaloco.com/thaloco/banger/"

// floor is the height of each package: it may import only what is lower. Packages of the same floor do not import
// each other. A package that is missing here fails the test.
var floor = map[string]int{
	"cmd/banger": 100, "cmd/bangerd": 100, "cmd/banger-vsock-agent": 100, "internal/vmm/fakeqemu/program": 100, "internal/vmm/fakeqemu": 95,
	"internal/cli": 90, "internal/daemon": 90,
	"client": 80, "internal/apiserver": 80,
	"internal/vm":       70,
	"internal/vmm/fake": 65, "internal/vmm/vmmtest": 64, "internal/vmm/fakeguest": 63,
	"internal/vmm/supervise": 60, "internal/workspace": 61, "internal/image": 60, "internal/kernel": 60, "internal/image/oci": 50, "internal/image/bundle": 40,
	"internal/operation": 55, "internal/config": 55, "internal/guest/agent": 55,
	"internal/vmm/qemu": 50, "internal/vmm/firecracker": 50, "internal/vmm/firecracker/release": 48, "internal/vmm/jail": 45, "internal/vmm/confine": 40, "internal/vmm/probe": 50,
	"internal/vmm/firecracker/fakefc": 95, "internal/vmm/firecracker/fakefc/program": 100, "internal/vmm/firecracker/fakefc/vhostvsock": 45, "internal/vmm/fakejailer": 95, "internal/vmm/fakejailer/program": 100, "internal/store": 50, "internal/deb": 50, "internal/hostfiles": 50, "internal/filesync": 50, "internal/quarantine": 50,
	"internal/guest/guestapi": 45, "internal/guest/session": 43, "internal/guest/journal": 20, "internal/guest/sshd": 46,
	"internal/network/user": 52, "internal/network/dns": 50, "internal/network/egress": 50, "internal/network/nettest": 49,
	"internal/network/bridge": 52, "internal/network/tap": 20, "internal/network/gateway": 52, "internal/forward": 53, "internal/hostports": 20, "internal/hostports/hostportstest": 5, "internal/preview": 75, "internal/guest/tunnel": 40,
	"internal/doctor": 62, "internal/sshkeys": 50,
	"internal/guest/exec": 41, "internal/guest/process": 40, "internal/guest/files": 40, "internal/guest/tree": 41, "internal/guest/channel": 40,
	"internal/vmm": 35, "internal/vmm/driver": 36, "internal/vmm/watch": 36, "internal/vmm/frames": 36, "internal/kernel/kmod": 30, "internal/kernel/kmod/kmodtest": 20, "internal/deb/debtest": 20,
	"internal/content": 30, "internal/initramfs": 30, "internal/ext4": 30, "internal/disk": 29, "internal/disk/sparse": 20, "internal/disk/template": 28, "internal/disk/template/gen": 29,
	"internal/hostexec": 10, "internal/relay": 10, "internal/hostfile": 10, "internal/hostproc": 10, "internal/paths": 10, "internal/progress": 10, "internal/filestream": 10, "internal/buildinfo": 10, "internal/suggest": 10,
	"internal/guest/wire": 5, "api": 5,
	"internal/layering": 0, "e2e": 200,
}

// mayExec are the packages that may import os/exec: the agent runs programs of the guest.
var mayExec = []string{"internal/hostexec", "internal/guest/process", "internal/guest/agent", "internal/guest/files", "internal/guest/tree"}

type pkg struct {
	imports map[string][]string // import path → files
	doc     bool
}

// read parses the imports and package comments of every package of the module, without its tests.
func read(t *testing.T) map[string]*pkg {
	t.Helper()
	root := "../.."
	all := map[string]*pkg{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		add(all, dir, path, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 10 {
		t.Fatalf("found only %d packages", len(all))
	}
	return all
}

func add(all map[string]*pkg, dir, path string, f *ast.File) {
	p, ok := all[dir]
	if !ok {
		p = &pkg{imports: map[string][]string{}}
		all[dir] = p
	}
	p.doc = p.doc || f.Doc != nil
	for _, imp := range f.Imports {
		what, _ := strconv.Unquote(imp.Path.Value)
		p.imports[what] = append(p.imports[what], filepath.Base(path))
	}
}

func TestImportsPointDown(t *testing.T) {
	for dir, p := range read(t) {
		height, ok := floor[dir]
		if !ok {
			t.Errorf("package %s has no floor", dir)
			continue
		}
		for what, files := range p.imports {
			to, ours := strings.CutPrefix(what, module)
			if ours && floor[to] >= height {
				t.Errorf("%s imports %s (%s), which is not below it", dir, to, strings.Join(files, ", "))
			}
			if what == "os/exec" && !slices.Contains(mayExec, dir) {
				t.Errorf("%s imports os/exec (%s): use internal/hostexec", dir, strings.Join(files, ", "))
			}
		}
	}
}

func TestLeaves(t *testing.T) {
	all := read(t)
	for _, leaf := range []string{"api", "internal/guest/wire"} {
		for what := range all[leaf].imports {
			if first, _, _ := strings.Cut(what, "/"); strings.Contains(first, ".") {
				t.Errorf("%s imports %s: it may import the standard library only", leaf, what)
			}
		}
	}
}

func TestEveryPackageIsDocumented(t *testing.T) {
	for dir, p := range read(t) {
		if !p.doc {
			t.Errorf("package %s has no package comment", dir)
		}
	}
}

func TestNoForbiddenNames(t *testing.T) {
	bad := []string{"util", "utils", "common", "shared", "types", "models", "core", "pkg", "manager", "helpers"}
	for dir := range read(t) {
		if slices.Contains(bad, filepath.Base(dir)) {
			t.Errorf("package %s: name it for what it owns", dir)
		}
	}
}

func TestSourcesAreThere(t *testing.T) {
	if _, err := os.Stat("../../go.mod"); err != nil {
		t.Fatal(err) // the tests above would find nothing
	}
}
