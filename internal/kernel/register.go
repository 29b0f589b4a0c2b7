package kernel

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostfile"
	"git.thaloco.com/thaloco/banger/internal/kernel/kmod"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// RegisterOptions say what kernel to make of which files of the host.
type RegisterOptions struct {
	Name string
	// Vmlinux is the absolute path of an uncompressed ELF kernel for x86-64, or of a bzImage with one inside.
	Vmlinux string
	// Modules is the absolute path of the directory of its modules, which make modules_install makes as lib/modules/RELEASE; empty
	// for none.
	Modules string
}

var nameRE = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// releaseRE matches what is named by a kernel's release.
var releaseRE = regexp.MustCompile(`^[0-9]+\.[0-9]+`)

// registeredTime is what the files of a registered kernel's drive bear as their time: what was copied without its times is the same kernel.
var registeredTime = time.Unix(0, 0)

// CheckRegister reports what is wrong with o before any work is done for it: the name, and files that are not there or not to be read.
func CheckRegister(o RegisterOptions) error {
	if !nameRE.MatchString(o.Name) {
		return api.Errorf(api.KindInvalid, "kernel name %q is not valid", o.Name).
			WithHint("a name is 1 to 63 of a-z, 0-9, dot, _ and -, and begins with a letter or digit")
	}
	if slices.ContainsFunc(recipes(), func(r recipe) bool { return r.name == o.Name }) {
		return api.Errorf(api.KindConflict, "register kernel %q: the name is one of the catalog", o.Name).WithHint("choose another --name")
	}
	f, err := openVmlinux(o)
	if err != nil {
		return err
	}
	f.Close()
	if o.Modules == "" {
		return nil
	}
	return checkModules(o)
}

func checkModules(o RegisterOptions) error {
	st, err := os.Stat(o.Modules)
	switch {
	case !filepath.IsAbs(o.Modules):
		return o.invalid("--modules %q: the path is not absolute", o.Modules)
	case errors.Is(err, fs.ErrNotExist):
		return o.invalid("--modules %q: there is no such directory", o.Modules)
	case err == nil && !st.IsDir():
		return o.invalid("--modules %q: it is not a directory", o.Modules).WithHint("give the directory lib/modules/RELEASE that make modules_install makes")
	case err == nil:
		err = unix.Access(o.Modules, unix.R_OK|unix.X_OK)
	}
	if err != nil {
		return o.invalid("--modules %q: %w", o.Modules, bare(err))
	}
	return nil
}

