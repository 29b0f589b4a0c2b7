package kernel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/deb/debtest"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/kernel/kmod/kmodtest"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

const ownRelease = "6.12.9-own"

// builtinConfig is of a kernel with all that guests need built in, but for some drivers.
func builtinConfig(but ...string) map[string]string {
	config := map[string]string{}
	for _, d := range drivers() {
		if !slices.Contains(but, d.module) {
			config[d.option] = "y"
		}
	}
	for _, o := range builtinOptions() {
		config[o] = "y"
	}
	return config
}

// moduleTree is a lib/modules/RELEASE with all drivers but ext4 and virtio_console, which are built in.
func moduleTree(t testing.TB) map[string]string {
	t.Helper()
	files := map[string]string{
		"modules.builtin":         "kernel/fs/ext4.ko\nkernel/drivers/char/virtio_console.ko\n",
		"modules.builtin.modinfo": "ext4.alias=fs-ext4\x00",
		"modules.order":           "",
		"modules.dep":             "made by a depmod that knew less",
		"secret.txt":              "not a module",
	}
	for _, name := range bootModules() {
		if name == "ext4" || name == "virtio_console" {
			continue
		}
		m := kmodtest.Module{Info: []string{"alias=for-" + name, "vermagic=" + ownRelease + " SMP preempt mod_unload "}, Signed: true}
		file := "kernel/" + strings.ReplaceAll(name, "_", "-") + ".ko"
		if name == "overlay" {
			files[file+".xz"] = string(debtest.Compress(t, m.ELF(), ".xz"))
		} else {
			files[file] = string(m.ELF())
		}
		files["modules.order"] += file + "\n"
	}
	return files
}

