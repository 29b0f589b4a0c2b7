package vm

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/probe"
)

// How long the guest may take, from the start of the VMM and from its agent's call. Software emulation on a
// busy host is some twenty times slower than KVM.
const (
	bootDeadlineKVM = 30 * time.Second
	bootDeadlineTCG = 120 * time.Second
	readyDeadline   = 5 * time.Minute
)

func isDiskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// Start starts a VM and waits until its guest has come as far as want (MarkNone: ready). A VM that
// runs already is only waited for. When ctx ends before that, a VM that this call started is killed.
func (s *Service) Start(ctx context.Context, nameOrID string, want api.Mark, rep progress.Reporter) (api.VM, error) {
	if want != "" && !want.Valid() {
		return api.VM{}, badWait(want)
	}
	rec, err := s.cfg.Records.VM(ctx, nameOrID)
	if err != nil {
		return api.VM{}, err
	}
	if err := s.start(ctx, rec.ID, want, rep); err != nil {
		return api.VM{}, err
	}
	return s.VM(ctx, rec.ID)
}

func (s *Service) start(ctx context.Context, id string, want api.Mark, rep progress.Reporter) error {
	if want == api.MarkNone {
		want = api.MarkReady
	}
	if l := s.running(id); l != nil {
		return s.await(ctx, id, l, want, rep)
	}
	l, err := s.launch(ctx, id, rep)
	if err != nil {
		return err
	}
	if err := s.await(ctx, id, l, want, rep); err != nil {
		if ctx.Err() != nil {
			err = errors.Join(err, s.killLive(context.WithoutCancel(ctx), id))
		}
		return err
	}
	return nil
}

