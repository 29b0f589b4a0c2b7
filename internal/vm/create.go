package vm

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/disk"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// Limits of a VM's size, in bytes.
const (
	MinMemory = vmm.MinMemoryMiB << 20
	MinDisk   = disk.MinBytes
	maxEnv    = 32 << 10
)

// CheckCreate reports what is wrong with a request before any work is done for it: the
// form of names, sizes and forwards, sizes beyond the host, a name or a port of the host that is taken, a kernel nobody knows.
func (s *Service) CheckCreate(ctx context.Context, req api.CreateVM) error {
	if req.Name != "" {
		if err := CheckName(req.Name); err != nil {
			return err
		}
		if _, err := s.cfg.Records.VM(ctx, req.Name); err == nil {
			return nameTaken(req.Name)
		}
	}
	if req.Wait != "" && !req.Wait.Valid() {
		return badWait(req.Wait)
	}
	if err := checkHostPorts(req.HostPorts); err != nil {
		return err
	}
	if err := checkEnv(req.Env); err != nil {
		return err
	}
	if req.Kernel != "" {
		if err := s.cfg.Supplies.CheckKernel(ctx, req.Kernel); err != nil {
			return err
		}
	}
	if _, err := s.size(req); err != nil {
		return err
	}
	_, err := s.chooseForwards(ctx, req.Forwards)
	return err
}

func nameTaken(name string) error {
	return api.Errorf(api.KindConflict, "vm %q already exists", name).
		WithHint("choose another --name, or remove it: banger vm delete --force %s", name)
}

func badWait(m api.Mark) error {
	return api.Errorf(api.KindInvalid, "wait %q is not valid", m).WithHint("use agent, ready or full")
}

func checkEnv(env []string) error {
	total := 0
	for _, e := range env {
		name, _, ok := strings.Cut(e, "=")
		if !ok || name == "" || strings.ContainsRune(e, 0) {
			return api.Errorf(api.KindInvalid, "environment %q is not valid", e).WithHint("use KEY=VALUE")
		}
		total += len(e) + 1
	}
	if total > maxEnv {
		return api.Errorf(api.KindInvalid, "environment is %d bytes, more than %d", total, maxEnv).
			WithHint("put large values into a file in the repository")
	}
	return nil
}

// size is how big a VM is to be.
type size struct {
	cpus         int
	memory, disk int64
}

func (s *Service) size(req api.CreateVM) (size, error) {
	out := size{cpus: req.CPUs, memory: s.cfg.Defaults.MemoryBytes, disk: s.cfg.Defaults.DiskBytes}
	host := s.cfg.Host
	if req.CPUs < 0 || req.CPUs > host.CPUs {
		return out, api.Errorf(api.KindInvalid, "%d CPUs are not possible", req.CPUs).
			WithHint("this host has %d; use --cpus 1 to %d", host.CPUs, host.CPUs)
	}
	var err error
	if req.Memory != "" {
		if out.memory, err = disk.ParseSize(req.Memory); err != nil {
			return out, api.Errorf(api.KindInvalid, "memory %q is not valid: %w", req.Memory, err).WithHint("use for example --memory 2GiB")
		}
	} else {
		out.memory = min(out.memory, host.MemoryBytes)
	}
	if out.memory < MinMemory || out.memory > host.MemoryBytes || out.memory%(1<<20) != 0 {
		return out, api.Errorf(api.KindInvalid, "memory %s is not possible", disk.FormatSize(out.memory)).
			WithHint("use whole MiB from %s to the host's %s", disk.FormatSize(MinMemory), disk.FormatSize(host.MemoryBytes&^(1<<20-1)))
	}
	if req.Disk != "" {
		if out.disk, err = disk.ParseSize(req.Disk); err != nil {
			return out, api.Errorf(api.KindInvalid, "disk %q is not valid: %w", req.Disk, err).WithHint("use for example --disk 20GiB")
		}
	}
	if out.disk < MinDisk || out.disk%(1<<20) != 0 {
		return out, api.Errorf(api.KindInvalid, "disk %s is not possible", disk.FormatSize(out.disk)).
			WithHint("use whole MiB, at least %s", disk.FormatSize(MinDisk))
	}
	return out, s.checkHostDisk(req.Disk != "", &out.disk)
}

