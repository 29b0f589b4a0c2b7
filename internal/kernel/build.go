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
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/content"
	"git.thaloco.com/thaloco/banger/internal/deb"
	"git.thaloco.com/thaloco/banger/internal/ext4"
	"git.thaloco.com/thaloco/banger/internal/hostfile"
	"git.thaloco.com/thaloco/banger/internal/initramfs"
	"git.thaloco.com/thaloco/banger/internal/kernel/kmod"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// Limits of a package's content; Debian's has 1,200 files, 27 MB of modules, and a 12 MB image.
const (
	maxFiles      = 50_000
	maxFileBytes  = 512 << 20
	maxTotalBytes = 2 << 30
	maxDriveBytes = 4 << 30
	maxBootBytes  = 64 << 20 // of the modules in the boot archive; every guest holds it in memory at its start
)

var (
	// errTooLarge says that modules take more room than any kernel's should.
	errTooLarge = errors.New("the modules are too large")
	// errOtherRelease says that a module is of another kernel.
	errOtherRelease = errors.New("modules of another kernel")
)

// build makes a kernel of a package file and puts it into the store.
func (s *Store) build(ctx context.Context, file string, k api.Kernel, rep progress.Reporter) (api.Kernel, error) {
	return s.staged(rep, func(b *builder) (api.Kernel, error) {
		rep.Step("unpack " + k.Package)
		if err := b.unpack(ctx, file); err != nil {
			return api.Kernel{}, err
		}
		rep.Step("prepare the modules of " + b.release)
		set, err := b.moduleSet(ctx)
		if err != nil {
			return api.Kernel{}, err
		}
		if err := b.writeModules(ctx, set, bootModules()); err != nil {
			return api.Kernel{}, err
		}
		k.Release = b.release
		return s.install(ctx, b.out, k)
	})
}

// staged runs work with a builder whose directories are in the store, and go when it is done.
func (s *Store) staged(rep progress.Reporter, work func(*builder) (api.Kernel, error)) (api.Kernel, error) {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return api.Kernel{}, err
	}
	tmp, err := os.MkdirTemp(s.cfg.Dir, content.TmpPrefix)
	if err != nil {
		return api.Kernel{}, err
	}
	defer func() {
		if rerr := os.RemoveAll(tmp); rerr != nil {
			s.cfg.Log.Warn("cannot remove a temporary directory; the next start does", "path", tmp, "error", rerr.Error())
		}
	}()
	b := &builder{stage: filepath.Join(tmp, "stage"), out: filepath.Join(tmp, "kernel"), rep: rep}
	if err := errors.Join(os.Mkdir(b.stage, 0o700), os.Mkdir(b.out, 0o755)); err != nil {
		return api.Kernel{}, err
	}
	return work(b)
}

// install completes the directory out with its record, and renames it to its place.
func (s *Store) install(ctx context.Context, out string, k api.Kernel) (api.Kernel, error) {
	files, err := hashFiles(ctx, out)
	if err != nil {
		return api.Kernel{}, err
	}
	now := s.cfg.Now().UTC().Truncate(time.Second)
	r := record{Version: recordVersion, Kernel: k, Files: files}
	r.Kernel.CreatedAt = &now
	r.Kernel.Digest = r.digest()
	for _, f := range files {
		r.Kernel.SizeBytes += f.Size
	}
	dir, err := s.path(r.Kernel.Digest)
	if err != nil {
		return api.Kernel{}, err
	}
	if registered(k) { // what is there undamaged stays what it is, a package's perhaps, and gets one more name
		if have, err := s.check(ctx, dir, r.Kernel.Digest, true); err == nil {
			have.Kernel.Name = k.Name
			return have.Kernel, nil
		}
	}
	if err := r.write(out); err != nil {
		return api.Kernel{}, err
	}
	if err := cmp.Or(s.place(out, dir), hostfile.SyncDir(s.cfg.Dir)); err != nil {
		return api.Kernel{}, err
	}
	return r.Kernel, nil
}

// place renames out to dir. A kernel of the same content may be there: damaged, or pulled by another name. It changes places with
// the new one, so that a VM that starts finds one of them; VMs that run keep its files open.
func (s *Store) place(out, dir string) error {
	err := unix.Renameat2(unix.AT_FDCWD, out, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE)
	switch {
	case err == nil: // the old one is in the temporary directory now
		return nil
	case errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS): // not on this file system
		if err := s.content.Discard(dir); err != nil {
			return err
		}
	default:
		return &os.LinkError{Op: "exchange", Old: out, New: dir, Err: err}
	}
	return os.Rename(out, dir)
}

