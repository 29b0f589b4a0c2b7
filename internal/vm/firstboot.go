package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/filesync"
	"git.thaloco.com/thaloco/banger/internal/hostfile"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// firstBootError says that a guest did not take what every new VM gets.
type firstBootError struct{ err error }

// Error implements error.
func (e *firstBootError) Error() string {
	return "copy the files of file_sync into the guest: " + e.err.Error()
}

// Unwrap returns why.
func (e *firstBootError) Unwrap() error { return e.err }

// stage packs what every new VM gets, as it is on the host now, into the VM's directory. The guest is given it when its agent first answers.
func (s *Service) stage(ctx context.Context, rec store.VM, rep progress.Reporter) (err error) {
	if len(s.cfg.FileSync) == 0 {
		return nil
	}
	name := filepath.Join(s.cfg.Paths.VM(rec.ID), paths.VMFirstBoot)
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	warnings, err := filesync.Pack(ctx, f, s.cfg.FileSync)
	for _, w := range warnings {
		s.cfg.Log.Warn("file_sync", "vm", rec.Name, "warning", w)
		rep.Note(w)
	}
	return errors.Join(err, f.Sync())
}

// firstBoot gives a guest what was staged for it, where that has not been done, and removes it on the host once the guest has it.
func (s *Service) firstBoot(ctx context.Context, id string, l *live, rep progress.Reporter) error {
	l.firstBoot.Lock()
	defer l.firstBoot.Unlock()
	name := filepath.Join(s.cfg.Paths.VM(id), paths.VMFirstBoot)
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	rep.Step("copy the files of file_sync")
	in := io.Reader(hostfile.Reader(ctx, f))
	if st, err := f.Stat(); err == nil {
		in = progress.Reader(in, rep, st.Size())
	}
	g := s.guest(l)
	err = g.PutFiles(ctx, "/", in)
	if err == nil {
		err = g.Sync(ctx)
	}
	if err != nil {
		return &firstBootError{err}
	}
	if err := os.Remove(name); err != nil {
		return fmt.Errorf("remove what the guest has: %w", err)
	}
	return hostfile.SyncDir(filepath.Dir(name))
}

// giveLater is firstBoot for a VM whose daemon ended before it had come to that.
func (s *Service) giveLater(rec store.VM, l *live) {
	st, err := l.until(s.ctx, func(st vmm.Status) bool { return st.Phase == vmm.PhaseEnded || st.Mark.Reached(api.MarkAgent) })
	if err != nil || st.Phase == vmm.PhaseEnded {
		return
	}
	if err := s.firstBoot(s.ctx, rec.ID, l, progress.Discard); err != nil && s.ctx.Err() == nil {
		s.cfg.Log.Warn("files for the first boot", "vm", rec.Name, "err", err)
	}
}