// checkHostDisk refuses a disk larger than the host's file system. A default that is too large shrinks to it.
func (s *Service) checkHostDisk(asked bool, bytes *int64) error {
	total, _, err := s.hostDisk()
	if err != nil {
		return err
	}
	switch {
	case *bytes <= total:
		return nil
	case !asked && total >= MinDisk:
		*bytes = total &^ (1<<30 - 1)
		return nil
	}
	return api.Errorf(api.KindInvalid, "disk %s is larger than the host's file system", disk.FormatSize(*bytes)).
		WithHint("%s holds %s in all; use a smaller --disk", s.cfg.Paths.State, disk.FormatSize(total))
}

// hostDisk returns size and free space, in bytes, of the file system the VMs are on.
func (s *Service) hostDisk() (total, free int64, err error) {
	if err := os.MkdirAll(s.cfg.Paths.VMs(), 0o700); err != nil {
		return 0, 0, fmt.Errorf("make the directory of the VMs: %w", err)
	}
	return disk.Room(s.cfg.Paths.VMs())
}

// Create makes a VM, and starts it where the request says so. When it fails or is cancelled nothing
// is left of the VM, with one exception: a VM that was made but did not come up stays for its logs.
func (s *Service) Create(ctx context.Context, req api.CreateVM, rep progress.Reporter) (api.VM, error) {
	if err := s.CheckCreate(ctx, req); err != nil {
		return api.VM{}, err
	}
	rec, err := s.make(ctx, req, rep)
	if err != nil {
		return api.VM{}, err
	}
	s.watchOwner(rec)
	if !req.Start {
		return s.VM(ctx, rec.ID)
	}
	err = s.start(ctx, rec.ID, req.Wait, rep)
	if err == nil {
		return s.VM(ctx, rec.ID)
	}
	if _, untaken := errors.AsType[*firstBootError](err); ctx.Err() != nil || untaken || !s.wasStarted(ctx, rec.ID) {
		return api.VM{}, s.removeAfter(ctx, rec.ID, err)
	}
	if e := api.AsError(err); e.Hint == "" {
		err = e.WithHint("the VM was kept: banger vm logs %s, then banger vm delete --force %s", rec.Name, rec.Name)
	}
	return api.VM{}, err
}

// wasStarted reports whether it came to a start of the VM: then there are logs to keep it for.
func (s *Service) wasStarted(ctx context.Context, id string) bool {
	rec, err := s.cfg.Records.VM(ctx, id)
	return err != nil || rec.StartedAt != nil
}

func (s *Service) removeAfter(ctx context.Context, id string, err error) error {
	u := undo{}
	u.push(func(ctx context.Context) error { return s.delete(ctx, id, true) })
	return u.run(ctx, err)
}

