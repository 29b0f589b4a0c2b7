package vm

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/disk"
	"git.thaloco.com/thaloco/banger/internal/hostproc"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// statsWithin is how long a guest may take to say how it is.
const statsWithin = 5 * time.Second

// Stats returns the counters of a running VM. What its guest says of itself is left out where the guest does not answer.
func (s *Service) Stats(ctx context.Context, nameOrID string) (api.VMStats, error) {
	l, rec, err := s.alive(ctx, nameOrID)
	if err != nil {
		return api.VMStats{}, err
	}
	out := api.VMStats{ID: rec.ID, Name: rec.Name}
	if out.Host, err = s.hostStats(rec.ID, l.now()); err != nil {
		return api.VMStats{}, fmt.Errorf("count what vm %q takes: %w", rec.Name, err)
	}
	if network, ok := s.cfg.Network.Stats(rec.ID); ok {
		out.Network = &network
	}
	out.Guest = s.guestStats(ctx, l)
	return out, ctx.Err()
}

// hostStats counts what a VM costs the host. A process that has just ended costs nothing.
func (s *Service) hostStats(id string, st vmm.Status) (api.HostStats, error) {
	var out api.HostStats
	for _, pid := range []int{st.VMMPID, st.SupervisorPID} {
		if pid == 0 {
			continue
		}
		u, err := hostproc.UsageOf(pid)
		if err != nil {
			return out, err
		}
		out.MemoryBytes += u.MemoryBytes
		out.CPUSeconds += u.CPU.Seconds()
	}
	if _, used, err := disk.Usage(filepath.Join(s.cfg.Paths.VM(id), paths.VMData)); err == nil {
		out.DiskUsedBytes = used
	}
	return out, nil
}

// guestStats asks the guest; nil where it does not answer in time.
func (s *Service) guestStats(ctx context.Context, l *live) *api.GuestStats {
	if st := l.now(); st.Phase != vmm.PhaseRunning || !st.Mark.Reached(api.MarkAgent) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, statsWithin)
	defer cancel()
	st, err := s.guest(l).Stats(ctx)
	if err != nil {
		s.cfg.Log.Debug("a guest does not say how it is", "err", err)
		return nil
	}
	return &api.GuestStats{UptimeSeconds: st.UptimeSeconds, Load: st.Load, CPUs: st.CPUs,
		BusySeconds:      st.CPU.User + st.CPU.System,
		MemoryTotalBytes: st.MemoryTotalBytes, MemoryAvailableBytes: st.MemoryAvailableBytes,
		DiskTotalBytes: st.Disk.TotalBytes, DiskFreeBytes: st.Disk.FreeBytes}
}