// openVmlinux opens the kernel, which must be a file: a pipe would keep who opens it waiting.
func openVmlinux(o RegisterOptions) (*os.File, error) {
	if !filepath.IsAbs(o.Vmlinux) {
		return nil, o.invalid("--vmlinux %q: the path is not absolute", o.Vmlinux)
	}
	f, err := os.OpenFile(o.Vmlinux, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, o.invalid("--vmlinux %q: there is no such file", o.Vmlinux)
	}
	if err != nil {
		return nil, o.invalid("--vmlinux %q: %w", o.Vmlinux, bare(err))
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		what := "it is not a file"
		if st.IsDir() {
			what = "it is a directory, not a file"
		}
		err = o.invalid("--vmlinux %q: %s", o.Vmlinux, what).WithHint("give the file vmlinux at the top of the kernel's build, or arch/x86/boot/bzImage")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (o RegisterOptions) invalid(format string, args ...any) *api.Error {
	return api.Errorf(api.KindInvalid, "register kernel %q: %w", o.Name, fmt.Errorf(format, args...))
}

// bare is err without the path that the message around it names already.
func bare(err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return pe.Err
	}
	return err
}

// Register makes a kernel of copies of o's files and returns it. It is refused, and nothing is stored, where it lacks what guests need.
// Where the store has the same content, that stays and is returned by the new name. When ctx ends, nothing half-made is left.
// Whether the name is free is for the caller to know.
func (s *Store) Register(ctx context.Context, o RegisterOptions, rep progress.Reporter) (api.Kernel, error) {
	if err := CheckRegister(o); err != nil {
		return api.Kernel{}, err
	}
	select {
	case s.pull <- struct{}{}:
		defer func() { <-s.pull }()
	case <-ctx.Done():
		return api.Kernel{}, s.explain(ctx, "register", o.Name, context.Cause(ctx))
	}
	k, err := s.staged(rep, func(b *builder) (api.Kernel, error) {
		b.signed, b.modTime = true, registeredTime
		if err := b.register(ctx, o); err != nil {
			return api.Kernel{}, err
		}
		return s.install(ctx, b.out, api.Kernel{Name: o.Name, Description: "registered from files of this host", Release: b.release,
			Source: o.Vmlinux, Arch: "x86_64", Local: true})
	})
	debug.FreeOSMemory() // a kernel was held whole, and the daemon may now be idle for days
	switch {
	case err == nil:
		return k, nil
	case api.KindOf(err) == api.KindInternal:
		return api.Kernel{}, s.explain(ctx, "register", o.Name, err)
	}
	return api.Kernel{}, err
}

// register fills b.out with the files of o's kernel.
func (b *builder) register(ctx context.Context, o RegisterOptions) error {
	b.rep.Step("copy " + filepath.Base(o.Vmlinux))
	f, err := b.takeVmlinux(ctx, o)
	if err != nil {
		return err
	}
	if o.Modules != "" {
		b.rep.Step("copy the modules of " + b.release)
		if err := b.takeModules(ctx, o, f.config["MODULE_DECOMPRESS"] == "y"); err != nil {
			return err
		}
	}
	b.rep.Step("prepare the modules of " + b.release)
	set, err := b.moduleSet(ctx)
	if err != nil {
		return o.explainModules(err)
	}
	n := look(f, set, slices.ContainsFunc(b.files, func(f staged) bool { return f.name == fileBuiltin }))
	if len(n.missing) > 0 {
		return o.lacks(f, n)
	}
	b.note(n)
	return o.explainModules(b.writeModules(ctx, set, n.boot))
}

// explainModules tells users which of their files an error is about, where it is about those.
func (o RegisterOptions) explainModules(err error) error {
	switch {
	case errors.Is(err, errOtherRelease):
		return o.invalid("--modules %q: %w", o.Modules, err).
			WithHint("give the kernel and the modules of one build: make -s kernelrelease tells its name")
	case errors.Is(err, errTooLarge):
		return o.invalid("--modules %q: %w", o.Modules, err).
			WithHint("install them without debug information: make modules_install INSTALL_MOD_STRIP=1 INSTALL_MOD_PATH=DIR")
	case errors.Is(err, kmod.ErrFormat) || errors.As(err, new(*kmod.SetError)):
		return o.invalid("--modules %q: %w", o.Modules, err)
	}
	return err
}

// lacks refuses a kernel that guests cannot run on.
func (o RegisterOptions) lacks(f facts, n needs) error {
	err := o.invalid("--vmlinux %q: guests need what it lacks: %s", o.Vmlinux, list(n.missing))
	if o.Modules == "" && asModules(f) {
		return err.WithHint("its configuration has some of it as modules: name the directory lib/modules/RELEASE by --modules")
	}
	return err.WithHint("configure the kernel with it, built in or, where it can be, as a module in what --modules names, and build it again")
}

// note says what is not known of a kernel, and what its guests do without.
func (b *builder) note(n needs) {
	if len(n.unknown) > 0 {
		b.rep.Note("whether the kernel has " + list(n.unknown) + " built in is not known, as it was built without CONFIG_IKCONFIG, and there is no modules.builtin: " +
			"where it has not, its VMs do not start, or not on each engine")
	}
	if len(n.without) > 0 {
		b.rep.Note("the kernel lacks " + list(n.without) + ": its VMs do without")
	}
}

// takeVmlinux copies the kernel and returns what it says of itself.
func (b *builder) takeVmlinux(ctx context.Context, o RegisterOptions) (facts, error) {
	src, err := openVmlinux(o)
	if err != nil {
		return facts{}, err
	}
	defer src.Close()
	path := filepath.Join(b.out, fileVmlinux)
	dst, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return facts{}, err
	}
	err = b.openKernel(ctx, dst, src)
	if err = cmp.Or(err, dst.Sync(), dst.Close()); err != nil {
		return facts{}, o.explainKernel(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return facts{}, err
	}
	f, err := readFacts(data)
	if err != nil {
		return facts{}, o.explainKernel(err)
	}
	if f.release == "" {
		return facts{}, o.invalid("--vmlinux %q: it does not say which Linux it is", o.Vmlinux).WithHint("give the file vmlinux at the top of the kernel's build")
	}
	b.release = f.release
	return f, nil
}

// explainKernel tells users which of their files an error is about, where it is about that.
func (o RegisterOptions) explainKernel(err error) error {
	if errors.Is(err, errBzImage) {
		return o.invalid("--vmlinux %q: %w", o.Vmlinux, err).
			WithHint("give an uncompressed kernel for x86-64, the file vmlinux at the top of the kernel's build, or a bzImage compressed by gzip, zstd, lzma or bzip2")
	}
	return err
}

// openKernel writes the ELF kernel that src is, or holds, to dst.
func (b *builder) openKernel(ctx context.Context, dst io.Writer, src *os.File) error {
	head := make([]byte, setupHeaderEnd)
	n, err := src.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, []byte("\x7fELF")):
		return copyVmlinux(writer{ctx, dst}, src)
	case n < setupHeaderEnd:
		return fmt.Errorf("it has only %d bytes: %w", n, errBzImage)
	case string(head[offARM64:offARM64+4]) == "ARM\x64":
		return fmt.Errorf("it is a kernel for arm64, and banger runs x86-64: %w", errBzImage)
	case string(head[offMagic:offMagic+4]) != "HdrS":
		return fmt.Errorf("it is neither an ELF file nor a bzImage: %w", errBzImage)
	}
	image, err := io.ReadAll(io.LimitReader(hostfile.Reader(ctx, src), maxVmlinux))
	if err != nil {
		return err
	}
	inside, err := os.OpenFile(filepath.Join(filepath.Dir(b.out), "inside"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer inside.Close()
	if err := extractVmlinux(writer{ctx, inside}, image, maxVmlinux); err != nil {
		return err
	}
	return copyVmlinux(writer{ctx, dst}, inside)
}

// writer ends with its context.
type writer struct {
	ctx context.Context
	w   io.Writer
}

func (w writer) Write(p []byte) (int, error) {
	if w.ctx.Err() != nil {
		return 0, context.Cause(w.ctx)
	}
	return w.w.Write(p)
}

// takeModules stages the modules below o.Modules and the lists the kernel's build made of them; depmod's work is done anew, and nothing else
// that lies there is taken. Modules are decompressed where the kernel may not be able to.
func (b *builder) takeModules(ctx context.Context, o RegisterOptions, compressed bool) error {
	root, err := filepath.EvalSymlinks(o.Modules)
	if err != nil {
		return o.invalid("--modules %q: %w", o.Modules, bare(err))
	}
	for _, inside := range []string{b.release, filepath.Join("lib/modules", b.release), filepath.Join("usr/lib/modules", b.release)} {
		if st, err := os.Stat(filepath.Join(root, inside)); err == nil && st.IsDir() {
			return o.invalid("--modules %q: that is not the directory of one kernel's modules", o.Modules).
				WithHint("use --modules %s", filepath.Join(o.Modules, inside))
		}
	}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return o.invalid("--modules %q: %w", path, bare(err))
		case !d.Type().IsRegular(): // build and source, which are links, too
			return nil
		}
		name, err := filepath.Rel(root, path)
		if err != nil || !wanted(name) {
			return err
		}
		if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' }) { // they would break the lists, which have one a line, by blanks
			return o.invalid("--modules %q: a module's name has no blanks", path)
		}
		return b.takeModule(o, path, name, compressed)
	})
	if err != nil {
		return o.explainModules(err)
	}
	if len(b.files) == 0 {
		return o.invalid("--modules %q: there are no modules in it", o.Modules).
			WithHint("give the directory lib/modules/RELEASE that make modules_install INSTALL_MOD_PATH=DIR makes")
	}
	modules := slices.ContainsFunc(b.files, func(f staged) bool { return kmod.IsModule(f.name) })
	if name := filepath.Base(root); !modules && releaseRE.MatchString(name) && name != b.release { // lists alone do not say whose they are
		return o.explainModules(fmt.Errorf("%w: the directory is of Linux %s, and the kernel is %s", errOtherRelease, name, b.release))
	}
	return nil
}

// wanted reports whether a file of lib/modules/RELEASE is a module, or a list that cannot be made anew.
func wanted(name string) bool {
	return kmod.IsModule(name) || name == fileBuiltin || name == "modules.builtin.modinfo" || name == "modules.order"
}

// takeModule stages one file.
func (b *builder) takeModule(o RegisterOptions, path, name string, compressed bool) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return o.invalid("--modules %q: %w", path, bare(err))
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	hdr, r := &tar.Header{Size: st.Size()}, io.Reader(f)
	if plain := kmod.Plain(name); plain != name && kmod.IsModule(name) && !compressed {
		data, err := kmod.Decompress(name, f)
		if err != nil {
			return o.invalid("--modules %q: %w", o.Modules, err)
		}
		name, hdr.Size, r = plain, int64(len(data)), bytes.NewReader(data)
	}
	return b.stageFile(b.release+"/"+name, hdr, io.LimitReader(r, hdr.Size))
}