// launch has the engine start the VM, and returns it with its watcher running.
func (s *Service) launch(ctx context.Context, id string, rep progress.Reporter) (*live, error) {
	unlock, err := s.lock(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if l := s.running(id); l != nil {
		return l, nil
	}
	rec, err := s.cfg.Records.VM(ctx, id)
	if err != nil {
		return nil, err
	}
	if _, err := next(rec.State, evStart); err != nil {
		return nil, api.Errorf(api.KindConflict, "start vm %q: %w", rec.Name, err)
	}
	spec, err := s.spec(ctx, rec)
	if err != nil {
		return nil, fmt.Errorf("start vm %q: %w", rec.Name, err)
	}
	if w := s.cfg.Network.Warning(); w != "" {
		s.cfg.Log.Warn("network", "warning", w)
		rep.Note(w)
	}
	rep.Step("boot " + rec.Name)
	now := s.cfg.Host.Now()
	if _, err := s.cfg.Records.UpdateVM(ctx, id, func(r *store.VM) error {
		r.Engine, r.Accel, r.CPUs, r.StartedAt, r.WasReady = spec.Engine, spec.Accel, spec.CPUs, &now, false
		return nil
	}); err != nil {
		return nil, err
	}
	if rec, err = s.move(ctx, id, evStart, ""); err != nil {
		return nil, err
	}
	machine, err := s.cfg.Engine.Start(ctx, s.cfg.Paths.VM(id), spec)
	if err != nil {
		return nil, s.notStarted(ctx, rec, err)
	}
	s.cfg.Log.Info("vm started", "vm", rec.Name, "id", id, "engine", spec.Engine, "accel", spec.Accel)
	return s.watch(rec, machine), nil
}

// notStarted records that the engine did not start a VM.
func (s *Service) notStarted(ctx context.Context, rec store.VM, err error) error {
	ev, reason := evFail, err.Error()
	if ctx.Err() != nil {
		ev, reason = evEnd, ""
	}
	_, e := s.move(ctx, rec.ID, ev, reason)
	failed := api.AsError(fmt.Errorf("start vm %q: %w", rec.Name, diskFull(err, s.cfg.Paths.VM(rec.ID))))
	if failed.Hint == "" && ev == evFail {
		failed = failed.WithHint("banger vm logs --source vmm %s may say more; banger vm delete --force %s removes the VM", rec.Name, rec.Name)
	}
	if e != nil {
		return errors.Join(failed, e)
	}
	return failed
}

// spec is all the engine must know of a VM.
func (s *Service) spec(ctx context.Context, rec store.VM) (vmm.Spec, error) {
	eng, err := s.cfg.Supplies.Engine(ctx)
	if err != nil {
		return vmm.Spec{}, err
	}
	img, err := s.cfg.Supplies.ImageByDigest(ctx, rec.ImageDigest)
	if err != nil {
		return vmm.Spec{}, err
	}
	krn, err := s.cfg.Supplies.KernelByDigest(ctx, rec.KernelDigest)
	if err != nil {
		return vmm.Spec{}, err
	}
	agent, err := s.cfg.Supplies.AgentArchive(ctx)
	if err != nil {
		return vmm.Spec{}, err
	}
	user, err := s.sshKeys(ctx, &rec)
	if err != nil {
		return vmm.Spec{}, err
	}
	network, err := s.cfg.Network.Lease(ctx, rec.ID)
	if err != nil {
		return vmm.Spec{}, err
	}
	cpus, deadline, emulated := rec.CPUs, bootDeadlineKVM, eng.Accel == probe.TCG
	if emulated {
		deadline = bootDeadlineTCG
	}
	if cpus == 0 {
		cpus = min(s.cfg.Defaults.CPUs(emulated), s.cfg.Host.CPUs)
	}
	return vmm.Spec{Version: vmm.SpecVersion, VM: rec.ID, Name: rec.Name, Engine: eng.Engine, Binary: eng.Binary, Accel: eng.Accel,
		CPUs: cpus, MemoryMiB: int(rec.MemoryBytes >> 20), Kernel: krn.Vmlinux, Initramfs: []string{krn.BootArchive, agent},
		Drives: []vmm.Drive{
			{ID: wire.DriveBase, Path: img.Rootfs, ReadOnly: true},
			{ID: wire.DriveData, Path: filepath.Join(s.cfg.Paths.VM(rec.ID), paths.VMData)},
			{ID: wire.DriveModules, Path: krn.ModulesDrive, ReadOnly: true},
		},
		Identity: wire.Identity{VM: rec.ID, Hostname: rec.Name, MachineID: rec.MachineID, Env: append(append([]string{}, img.Env...), rec.Env...),
			WorkDir: img.WorkDir, User: img.User, DataBytes: rec.DiskBytes,
			AuthorizedKeys: []string{user.Public}, SSHHostKey: rec.SSHHostKey, Network: &network},
		BootDeadline: deadline, Unsafe: rec.RemoveOnExit}, nil
}

// await waits for a mark of a running VM, telling its notes on the way.
func (s *Service) await(ctx context.Context, id string, l *live, want api.Mark, rep progress.Reporter) error {
	ctx, cancel := context.WithTimeoutCause(ctx, bootDeadlineTCG*2+readyDeadline,
		api.Errorf(api.KindGuest, "the guest did not become %s in time", want))
	defer cancel()
	told, last := 0, api.MarkNone
	for st := l.now(); ; {
		told = note(rep, st, told)
		switch {
		case st.Phase == vmm.PhaseEnded:
			return s.endedEarly(ctx, id, l, want, st)
		case st.Mark.Reached(want):
			return nil
		case st.Mark != last:
			last = st.Mark
			rep.Step("wait for the guest to be " + string(want))
		}
		seq := st.Seq
		var err error
		if st, err = l.until(ctx, func(st vmm.Status) bool {
			return st.Phase == vmm.PhaseEnded || st.Mark.Reached(want) || st.Seq > seq
		}); err != nil {
			return err
		}
	}
}

// endedEarly is the error of a VM that ended before it was as far as somebody waited for.
func (s *Service) endedEarly(ctx context.Context, id string, l *live, want api.Mark, st vmm.Status) error {
	select {
	case <-l.ended: // the record says it too
	case <-ctx.Done():
	}
	name := id
	if rec, err := s.cfg.Records.VM(context.WithoutCancel(ctx), id); err == nil {
		name = rec.Name
	}
	_, reason := ended(st.End)
	if reason == "" {
		reason = string(st.End.Cause)
	}
	return api.Errorf(api.KindGuest, "vm %q ended before it was %s: %s", name, want, reason).
		WithHint("the VM was kept: banger vm logs %s shows its console", name)
}
