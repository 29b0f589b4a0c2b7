package vm

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/ext4"
	"git.thaloco.com/thaloco/banger/internal/guest/guestapi"
	"git.thaloco.com/thaloco/banger/internal/guest/journal"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/store"
)

// maxDriveLog is the largest log that is read off a drive, in bytes: it is held in memory.
const maxDriveLog = 1 << 30

// SessionLogs writes what a session printed to w, in which what was dropped is a line of its own. The log of a VM that does not run is
// read off its drive.
func (s *Service) SessionLogs(ctx context.Context, nameOrID, name string, req api.SessionLogs, w io.Writer) error {
	rec, v, err := s.session(ctx, nameOrID, name)
	if err != nil {
		return err
	}
	want := guestapi.SessionLog{Stream: req.Stream, Since: req.Since, Tail: req.Tail, Follow: req.Follow}
	l := s.running(rec.ID)
	if l == nil {
		j, err := s.driveLog(ctx, rec, v)
		if err != nil {
			return err
		}
		defer func() { _ = j.Close() }()
		return j.Log(ctx, w, want.Print(s.cfg.Host.Now()))
	}
	if l, _, err = s.reachable(ctx, rec.ID); err != nil {
		return err
	}
	in, err := s.guest(l).SessionLog(ctx, name, want)
	if err != nil {
		return fmt.Errorf("log of session %q of vm %q: %w", name, rec.Name, err)
	}
	defer func() { _ = in.Close() }()
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, in, make([]byte, copyBuffer)); err != nil && ctx.Err() == nil {
		if want.Follow { // which the end of the VM ends as well: it is recorded in a moment
			if ended, eerr := s.sessionEnds(ctx, rec.ID, name, sessionsAnswer); eerr == nil && ended {
				return nil
			}
		}
		return fmt.Errorf("log of session %q of vm %q: %w", name, rec.Name, err)
	}
	return nil
}

// driveLog reads the log of a session off the drive of a VM that does not run. It is in memory then, and the VM free: who prints it may take long.
func (s *Service) driveLog(ctx context.Context, rec store.VM, v store.Session) (*journal.Journal, error) {
	unlock, err := s.lock(ctx, rec.ID) // nobody starts it meanwhile
	if err != nil {
		return nil, err
	}
	defer unlock()
	if s.running(rec.ID) != nil {
		return nil, api.Errorf(api.KindConflict, "vm %q was started meanwhile", rec.Name).WithHint("try again")
	}
	if rec, err = s.cfg.Records.VM(ctx, rec.ID); err != nil {
		return nil, err
	}
	drive, err := ext4.Open(filepath.Join(s.cfg.Paths.VM(rec.ID), paths.VMData))
	if err != nil {
		return nil, fmt.Errorf("log of session %q of vm %q: %w", v.Name, rec.Name, err)
	}
	defer func() { _ = drive.Close() }()
	found, left := false, logBudget(v, s.cfg.Sessions)
	j, err := journal.Open(func(file string) (io.ReaderAt, int64, error) {
		b, err := drive.ReadFile(path.Join(wire.SessionsDir, v.Name, file), left)
		if err != nil {
			return nil, 0, err
		}
		found, left = true, left-int64(len(b))
		return bytes.NewReader(b), int64(len(b)), nil
	})
	if err == nil && !found {
		err = fs.ErrNotExist
	}
	if err != nil {
		e := api.Errorf(api.KindConflict, "log of session %q: vm %q does not run, and its drive does not show it: %w", v.Name, rec.Name, err)
		if errors.Is(err, fs.ErrNotExist) && drive.Super().NeedsRecovery {
			e = api.Errorf(api.KindConflict, "log of session %q: vm %q was killed, and its drive has to be recovered first", v.Name, rec.Name)
		}
		return nil, e.WithHint("start the VM: banger vm start %s", rec.Name)
	}
	return j, nil
}

// logBudget is how many bytes a session's log may have on a drive, which is its guest's and may show anything.
func logBudget(v store.Session, limits SessionLimits) int64 {
	size, files := cmp.Or(v.LogBytes, limits.Bytes), cmp.Or(v.LogFiles, limits.Files)
	size, files = min(max(size, journal.MinSegment), journal.MaxSegment), min(max(files, journal.MinSegments), journal.MaxSegments)
	return min(size*int64(files), maxDriveLog)
}
