package vm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
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
	for {
		l, eng, err := s.launch(ctx, id, rep)
		if err != nil {
			return err
		}
		err = s.await(ctx, id, l, want, rep)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return errors.Join(err, s.killLive(context.WithoutCancel(ctx), id))
		case eng.Engine == "" || !diedAtStart(ctx, err):
			return err
		}
		instead, ok := s.cfg.Supplies.EngineFailed(ctx, eng, err)
		if !ok {
			return err
		}
		s.fallBack(id, eng, instead, err, rep)
	}
}

// fallBack says that another engine is tried.
func (s *Service) fallBack(id string, from, to probe.Decision, cause error, rep progress.Reporter) {
	s.cfg.Log.Warn("the vmm ended at its start", "id", id, "engine", from.Engine, "accel", from.Accel, "instead", to.Title(), "err", cause)
	rep.Note(fmt.Sprintf("%s ended at its start, and %s runs the VM: %s; why: banger doctor", from.Title(), to.Title(), cause))
}

// launch has an engine start the VM, and returns both with the VM's watcher running; no engine where it ran already.
func (s *Service) launch(ctx context.Context, id string, rep progress.Reporter) (_ *live, eng probe.Decision, err error) {
	unlock, err := s.lock(ctx, id)
	if err != nil {
		return nil, eng, err
	}
	defer unlock()
	if l := s.running(id); l != nil {
		return l, eng, nil
	}
	rec, err := s.cfg.Records.VM(ctx, id)
	if err != nil {
		return nil, eng, err
	}
	if _, err := next(rec.State, evStart); err != nil {
		return nil, eng, api.Errorf(api.KindConflict, "start vm %q: %w", rec.Name, err)
	}
	asked := rec.CPUs
	spec, eng, err := s.spec(ctx, rec, rep)
	if err != nil {
		return nil, eng, fmt.Errorf("start vm %q: %w", rec.Name, err)
	}
	if w := s.cfg.Network.Warning(); w != "" {
		s.cfg.Log.Warn("network", "warning", w)
		rep.Note(w)
	}
	up := make(chan struct{})
	if err := s.openForwards(ctx, id, up); err != nil {
		return nil, eng, fmt.Errorf("start vm %q: %w", rec.Name, err)
	}
	defer func() {
		if err != nil {
			s.forwards.Close(id)
		}
	}()
	rep.Step("boot " + rec.Name)
	if err := s.recordSpec(ctx, spec); err != nil {
		return nil, eng, err
	}
	if rec, err = s.move(ctx, id, evStart, ""); err != nil {
		return nil, eng, err
	}
	machine, eng, err := s.boot(ctx, rec, attempt{spec, eng, asked}, rep)
	if err != nil {
		return nil, eng, s.notStarted(ctx, rec, err)
	}
	l := s.watch(rec, machine)
	close(up)
	return l, eng, nil
}

// diedAtStart tells whether a start failed with a VMM that ended at once, for another reason than the room there is on the host, or
// somebody who killed it: then another engine may do better.
func diedAtStart(ctx context.Context, err error) bool {
	if err == nil || ctx.Err() != nil || !errors.Is(err, vmm.ErrStart) || isDiskFull(err) {
		return false
	}
	// What the VMM itself said of it has crossed two processes as text.
	for _, words := range []string{"No space left on device", "Cannot allocate memory", "Out of memory (os error 12)", "signal killed"} {
		if strings.Contains(err.Error(), words) {
			return false
		}
	}
	return true
}

// attempt is one start of a VM.
type attempt struct {
	spec vmm.Spec
	eng  probe.Decision
	// cpus is how many the VM is to have, 0 where nobody said.
	cpus int
}

// boot has the engine start a VM, and another engine where the VMM ends at its start and the choice is banger's; it returns the one
// that did.
func (s *Service) boot(ctx context.Context, rec store.VM, a attempt, rep progress.Reporter) (vmm.Machine, probe.Decision, error) {
	for {
		machine, err := s.cfg.Engine.Start(ctx, s.cfg.Paths.VM(rec.ID), a.spec)
		if err == nil {
			s.cfg.Log.Info("vm started", "vm", rec.Name, "id", rec.ID, "engine", a.spec.Engine, "accel", a.spec.Accel)
			return machine, a.eng, nil
		}
		if !diedAtStart(ctx, err) {
			return nil, a.eng, err
		}
		instead, ok := s.cfg.Supplies.EngineFailed(ctx, a.eng, err)
		if !ok {
			return nil, a.eng, err
		}
		s.fallBack(rec.ID, a.eng, instead, err, rep)
		a.eng = instead
		s.runOn(&a.spec, instead, a.cpus)
		if err := s.recordSpec(ctx, a.spec); err != nil {
			return nil, a.eng, err
		}
	}
}

