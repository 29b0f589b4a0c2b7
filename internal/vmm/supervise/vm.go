package supervise

import (
	"context"
	"fmt"
	"slices"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostproc"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/driver"
)

// What a status gives as the reason of a pause.
const (
	pausedAsked    = "asked"
	pausedDiskFull = "host disk full"
)

// started notes a VMM that runs; called by the main goroutine.
func (s *supervisor) started(v driver.VMM) {
	s.mu.Lock()
	s.vmm, s.asked = v, false
	s.mu.Unlock()
	var err error
	if s.rec.VMM, err = hostproc.Identify(v.PID()); err != nil {
		s.log.Warn("the vmm is gone already", "error", err)
	}
	if err := writeJSON(".", paths.VMSupervisor, s.rec, false); err != nil {
		s.log.Error("the vmm was not recorded", "error", err)
	}
	s.board.Update(func(st *vmm.Status) {
		st.Phase, st.PauseReason = vmm.PhaseRunning, ""
		st.SupervisorPID, st.VMMPID = s.rec.Supervisor.PID, v.PID()
		st.Boots++
		st.Mark, st.Agent, st.Init, st.Ending = api.MarkNone, "", "", ""
	})
	s.log.Info("the vmm runs", "pid", v.PID(), "supervisor_ms", time.Since(s.began).Milliseconds())
	s.ready.tell(nil)
}

// stopped notes that there is no VMM; called by the main goroutine.
func (s *supervisor) stopped() {
	s.mu.Lock()
	s.vmm = nil
	s.mu.Unlock()
	s.rec.VMM = hostproc.Process{}
}

// note tells the user something of the VM's fate.
func (s *supervisor) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.log.Warn("note", "text", text)
	s.board.Update(func(st *vmm.Status) { st.Notes = append(st.Notes, text) })
}

// current is the VMM that runs now.
func (s *supervisor) current() (driver.VMM, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.vmm == nil {
		return nil, api.Errorf(api.KindConflict, "VM %q is just being started again", s.spec.Name)
	}
	return s.vmm, nil
}

// refresh takes over what the VMM tells of itself.
func (s *supervisor) refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.vmm == nil {
		return
	}
	now := s.vmm.State()
	s.board.Update(func(st *vmm.Status) {
		switch {
		case !now.Paused:
			st.Phase, st.PauseReason = vmm.PhaseRunning, ""
		case now.DiskFull && !s.asked:
			st.Phase, st.PauseReason = vmm.PhasePaused, pausedDiskFull
		default:
			st.Phase, st.PauseReason = vmm.PhasePaused, pausedAsked
		}
		if note := now.DiskError; note != "" && !slices.Contains(st.Notes, note) {
			st.Notes = append(st.Notes, note)
		}
	})
}

// pause stops the guest's CPUs until resume, whatever else stops them too.
func (s *supervisor) pause(ctx context.Context) error { return s.setPause(ctx, true) }

// resume lets them go on; where the host's disk is still full they will stop again.
func (s *supervisor) resume(ctx context.Context) error { return s.setPause(ctx, false) }

func (s *supervisor) setPause(ctx context.Context, asked bool) error {
	v, err := s.current()
	if err != nil {
		return err
	}
	s.mu.Lock()
	before := s.asked
	s.asked = asked
	s.mu.Unlock()
	if asked {
		err = v.Pause(ctx)
	} else {
		err = v.Resume(ctx)
	}
	if err != nil {
		s.mu.Lock()
		if s.vmm == v {
			s.asked = before
		}
		s.mu.Unlock()
	}
	s.refresh()
	return err
}

func (s *supervisor) pauseAsked() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func (s *supervisor) resize(ctx context.Context, drive string) error {
	v, err := s.current()
	if err != nil {
		return err
	}
	return v.ResizeDrive(ctx, drive)
}

// killAndWait ends the VM at once and returns when that has been recorded.
func (s *supervisor) killAndWait(ctx context.Context) error {
	s.kill()
	for st := s.board.Status(); st.Phase != vmm.PhaseEnded; {
		var err error
		if st, err = s.board.Next(ctx, st.Seq); err != nil {
			return err
		}
	}
	return nil
}

func (s *supervisor) killAsked() bool { return s.killed.Err() != nil }
