package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/paths"
)

// followEvery is how often a followed log is looked at.
const followEvery = 200 * time.Millisecond

var logFiles = map[string]string{"": paths.VMConsoleLog, "console": paths.VMConsoleLog, "agent": paths.VMAgentLog, "vmm": paths.VMMLog}

// Logs writes a log of a VM to w, the older half first. With follow it goes on until ctx ends or the VM
// has stopped and all is written. Source is console (or empty), agent or vmm.
func (s *Service) Logs(ctx context.Context, nameOrID, source string, follow bool, w io.Writer) error {
	file, ok := logFiles[source]
	if !ok {
		return api.Errorf(api.KindInvalid, "log source %q is not valid", source).WithHint("use console, agent or vmm")
	}
	rec, err := s.cfg.Records.VM(ctx, nameOrID)
	if err != nil {
		return err
	}
	path := filepath.Join(s.cfg.Paths.VM(rec.ID), file)
	if old, err := os.Open(path + ".1"); err == nil {
		_, err = io.Copy(w, old)
		_ = old.Close()
		if err != nil {
			return err
		}
	}
	t := tail{path: path, w: w}
	defer t.close()
	if err := t.more(); err != nil || !follow {
		return err
	}
	return t.follow(ctx, func() bool { return s.running(rec.ID) == nil })
}

// tail copies a growing, rotated file.
type tail struct {
	path string
	w    io.Writer
	f    *os.File
}

func (t *tail) close() {
	if t.f != nil {
		_ = t.f.Close()
	}
}

func (t *tail) follow(ctx context.Context, ended func() bool) error {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		last := ended() // asked first: what was written before the end is then copied below
		if err := t.more(); err != nil || last {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// more copies what is new. When the file was rotated, the rest of the old one comes first.
func (t *tail) more() error {
	if t.f != nil {
		rotated := !same(t.f, t.path) // asked first: nothing is written to the old file after
		if _, err := io.Copy(t.w, t.f); err != nil || !rotated {
			return err
		}
		t.close()
		t.f = nil
	}
	f, err := os.Open(t.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	t.f = f
	_, err = io.Copy(t.w, f)
	return err
}

func same(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}