// recordSpec records what a VM is being started with.
func (s *Service) recordSpec(ctx context.Context, spec vmm.Spec) error {
	now := s.cfg.Host.Now()
	_, err := s.cfg.Records.UpdateVM(ctx, spec.VM, func(r *store.VM) error {
		r.Engine, r.Accel, r.CPUs, r.StartedAt, r.WasReady, r.TAP = spec.Engine, spec.Accel, spec.CPUs, &now, false, spec.TAP
		return nil
	})
	return err
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

// spec is all the engine must know of a VM, and which engine that is.
func (s *Service) spec(ctx context.Context, rec store.VM, rep progress.Reporter) (_ vmm.Spec, eng probe.Decision, err error) {
	if eng, err = s.cfg.Supplies.Engine(ctx, rep); err != nil {
		return vmm.Spec{}, eng, err
	}
	img, err := s.cfg.Supplies.ImageByDigest(ctx, rec.ImageDigest)
	if err != nil {
		return vmm.Spec{}, eng, err
	}
	krn, err := s.cfg.Supplies.KernelByDigest(ctx, rec.KernelDigest)
	if err != nil {
		return vmm.Spec{}, eng, err
	}
	agent, err := s.cfg.Supplies.AgentArchive(ctx)
	if err != nil {
		return vmm.Spec{}, eng, err
	}
	user, err := s.sshKeys(ctx, &rec)
	if err != nil {
		return vmm.Spec{}, eng, err
	}
	lease, err := s.cfg.Network.Lease(ctx, rec.ID)
	if err != nil {
		return vmm.Spec{}, eng, err
	}
	spec := vmm.Spec{Version: vmm.SpecVersion, VM: rec.ID, Name: rec.Name,
		MemoryMiB: int(rec.MemoryBytes >> 20), Kernel: krn.Vmlinux, Initramfs: []string{krn.BootArchive, agent},
		Drives: []vmm.Drive{
			{ID: wire.DriveBase, Path: img.Rootfs, ReadOnly: true},
			{ID: wire.DriveData, Path: paths.VMData}, // relative, so that a snapshot may go on elsewhere
			{ID: wire.DriveModules, Path: krn.ModulesDrive, ReadOnly: true},
		},
		Identity: wire.Identity{VM: rec.ID, Hostname: rec.Name, MachineID: rec.MachineID, Env: append(append([]string{}, img.Env...), rec.Env...),
			WorkDir: img.WorkDir, User: img.User, Cmd: slices.Concat(img.Entry, img.Cmd), DataBytes: rec.DiskBytes,
			AuthorizedKeys: []string{user.Public}, SSHHostKey: rec.SSHHostKey, Network: &lease.Network},
		TAP: lease.TAP, Unsafe: rec.RemoveOnExit}
	s.runOn(&spec, eng, rec.CPUs)
	return spec, eng, nil
}

// runOn puts into spec what depends on the engine. cpus is how many the VM is to have, 0 where nobody said.
func (s *Service) runOn(spec *vmm.Spec, eng probe.Decision, cpus int) {
	emulated := eng.Accel == probe.TCG
	if cpus == 0 {
		cpus = min(s.cfg.Defaults.CPUs(emulated), s.cfg.Host.CPUs)
	}
	spec.Engine, spec.Accel, spec.Binary, spec.CPUs = eng.Engine, eng.Accel, eng.Binary, cpus
	spec.Jailer, spec.Unconfined = eng.Jailer, eng.Unconfined
	spec.BootDeadline = bootDeadlineKVM
	if emulated {
		spec.BootDeadline = bootDeadlineTCG
	}
	network := *spec.Identity.Network
	network.Device = wire.DeviceVirtio
	if eng.Engine == probe.Firecracker && spec.TAP == "" { // its own network devices take root
		network.Device = wire.DeviceTAP
	}
	spec.Identity.Network = &network
}

// await waits for a mark of a running VM, telling its notes on the way.
func (s *Service) await(ctx context.Context, id string, l *live, want api.Mark, rep progress.Reporter) error {
	ctx, cancel := context.WithTimeoutCause(ctx, bootDeadlineTCG*2+readyDeadline,
		api.Errorf(api.KindGuest, "the guest did not become %s in time", want))
	defer cancel()
	told, last, given := 0, api.MarkNone, false
	for st := l.now(); ; {
		told = note(rep, st, told)
		if !given && st.Phase != vmm.PhaseEnded && st.Mark.Reached(api.MarkAgent) {
			if err := s.firstBoot(ctx, id, l, rep); err != nil && l.now().Phase != vmm.PhaseEnded {
				return err
			}
			given, st = true, l.now()
			continue
		}
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
	early := api.Errorf(api.KindGuest, "vm %q ended before it was %s: %s", name, want, reason)
	if st.End.Cause == vmm.EndCrashed && st.Agent == "" && st.Boots <= 1 {
		// Nothing of the guest but banger's own ran: what is wrong is the VMM, or what it runs on.
		early = api.AsError(&crashedEarly{early})
	}
	return early.WithHint("the VM was kept: banger vm logs %s shows its console", name)
}

// crashedEarly is a VMM that ran, but failed before the agent called: a failure of its start as well.
type crashedEarly struct{ error }

// Is makes it a vmm.ErrStart, beside what it says.
func (e *crashedEarly) Is(target error) bool { return target == vmm.ErrStart }

// Unwrap returns what it says.
func (e *crashedEarly) Unwrap() error { return e.error }