// ownFiles writes a kernel and its modules to a directory of the user's; tree is nil for no modules.
func ownFiles(t testing.TB, k kmodtest.Vmlinux, tree map[string]string) RegisterOptions {
	t.Helper()
	dir := t.TempDir()
	o := RegisterOptions{Name: "mine", Vmlinux: filepath.Join(dir, "vmlinux")}
	write := func(path, text string) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	write(o.Vmlinux, string(k.ELF()))
	if tree != nil {
		o.Modules = filepath.Join(dir, "modules", ownRelease)
		for name, text := range tree {
			write(filepath.Join(o.Modules, name), text)
		}
		if err := os.Symlink(dir, filepath.Join(o.Modules, "build")); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// look lists a directory of the user's with what is in its files.
func contentOf(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var data []byte
			data, err = os.ReadFile(path)
			out[path] = string(data)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRegister(t *testing.T) {
	f := newFixture(t)
	o := ownFiles(t, kmodtest.Vmlinux{Release: ownRelease}, moduleTree(t))
	before := contentOf(t, filepath.Dir(o.Vmlinux))
	notes := &notesReporter{}
	k, err := f.Register(t.Context(), o, notes)
	if err != nil || len(notes.notes) > 0 {
		t.Fatalf("%v, notes %q", err, notes.notes)
	}
	if diff := cmp.Diff(before, contentOf(t, filepath.Dir(o.Vmlinux))); diff != "" {
		t.Errorf("the user's files: %s", diff)
	}
	at := today
	want := api.Kernel{Name: "mine", Digest: k.Digest, Description: k.Description, Release: ownRelease, Arch: "x86_64", SizeBytes: k.SizeBytes,
		Local: true, CreatedAt: &at, Source: o.Vmlinux}
	if diff := cmp.Diff(want, k); diff != "" {
		t.Error(diff)
	}
	// What the user does with their files from now on is nothing to it.
	if err := errors.Join(os.Remove(o.Vmlinux), os.RemoveAll(o.Modules)); err != nil {
		t.Fatal(err)
	}
	if err := f.Verify(t.Context(), k.Digest); err != nil {
		t.Error(err)
	}
	files, err := f.Files(t.Context(), k.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(files.Vmlinux); len(got) == 0 || strings.Contains(string(got), kmodtest.DebugInfo) {
		t.Errorf("vmlinux has %d bytes", len(got))
	}
	order, bodies := readBoot(t, files.BootArchive)
	if len(order) != len(bootModules())-2 || slices.Contains(order, "ext4.ko") {
		t.Errorf("boot modules: %q", order)
	}
	for _, name := range order {
		if !strings.HasSuffix(bodies["modules/"+name], "signature appended~\n") {
			t.Errorf("%s has no signature", name)
		}
	}
	checkOwnDrive(t, files.ModulesDrive)
	if got := f.stored(t); len(got) != 1 {
		t.Errorf("in the store: %v", got)
	}
}

func checkOwnDrive(t *testing.T, path string) {
	t.Helper()
	run := hostexec.Runner{}
	if _, err := run.LookPath("debugfs"); err != nil {
		t.Log("debugfs is not installed: what is in the drive is not looked at")
		return
	}
	for file, want := range map[string]string{
		"modules.dep":       "kernel/overlay.ko:\n",
		"modules.builtin":   "kernel/fs/ext4.ko\n",
		"kernel/overlay.ko": "\x7fELF", // it was compressed, and nothing says that this kernel can undo that
	} {
		out, err := run.Output(t.Context(), hostexec.Cmd{Argv: []string{"debugfs", "-R", "cat /" + ownRelease + "/" + file, path}})
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %q, %v", file, out[:min(len(out), 200)], err)
		}
	}
	out, err := run.Output(t.Context(), hostexec.Cmd{Argv: []string{"debugfs", "-R", "ls -p /" + ownRelease, path}})
	if err != nil || strings.Contains(string(out), "secret") || strings.Contains(string(out), "build") {
		t.Errorf("the drive has %s, %v", out, err)
	}
}

// A kernel that can decompress its modules gets them as they are.
func TestRegisterCompressed(t *testing.T) {
	f := newFixture(t)
	config := map[string]string{"MODULE_DECOMPRESS": "y", "EXT4_FS": "y", "VIRTIO_CONSOLE": "y"}
	for _, o := range builtinOptions() {
		config[o] = "y"
	}
	k, err := f.Register(t.Context(), ownFiles(t, kmodtest.Vmlinux{Release: ownRelease, Config: config}, moduleTree(t)), progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	files, err := f.Files(t.Context(), k.Digest)
	if err != nil {
		t.Fatal(err)
	}
	out, err := hostexec.Runner{}.Output(t.Context(), hostexec.Cmd{Argv: []string{"debugfs", "-R", "cat /" + ownRelease + "/kernel/overlay.ko.xz", files.ModulesDrive}})
	if err == nil && !strings.HasPrefix(string(out), "\xfd7zXZ") {
		t.Errorf("overlay: %q", out[:min(len(out), 20)])
	}
}

func TestRegisterBuiltin(t *testing.T) {
	f := newFixture(t)
	for name, c := range map[string]struct {
		kernel kmodtest.Vmlinux
		notes  string
	}{
		"all of it":          {kmodtest.Vmlinux{Release: ownRelease, Config: builtinConfig()}, ""},
		"but what is wanted": {kmodtest.Vmlinux{Release: ownRelease, Config: builtinConfig("tun", "br_netfilter")}, "the kernel lacks tun and br_netfilter: its VMs do without"},
		"nobody knows":       {kmodtest.Vmlinux{Release: ownRelease}, "whether the kernel has virtio_mmio, virtio_blk, "},
	} {
		t.Run(name, func(t *testing.T) {
			notes := &notesReporter{}
			o := ownFiles(t, c.kernel, nil)
			k, err := f.Register(t.Context(), o, notes)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(notes.notes, "\n"); !strings.HasPrefix(got, c.notes) || c.notes == "" && got != "" {
				t.Errorf("notes %q, want %q", got, c.notes)
			}
			files, err := f.Files(t.Context(), k.Digest)
			if err != nil {
				t.Fatal(err)
			}
			if order, _ := readBoot(t, files.BootArchive); len(order) > 0 {
				t.Errorf("boot modules: %q", order)
			}
		})
	}
}

func TestRegisterBzImage(t *testing.T) {
	f := newFixture(t)
	o := ownFiles(t, kmodtest.Vmlinux{Release: ownRelease, Config: builtinConfig()}, nil)
	want, err := f.Register(t.Context(), o, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	elf, err := os.ReadFile(o.Vmlinux)
	if err != nil {
		t.Fatal(err)
	}
	for _, ext := range []string{".gz", ".xz", ".zst", ".lzma"} {
		if err := os.WriteFile(o.Vmlinux, bzImage(t, elf, ext), 0o644); err != nil {
			t.Fatal(err)
		}
		k, err := f.Register(t.Context(), o, progress.Discard)
		if err != nil || k.Digest != want.Digest {
			t.Errorf("%s: %s, %v; want the ELF's own %s", ext, k.Digest, err, want.Digest)
		}
	}
}

// What is registered twice is stored once, and does not take the name of what is there.
func TestRegisterSameContent(t *testing.T) {
	f := newFixture(t)
	o := ownFiles(t, kmodtest.Vmlinux{Release: ownRelease}, moduleTree(t))
	first, err := f.Register(t.Context(), o, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	o2 := ownFiles(t, kmodtest.Vmlinux{Release: ownRelease}, moduleTree(t))
	o2.Name = "other"
	second, err := f.Register(t.Context(), o2, progress.Discard)
	want := first
	want.Name = "other"
	if diff := cmp.Diff(want, second); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if list, err := f.List(); err != nil || len(list) != 1 || list[0].Name != "mine" {
		t.Errorf("%+v, %v", list, err)
	}
	if got := f.stored(t); len(got) != 1 {
		t.Errorf("in the store: %v", got)
	}
}

// A damaged kernel is mended by the command its error names.
func TestRegisterMends(t *testing.T) {
	f := newFixture(t)
	o := ownFiles(t, kmodtest.Vmlinux{Release: ownRelease}, moduleTree(t))
	k, err := f.Register(t.Context(), o, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	files, err := f.Files(t.Context(), k.Digest)
	if err == nil {
		err = os.Remove(files.ModulesDrive)
	}
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Files(t.Context(), k.Digest)
	if hint := api.AsError(err).Hint; !strings.HasSuffix(hint, "banger kernel register --name mine --vmlinux "+o.Vmlinux) {
		t.Errorf("%v, hint %q", err, hint)
	}
	again, err := f.Register(t.Context(), o, progress.Discard)
	if err != nil || again.Digest != k.Digest {
		t.Errorf("%+v, %v", again, err)
	}
	if err := f.Verify(t.Context(), k.Digest); err != nil {
		t.Error(err)
	}
}

func TestRegisterRefuses(t *testing.T) {
	lacking := func(names ...string) map[string]string {
		tree := moduleTree(t)
		for _, n := range names {
			maps.DeleteFunc(tree, func(file, _ string) bool {
				return strings.HasPrefix(file, "kernel/"+strings.ReplaceAll(n, "_", "-")+".ko")
			})
			tree["modules.builtin"] = strings.ReplaceAll(tree["modules.builtin"], n+".ko", "x.ko")
		}
		return tree
	}
	with := func(name string, data []byte) map[string]string {
		tree := moduleTree(t)
		tree[name] = string(data)
		return tree
	}
	without := func(option string) map[string]string {
		c := builtinConfig()
		delete(c, option)
		return c
	}
	asModule := func(options ...string) map[string]string {
		c := builtinConfig()
		for _, o := range options {
			c[o] = "m"
		}
		return c
	}
	module := func(m kmodtest.Module) []byte { return m.ELF() }
	arm := module(kmodtest.Module{})
	arm[18] = 183 // EM_AARCH64
	own := kmodtest.Vmlinux{Release: ownRelease}
	for name, c := range map[string]struct {
		kernel kmodtest.Vmlinux
		tree   map[string]string
		change func(t *testing.T, o *RegisterOptions)
		want   string // in the message
		hint   string
	}{
		"bad name": {own, nil, func(_ *testing.T, o *RegisterOptions) { o.Name = "Mine!" }, `kernel name "Mine!" is not valid`, "a-z"},
		"a name of the catalog": {own, nil, func(_ *testing.T, o *RegisterOptions) { o.Name = DefaultName },
			"the name is one of the catalog", "another --name"},
		"relative":       {own, nil, func(_ *testing.T, o *RegisterOptions) { o.Vmlinux = "vmlinux" }, `--vmlinux "vmlinux": the path is not absolute`, ""},
		"no vmlinux":     {own, nil, func(_ *testing.T, o *RegisterOptions) { o.Vmlinux += "x" }, `vmlinuxx": there is no such file`, ""},
		"a directory":    {own, nil, func(_ *testing.T, o *RegisterOptions) { o.Vmlinux = filepath.Dir(o.Vmlinux) }, "it is a directory, not a file", "arch/x86/boot/bzImage"},
		"a pipe":         {own, nil, replace(t, func(path string) error { return syscall.Mkfifo(path, 0o600) }), "it is not a file", ""},
		"empty":          {own, nil, replaceText(t, ""), "only 0 bytes", "vmlinux"},
		"text":           {own, nil, replaceText(t, strings.Repeat("text", 1000)), "neither an ELF file nor a bzImage", "vmlinux"},
		"an arm64 Image": {own, nil, replaceText(t, strings.Repeat("\x00", offARM64)+"ARM\x64"+strings.Repeat("\x00", 1000)), "a kernel for arm64", ""},
		"an arm64 ELF":   {kmodtest.Vmlinux{Release: ownRelease, Machine: 183}, nil, nil, "EM_AARCH64", "x86-64"},
		"lz4":            {own, nil, replaceText(t, string(bzImage(t, []byte("\x02\x21\x4c\x18 and so on"), ""))), "compressed by lz4", "gzip, zstd"},
		"no release":     {kmodtest.Vmlinux{Config: builtinConfig()}, nil, nil, "does not say which Linux", ""},
		"no PVH":         {kmodtest.Vmlinux{Release: ownRelease, NoPVH: true, Config: builtinConfig()}, nil, nil, "(CONFIG_PVH)", "build it again"},
		"no driver": {own, lacking("overlay", "virtio_console"), nil,
			"guests need what it lacks: virtio_console for the agent, on QEMU (CONFIG_VIRTIO_CONSOLE) and overlay for the root (CONFIG_OVERLAY_FS)", "as a module"},
		"no vsock":            {own, lacking("vmw_vsock_virtio_transport"), nil, "(CONFIG_VIRTIO_VSOCKETS)", ""},
		"no devtmpfs":         {kmodtest.Vmlinux{Release: ownRelease, Config: without("DEVTMPFS")}, nil, nil, "CONFIG_DEVTMPFS", ""},
		"no initrd":           {kmodtest.Vmlinux{Release: ownRelease, Config: without("BLK_DEV_INITRD")}, moduleTree(t), nil, "CONFIG_BLK_DEV_INITRD", ""},
		"modules not named":   {kmodtest.Vmlinux{Release: ownRelease, Config: asModule("EXT4_FS")}, nil, nil, "ext4 for the root", "by --modules"},
		"no modules":          {own, moduleTree(t), func(_ *testing.T, o *RegisterOptions) { o.Modules += "x" }, "there is no such directory", ""},
		"modules are a file":  {own, nil, func(_ *testing.T, o *RegisterOptions) { o.Modules = o.Vmlinux }, "it is not a directory", "modules_install"},
		"relative modules":    {own, nil, func(_ *testing.T, o *RegisterOptions) { o.Modules = "." }, "not absolute", ""},
		"empty modules":       {own, map[string]string{"readme": "x"}, nil, "there are no modules in it", "modules_install"},
		"of another release":  {kmodtest.Vmlinux{Release: "6.13.0"}, moduleTree(t), nil, `is of Linux 6.12.9-own, and the kernel is 6.13.0`, "one build"},
		"lists of another":    {kmodtest.Vmlinux{Release: "6.13.0"}, map[string]string{"modules.builtin": "kernel/fs/ext4.ko\n"}, nil, `the directory is of Linux 6.12.9-own`, "one build"},
		"the directory above": {own, moduleTree(t), func(_ *testing.T, o *RegisterOptions) { o.Modules = filepath.Dir(o.Modules) }, "not the directory of one kernel's modules", "modules/" + ownRelease},
		"not a module":        {own, with("kernel/bad.ko", []byte("x")), nil, `"kernel/bad.ko"`, ""},
		"bad xz":              {own, with("kernel/bad.ko.xz", []byte("x")), nil, `"kernel/bad.ko.xz"`, ""},
		"an arm64 module":     {own, with("kernel/bad.ko", arm), nil, "EM_AARCH64", ""},
		"module twice":        {own, with("updates/tun.ko", module(kmodtest.Module{})), nil, "comes twice", ""},
		"a need that is gone": {own, with("kernel/a.ko", module(kmodtest.Module{Info: []string{"depends=gone"}})), nil, `needs "gone"`, ""},
		"blanks":              {own, with("kernel/a b.ko", module(kmodtest.Module{})), nil, "no blanks", ""},
		"large": {own, with("kernel/tun.ko", module(kmodtest.Module{Info: []string{strings.Repeat("x", maxBootBytes)}})), nil,
			"more than 64 MiB", "INSTALL_MOD_STRIP=1"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			o := ownFiles(t, c.kernel, c.tree)
			if c.change != nil {
				c.change(t, &o)
			}
			kind := api.KindInvalid
			if o.Name == DefaultName {
				kind = api.KindConflict
			}
			_, err := f.Register(t.Context(), o, progress.Discard)
			e := api.AsError(err)
			if err == nil || !strings.Contains(e.Message, c.want) || !strings.Contains(e.Hint, c.hint) || e.Kind != kind {
				t.Errorf("%s: %s (hint %q), want %q and %q", e.Kind, e.Message, e.Hint, c.want, c.hint)
			}
			if got := f.stored(t); len(got) > 0 {
				t.Errorf("left: %v", got)
			}
		})
	}
}

func replace(t *testing.T, make func(path string) error) func(*testing.T, *RegisterOptions) {
	t.Helper()
	return func(t *testing.T, o *RegisterOptions) {
		t.Helper()
		if err := errors.Join(os.Remove(o.Vmlinux), make(o.Vmlinux)); err != nil {
			t.Fatal(err)
		}
	}
}

func replaceText(t *testing.T, text string) func(*testing.T, *RegisterOptions) {
	t.Helper()
	return replace(t, func(path string) error { return os.WriteFile(path, []byte(text), 0o600) })
}

// Cancelled at any point, a registration leaves nothing, and the next one succeeds.
func TestRegisterCancelledAnywhere(t *testing.T) {
	f := newFixture(t)
	o := ownFiles(t, kmodtest.Vmlinux{Release: ownRelease}, moduleTree(t))
	cancelled := 0
	for n := 1; ; n++ {
		ctx, cancel := context.WithCancel(t.Context())
		rep := &cancelReporter{n: n, cancel: cancel}
		k, err := f.Register(ctx, o, rep)
		cancel()
		if rep.at == "" {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		if err == nil { // too late to matter
			if err := f.Remove(k.Digest); err != nil {
				t.Fatal(err)
			}
			continue
		}
		cancelled++
		if api.KindOf(err) != api.KindCancelled || !errors.Is(err, context.Canceled) {
			t.Errorf("at %q: %v", rep.at, err)
		}
		if got := f.stored(t); len(got) > 0 {
			t.Fatalf("at %q: left %v", rep.at, got)
		}
	}
	if cancelled < 4 {
		t.Errorf("only %d were cancelled", cancelled)
	}
}

func TestRegisterFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	f := newFixture(t)
	o := ownFiles(t, kmodtest.Vmlinux{Release: ownRelease}, moduleTree(t))
	full := 0
	for size := 4; ; size += 32 {
		if err := unix.Mount("tmpfs", f.dir, "tmpfs", 0, fmt.Sprintf("size=%dk", size)); err != nil {
			t.Skipf("mount a tmpfs: %v", err)
		}
		_, err := f.Register(t.Context(), o, progress.Discard)
		left := f.stored(t)
		if uerr := unix.Unmount(f.dir, unix.MNT_DETACH); uerr != nil {
			t.Fatal(uerr)
		}
		if err == nil {
			break
		}
		full++
		if e := api.AsError(err); e.Kind != api.KindUnavailable || !strings.Contains(e.Hint, "make room") || len(left) > 0 {
			t.Errorf("with %d KiB: %s %v (hint %q), left %v", size, e.Kind, err, e.Hint, left)
		}
		if size > 4096 {
			t.Fatal("4 MiB are not enough for a small kernel")
		}
	}
	if full < 3 {
		t.Errorf("only %d sizes were too small", full)
	}
}
