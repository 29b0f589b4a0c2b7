package vm

import (
	"bytes"
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

// maxDriveLog is the largest log file that is read off a drive, in bytes: it is held in memory.
const maxDriveLog = 64 << 20

// SessionLogs writes what a session printed to w, in which what was dropped is a line of its own. The log of a VM that does not run is
// read off its drive.
func (s *Service) SessionLogs(ctx context.Context, nameOrID, name string, req api.SessionLogs, w io.Writer) error {
	rec, _, err := s.session(ctx, nameOrID, name)
	if err != nil {
		return err
	}
	want := guestapi.SessionLog{Stream: req.Stream, Since: req.Since, Tail: req.Tail, Follow: req.Follow}
	l := s.running(rec.ID)
	if l == nil {
		return s.driveLog(ctx, rec, name, want, w)
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
		return fmt.Errorf("log of session %q of vm %q: %w", name, rec.Name, err)
	}
	return nil
}

// driveLog prints the log of a session from the drive of a VM that does not run.
func (s *Service) driveLog(ctx context.Context, rec store.VM, name string, want guestapi.SessionLog, w io.Writer) error {
	unlock, err := s.lock(ctx, rec.ID) // nobody starts it meanwhile
	if err != nil {
		return err
	}
	defer unlock()
	if s.running(rec.ID) != nil {
		return api.Errorf(api.KindConflict, "vm %q was started meanwhile", rec.Name).WithHint("try again")
	}
	if rec, err = s.cfg.Records.VM(ctx, rec.ID); err != nil {
		return err
	}
	drive, err := ext4.Open(filepath.Join(s.cfg.Paths.VM(rec.ID), paths.VMData))
	if err != nil {
		return fmt.Errorf("log of session %q of vm %q: %w", name, rec.Name, err)
	}
	defer func() { _ = drive.Close() }()
	found := false
	j, err := journal.Open(func(file string) (io.ReaderAt, int64, error) {
		b, err := drive.ReadFile(path.Join(wire.SessionsDir, name, file), maxDriveLog)
		if err != nil {
			return nil, 0, err
		}
		found = true
		return bytes.NewReader(b), int64(len(b)), nil
	})
	if err == nil && !found {
		err = fs.ErrNotExist
	}
	if err != nil {
		e := api.Errorf(api.KindConflict, "log of session %q: vm %q does not run, and its drive does not show it: %w", name, rec.Name, err)
		if errors.Is(err, fs.ErrNotExist) && drive.Super().NeedsRecovery {
			e = api.Errorf(api.KindConflict, "log of session %q: vm %q was killed, and its drive has to be recovered first", name, rec.Name)
		}
		return e.WithHint("start the VM: banger vm start %s", rec.Name)
	}
	defer func() { _ = j.Close() }()
	return j.Log(ctx, w, want.Print(s.cfg.Host.Now()))
}