// make records a VM and makes its directory and data drive.
func (s *Service) make(ctx context.Context, req api.CreateVM, rep progress.Reporter) (store.VM, error) {
	img, err := s.cfg.Supplies.EnsureImage(ctx, req.Image, rep)
	if err != nil {
		return store.VM{}, err
	}
	krn, err := s.kernel(ctx, req, img, rep)
	if err != nil {
		return store.VM{}, err
	}
	size, err := s.size(req)
	if err != nil {
		return store.VM{}, err
	}
	if _, free, err := s.hostDisk(); err == nil && size.disk > free && req.Disk != "" {
		rep.Note(fmt.Sprintf("the disk may grow to %s, but %s has only %s free", disk.FormatSize(size.disk), s.cfg.Paths.State, disk.FormatSize(free)))
	}
	forwards, err := s.chooseForwards(ctx, req.Forwards)
	if err != nil {
		return store.VM{}, err
	}
	rec := store.VM{ID: newID(), State: api.StateCreating, Image: img.Name, ImageDigest: img.Digest,
		Kernel: krn.Name, KernelDigest: krn.Digest, CPUs: size.cpus, MemoryBytes: size.memory, DiskBytes: size.disk,
		Env: req.Env, Forwards: forwards, HostPorts: req.HostPorts, RemoveOnExit: req.RemoveOnExit, Owner: req.Owner, MachineID: newID(), CreatedAt: s.cfg.Host.Now()}
	if err := giveHostKey(&rec); err != nil {
		return rec, err
	}
	u := undo{}
	if err := s.insert(ctx, &rec, req.Name); err != nil {
		return rec, err
	}
	u.push(func(ctx context.Context) error { return s.cfg.Records.DeleteVM(ctx, rec.ID) })
	dir := s.cfg.Paths.VM(rec.ID)
	u.push(func(context.Context) error { return os.RemoveAll(dir) })
	if err := os.Mkdir(dir, 0o700); err != nil {
		return rec, u.run(ctx, fmt.Errorf("create vm %q: %w", rec.Name, diskFull(err, dir)))
	}
	if err := disk.Create(ctx, filepath.Join(dir, paths.VMData), rec.DiskBytes); err != nil {
		return rec, u.run(ctx, fmt.Errorf("create vm %q: %w", rec.Name, diskFull(err, dir)))
	}
	if !req.NoFileSync {
		if err := s.stage(ctx, rec, rep); err != nil {
			return rec, u.run(ctx, fmt.Errorf("create vm %q: %w", rec.Name, diskFull(err, dir)))
		}
	}
	made, err := s.move(ctx, rec.ID, evMade, "")
	if err != nil {
		return rec, u.run(ctx, err)
	}
	s.syncKnownHosts(ctx)
	noteForwards(made, req.Forwards, rep)
	s.cfg.Log.Info("vm created", "vm", rec.Name, "id", rec.ID, "image", rec.ImageDigest, "kernel", rec.KernelDigest)
	return made, nil
}

// kernel makes the kernel of a new VM local: the one asked for, or its image's.
func (s *Service) kernel(ctx context.Context, req api.CreateVM, img Image, rep progress.Reporter) (Kernel, error) {
	if req.Kernel == "" && img.Image.Kernel != "" {
		// The image's may have been deleted, or was never here: an image may come from elsewhere.
		if err := s.cfg.Supplies.CheckKernel(ctx, img.Image.Kernel); api.KindOf(err) == api.KindNotFound {
			return Kernel{}, api.Errorf(api.KindNotFound, "image %q is for a kernel that is not here: %w", img.Name, err).
				WithHint("choose another by --kernel; banger kernel list shows what there is")
		}
	}
	return s.cfg.Supplies.EnsureKernel(ctx, cmp.Or(req.Kernel, img.Image.Kernel), rep)
}

// insert records a VM under the name asked for, or under one that is free.
func (s *Service) insert(ctx context.Context, rec *store.VM, name string) error {
	for try := 0; ; try++ {
		rec.Name = name
		if name == "" {
			rec.Name = generateName(try)
		}
		err := s.cfg.Records.InsertVM(ctx, *rec)
		if err == nil || name != "" || api.KindOf(err) != api.KindConflict || try > 20 {
			return err
		}
	}
}

// diskFull gives a full disk the error it deserves and leaves other errors alone.
func diskFull(err error, dir string) error {
	if api.KindOf(err) != api.KindInternal || !isDiskFull(err) {
		return err
	}
	return api.Errorf(api.KindUnavailable, "the disk of %q is full: %w", dir, err).
		WithHint("free some space; banger vm list shows what the VMs take")
}

// newID returns 32 random hex digits.
func newID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails: crypto/rand's documentation
	return hex.EncodeToString(b)
}