// builder makes the files of one kernel.
type builder struct {
	// stage holds what is to be in lib/modules/RELEASE, out the finished files.
	stage, out string
	rep        progress.Reporter

	release string
	// files are what is below stage, in the package's order; modTime is the newest time of theirs.
	files   []staged
	modTime time.Time
	bytes   int64
	// signed says that the modules of the boot archive keep their signatures.
	signed bool
}

// staged is a file below the stage directory.
type staged struct {
	name string
	size int64
}

// unpack takes what is needed from the package.
func (b *builder) unpack(ctx context.Context, file string) error {
	image := false
	err := deb.Unpack(ctx, file, b.rep, func(hdr *tar.Header, r io.Reader) error {
		if hdr.Typeflag != tar.TypeReg {
			return nil
		}
		name := strings.TrimPrefix(hdr.Name, "usr/")
		if release, ok := strings.CutPrefix(name, "boot/vmlinuz-"); ok && !image {
			image = true
			return b.writeImage(release, hdr.Size, r)
		}
		if rest, ok := strings.CutPrefix(name, "lib/modules/"); ok {
			return b.stageFile(rest, hdr, r)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if !image || len(b.files) == 0 {
		return fmt.Errorf("unpack %q: it holds no kernel image, or no modules", filepath.Base(file))
	}
	return nil
}

func (b *builder) setRelease(release string) error {
	if b.release == "" && release != "" {
		b.release = release
	}
	if release != b.release || strings.ContainsAny(release, "/\n ") {
		return fmt.Errorf("unpack kernel: it has files of the releases %q and %q", b.release, release)
	}
	return nil
}

// writeImage writes the package's boot image as vmlinux.
func (b *builder) writeImage(release string, size int64, r io.Reader) error {
	if err := b.setRelease(release); err != nil {
		return err
	}
	image, err := io.ReadAll(io.LimitReader(r, min(size, maxFileBytes)))
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(b.out, fileVmlinux), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	err = extractVmlinux(f, image, maxVmlinux)
	if err == nil {
		err = checkVmlinux(f)
	}
	if err != nil {
		err = fmt.Errorf("open kernel image %q: %w", "vmlinuz-"+release, err)
	}
	return cmp.Or(err, f.Sync(), f.Close())
}

// stageFile keeps a file of lib/modules; rest is RELEASE/PATH.
func (b *builder) stageFile(rest string, hdr *tar.Header, r io.Reader) error {
	release, name, ok := strings.Cut(rest, "/")
	if !ok {
		return nil
	}
	if err := b.setRelease(release); err != nil {
		return err
	}
	b.bytes += hdr.Size
	if len(b.files) >= maxFiles || hdr.Size > maxFileBytes || b.bytes > maxTotalBytes {
		return fmt.Errorf("%w: more than %d files or %d MiB", errTooLarge, maxFiles, maxTotalBytes>>20)
	}
	dst := filepath.Join(b.stage, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(dst), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err = cmp.Or(err, f.Close()); err != nil {
		return err
	}
	b.files = append(b.files, staged{name, hdr.Size})
	if hdr.ModTime.After(b.modTime) {
		b.modTime = hdr.ModTime
	}
	return nil
}

// moduleSet reads what is staged.
func (b *builder) moduleSet(ctx context.Context) (*kmod.Set, error) {
	modules, err := b.parseModules(ctx)
	if err != nil {
		return nil, err
	}
	var shipped kmod.Shipped
	for name, dst := range map[string]*[]byte{"modules.order": &shipped.Order, fileBuiltin: &shipped.Builtin,
		"modules.builtin.modinfo": &shipped.BuiltinInfo} {
		data, err := os.ReadFile(filepath.Join(b.stage, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		*dst = data
	}
	return kmod.NewSet(modules, shipped)
}

// writeModules makes boot.cpio, with the modules of the given names, and modules.ext4 of what is staged.
func (b *builder) writeModules(ctx context.Context, set *kmod.Set, boot []string) error {
	if err := b.writeBoot(set, boot); err != nil {
		return err
	}
	b.rep.Step("make the modules drive of " + b.release)
	return b.writeDrive(ctx, set.Files())
}

// parseModules reads all modules, on all CPUs.
func (b *builder) parseModules(ctx context.Context) ([]kmod.Module, error) {
	var names []string
	var total int64
	for _, f := range b.files {
		if kmod.IsModule(f.name) {
			names = append(names, f.name)
			total += f.size
		}
	}
	out := make([]kmod.Module, len(names))
	done := make(chan int64, len(names)) // sizes of modules that were read
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0) + 1) // and the reporter's goroutine
	g.Go(func() error {
		var sum int64
		for range names {
			select {
			case n := <-done:
				sum += n
				b.rep.Bytes(sum, total)
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	for i, name := range names {
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			data, size, err := b.readModule(name)
			if err != nil {
				return err
			}
			if out[i], err = kmod.Parse(name, data); err != nil {
				return err
			}
			if r := out[i].Release; r != "" && r != b.release {
				return fmt.Errorf("%w: %q is of Linux %s, and the kernel is %s", errOtherRelease, name, r, b.release)
			}
			done <- size
			return nil
		})
	}
	return out, g.Wait()
}

// readModule returns a staged module decompressed, and the size of its file.
func (b *builder) readModule(name string) (data []byte, size int64, err error) {
	file, err := os.ReadFile(filepath.Join(b.stage, name))
	if err != nil {
		return nil, 0, err
	}
	data, err = kmod.Decompress(name, bytes.NewReader(file))
	return data, int64(len(file)), err
}

// writeBoot writes boot.cpio.
func (b *builder) writeBoot(set *kmod.Set, names []string) error {
	modules, err := set.LoadOrder(names...)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(b.out, fileBoot), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	w := initramfs.NewWriter(f)
	var order strings.Builder
	var total int64
	err = w.Dir("modules", 0o755)
	for _, m := range modules {
		if err != nil {
			break
		}
		var data []byte
		if data, _, err = b.readModule(m.Path); err == nil {
			if !b.signed {
				data = kmod.StripSignature(data)
			}
			if total += int64(len(data)); total > maxBootBytes {
				err = fmt.Errorf("%w: those needed to boot take more than %d MiB", errTooLarge, maxBootBytes>>20)
				break
			}
			err = w.Bytes("modules/"+m.Name+".ko", 0o600, data)
			order.WriteString(m.Name + ".ko\n")
		}
	}
	if err == nil {
		err = cmp.Or(w.Bytes("modules/order", 0o600, []byte(order.String())), w.Close())
	}
	return cmp.Or(err, f.Sync(), f.Close())
}

// writeDrive writes modules.ext4: the staged files and the given ones, below RELEASE.
func (b *builder) writeDrive(ctx context.Context, made []kmod.File) error {
	pr, pw := io.Pipe()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { pw.CloseWithError(context.Cause(ctx)) })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pw.CloseWithError(b.tar(ctx, pw, made))
	}()
	err := ext4.FromTar(ctx, pr, filepath.Join(b.out, fileModules), ext4.Options{Label: "modules", MaxBytes: maxDriveBytes})
	pr.CloseWithError(cmp.Or(err, io.ErrClosedPipe))
	<-done
	return err
}

// tar writes the archive of the modules drive, sorted, owned by root.
func (b *builder) tar(ctx context.Context, w io.Writer, made []kmod.File) error {
	data := map[string][]byte{}
	for _, f := range made {
		data[f.Name] = f.Data
	}
	names := slices.Collect(maps.Keys(data))
	for _, f := range b.files {
		if data[f.name] == nil {
			names = append(names, f.name)
		}
	}
	slices.Sort(names)
	t := tar.NewWriter(w)
	dirs := map[string]bool{".": true}
	for _, name := range names {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		full := path.Join(b.release, name)
		if err := b.tarDirs(t, path.Dir(full), dirs); err != nil {
			return err
		}
		if err := b.tarFile(t, full, name, data); err != nil {
			return err
		}
	}
	return t.Close()
}

// tarDirs writes the directories down to dir that were not written yet.
func (b *builder) tarDirs(t *tar.Writer, dir string, done map[string]bool) error {
	if done[dir] {
		return nil
	}
	done[dir] = true
	if err := b.tarDirs(t, path.Dir(dir), done); err != nil {
		return err
	}
	return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: b.modTime})
}

func (b *builder) tarFile(t *tar.Writer, full, name string, data map[string][]byte) error {
	hdr := &tar.Header{Typeflag: tar.TypeReg, Name: full, Mode: 0o644, ModTime: b.modTime}
	var r io.Reader
	if d, ok := data[name]; ok {
		hdr.Size, r = int64(len(d)), bytes.NewReader(d)
	} else {
		f, err := os.Open(filepath.Join(b.stage, name))
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		hdr.Size, r = info.Size(), f
	}
	if err := t.WriteHeader(hdr); err != nil {
		return err
	}
	_, err := io.Copy(t, r)
	return err
}
